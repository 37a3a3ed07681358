"""The same routing operations in PyTorch and numpy, one thread, as the anchor of the gate scene.

Answers each line of standard input ("torch deepseek-v3", "numpy olmoe", ...) with million
token-layers per CPU second over a sample of at least 0.1 s: expert ids, weights and loads of 4096
tokens whose logits are in memory. "none" where the library is missing. torch alone is enough; the
operations and their order are those of the public DeepSeek-V3 gate and of transformers' OLMoE."""

import sys
import time

import numpy as np

try:
    import torch
    torch.set_num_threads(1)
except ImportError:
    torch = None

TOKENS = 4096
rng = np.random.default_rng(1)
LOGITS = {256: rng.standard_normal((TOKENS, 256), dtype=np.float32),
          64: rng.standard_normal((TOKENS, 64), dtype=np.float32)}
BIAS = (0.01 * rng.standard_normal(256)).astype(np.float32)
TORCH = {e: torch.from_numpy(l) for e, l in LOGITS.items()} if torch else {}
TORCH_BIAS = torch.from_numpy(BIAS) if torch else None


def torch_v3():
    score = TORCH[256].sigmoid()
    choice = score + TORCH_BIAS
    groups = choice.view(-1, 8, 32).topk(2, dim=-1)[0].sum(-1)
    kept = groups.topk(4, dim=-1)[1]
    dropped = torch.ones_like(groups, dtype=torch.bool).scatter_(1, kept, False)
    choice = choice.view(-1, 8, 32).masked_fill(dropped.unsqueeze(-1), float("-inf")).flatten(1)
    expert = choice.topk(8, dim=-1)[1]
    weight = score.gather(1, expert)
    weight = weight / (weight.sum(-1, keepdim=True) + 1e-20) * 2.5
    return expert, weight, torch.bincount(expert.flatten(), minlength=256)


def torch_olmoe():
    weight, expert = TORCH[64].softmax(-1).topk(8, dim=-1)
    return expert, weight, torch.bincount(expert.flatten(), minlength=64)


def best_of(choice, k):
    expert = np.argpartition(-choice, k - 1, axis=-1)[:, :k]
    order = np.argsort(-np.take_along_axis(choice, expert, 1), axis=-1)
    return np.take_along_axis(expert, order, 1)


def numpy_v3():
    score = 1 / (1 + np.exp(-LOGITS[256]))
    choice = score + BIAS
    groups = np.partition(choice.reshape(-1, 8, 32), 30, axis=-1)[:, :, 30:].sum(-1)
    kept = np.argpartition(-groups, 3, axis=-1)[:, :4]
    dropped = np.ones_like(groups, dtype=bool)
    np.put_along_axis(dropped, kept, False, 1)
    choice.reshape(-1, 8, 32)[dropped] = -np.inf
    expert = best_of(choice, 8)
    weight = np.take_along_axis(score, expert, 1)
    weight = weight / (weight.sum(-1, keepdims=True) + 1e-20) * 2.5
    return expert, weight, np.bincount(expert.ravel(), minlength=256)


def numpy_olmoe():
    e = np.exp(LOGITS[64] - LOGITS[64].max(-1, keepdims=True))
    score = e / e.sum(-1, keepdims=True)
    expert = best_of(score, 8)
    return expert, np.take_along_axis(score, expert, 1), np.bincount(expert.ravel(), minlength=64)


RUNS = {("torch", "deepseek-v3"): torch_v3, ("torch", "olmoe"): torch_olmoe,
        ("numpy", "deepseek-v3"): numpy_v3, ("numpy", "olmoe"): numpy_olmoe}


def sample(run):
    calls, start = 0, time.process_time()
    while time.process_time() - start < 0.1:
        run()
        calls += 1
    return 1e-6 * TOKENS * calls / (time.process_time() - start)


for line in sys.stdin:
    library, model = line.split()
    if library == "torch" and torch is None:
        print("none", flush=True)
        continue
    run = RUNS[library, model]
    run()
    print(f"{sample(run):.6g}", flush=True)
