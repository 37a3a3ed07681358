#!/bin/sh
# deps.sh - installs the Debian packages that building and testing need, if any is missing
#   sh tests/deps.sh [MORE...]
set -eu
need="gcc libc6-dev make libgsl-dev libsqlite3-dev sqlite3 libcjson-dev libpcre2-dev libutf8proc-dev
zlib1g-dev gnuplot-nox libcmocka-dev $*"
missing=""
for p in $need; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
echo "installing:$missing" >&2
root=""
[ "$(id -u)" = 0 ] || root="sudo"
export DEBIAN_FRONTEND=noninteractive
$root apt-get update -qq
# shellcheck disable=SC2086
$root apt-get install -y -qq --no-install-recommends $missing >/dev/null
