"""Write a run's checkpoint as a Hugging Face directory.

  python models/recipe/export.py --model v3-lossfree --work WORK_DIR --out models/v3-lossfree"""
import argparse
import json
import os
import pathlib
import shutil

import torch
from safetensors.torch import save_file

from configs import MODELS


def tensors(state, cfg):
    out = {}
    for key, t in state.items():
        n = key.replace("/", ".")
        if n.endswith("e_score_correction_bias"):
            out[n] = t.float()
            continue
        t = t.to(torch.bfloat16)
        if n.endswith("gate_up"):
            p = n.removesuffix("gate_up")
            g, u = t.chunk(2, dim=-2)
            for name, w in ("gate_proj", g), ("up_proj", u):
                if ".experts." in p:
                    out |= {f"{p}{e}.{name}.weight": w[e] for e in range(len(w))}
                else:
                    out[f"{p}{name}.weight"] = w
        elif n.endswith("experts.down"):
            p = n.removesuffix("down")
            out |= {f"{p}{e}.down_proj.weight": t[e] for e in range(len(t))}
        else:
            out[n] = t
    return {n: t.clone(memory_format=torch.contiguous_format) for n, t in out.items()}


def export(model, work, out):
    cfg, _ = MODELS[model]
    work, out = pathlib.Path(work), pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    c = torch.load(work / model / "checkpoint.pt", weights_only=False)
    save_file(tensors(c["model"], cfg), str(out / "model.tmp"), {"format": "pt"})
    os.chmod(out / "model.tmp", 0o644)
    os.replace(out / "model.tmp", out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(cfg, indent=2) + "\n")
    shutil.copyfile(work / "tokenizer.json", out / "tokenizer.json")
    shutil.copyfile(work / model / "training.csv", out / "training.csv")
    print(model, "step", c["step"], (out / "model.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", choices=MODELS, required=True)
    ap.add_argument("--work", default="train-work")
    ap.add_argument("--out", required=True)
    a = ap.parse_args()
    export(a.model, a.work, a.out)
