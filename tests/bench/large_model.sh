#!/bin/sh
# large_model.sh - captures a checkpoint larger than memory and measures the resident set
#
#   tests/bench/large_model.sh [LAYERS [COMPUTE [MEMORY:TOKENS...]]]      (default: 24 bf16 4G:2048 1G:2048 1G:8192)
#
# Makes a random OLMoE-shaped checkpoint (0.84 GB of bf16 a layer; 24 layers: 20.6 GB) in $TMPDIR (else
# /var/tmp), and captures TOKENS tokens with --memory MEMORY in one pass, for each case, the page cache
# dropped before (root only). With 1G no whole layer fits. Prints CSV: bytes of the weights, bytes that the
# capture read (all but the embeddings, whose rows it looks up), peak resident set (VmHWM), seconds, bytes
# read per second, what dd reads of one cold shard just before, and a hash of the exported choices, weights,
# their logits and likelihoods: equal for equal TOKENS. Every byte of the files is real; values repeat every 64 MB.
# The checkpoint is removed at the end; one that lies in $STEELYARD_LARGE is used, or made there, and kept.
set -eu
LC_ALL=C
export LC_ALL
layers=${1:-24} compute=${2:-bf16}
[ $# -gt 2 ] && shift 2 || set -- 4G:2048 1G:2048 1G:8192
program=${STEELYARD:-build/steelyard}
hidden=2048 width=1024 experts=64 vocab=50304
here=$(mktemp -d "${TMPDIR:-/var/tmp}/steelyard-large-XXXXXX")
trap 'rm -rf "$here"' EXIT
trap 'exit 1' INT TERM
model=${STEELYARD_LARGE:-$here/model}
mkdir -p "$model"

make_model() {
cat >"$model/config.json" <<END
{"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": $hidden, "intermediate_size": $width,
 "num_hidden_layers": $layers, "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": $experts,
 "num_experts_per_tok": 8, "norm_topk_prob": false, "vocab_size": $vocab, "max_position_embeddings": 4096,
 "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": false, "clip_qkv": null,
 "tie_word_embeddings": false, "bos_token_id": null, "eos_token_id": 0, "torch_dtype": "bfloat16"}
END

# bf16 values of magnitude 2^-7 .. 2^-6: low byte random, high byte 0x3c or 0xbc
head -c 524288 /dev/urandom | od -An -v -tu1 -w1 |
    awk '{ printf "%c%c", $1, $1 % 2 ? 60 : 188 }' >"$here/block"
for i in 1 2 3 4 5 6; do
    cat "$here/block" "$here/block" >"$here/twice" && mv "$here/twice" "$here/block"
done

# shard NAME: the tensors on stdin ("name rows columns", columns 0 = vector), their header, their bytes
shard() {
    awk '{ n = $2 * ($3 ? $3 : 1) * 2
           h = h sprintf("%s\"%s\": {\"dtype\": \"BF16\", \"shape\": [%s], \"data_offsets\": [%.0f, %.0f]}",
                         (NR > 1 ? ", " : "{"), $1, ($3 ? $2 ", " $3 : $2), at, at + n)
           at += n }
         END { h = h "}"
               while (length(h) % 8) h = h " "
               for (n = length(h); i < 8; i++) { printf "%c", n % 256; n = int(n / 256) }
               printf "%s", h
               printf "%.0f\n", at >"/dev/stderr" }' >"$model/$1" 2>"$here/size"
    size=$(cat "$here/size")
    while :; do cat "$here/block" 2>/dev/null || break; done | head -c "$size" >>"$model/$1"
    sed "s/\$/ $1/" "$here/names" >>"$here/map"
}

list() { tee "$here/list" | awk '{ print $1 }' >"$here/names"; }
: >"$here/map"
printf '%s\n' "model.embed_tokens.weight $vocab $hidden" "model.norm.weight $hidden 0" \
    "lm_head.weight $vocab $hidden" | list
shard model-top.safetensors <"$here/list"
layer=0
while [ "$layer" -lt "$layers" ]; do
    awk -v p="model.layers.$layer." -v h=$hidden -v w=$width -v n=$experts 'BEGIN {
        print p "input_layernorm.weight", h, 0; print p "post_attention_layernorm.weight", h, 0
        print p "self_attn.q_norm.weight", h, 0; print p "self_attn.k_norm.weight", h, 0
        split("q k v o", a); for (i = 1; i <= 4; i++) print p "self_attn." a[i] "_proj.weight", h, h
        print p "mlp.gate.weight", n, h
        for (e = 0; e < n; e++) {
            q = p "mlp.experts." e "."
            print q "gate_proj.weight", w, h; print q "up_proj.weight", w, h; print q "down_proj.weight", h, w } }' |
        list
    shard "model-layer-$layer.safetensors" <"$here/list"
    layer=$((layer + 1))
done
awk 'BEGIN { printf "{\"weight_map\": {" } { printf("%s\"%s\": \"%s\"", (NR > 1 ? ", " : ""), $1, $2) } END { print "}}" }' \
    "$here/map" >"$model/model.safetensors.index.json"
}

[ -e "$model/model.safetensors.index.json" ] || make_model
awk -v v=$vocab 'BEGIN { srand(1); for (i = 0; i < 16384; i++) printf "%d ", int(rand() * v); print "" }' |
    sed 's/ $//' >"$here/ids.txt"
sync
bytes=$(wc -c "$model"/*.safetensors | awk 'END { print $1 }')

drop() { sh -c 'echo 3 >/proc/sys/vm/drop_caches' 2>/dev/null || echo "page cache not dropped" >&2; }

# run MEMORY TOKENS: one row
run() {
    drop
    disk=$(dd if="$model/model-layer-0.safetensors" of=/dev/null bs=4M 2>&1 | awk -F, 'END { print $NF }')
    drop
    begun=$(date +%s)
    "$program" capture "$model" --ids "$here/ids.txt" --out "$here/run.db" --force --memory "$1" --compute "$compute" \
        --context 2048 --max-tokens "$2" --pass-tokens "$2" --csv >"$here/summary" 2>"$here/errors" &
    pid=$!
    peak=0
    while kill -0 "$pid" 2>/dev/null; do
        now=$(awk '/^VmHWM/ { print $2 }' "/proc/$pid/status" 2>/dev/null || true)
        [ -z "$now" ] || peak=$now
        sleep 0.2
    done
    wait "$pid" || { cat "$here/errors" >&2; exit 1; }
    seconds=$(($(date +%s) - begun))
    read=$(sed -n 's/^.*--memory: read \([0-9]*\) bytes.*$/\1/p' "$here/errors")
    "$program" export "$here/run.db" --to csv --out "$here/run.csv" --force 2>/dev/null >&2
    scores=$(sha256sum "$here/run.csv" | cut -c 1-16)
    echo "$bytes,$1,$2,$compute,$read,$((peak * 1024)),$seconds,$((read / (seconds ? seconds : 1))),$disk,$scores"
}

echo "weight_bytes,memory,tokens,compute,read_bytes,peak_rss_bytes,seconds,read_bytes_per_s,dd_read,scores"
for case in "$@"; do run "${case%:*}" "${case#*:}"; done
