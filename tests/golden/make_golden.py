#!/usr/bin/env python3
"""make_golden.py - writes reference cases: a tiny random checkpoint and what transformers computes on it

    make_golden.py OUT [CASE...]              the committed cases (all without a name)
    make_golden.py OUT --random N --seed S    N random configurations of the families in RANDOM

Needs torch (CPU), transformers 5 and safetensors; the program and its tests do not. A case is a folder with
config.json, model.safetensors (bf16, correction biases f32), ids.txt (two documents, one a line) and
expected.safetensors: token_ids, nll, final_logits, layers.N.{router_logits, topk_ids, topk_weights, bias},
computed in float32 with eager attention, each document from position 0.
"""
import argparse
import json
import os
import random

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

YARN = {"type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
        "mscale_all_dim": 0.7, "original_max_position_embeddings": 16}
COMMON = dict(hidden_size=48, vocab_size=160, num_hidden_layers=3, max_position_embeddings=256,
              bos_token_id=0, eos_token_id=1, pad_token_id=None)
MLA = dict(num_attention_heads=3, num_key_value_heads=3, kv_lora_rank=16, qk_nope_head_dim=12,
           qk_rope_head_dim=8, v_head_dim=16, n_shared_experts=1, num_experts_per_tok=3,
           n_routed_experts=12, intermediate_size=80, moe_intermediate_size=16)
GQA = dict(num_attention_heads=4, num_key_value_heads=2, num_experts_per_tok=3, num_experts=10,
           num_local_experts=10, intermediate_size=40)

# name: (model_type, settings, spelling of the rope settings)
CASES = {
    "deepseek_v3_plain": ("deepseek_v3", dict(MLA, q_lora_rank=None, n_group=1, topk_group=1,
                          norm_topk_prob=False, tie_word_embeddings=True, first_k_dense_replace=0,
                          routed_scaling_factor=1.7, rms_norm_eps=1e-5, n_shared_experts=2), "new"),
    "mixtral_window": ("mixtral", dict(GQA, head_dim=20, sliding_window=7, num_key_value_heads=4,
                       rope_theta=5000.0, rope_scaling={"type": "linear", "factor": 2.0}), "old"),
    "olmoe_clip": ("olmoe", dict(GQA, clip_qkv=0.9, norm_topk_prob=True, tie_word_embeddings=True,
                   attention_bias=True, rope_scaling=dict(YARN)), "old"),
}


def one_of(*values):
    return random.choice(values)


def random_rope():
    kind = one_of("none", "none", "linear", "yarn", "yarn2", "llama3", "dynamic")
    if kind == "none":
        return None
    if kind == "linear":
        return {one_of("type", "rope_type"): "linear", "factor": 3.0}
    if kind == "dynamic":
        return {"type": "dynamic", "factor": 2.0}
    if kind == "yarn":
        return dict(YARN, mscale=one_of(1.0, 0.707), factor=one_of(4.0, 40.0))
    if kind == "yarn2":
        return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    return {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}


def random_mla(model_type):
    groups = one_of(1, 2, 4)
    kept = random.randint(1, groups)
    experts = groups * random.randint(4, 8)
    return dict(num_attention_heads=one_of(1, 3, 4), kv_lora_rank=one_of(8, 16, 40),
                qk_nope_head_dim=one_of(8, 16, 20), qk_rope_head_dim=one_of(4, 8, 16),
                v_head_dim=one_of(8, 12, 24), q_lora_rank=one_of(None, 24),
                n_shared_experts=one_of(1, 2), n_group=groups, topk_group=kept,
                n_routed_experts=experts,
                num_experts_per_tok=random.randint(1, kept * (experts // groups)),
                intermediate_size=96, moe_intermediate_size=one_of(8, 24),
                norm_topk_prob=one_of(True, False), first_k_dense_replace=one_of(0, 1, 2),
                routed_scaling_factor=one_of(1.0, 2.5), rope_interleave=one_of(True, False),
                attention_bias=one_of(True, False), tie_word_embeddings=one_of(True, False))


def random_gqa(model_type):
    heads = one_of(4, 6)
    kv = one_of(1, 2, heads)
    experts = one_of(4, 9, 16)
    return dict(hidden_size=48, num_attention_heads=heads, num_key_value_heads=kv,
                num_experts=experts, num_local_experts=experts,
                num_experts_per_tok=random.randint(1, experts),
                intermediate_size=one_of(16, 40), norm_topk_prob=one_of(True, False),
                clip_qkv=one_of(None, 0.8), sliding_window=one_of(None, 5, 64),
                attention_bias=one_of(True, False), tie_word_embeddings=one_of(True, False))


def mixtral(model_type):
    c = random_gqa(model_type)
    c.update(head_dim=one_of(None, 10, 32))
    return c


RANDOM = {"deepseek_v3": random_mla, "mixtral": mixtral, "olmoe": random_gqa}


def make_config(model_type, settings, spelling, folder):
    settings = dict(COMMON, **settings)
    if settings.get("num_key_value_heads") is None:
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    rope = settings.pop("rope_scaling", None)
    theta = settings.pop("rope_theta", 10000.0)
    new = dict(rope or {"rope_type": "default"}, rope_theta=theta)
    new["rope_type"] = new.pop("type", new.get("rope_type"))
    config = AutoConfig.for_model(model_type, rope_parameters=new, **settings)
    written = config.to_dict()
    if spelling == "old":
        written.pop("rope_parameters", None)
        written["rope_theta"], written["rope_scaling"] = theta, rope
    written["torch_dtype"] = "bfloat16"
    written.pop("dtype", None)
    return config, written


def randomise(model):
    biases = [(name, b) for name, b in model.named_buffers() if "bias" in name]
    for name, p in list(model.named_parameters()) + biases:
        with torch.no_grad():
            if "correction_bias" in name:
                p.copy_(0.15 * torch.randn(p.shape))
            elif "norm" in name and name.endswith("weight"):
                p.copy_((1 + 0.2 * torch.randn(p.shape)).bfloat16().float())
            elif p.dim() == 1:
                p.copy_((0.2 * torch.randn(p.shape)).bfloat16().float())
            else:
                p.copy_((torch.randn(p.shape) * 1.3 / p.shape[-1] ** 0.5).bfloat16().float())


def layer_number(name):
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def run(model, documents):
    kept = {}

    def listen(layer):
        def hook(module, inputs, output):
            kept.setdefault(layer, []).append([o.detach().reshape(-1, o.shape[-1]) for o in output])
        return hook

    for name, module in model.named_modules():
        if type(module).__name__.lower().endswith(("topkrouter", "router")):
            module.register_forward_hook(listen(layer_number(name)))
    nll, final = [], []
    for ids in documents:
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
        loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
        nll += [loss, torch.tensor([float("nan")])]
        final.append(logits[-1])
    out = {"nll": torch.cat(nll), "final_logits": torch.stack(final),
           "token_ids": torch.tensor(sum(documents, []), dtype=torch.int32)}
    for layer, calls in kept.items():
        parts = [torch.cat(p) for p in zip(*calls)]
        indices = next((p for p in parts if not p.is_floating_point()), None)
        if indices is None:  # llama4's router returns no choices
            continue
        logits = next(p for p in parts if p.is_floating_point())
        weights = [p for p in parts if p.is_floating_point()][-1]
        out[f"layers.{layer}.router_logits"] = logits.float()
        out[f"layers.{layer}.topk_ids"] = indices.int()
        out[f"layers.{layer}.topk_weights"] = weights.float()
    for name, buffer in list(model.named_buffers()) + list(model.named_parameters()):
        if "correction_bias" in name:
            out[f"layers.{layer_number(name)}.bias"] = buffer.detach().float().reshape(-1)
    return out


def make(out, name, model_type, settings, spelling, seed):
    folder = os.path.join(out, name)
    torch.manual_seed(seed)
    random.seed(seed)
    config, written = make_config(model_type, settings, spelling, folder)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    randomise(model)
    documents = [[random.randrange(config.vocab_size) for _ in range(n)] for n in (40, 17)]
    with torch.no_grad():
        expected = run(model, documents)
    model.save_pretrained(folder)
    path = os.path.join(folder, "model.safetensors")
    tensors = load_file(path)
    for key, tensor in tensors.items():
        tensors[key] = tensor.float() if "correction_bias" in key else tensor.bfloat16()
    save_file(tensors, path, metadata={"format": "pt"})
    expected = {key: value.contiguous() for key, value in expected.items()}
    save_file(expected, os.path.join(folder, "expected.safetensors"),
              metadata={"reference": "transformers, float32, eager attention", "seed": str(seed)})
    for extra in ("generation_config.json",):
        if os.path.exists(os.path.join(folder, extra)):
            os.remove(os.path.join(folder, extra))
    written["architectures"] = [type(model).__name__]
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(written, file, indent=1, sort_keys=True, default=str)
    with open(os.path.join(folder, "ids.txt"), "w") as file:
        file.write("".join(" ".join(map(str, d)) + "\n" for d in documents))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("case", nargs="*")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for i in range(args.random):
        random.seed(args.seed + i)
        family = random.choice(args.family or sorted(RANDOM))
        settings = dict(RANDOM[family](family), rope_scaling=random_rope(),
                        rope_theta=one_of(10000.0, 500000.0))
        spelling = one_of("old", "new")
        name = f"{family}_{args.seed + i}"
        try:
            make(args.out, name, family, settings, spelling, args.seed + i)
        except Exception as error:  # the reference itself cannot run some combinations
            print(f"skipped {name}: {type(error).__name__}: {error}")
    for name in args.case or (CASES if not args.random else []):
        make(args.out, name, *CASES[name], seed=7)


if __name__ == "__main__":
    main()
