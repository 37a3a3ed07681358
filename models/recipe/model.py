"""The two architectures, deepseek_v3 and olmoe, as small functions around bf16 products.

Parameters are f32 and named as in the checkpoint, except that the experts of a layer are kept
together as `mlp.experts.gate_up` [E, 2I, H] and `mlp.experts.down` [E, H, I]."""
import ctypes
import os
import pathlib
import subprocess
import tempfile

import torch
from torch import nn

BF = torch.bfloat16
QBLOCK = 128  # rows of a block of queries in attention
PAD = 8       # rows of an expert are padded to a multiple


def _library():
    src = pathlib.Path(__file__).with_name("kernels.c")
    lib = pathlib.Path(tempfile.mkdtemp()) / "kernels.so"
    subprocess.run([os.environ.get("CC", "cc"), "-O3", "-march=native", "-ffast-math", "-shared",
                    "-fPIC", "-o", lib, src, "-lm"], check=True)
    return ctypes.CDLL(str(lib))


_lib = None


def call(name, *args):
    global _lib
    if _lib is None:
        _lib = _library()
    out = []
    for a in args:
        if a is None:
            out.append(ctypes.c_void_p(0))
        elif isinstance(a, torch.Tensor):
            assert a.is_contiguous()
            out.append(ctypes.c_void_p(a.data_ptr()))
        elif isinstance(a, float):
            out.append(ctypes.c_float(a))
        else:
            out.append(ctypes.c_int64(int(a)))
    f = getattr(_lib, name)
    f.restype = ctypes.c_int64
    return f(*out)


_scratch = torch.empty(0, dtype=torch.int32)


def scratch(n, m=1):
    global _scratch
    if len(_scratch) < n * m:
        _scratch = torch.empty(2 * n * m, dtype=torch.int32)
    return _scratch


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, eps):
        x = x.contiguous()
        rows, n = x.numel() // x.shape[-1], x.shape[-1]
        y, inv = torch.empty(x.shape, dtype=BF), torch.empty(rows)
        call("rms_fwd_" + ("f" if x.dtype == torch.float32 else "b"), x, w, y, inv, rows, n, eps)
        ctx.save_for_backward(x, w, inv)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w, inv = ctx.saved_tensors
        dx, dw = torch.empty_like(x), torch.zeros_like(w)
        call("rms_bwd_" + ("f" if x.dtype == torch.float32 else "b"), dy.contiguous(), x, w, inv,
             dx, dw, inv.numel(), x.shape[-1])
        return dx, dw, None


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        n = h.shape[1] // 2
        a = torch.empty(len(h), n, dtype=BF)
        call("swiglu_fwd", h, None, a, len(h), n)
        ctx.save_for_backward(h)
        return a

    @staticmethod
    def backward(ctx, da):
        h, = ctx.saved_tensors
        dh = torch.empty_like(h)
        call("swiglu_bwd", h, None, da.contiguous(), dh, None, len(h), h.shape[1] // 2)
        return dh


class Heads(torch.autograd.Function):
    """Parts of token rows to [batch * heads, length, d]; a part is (source number, row offset,
    offset from head to head, width, rope kind)."""
    @staticmethod
    def forward(ctx, parts, batch, heads, rope, *src):
        ctx.args = parts, batch, heads, rope
        ctx.shapes = [s.shape for s in src]
        length, d = len(src[0]) // batch, sum(p[3] for p in parts)
        out = torch.empty(batch * heads, length, d, dtype=BF)
        Heads.run(ctx.args, out, src, 0)
        return out

    @staticmethod
    def backward(ctx, dout):
        # Parts of a source which this call did not read have no gradient from here.
        grads = [torch.zeros(s, dtype=BF) for s in ctx.shapes]
        Heads.run(ctx.args, dout.contiguous(), grads, 1)
        return None, None, None, None, *grads

    @staticmethod
    def run(args, out, src, back):
        parts, batch, heads, (cos, sin) = args
        off, d = 0, out.shape[2]
        for s, at, step, width, kind in parts:
            rows = src[s]
            assert rows.is_contiguous() and rows.dtype == BF
            call("pack", rows.view(-1)[at:], rows.shape[1], step, out, d, off, width, batch,
                 out.shape[1], heads, kind, cos, sin, back)
            off += width


class Rows(torch.autograd.Function):
    """[batch * heads, length, d] back to token rows."""
    @staticmethod
    def forward(ctx, x, batch):
        m, length, d = x.shape
        ctx.args = (m, length, d), batch
        y = torch.empty(batch * length, m // batch * d, dtype=BF)
        call("pack", y, y.shape[1], d, x.contiguous(), d, 0, d, batch, length, m // batch, 0,
             None, None, 1)
        return y

    @staticmethod
    def backward(ctx, dy):
        (m, length, d), batch = ctx.args
        dx = torch.empty(m, length, d, dtype=BF)
        dy = dy.contiguous()
        call("pack", dy, dy.shape[1], d, dx, d, 0, d, batch, length, m // batch, 0, None, None, 0)
        return dx, None


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, scale):
        m, length, _ = q.shape
        o, probs = torch.empty_like(v), []
        for a in range(0, length, QBLOCK):
            b = min(a + QBLOCK, length)
            p = torch.bmm(q[:, a:b], k[:, :b].transpose(1, 2))
            call("softmax_fwd", p, m, b - a, b, a, scale)
            o[:, a:b] = torch.bmm(p, v[:, :b])
            probs.append(p)
        ctx.save_for_backward(q, k, v, *probs)
        ctx.scale = scale
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, *probs = ctx.saved_tensors
        m, length, _ = q.shape
        do = do.contiguous()
        dq, dk, dv = torch.empty_like(q), None, None
        for i in reversed(range(len(probs))):
            p = probs[i]
            a, b = i * QBLOCK, p.shape[2]
            d = torch.bmm(do[:, a:b], v[:, :b].transpose(1, 2))
            call("softmax_bwd", p, d, m * (b - a), b, ctx.scale)
            dq[:, a:b] = torch.bmm(d, k[:, :b])
            bv = torch.bmm(p.transpose(1, 2), do[:, a:b])
            bk = torch.bmm(d.transpose(1, 2), q[:, a:b])
            if dk is None:
                dk, dv = bk.float(), bv.float()
            else:
                dk[:, :b] += bk
                dv[:, :b] += bv
        return dq, dk.to(BF), dv.to(BF), None


class Gate(torch.autograd.Function):
    """Router logits to chosen experts and their weights; see gate_fwd in kernels.c.  With an
    auxiliary coefficient the gradient of coef * E * sum_e f_e P_e (Switch) joins the way back,
    f_e the share of choices and P_e the mean probability of an expert."""
    @staticmethod
    def forward(ctx, z, bias, k, groups, keep, sig, norm, scale, coef):
        rows, E = z.shape
        p, w = torch.empty_like(z), torch.empty(rows, k)
        idx, count = torch.empty(rows, k, dtype=torch.int32), torch.zeros(E, dtype=torch.int64)
        call("gate_fwd", z, bias, p, idx, w, count, rows, E, k, groups, keep, sig, norm, scale)
        ctx.save_for_backward(p, idx, count)
        ctx.args = sig, norm, scale, coef
        ctx.mark_non_differentiable(idx, count)
        return w, idx, count

    @staticmethod
    def backward(ctx, dw, _i, _c):
        p, idx, count = ctx.saved_tensors
        sig, norm, scale, coef = ctx.args
        rows, E = p.shape
        dz, aux = torch.empty_like(p), None
        if coef:
            aux = coef * E * count.float() / count.sum() / rows
        call("gate_bwd", p, idx, dw.contiguous(), aux, dz, rows, E, idx.shape[1], sig, norm, scale)
        return dz, None, None, None, None, None, None, None, None


class Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, idx, count, up, down):
        (T, H), (E, I2, _), k = x.shape, up.shape, idx.shape[1]
        most = T * k + E * PAD
        start = torch.empty(E + 1, dtype=torch.int64)
        row, pos, rw = torch.empty(most, dtype=torch.int32), torch.empty_like(idx), torch.empty(most)
        P = call("dispatch", idx, w, count, start, row, rw, pos, T, E, k, PAD)
        xs, h = torch.empty(P, H, dtype=BF), torch.empty(P, I2, dtype=BF)
        act, y = torch.empty(P, I2 // 2, dtype=BF), torch.empty(P, H, dtype=BF)
        call("experts_fwd", x, row, rw, start, up, down, xs, h, act, y,
             scratch(48 + I2, 48 + H), E, H, I2 // 2)
        out = torch.empty(T, H, dtype=BF)
        call("combine", y, pos, out, T, k, H)
        ctx.save_for_backward(row, rw, start, pos, xs, h, act, up, down)
        return out

    @staticmethod
    def backward(ctx, dout):
        row, rw, start, pos, xs, h, act, up, down = ctx.saved_tensors
        (P, H), I2, (T, k) = xs.shape, h.shape[1], pos.shape
        most = int((start[1:] - start[:-1]).max())
        dx, drw = torch.empty(P, H, dtype=BF), torch.empty(P)
        dup, ddown = torch.empty_like(up), torch.empty_like(down)
        call("experts_bwd", dout.contiguous(), row, rw, start, up, down, xs, h, act, dx, drw, dup,
             ddown, scratch((48 + I2) * (48 + H) + most * 2 * (96 + H + I2)), len(up), H, I2 // 2, most)
        out = torch.empty(T, H, dtype=BF)
        call("combine", dx, pos, out, T, k, H)
        return out, drw[pos.view(-1).long()].view(T, k), None, None, dup, ddown


class Head(torch.autograd.Function):
    """Cross entropy of x W^T; returns the mean and the loss of each token."""
    @staticmethod
    def forward(ctx, x, w, target, share):
        z, loss = x @ w.t(), torch.empty(len(x))
        call("cross_entropy", z, target, loss, len(x), len(w), share / len(x))
        ctx.save_for_backward(x, w, z)
        ctx.mark_non_differentiable(loss)
        return loss.mean(), loss

    @staticmethod
    def backward(ctx, d, _):
        x, w, z = ctx.saved_tensors  # d is 1
        return z @ w, z.t() @ x, None, None


class Model(nn.Module):
    def __init__(self, cfg, aux=0.):
        super().__init__()
        self.cfg, self.aux = cfg, aux
        self.v3 = cfg["model_type"] == "deepseek_v3"
        self.H, self.nh = cfg["hidden_size"], cfg["num_attention_heads"]
        self.E = cfg["n_routed_experts"] if self.v3 else cfg["num_experts"]
        self.dense = cfg["first_k_dense_replace"] if self.v3 else 0
        H, nh, P = self.H, self.nh, {}
        P["model.embed_tokens.weight"] = torch.randn(cfg["vocab_size"], H) * .04
        P["model.norm.weight"] = torch.ones(H)

        def linear(name, n, m, gain=1.):
            P[name] = torch.randn(n, m) * gain * m ** -.5

        for i in range(cfg["num_hidden_layers"]):
            p = f"model.layers.{i}."
            for n in "input_layernorm", "post_attention_layernorm":
                P[p + n + ".weight"] = torch.ones(H)
            a = p + "self_attn."
            if self.v3:
                dn, dr, dv = (cfg[n] for n in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
                rq, rkv = cfg["q_lora_rank"], cfg["kv_lora_rank"]
                linear(a + "q_a_proj.weight", rq, H)
                P[a + "q_a_layernorm.weight"] = torch.ones(rq)
                linear(a + "q_b_proj.weight", nh * (dn + dr), rq)
                linear(a + "kv_a_proj_with_mqa.weight", rkv + dr, H)
                P[a + "kv_a_layernorm.weight"] = torch.ones(rkv)
                linear(a + "kv_b_proj.weight", nh * (dn + dv), rkv)
                linear(a + "o_proj.weight", H, nh * dv, .1)
            else:
                for n in "qkv":
                    linear(a + n + "_proj.weight", H, H)
                linear(a + "o_proj.weight", H, H, .1)
                P[a + "q_norm.weight"], P[a + "k_norm.weight"] = torch.ones(H), torch.ones(H)
            m = p + "mlp."
            if i < self.dense:
                linear(m + "gate_up", 2 * cfg["intermediate_size"], H)
                linear(m + "down_proj.weight", H, cfg["intermediate_size"], .1)
                continue
            I = cfg["moe_intermediate_size"] if self.v3 else cfg["intermediate_size"]
            P[m + "gate.weight"] = torch.randn(self.E, H) * .02
            P[m + "experts.gate_up"] = torch.randn(self.E, 2 * I, H) * H ** -.5
            P[m + "experts.down"] = torch.randn(self.E, H, I) * .1 * I ** -.5
            if self.v3:
                linear(m + "shared_experts.gate_up", 2 * I * cfg["n_shared_experts"], H)
                linear(m + "shared_experts.down_proj.weight", H, I * cfg["n_shared_experts"], .1)
                self.register_buffer(self.key(m + "gate.e_score_correction_bias"),
                                     torch.zeros(self.E))
        for n, t in P.items():
            self.register_parameter(self.key(n), nn.Parameter(t))
        self.names = list(P)
        # Of the last forward pass, by layer: choices per expert, and each token's choices.
        self.count, self.chosen = {}, {}

    @staticmethod
    def key(name):
        return name.replace(".", "/")

    def get(self, name):
        return getattr(self, self.key(name))

    def rope(self, n, length):
        f = self.cfg["rope_theta"] ** (-torch.arange(0, n, 2, dtype=torch.float64) / n)
        t = torch.outer(torch.arange(length, dtype=torch.float64), f)
        return t.cos().float().contiguous(), t.sin().float().contiguous()

    def forward(self, tokens, target, share=1.):
        """Both [batch, length]; mean loss and loss per token.  The gradient is that of share
        times the mean (share: this micro-batch's part of the batch)."""
        cfg, (B, L), H, nh = self.cfg, tokens.shape, self.H, self.nh
        eps, w = cfg["rms_norm_eps"], self.get
        bf = {n: w(n).to(BF) for n in self.names if w(n).dim() == 2 and "gate.weight" not in n}
        if self.v3:
            dn, dr, dv = (cfg[n] for n in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
            rkv = cfg["kv_lora_rank"]
            rope, scale = self.rope(dr, L), (dn + dr) ** -.5
        else:
            d = H // nh
            rope, scale = self.rope(d, L), d ** -.5
        x = torch.nn.functional.embedding(tokens.reshape(-1), w("model.embed_tokens.weight"))
        for i in range(cfg["num_hidden_layers"]):
            p = f"model.layers.{i}."
            a, m = p + "self_attn.", p + "mlp."
            h = RMSNorm.apply(x, w(p + "input_layernorm.weight"), eps)
            if self.v3:
                q = RMSNorm.apply(h @ bf[a + "q_a_proj.weight"].t(), w(a + "q_a_layernorm.weight"), 1e-6)
                q = q @ bf[a + "q_b_proj.weight"].t()
                c = h @ bf[a + "kv_a_proj_with_mqa.weight"].t()
                kv = RMSNorm.apply(c[:, :rkv], w(a + "kv_a_layernorm.weight"), 1e-6)
                kv = kv @ bf[a + "kv_b_proj.weight"].t()
                q = Heads.apply([(0, 0, dn + dr, dn, 0), (0, dn, dn + dr, dr, 1)], B, nh, rope, q)
                k = Heads.apply([(0, 0, dn + dv, dn, 0), (1, rkv, 0, dr, 1)], B, nh, rope, kv, c)
                v = Heads.apply([(0, dn, dn + dv, dv, 0)], B, nh, rope, kv)
            else:
                q, k, v = (h @ bf[a + n + "_proj.weight"].t() for n in "qkv")
                q = RMSNorm.apply(q, w(a + "q_norm.weight"), eps)
                k = RMSNorm.apply(k, w(a + "k_norm.weight"), eps)
                q, k = (Heads.apply([(0, 0, d, d, 2)], B, nh, rope, t) for t in (q, k))
                v = Heads.apply([(0, 0, d, d, 0)], B, nh, rope, v)
            o = Rows.apply(Attention.apply(q, k, v, scale), B)
            x = x + o @ bf[a + "o_proj.weight"].t()
            h = RMSNorm.apply(x, w(p + "post_attention_layernorm.weight"), eps)
            if i < self.dense:
                y = SwiGLU.apply(h @ bf[m + "gate_up"].t()) @ bf[m + "down_proj.weight"].t()
            else:
                z = h.float() @ w(m + "gate.weight").t()
                if self.v3:
                    g = (w(m + "gate.e_score_correction_bias"), cfg["num_experts_per_tok"], cfg["n_group"],
                         cfg["topk_group"], 1, int(cfg["norm_topk_prob"]), float(cfg["routed_scaling_factor"]))
                else:
                    g = (None, cfg["num_experts_per_tok"], 1, 1, 0, int(cfg["norm_topk_prob"]), 1.)
                rw, idx, count = Gate.apply(z, *g, self.aux * share)
                self.count[i], self.chosen[i] = count, idx
                y = Experts.apply(h, rw, idx, count, w(m + "experts.gate_up"), w(m + "experts.down"))
                if self.v3:
                    s = SwiGLU.apply(h @ bf[m + "shared_experts.gate_up"].t())
                    y = y + s @ bf[m + "shared_experts.down_proj.weight"].t()
            x = x + y
        h = RMSNorm.apply(x, w("model.norm.weight"), eps)
        return Head.apply(h, bf["model.embed_tokens.weight"], target.reshape(-1), share)
