#!/bin/sh
# Steelyard: what an open-loop replay predicts against what training did.
#
#   replay_training.sh [FOLDER]          (default build/training)
#
# The three models were trained on batches of 8192 tokens; training.csv has MaxVio of the last batch of every
# 20 steps. This captures each trained model over held-out text in the proportions of the last part of training,
# replays it in batches of the same size, and prints a row per layer: the mean of the last ten lines of
# training.csv; the replay under the model's own gate; and, for the model that trained with the sign rule, the
# replay with that rule at its rate (0.001), from the captured bias and from zero. Then how softmax-none, which
# nothing balanced, would be under the sign rule: open loop, what training with it might have brought.
set -eu
LC_ALL=C
export LC_ALL

out=${1:-build/training}
program=${STEELYARD:-build/steelyard}
text=$out/text
[ -x "$program" ] || { echo "replay_training.sh: found no $program, expected it built (make)" >&2; exit 1; }
mkdir -p "$text"

# ---- text: tokens in the mix's proportions (bible 50 %, python 11, headers 7, manpages 9, french 7, german 7,
# metamath 9); documents of about one training window (512 tokens), in an order drawn by their names
while read -r domain bytes; do
    sh models/corpus.sh "$text" heldout --bytes-per-document 1500 --bytes-per-domain "$bytes" "$domain"
done <<EOT >&2
bible 110000
python 21500
headers 10200
manpages 16000
french 11800
german 11000
metamath 13500
EOT
set --
for file in $(cd "$text" && find . -name '*.txt' | while read -r name; do
    printf '%s %s\n' "$(printf '%s' "$name" | cksum | cut -d' ' -f1)" "$name"
done | sort -n | cut -d' ' -f2); do
    domain=${file#./}
    set -- "$@" --domain "${domain%%/*}=$text/${file#./}"
done

# ---- per model: capture, replay, compare
means() { # variant -> "layer maxvio" lines
    "$program" sql "$1" "SELECT layer, printf('%.3f', maxvio_batch) AS m FROM replay_summary
        WHERE variant = $2 AND layer IS NOT NULL ORDER BY layer" --csv | tr -d '\r' | tail -n +2
}
printf 'model,layer,training,replay_native,replay_sign_captured,replay_sign_zero\n'
for model in v3-lossfree softmax-aux softmax-none; do
    run=$out/$model.db
    "$program" capture "models/$model" "$@" --out "$run" --context 512 --force >&2
    "$program" replay "$run" --out "$out/$model-native.db" --force --batch-tokens 8192 >&2
    "$program" replay "$run" --out "$out/$model-zero.db" --force --batch-tokens 8192 --bias-rule sign \
        --bias-rate 0.001 >&2
    means "$out/$model-native.db" 1 >"$out/native"
    means "$out/$model-zero.db" 1 >"$out/zero"
    : >"$out/captured"
    if [ "$model" = v3-lossfree ]; then
        "$program" replay "$run" --out "$out/$model-captured.db" --force --batch-tokens 8192 --bias-rule sign \
            --bias-rate 0.001 --bias-start captured >&2
        means "$out/$model-captured.db" 1 >"$out/captured"
    fi
    tail -n 10 "models/$model/training.csv" >"$out/last"
    awk -F, -v model="$model" '
        FILENAME ~ /native$/ { native[$1] = $2; layer[++n] = $1; next }
        FILENAME ~ /captured$/ { captured[$1] = $2; next }
        FILENAME ~ /zero$/ { zero[$1] = $2; next }
        FILENAME ~ /training.csv$/ {
            if (FNR == 1) for (i = 5; i <= NF; i++) { sub("maxvio_batch_L", "", $i); at[$i] = i }
            next
        }
        { for (l in at) sum[l] += $at[l] / 10 }
        END { for (i = 1; i <= n; i++) {
            l = layer[i]
            printf "%s,%s,%.3f,%s,%s,%s\n", model, l, sum[l], native[l], (l in captured) ? captured[l] : "-", zero[l] } }
    ' "$out/native" "$out/captured" "$out/zero" "models/$model/training.csv" "$out/last"
done
