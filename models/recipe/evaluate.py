"""Bits per byte and balance of an exported model on held-out text.

  python models/recipe/evaluate.py models/v3-lossfree HELDOUT_DIR [--json FILE]

HELDOUT_DIR as `corpus.sh HELDOUT_DIR heldout` writes it.  Every document is preceded by
<|endoftext|> and read in windows of 512 tokens which overlap by half: a token is scored with
the longer context, its bits are divided by the document's bytes.

MaxVio = max_e n_e / mean - 1 per MoE layer over the scored tokens: "global" over a whole domain
(or over all domains drawn in the proportions of the training mix), "batch" the mean over
batches of 4096 tokens."""
import argparse
import json
import math
import pathlib

import numpy as np
import torch
from tokenizers import Tokenizer

from check import load
from data import EOT, MIX

WINDOW, BATCH = 512, 4096


@torch.no_grad()
def score(model, ids):
    """Loss of every token after the first and its experts [tokens, layers, k]."""
    n = len(ids) - 1
    starts = [0]
    while starts[-1] + WINDOW < n:
        starts.append(min(starts[-1] + WINDOW // 2, n - WINDOW))
    loss, chosen = torch.zeros(n), None
    done = 0
    for a in range(0, len(starts), 8):
        part = starts[a:a + 8]
        length = min(WINDOW, n)
        x = torch.stack([ids[s:s + length] for s in part])
        y = torch.stack([ids[s + 1:s + 1 + length] for s in part])
        _, l = model(x, y)
        l = l.view(len(part), length)
        idx = torch.stack([c.view(len(part), length, -1) for c in model.chosen.values()], 2)
        if chosen is None:
            chosen = torch.zeros(n, *idx.shape[2:], dtype=torch.int32)
        for j, s in enumerate(part):
            loss[done:s + length] = l[j, done - s:]
            chosen[done:s + length] = idx[j, done - s:]
            done = s + length
    return loss, chosen


def maxvio(chosen, E):
    """[tokens, layers, k] -> MaxVio of each layer."""
    c = [torch.bincount(chosen[:, i].reshape(-1).long(), minlength=E).float() for i in range(chosen.shape[1])]
    return [(x.max() / x.mean() - 1).item() for x in c]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("folder")
    ap.add_argument("text")
    ap.add_argument("--json")
    args = ap.parse_args()
    torch.set_num_threads(1)
    model = load(args.folder)
    tok = Tokenizer.from_file(f"{args.folder}/tokenizer.json")
    eot, out, choices = tok.token_to_id(EOT), {}, {}
    for domain in MIX:
        files = sorted((pathlib.Path(args.text) / domain).glob("*.txt"))
        if not files:
            continue
        bits, size, docs, cs = 0., 0, [], []
        for f in files:
            data = f.read_bytes()
            ids = tok.encode(data.decode(errors="replace")).ids
            loss, chosen = score(model, torch.tensor([eot] + ids))
            b = loss.sum().item() / math.log(2)
            bits, size = bits + b, size + len(data)
            docs.append(b / len(data))
            cs.append(chosen)
        c = choices[domain] = torch.cat(cs)
        per = [maxvio(x, model.E) for x in c.split(BATCH) if len(x) == BATCH]
        out[domain] = {"documents": len(files), "bytes": size, "tokens": len(c),
                       "bits_per_byte": bits / size, "maxvio_global": maxvio(c, model.E),
                       "maxvio_batch": np.mean(per, 0).tolist()}
    # the mix: pieces of 256 tokens drawn in its proportions
    rng, pieces = np.random.default_rng(1), {d: c.split(256) for d, c in choices.items()}
    share = np.array([MIX[d] for d in pieces])
    draw = [pieces[d][rng.integers(len(pieces[d]) - 1)] for d in rng.choice(list(pieces), 1024, p=share / share.sum())]
    per = [maxvio(torch.cat(draw[i:i + BATCH // 256]), model.E) for i in range(0, len(draw), BATCH // 256)]
    out["mix"] = {"maxvio_global": maxvio(torch.cat(draw), model.E), "maxvio_batch": np.mean(per, 0).tolist()}
    layers = list(model.chosen)
    print("| domain | documents | bytes | bits per byte | MaxVio global " + ", ".join(f"L{i}" for i in layers) +
          " (mean) | MaxVio per 4096 tokens (mean) |\n|---|---:|---:|---:|---|---|")
    show = lambda v: " ".join(f"{x:.2f}" for x in v) + f" ({np.mean(v):.2f})"
    for d, r in out.items():
        print(f"| {d} | {r.get('documents', '')} | {r.get('bytes', '')} | "
              f"{r['bits_per_byte']:.3f}" if d != "mix" else "| training mix | | | ", end="")
        print(f" | {show(r['maxvio_global'])} | {show(r['maxvio_batch'])} |")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
