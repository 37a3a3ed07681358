"""Compare an exported model with transformers (f32, eager):

  python models/recipe/check.py models/v3-lossfree [TEXT_FILE]

Loads the directory with AutoModelForCausalLM and compares its logits with those of the same
formulas written out here in f32 (they must agree to 1e-3), and the loss of each token with the
training code, which multiplies in bf16 (close, not equal)."""
import argparse
import json
import pathlib

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from model import Model

TEXT = """Gen1:1 In the beginning God created the heaven and the earth.
import os\n\ndef main(argv):\n    return os.path.join(argv[0], "x")\n
#define EINVAL 22 /* Invalid argument */\nDer Dateiname ist ung\u00fcltig.\n"""


def load(folder):
    """The training code's model with an exported checkpoint's weights."""
    folder = pathlib.Path(folder)
    cfg = json.loads((folder / "config.json").read_text())
    model, t = Model(cfg), {n: x.float() for n, x in load_file(folder / "model.safetensors").items()}
    with torch.no_grad():
        for key in list(model.state_dict()):
            n = key.replace("/", ".")
            if n.endswith("experts.gate_up") and "shared" not in n:
                p = n.removesuffix("gate_up")
                v = torch.stack([torch.cat([t[f"{p}{e}.gate_proj.weight"], t[f"{p}{e}.up_proj.weight"]])
                                 for e in range(model.E)])
            elif n.endswith("experts.down"):
                p = n.removesuffix("down")
                v = torch.stack([t[f"{p}{e}.down_proj.weight"] for e in range(model.E)])
            elif n.endswith("gate_up"):
                p = n.removesuffix("gate_up")
                v = torch.cat([t[p + "gate_proj.weight"], t[p + "up_proj.weight"]])
            else:
                v = t[n]
            model.get(n).copy_(v)
    return model


def rms(x, w, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def rotate(x, cos, sin, pairs):
    a, b = (x[..., 0::2], x[..., 1::2]) if pairs else x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


@torch.no_grad()
def reference(m, ids):
    """Logits [length, vocabulary] in f32, token by token where it matters."""
    cfg, w, nh, L = m.cfg, m.get, m.nh, len(ids)
    silu, eps = torch.nn.functional.silu, cfg["rms_norm_eps"]
    glu = lambda h, gu, d: (lambda a, b: (silu(a) * b) @ d.t())(*(h @ gu.t()).chunk(2, -1))
    x = w("model.embed_tokens.weight")[ids]
    for i in range(cfg["num_hidden_layers"]):
        p = f"model.layers.{i}."
        a, f = p + "self_attn.", p + "mlp."
        h = rms(x, w(p + "input_layernorm.weight"), eps)
        if m.v3:
            dn, dr, dv = (cfg[n] for n in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
            cos, sin = m.rope(dr, L)
            q = rms(h @ w(a + "q_a_proj.weight").t(), w(a + "q_a_layernorm.weight"), 1e-6)
            q = (q @ w(a + "q_b_proj.weight").t()).view(L, nh, dn + dr).transpose(0, 1)
            c, kr = (h @ w(a + "kv_a_proj_with_mqa.weight").t()).split([cfg["kv_lora_rank"], dr], -1)
            kv = rms(c, w(a + "kv_a_layernorm.weight"), 1e-6) @ w(a + "kv_b_proj.weight").t()
            k, v = kv.view(L, nh, dn + dv).transpose(0, 1).split([dn, dv], -1)
            q = torch.cat([q[..., :dn], rotate(q[..., dn:], cos, sin, True)], -1)
            k = torch.cat([k, rotate(kr, cos, sin, True).expand(nh, L, dr)], -1)
        else:
            cos, sin = m.rope(m.H // nh, L)
            q, k, v = (h @ w(a + n + "_proj.weight").t() for n in "qkv")
            q, k = rms(q, w(a + "q_norm.weight"), eps), rms(k, w(a + "k_norm.weight"), eps)
            q, k, v = (t.view(L, nh, -1).transpose(0, 1) for t in (q, k, v))
            q, k = rotate(q, cos, sin, False), rotate(k, cos, sin, False)
        s = q @ k.transpose(1, 2) * q.shape[-1] ** -.5
        s = s.masked_fill(torch.ones(L, L, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        x = x + (s @ v).transpose(0, 1).reshape(L, -1) @ w(a + "o_proj.weight").t()
        h = rms(x, w(p + "post_attention_layernorm.weight"), eps)
        if i < m.dense:
            x = x + glu(h, w(f + "gate_up"), w(f + "down_proj.weight"))
            continue
        z, k = h @ w(f + "gate.weight").t(), cfg["num_experts_per_tok"]
        if m.v3:
            z = z.sigmoid()
            c = z + w(f + "gate.e_score_correction_bias")
            g = c.view(L, cfg["n_group"], -1)
            keep = g.topk(2).values.sum(-1).topk(cfg["topk_group"]).indices
            g = g.masked_fill(torch.ones(L, cfg["n_group"], dtype=torch.bool).scatter(1, keep, False)[..., None], -torch.inf)
            idx = g.view(L, -1).topk(k).indices
        else:
            z = z.softmax(-1)
            idx = z.topk(k).indices
        rw = z.gather(1, idx)
        rw = rw / (rw.sum(-1, keepdim=True) + 1e-20) * cfg.get("routed_scaling_factor", 1.)
        y = glu(h, w(f + "shared_experts.gate_up"), w(f + "shared_experts.down_proj.weight")) if m.v3 else 0.
        y = y + torch.stack([sum(rw[t, j] * glu(h[t], w(f + "experts.gate_up")[e], w(f + "experts.down")[e])
                                 for j, e in enumerate(idx[t].tolist())) for t in range(L)])
        x = x + y
    return rms(x, w("model.norm.weight"), eps) @ w("model.embed_tokens.weight").t()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("folder")
    ap.add_argument("text", nargs="?")
    args = ap.parse_args()
    torch.manual_seed(0)
    text = open(args.text).read() if args.text else TEXT
    ids = torch.tensor(Tokenizer.from_file(f"{args.folder}/tokenizer.json").encode(text).ids[:512])
    hf = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32, attn_implementation="eager")
    hf.eval()
    m = load(args.folder)
    with torch.no_grad():
        theirs = hf(ids[None]).logits[0]
        _, ours = m(ids[None, :-1], ids[None, 1:])
    nll = torch.nn.functional.cross_entropy(theirs[:-1], ids[1:], reduction="none")
    plain = reference(m, ids)
    a = (plain - theirs).abs().max().item()
    b, c = (ours - nll).abs().mean().item(), (ours.mean() - nll.mean()).item()
    print(f"{args.folder}: {len(ids)} tokens, loss {nll.mean():.4f}; logits in f32: largest difference "
          f"{a:.2e}; loss per token of the bf16 training code: mean difference {b:.4f}, of the mean {c:+.4f}")
    raise SystemExit(0 if a < 1e-3 and abs(c) < .03 else 1)


if __name__ == "__main__":
    main()
