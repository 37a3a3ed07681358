#!/bin/sh
# Steelyard: the main job from end to end, on the models that ship with the project.
#
#   demo.sh [FOLDER]          (default build/demo; `make demo` calls it from the top folder)
#
# Takes held-out text of several domains, runs each model of models/ over it and records every router
# score, replays the scores of the first model under other gates, and writes a report. May be run again:
# everything is made anew, only downloaded packages are kept.
set -eu
LC_ALL=C
export LC_ALL

out=${1:-build/demo}
program=${STEELYARD:-build/steelyard}
main=models/v3-lossfree
text=$out/text
step() { printf '== %s\n' "$*"; }

[ -x "$program" ] || { echo "demo.sh: found no $program, expected it built (make)" >&2; exit 1; }
[ -f "$main/model.safetensors" ] || { echo "demo.sh: found no $main/model.safetensors" >&2; exit 1; }
mkdir -p "$out"

# ---- text: one folder per domain, one document per file
own_text() { # the project's own documents and sources, where no package can be had
    for pair in 'own-documents *.md */*.md models/*/*.md' 'own-sources */*.c' 'own-headers */*.h' \
        'own-python models/recipe/*.py' 'own-shell models/*.sh tests/*.sh'; do
        # shellcheck disable=SC2086 # words and patterns are meant to be split and expanded
        set -- $pair
        domain=$1 bytes=0
        shift
        mkdir -p "$text/$domain"
        for file in "$@"; do
            [ -f "$file" ] && [ "$bytes" -lt 72000 ] || continue
            copy=$text/$domain/$(echo "$file" | tr / -)
            head -c 6000 "$file" >"$copy"
            bytes=$((bytes + $(wc -c <"$copy")))
        done
    done
}

step "text: held-out parts of Debian packages"
rm -rf "$text"/own-*
sh models/corpus.sh "$text" heldout --bytes-per-domain 72000 || true
domains=$(find "$text" -mindepth 1 -maxdepth 1 -type d ! -name '.*' | wc -l)
if [ "$domains" -lt 4 ]; then
    step "text: packages gave $domains domains; the project's own documents and sources besides"
    own_text
fi
set --
for folder in "$text"/*/; do
    folder=${folder%/}
    set -- "$@" --domain "$(basename "$folder")=$folder"
done

# ---- capture: each model over the same text
captures=
for model in "$main" models/*; do
    [ -f "$model/model.safetensors" ] || continue
    if [ "$model" = "$main" ]; then run=$out/run.db; else run=$out/run-$(basename "$model").db; fi
    case " $captures " in *" $run "*) continue ;; esac
    step "capture: $model -> $run"
    "$program" capture "$model" "$@" --out "$run" --force
    captures="$captures $run"
done

# ---- replay: the first model's scores under other gates
step "replay: scores x groups x normalisations x bias rules and rates x batch sizes x ranks -> $out/result.db"
"$program" replay "$out/run.db" --out "$out/result.db" --force \
    --score sigmoid,softmax --groups 8:4:top2sum,none --norm sum:1e-20,none \
    --bias-rule frozen,none,sign --bias-rate 0.0001,0.001,0.01,0.1 \
    --batch-tokens 2048,512,8192 --ranks 8,4,16 --order shuffled \
    --csv >"$out/replay.csv" 2>"$out/replay.log" || { cat "$out/replay.log" >&2; exit 1; }
echo "$(($(wc -l <"$out/replay.csv") - 1)) variants; notes in $out/replay.log"

# ---- throughput: what load, gate and placement cost in time, as if the layers had DeepSeek-V3's sizes
step "throughput: gates x bias rates x placements x replicas x ranks on 8 H100 a node -> $out/result.db"
"$program" throughput "$out/run.db" --out "$out/result.db" --cluster h100-deepgemm --hidden 7168 --inter 2048 --moe-only \
    --gate native --gate native,groups=none --bias-rule frozen,none,sign --bias-rate 0.001,0.01 --ranks 8,16 \
    --placement contiguous,eplb --replicas 0,32 --tokens 512 --concurrency 1,8,64 --load trace,uniform \
    --learn whole,previous --refresh 1,4,16 --batches 32 \
    --csv >"$out/throughput.csv" 2>"$out/throughput.log" || { cat "$out/throughput.log" >&2; exit 1; }
echo "$(($(wc -l <"$out/throughput.csv") - 1)) cells; notes in $out/throughput.log"

# ---- report: the replay, and the other models beside it
step "report: figures and page"
# shellcheck disable=SC2086 # file names of ours, without blanks
"$program" report "$out/result.db" ${captures# "$out/run.db"} --out "$out" --force >"$out/findings.txt"

step "done"
printf '%s\n' "$out/run.db" "$out/result.db" "$out"/*.svg
cat "$out/findings.txt"
