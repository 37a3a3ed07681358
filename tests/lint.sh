#!/bin/sh
# lint.sh - the gate of the house style: layer arrows, headers alone, lengths, format
#   sh tests/lint.sh CC "CFLAGS"      prints what is wrong and exits 1; silent parts passed
set -u
cc=$1
cflags=$2
failed=0
say() { printf '%s\n' "$*"; failed=1; }

# the models' recipe is no part of the program
sources() { git ls-files "$@" 2>/dev/null | grep -v '^models/'; }

# ---- arrows: a folder may include only itself and what stands here (DESIGN section 3)
allowed() {
    case $1 in
    base) echo "base" ;;
    router) echo "router base" ;;
    analysis) echo "analysis base" ;;
    plots) echo "plots base embed" ;;
    engine) echo "engine router base" ;;
    traces) echo "traces router base embed" ;;
    sim) echo "sim traces router analysis base" ;;
    cli) echo "cli sim engine traces plots analysis router base embed" ;;
    esac
}
for folder in base router analysis plots engine traces sim cli; do
    ok=" $(allowed $folder) "
    sources "$folder/*.c" "$folder/*.h" | while read -r f; do
        sed -n 's/^#include "\([a-z_0-9]*\)[./].*/\1/p' "$f" | sort -u | while read -r to; do
            case "$ok" in *" $to "*) ;; *) echo "$f: includes $to/, allowed:$ok" ;; esac
        done
    done
done >build/lint.txt

# ---- one library per folder
only() { # pattern, allowed path prefix
    sources '*.c' '*.h' | grep -v '^tests/' | xargs grep -lE "$1" 2>/dev/null | grep -vE "$2" |
        sed "s|\$|: includes what only $2 may|" >>build/lint.txt
}
only '#include <sqlite3' '^traces/'
only '#include <gsl/' '^analysis/'
only '#include <cjson/' '^base/json.c'
only '#include <(pcre2|utf8proc)' '^engine/'
only '#include <mpi' '^cli/'

# ---- only cli/ prints to the terminal or exits
sources '*.c' | grep -vE '^(cli|tests)/' |
    xargs grep -nE '(^|[^a-z_])(exit|abort|printf|puts|perror)\(|fprintf\((stdout|stderr)' 2>/dev/null |
    sed 's/$/   <- prints or exits outside cli\//' >>build/lint.txt

# ---- lengths: functions warn at 60 lines and fail at 100, files fail at 800
sources '*.c' '*.h' | grep -v '^tests/golden/' | while read -r f; do
    awk -v f="$f" '
        /^[A-Za-z_].*\{[ \t]*$/ && /\(/ || (/^[ \t]+.*\) \{[ \t]*$/ && open == 0 && head) { start = FNR; open = 1; name = $0 }
        { head = (/^[A-Za-z_].*\(/ && !/[;{]/) ? 1 : (head && !/[;{}]/) }
        /^\}/ && open { n = FNR - start + 1; open = 0
                        if (n > 100) print f ":" start ": function of " n " lines, at most 100"
                        else if (n > 60) print f ":" start ": " n " lines (think)" >"/dev/stderr" }
        END { if (FNR > 800) print f ": " FNR " lines, at most 800" }' "$f"
done >>build/lint.txt

# ---- every file says in its first line what it is
sources '*.c' '*.h' | while read -r f; do
    head -n 1 "$f" | grep -q "^/\* $(basename "$f") - " || echo "$f: first line must be: /* $(basename "$f") - what it is"
done >>build/lint.txt

# ---- each header compiles alone
sources '*.h' | while read -r h; do
    # shellcheck disable=SC2086
    $cc $cflags -Wno-unused-function -Wno-unused-const-variable -fsyntax-only -x c "$h" 2>build/lint.err || { echo "$h: does not compile alone"; sed 3q build/lint.err; }
done >>build/lint.txt

# ---- nothing left undone, no machine paths
sources '*.c' '*.h' | grep -v '^tests/lint' | xargs grep -nE '\b(TODO|FIXME|XXX|HACK)\b' 2>/dev/null >>build/lint.txt
sources '*.md' '*.c' '*.h' '*.sh' '*.py' Makefile | grep -v lint.sh | xargs grep -nE '(^|[^.a-z])/(work|root|home/[a-z]+|tmp/wt)/' 2>/dev/null >>build/lint.txt

# ---- format
if command -v clang-format >/dev/null 2>&1; then
    sources '*.c' '*.h' | while read -r f; do
        clang-format --dry-run --Werror "$f" >/dev/null 2>&1 || echo "$f: not formatted (make format)"
    done >>build/lint.txt
else
    echo "lint: clang-format is not installed, format not checked"
fi

[ -s build/lint.txt ] && say "$(cat build/lint.txt)"
[ $failed = 0 ] && echo "lint: clean"
exit $failed
