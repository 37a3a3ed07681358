"""Write a model's card:  python models/recipe/card.py models/v3-lossfree FIGURES.json

FIGURES.json comes from evaluate.py --json; the rest from config.json, training.csv and the
weights."""
import csv
import json
import pathlib
import sys

import numpy as np
from safetensors import safe_open

from data import MIX, MIX_BIBLE
from train import SEED

ABOUT = {
    "v3-lossfree": (
        "DeepSeek-V3 in small: multi-head latent attention with low-rank queries, one dense layer, "
        "five MoE layers with 32 routed experts in 8 groups of which 4 are kept, top 4, one shared "
        "expert; sigmoid scores, normalised weights times 2.5.",
        "No auxiliary loss. The correction bias of each expert moves by 0.001 sign(mean - count) "
        "after every step, from that step's counts (f32 in the file)."),
    "softmax-aux": (
        "OLMoE layout: multi-head attention with RMSNorm over queries and keys, six MoE layers with "
        "32 experts, top 4 by softmax, weights normalised, no shared expert.",
        "Auxiliary loss of the Switch Transformer in every layer: 0.01 E sum_e f_e P_e over a "
        "micro-batch of 4,096 tokens, f_e the share of the choices and P_e the mean probability."),
    "softmax-none": (
        "OLMoE layout: multi-head attention with RMSNorm over queries and keys, six MoE layers with "
        "32 experts, top 4 by softmax, weights normalised, no shared expert.",
        "None at all: the comparison for `softmax-aux`, which differs in nothing else."),
}


def main(folder, figures):
    folder = pathlib.Path(folder)
    name, cfg = folder.name, json.loads((folder / "config.json").read_text())
    fig = json.loads(pathlib.Path(figures).read_text())
    with open(folder / "training.csv") as f:
        rows = list(csv.DictReader(f))
    with safe_open(folder / "model.safetensors", "pt") as f:
        count = {n: int(np.prod(f.get_slice(n).get_shape())) for n in f.keys()}
    total = sum(count.values())
    routed = sum(c for n, c in count.items() if ".mlp.experts." in n)
    E, k = cfg.get("n_routed_experts") or cfg["num_experts"], cfg["num_experts_per_tok"]
    active = total - routed + routed * k // E
    v3 = cfg["model_type"] == "deepseek_v3"
    layers = [c.rsplit("_", 1)[1] for c in rows[0] if c.startswith("maxvio")]
    last = rows[-10:]
    vio = np.array([[float(r[f"maxvio_batch_{l}"]) for l in layers] for r in last]).mean(0)
    one = lambda v: " | ".join(f"{x:.2f}" for x in v) + f" | {np.mean(v):.2f}"
    mix = lambda m: ", ".join(f"{d} {100 * s:.0f} %" for d, s in m.items())
    tok = int(rows[-1]["tokens"])
    out = f"""# {name}

A Mixture-of-Experts language model small enough to lie in a repository, trained for Steelyard's
demonstrations and tests. It is one of three which saw the same text in the same order:
`softmax-aux` and `softmax-none` differ in the balancing alone, `v3-lossfree` is another architecture
of the same size.

| | |
|---|---|
| architecture | `{cfg['model_type']}`. {ABOUT[name][0]} |
| balancing | {ABOUT[name][1]} |
| size | hidden {cfg['hidden_size']}, {cfg['num_hidden_layers']} layers, expert width {cfg['moe_intermediate_size'] if v3 else cfg['intermediate_size']}, vocabulary {cfg['vocab_size']}, tied embeddings |
| parameters | {total:,}, of which {active:,} serve a token; bf16, {(folder / 'model.safetensors').stat().st_size:,} bytes |
| context | 512 tokens |
| tokenizer | byte-level BPE, 2,048 entries, GPT-2's split, no BOS; `<|endoftext|>` (0) between documents |
| training | {int(rows[-1]['step']):,} steps, {tok:,} tokens, seed {SEED}, last loss {float(rows[-1]['loss']):.3f} nats a token; see `training.csv` and `../recipe` |
| text | Debian 12 packages as `../corpus.sh` takes them: {mix(MIX)}; from the step named in `../recipe/schedule.json` on: {mix(MIX_BIBLE)} |

`training.csv` has a line for every 20 steps: step, tokens, mean loss, learning rate of the matrices
and MaxVio of the last batch for each MoE layer. MaxVio = max_e n_e / mean - 1; 0 is perfect balance,
{E // k - 1} the most that top {k} of {E} allows. Mean over the last ten lines: """ + \
        ", ".join(f"{l} {x:.2f}" for l, x in zip(layers, vio)) + f"""; all {vio.mean():.2f}.

## Held-out text

`corpus.sh DIR heldout` with all seven domains: documents of which nothing was trained on, at most
6,000 bytes each, read in windows of 512 tokens overlapping by half, each document after
`<|endoftext|>`. Measured with `../recipe/evaluate.py`.

| domain | documents | bytes | tokens | bits per byte |
|---|---:|---:|---:|---:|
"""
    for d, r in fig.items():
        if d != "mix":
            out += f"| {d} | {r['documents']} | {r['bytes']} | {r['tokens']} | {r['bits_per_byte']:.3f} |\n"
    head = " | ".join(layers)
    for key, title in ("maxvio_global", "MaxVio over the whole of a domain"), \
                      ("maxvio_batch", "MaxVio per batch of 4,096 tokens, mean over the batches"):
        out += f"\n{title}:\n\n| text | {head} | mean |\n|---|" + "---:|" * (len(layers) + 1) + "\n"
        for d, r in fig.items():
            out += f"| {'drawn in the proportions of the training mix' if d == 'mix' else d} | {one(r[key])} |\n"
    out += """
## Use

Good for exercising routers: learnt router scores which differ between domains, in a model which any
processor runs quickly. It continues text in the manner of the King James Bible, Python, C headers and
manual pages for a line or two. It is far too small to know anything or to be asked anything.

## Licence

The weights, the tokenizer and the figures are under the licence of the repository. The text is not
part of it; the packages carry their own licences (the King James text is in the public domain
outside the United Kingdom, set.mm is dedicated to the public domain, the others are free software).
"""
    (folder / "README.md").write_text(out)


if __name__ == "__main__":
    main(*sys.argv[1:3])
