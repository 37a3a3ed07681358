#!/bin/sh
# Steelyard: text for training and evaluating the models in this directory.
#
#   corpus.sh OUT_DIR train|heldout [--bytes-per-domain N] [--bytes-per-document N] [DOMAIN...]
#
# Fetches Debian packages with apt-get download (nothing is installed), takes the text out of
# them and writes one document per file, OUT_DIR/DOMAIN/NNN-name.txt.  A document whose name
# hashes to 0 modulo 16 is held out, every other one belongs to training.  "heldout" cuts
# each document at a line end (default 6000 bytes) and stops at a limit per domain (default
# 120000 bytes); "train" does neither.  A domain which cannot be made is reported and left
# out; the exit status is 1 only if none could be made.
#
# Domains:  bible     bible-kjv, bible-kjv-text    King James Bible, one chapter a document
#           python    libpython3.11-stdlib         Python's library, one module a document
#           headers   linux-libc-dev               C headers of the Linux kernel interface
#           manpages  manpages, manpages-dev       manual pages, roff requests removed
#           french    manpages-fr                  manual pages in French
#           german    manpages-de                  manual pages in German
#           metamath  metamath-databases           set.mm, about 8 kB of it a document
# Default for train: all.  For heldout: the first five, together 12 MB of packages.
#
# Packages are kept in OUT_DIR/.packages, or in $STEELYARD_PACKAGES if that is set.
set -u
LC_ALL=C
export LC_ALL

usage() { sed -n '4p' "$0" | sed 's/^# */usage: /' >&2; exit 2; }
say() { printf 'corpus.sh: %s\n' "$*" >&2; }

[ $# -ge 2 ] || usage
out=$1 mode=$2
shift 2
total=${STEELYARD_BYTES_PER_DOMAIN:-120000} each=${STEELYARD_BYTES_PER_DOCUMENT:-6000} domains=
while [ $# -gt 0 ]; do
    case $1 in
    --bytes-per-domain) [ $# -gt 1 ] || usage; total=$2; shift ;;
    --bytes-per-document) [ $# -gt 1 ] || usage; each=$2; shift ;;
    -*) usage ;;
    *) domains="$domains $1" ;;
    esac
    shift
done
case $total$each in *[!0-9]*) usage ;; esac
case $mode in
train) total=0 each=0; : "${domains:=bible python headers manpages french german metamath}" ;;
heldout) : "${domains:=bible python headers manpages french}" ;;
*) usage ;;
esac

mkdir -p "$out" || exit 1
debs=${STEELYARD_PACKAGES:-$out/.packages}
mkdir -p "$debs" || exit 1
debs=$(cd "$debs" && pwd)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
updated=

# Download one package and unpack it below $work/PACKAGE.
fetch() {
    [ -d "$work/$1" ] && return 0
    set -- "$1" "$debs/$1"_*.deb
    if [ ! -f "$2" ]; then
        if ! (cd "$debs" && apt-get -q download "$1") >"$work/log" 2>&1; then
            # A bare container has no package lists yet.
            if [ -z "$updated" ]; then updated=1; apt-get -q update >/dev/null 2>&1; fi
            if ! (cd "$debs" && apt-get -q download "$1") >"$work/log" 2>&1; then
                say "cannot download $1:"
                sed 's/^/    /' "$work/log" | tail -n 3 >&2
                return 1
            fi
        fi
        set -- "$1" "$debs/$1"_*.deb
    fi
    shift $(($# - 1)) # the last file if several versions lie there
    pkg=$(basename "$1")
    pkg=${pkg%%_*}
    dpkg-deb -x "$1" "$work/$pkg.tmp" 2>/dev/null && mv "$work/$pkg.tmp" "$work/$pkg" && return 0
    say "cannot unpack $1"
    return 1
}

# Each make_DOMAIN prints lines "name<TAB>file"; each is turned into text by read_DOMAIN.
make_bible() {
    fetch bible-kjv && fetch bible-kjv-text || return 1
    lib=
    if ! "$work/bible-kjv/usr/bin/bible" -h </dev/null 2>&1 | grep -q -i usage; then
        fetch libreadline8 || return 1 # the reader needs it, a bare container has it not
        lib=$(dirname "$(find "$work/libreadline8" -name 'libreadline.so.8' | head -n 1)")
    fi
    LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
        "$work/bible-kjv/usr/bin/bible" -f -p "$work/bible-kjv-text/usr/lib" \
        Gen1:1-Rev22:21 </dev/null >"$work/bible.txt" 2>/dev/null
    [ "$(wc -l <"$work/bible.txt")" -gt 30000 ] || { say "bible-kjv gives no text"; return 1; }
    mkdir "$work/chapters"
    awk -v dir="$work/chapters" '
        { split($1, ref, ":")
          if (ref[1] != last) {
              last = ref[1]; book = last; sub(/[0-9]+$/, "", book)
              if (file != "") close(file)
              file = sprintf("%s/%s-%03d", dir, book, substr(last, length(book) + 1))
          }
          print > file }' "$work/bible.txt"
    list "$work/chapters" '*'
}
read_bible() { cat "$1"; }

make_python() { fetch libpython3.11-stdlib && list "$work/libpython3.11-stdlib/usr/lib/python3.11" '*.py'; }
read_python() { cat "$1"; }

make_headers() { fetch linux-libc-dev && list "$work/linux-libc-dev/usr/include" '*.h'; }
read_headers() { cat "$1"; }

make_manpages() {
    fetch manpages && fetch manpages-dev || return 1
    list "$work/manpages/usr/share/man" '*.gz'
    list "$work/manpages-dev/usr/share/man" '*.gz'
}
read_manpages() { roff "$1"; }
make_french() { fetch manpages-fr && list "$work/manpages-fr/usr/share/man/fr" '*.gz'; }
read_french() { roff "$1"; }
make_german() { fetch manpages-de && list "$work/manpages-de/usr/share/man/de" '*.gz'; }
read_german() { roff "$1"; }

make_metamath() {
    fetch metamath-databases || return 1
    mkdir "$work/mm"
    # One piece in four of set.mm, cut at blank lines.
    awk -v dir="$work/mm" '
        { size += length($0) + 1
          if (n % 4 == 0) print > sprintf("%s/set-%05d", dir, n) }
        /^$/ && size > 8000 { if (n % 4 == 0) close(sprintf("%s/set-%05d", dir, n)); n++; size = 0 }
    ' "$work/metamath-databases/usr/share/metamath/databases/set.mm"
    list "$work/mm" '*'
}
read_metamath() { cat "$1"; }

# Names and paths of the plain files below a directory.
list() {
    (cd "$1" && find . -type f -name "$2" | sort) | awk -v dir="$1" '
        { name = substr($0, 3); file = dir "/" name
          sub(/\.gz$/, "", name); gsub(/[^A-Za-z0-9._-]/, "_", name)
          print name "\t" file }'
}

# A manual page without comments, requests and font changes.
roff() {
    gzip -dc "$1" 2>/dev/null | awk '
        /^[.'"'"']\\"/ || /^\.\\}/ { next }
        /^[.'"'"']/ {
            request = $1; sub(/^[.'"'"'][ \t]*[^ \t]*[ \t]*/, "")
            if (request ~ /^.(TH|SH|SS)$/) { gsub(/"/, ""); print ""; print clean($0); next }
            if (request ~ /^.(PP|P|LP|TP|IP|HP)$/) { print ""; if (request == ".IP") print clean(first($0)); next }
            if (request ~ /^.(B|I|BR|RB|BI|IB|IR|RI|SM|SB)$/) {
                if (request ~ /^.(BR|RB|BI|IB|IR|RI)$/) $0 = join($0); else gsub(/"/, "")
                if ($0 != "") print clean($0)
            }
            next
        }
        { print clean($0) }
        function first(s) {
            if (s ~ /^"/) { s = substr(s, 2); sub(/".*/, "", s) } else sub(/[ \t].*/, "", s)
            return s
        }
        # Arguments of a request with alternating fonts, put together without the blanks between.
        function join(s,  r, i, c, q) {
            for (i = 1; i <= length(s); i++) {
                c = substr(s, i, 1)
                if (c == "\"") q = !q
                else if (c == "\\" && substr(s, i + 1, 1) == " ") { r = r " "; i++ }
                else if ((c != " " && c != "\t") || q) r = r c
            }
            return r
        }
        function clean(s) {
            gsub(/\\f\[[A-Za-z]*\]|\\f\(..|\\f./, "", s)
            gsub(/\\s[-+]?[0-9]/, "", s); gsub(/\\[&|^\/,%:c]/, "", s)
            gsub(/\\\(aq|\\\[aq\]|\\\(cq|\\\[cq\]/, "'"'"'", s); gsub(/\\\(lq|\\\[lq\]|\\\(rq|\\\[rq\]|\\\(dq|\\\[dq\]/, "\"", s)
            gsub(/\\\(em|\\\[em\]/, "--", s); gsub(/\\\(en|\\\[en\]/, "-", s); gsub(/\\\(bu|\\\[bu\]/, "*", s)
            gsub(/\\\(ha|\\\[ha\]/, "^", s); gsub(/\\\(ti|\\\[ti\]/, "~", s); gsub(/\\\(mu|\\\[mu\]/, "x", s)
            gsub(/\\\(Fo|\\\[Fo\]/, "\302\253", s); gsub(/\\\(Fc|\\\[Fc\]/, "\302\273", s)
            gsub(/\\\*\(..|\\\*\[[^]]*\]/, "", s); gsub(/\\-/, "-", s); gsub(/\\[ ~0]/, " ", s)
            gsub(/\\[e\\]/, "\\", s)
            return s
        }' | cat -s
}

# Keep the names of one side of the split; held-out ones come in the order of their hash, so
# that a limit takes a sample from everywhere.
choose() {
    awk -F '\t' -v mode="$mode" '
        BEGIN { for (i = 1; i < 256; i++) code[sprintf("%c", i)] = i }
        { h = 7
          for (i = 1; i <= length($1); i++) h = (h * 257 + code[substr($1, i, 1)]) % 1000003
          for (i = 0; i < 3; i++) h = (h * 1103 + 12345) % 1000003
          if ((h % 16 == 0) == (mode == "heldout")) printf "%07d\t%s\n", mode == "heldout" ? h : NR, $0 }' | sort
}

tab=$(printf '\t')
made=0
for domain in $domains; do
    case $domain in
    bible | python | headers | manpages | french | german | metamath) ;;
    *) say "unknown domain $domain"; continue ;;
    esac
    if ! "make_$domain" >"$work/names"; then say "$domain left out"; continue; fi
    choose <"$work/names" >"$work/chosen"
    mkdir -p "$out/$domain" && rm -f "$out/$domain"/*.txt
    n=0 sum=0
    while IFS=$tab read -r _ name file; do
        "read_$domain" "$file" >"$work/text"
        size=$(wc -c <"$work/text")
        [ "$size" -ge 500 ] || continue
        target=$out/$domain/$(printf '%03d' "$n")-$name.txt
        if [ "$each" -gt 0 ] && [ "$size" -gt "$each" ]; then
            awk -v limit="$each" '{ size += length($0) + 1; if (size > limit) exit; print }' \
                "$work/text" >"$target"
            size=$(wc -c <"$target")
            [ "$size" -ge 500 ] || { rm -f "$target"; continue; }
        else
            cp "$work/text" "$target"
        fi
        n=$((n + 1)) sum=$((sum + size))
        [ "$total" -gt 0 ] && [ "$sum" -ge "$total" ] && break
    done <"$work/chosen"
    if [ "$n" -gt 0 ]; then
        made=$((made + 1))
        printf '%-9s %6d documents %9d bytes\n' "$domain" "$n" "$sum"
    else
        say "$domain: no text"
    fi
done
[ "$made" -gt 0 ]
