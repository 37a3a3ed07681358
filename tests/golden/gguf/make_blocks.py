"""Writes blocks.safetensors: random blocks of every quantised type that engine/quant.c decodes, and
the values that the reference implementation (Python package gguf) finds in them."""
import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants
from safetensors.numpy import save_file

TYPES = "Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
out, rng = {}, np.random.default_rng(7)
for name in TYPES:
    kind = GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (40, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        found = quants.dequantize(blocks, kind).reshape(40, values)
    keep = np.isfinite(found).all(1).nonzero()[0][:4]
    out[name + ".blocks"] = blocks[keep]
    out[name + ".values"] = found[keep].astype(np.float32)
save_file(out, "blocks.safetensors")
