"""Train one model:  python models/recipe/train.py --model v3-lossfree --work WORK_DIR

WORK_DIR holds what data.py wrote; the run lives in WORK_DIR/MODEL (checkpoint.pt, training.csv)
and goes on where it stopped.  A step takes 8192 tokens at first and 4096 after step 400.
WORK_DIR/schedule.json, read before each step, may be changed as long as the past stays:

  {"rate": [[STEP, RATE], ...],   factor of the learning rates, linear between the points; 1
                                  before the first (after a warm-up), the last step ends the run
   "bible": STEP,                 from here on half of the rows come from the Bible
   "long": STEP}                  from here on rows are 512 tokens long, before 256

Matrices are trained with Muon (momentum, then the quintic Newton-Schulz iteration towards the
nearest semi-orthogonal matrix), the rest with AdamW.  v3-lossfree has no auxiliary loss; after
each step its correction biases move by 0.001 sign(mean - count) with that step's counts."""
import argparse
import csv
import gc
import json
import math
import os
import pathlib
import time

import numpy as np
import torch

from configs import MODELS
from data import MIX, MIX_BIBLE, Stream
from model import BF, Model

SEED, MICRO, SHORT, LONG = 1, 4096, 256, 512
DOUBLE = 400  # steps with two micro-batches; one afterwards
WARMUP, LR_MUON, LR_ADAM, DECAY, BIAS = 100, 6e-3, 3e-3, .1, 1e-3


def tokens(step):
    """Tokens read up to and with this step."""
    return MICRO * (step + min(step, DOUBLE))


def orthogonalise(g):
    """[n, r, c] -> about U V^T of each, five steps in bf16."""
    flip = g.shape[1] > g.shape[2]
    x = (g.transpose(1, 2) if flip else g).to(BF)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = torch.bmm(x, x.transpose(1, 2))
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return (x.transpose(1, 2) if flip else x).float()


class Optimizer:
    def __init__(self, model):
        self.muon, self.adam = {}, []
        for n in model.names:
            p = model.get(n)
            if p.dim() == 1 or "embed" in n or "gate.weight" in n:
                self.adam.append((n, p))
                continue
            # gate and up projections are matrices of their own
            shape = (-1, p.shape[-2] // (2 if "gate_up" in n else 1), p.shape[-1])
            self.muon.setdefault(shape[1:], []).append((n, p, shape))
        self.state = {n: torch.zeros_like(p) for g in self.muon.values() for n, p, _ in g}
        self.state |= {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in self.adam}

    @torch.no_grad()
    def step(self, t, rate, lr_muon, lr_adam):
        for (r, c), group in self.muon.items():
            for n, p, _ in group:
                self.state[n].lerp_(p.grad, .05)
            # Nesterov: the momentum once more towards the gradient
            g = torch.cat([p.grad.lerp(self.state[n], .95).view(s) for n, p, s in group])
            g = orthogonalise(g).split([p.numel() // (r * c) for _, p, _ in group])
            lr = rate * lr_muon
            for (n, p, s), u in zip(group, g):
                p.mul_(1 - lr * DECAY).view(s).add_(u, alpha=-lr * .2 * max(r, c) ** .5)
        for n, p in self.adam:
            m, v = self.state[n]
            m.lerp_(p.grad, .1)
            v.lerp_(p.grad * p.grad, .05)
            lr = rate * lr_adam * (.3 if "gate.weight" in n else 1)
            p.addcdiv_(m / (1 - .9 ** t), (v / (1 - .95 ** t)).sqrt_().add_(1e-10), value=-lr)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", choices=MODELS, required=True)
    ap.add_argument("--work", default="train-work")
    ap.add_argument("--run", help="name of the run, default: the model's")
    ap.add_argument("--steps", type=int, default=10 ** 9, help="stop here, whatever `decay` says")
    ap.add_argument("--lr-muon", type=float, default=LR_MUON)
    ap.add_argument("--lr-adam", type=float, default=LR_ADAM)
    args = ap.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    cfg, aux = MODELS[args.model]
    work = pathlib.Path(args.work)
    run = work / (args.run or args.model)
    run.mkdir(exist_ok=True)
    model, stream = Model(cfg, aux), Stream(work, SEED)
    opt, step, log = Optimizer(model), 0, run / "training.csv"
    moe = range(model.dense, cfg["num_hidden_layers"])
    if (run / "checkpoint.pt").exists():
        c = torch.load(run / "checkpoint.pt", weights_only=False)
        model.load_state_dict(c["model"])
        opt.state, step = c["opt"], c["step"]
        stream.restore(c["stream"])
        rows = log.read_text().splitlines()
        log.write_text("\n".join(r for r in rows if r[0] == "s" or int(r.split(",")[0]) <= step) + "\n")
    else:
        with open(log, "w") as f:
            f.write(",".join(["step", "tokens", "loss", "lr"] + [f"maxvio_batch_L{i}" for i in moe]) + "\n")
    gc.disable()  # nothing here makes cycles, and the collector costs some percent
    mean, since, clock = [], step, time.time()
    while True:
        plan = {"rate": [[10 ** 9, 1]], "bible": 10 ** 9, "long": 10 ** 9}
        if (work / "schedule.json").exists():
            plan = json.loads((work / "schedule.json").read_text())
        last = plan["rate"][-1][0]
        if step >= min(last, args.steps):
            break
        step += 1
        # the last step still moves: its rate is that of the middle of the interval before it
        rate = min(1, step / WARMUP) * float(np.interp(step - .5, *zip(*plan["rate"])))
        length = LONG if step >= plan["long"] else SHORT
        mix = MIX_BIBLE if step >= plan["bible"] else MIX
        rows = torch.from_numpy(stream.batch(tokens(step) - tokens(step - 1), length, mix))
        for n in model.names:
            model.get(n).grad = None
        parts, count = rows.split(MICRO // length), {i: 0 for i in moe}
        for r in parts:
            loss, _ = model(r[:, :-1], r[:, 1:], 1 / len(parts))
            loss.backward()
            mean.append(loss.item())
            for i, c in model.count.items():
                count[i] = count[i] + c
        opt.step(step, rate, args.lr_muon, args.lr_adam)
        vio = {i: (c.max() / c.float().mean() - 1).item() for i, c in count.items()}
        if model.v3:
            for i, c in count.items():
                b = model.get(f"model.layers.{i}.mlp.gate.e_score_correction_bias")
                b += BIAS * torch.sign(c.float().mean() - c)
        if step % 20 == 0 or step == last:
            value = sum(mean) / len(mean)
            mean = []
            if not math.isfinite(value):
                raise SystemExit("the loss is not finite")
            with open(log, "a", newline="") as f:
                csv.writer(f, lineterminator="\n").writerow(
                    [step, tokens(step), f"{value:.4f}", f"{rate * args.lr_muon:.6f}"] +
                    [f"{vio[i]:.3f}" for i in moe])
            speed = (tokens(step) - tokens(since)) / (time.time() - clock)
            eta = f"done in {(tokens(last) - tokens(step)) / speed / 60:.0f} min" if last < 10 ** 9 else "open end"
            since, clock = step, time.time()
            (run / "status").write_text(
                f"{run.name}: step {step}, {tokens(step) / 1e6:.1f}M tokens, loss {value:.3f}, "
                f"{speed:.0f} tokens/s, {eta}, {time.strftime('%H:%M:%S', time.gmtime())} UTC\n")
        if step % 100 == 0 or step in (last, args.steps):
            torch.save({"model": model.state_dict(), "opt": opt.state, "step": step,
                        "stream": stream.state()}, run / "new.pt")
            os.replace(run / "new.pt", run / "checkpoint.pt")


if __name__ == "__main__":
    main()
