#!/usr/bin/env python3
"""convert_flame.py - FLAME-MoE routing traces (parquet) as the interchange form that import reads

    python3 convert_flame.py OUT.safetensors TOKENS.parquet LAYER.parquet...

TOKENS has the column token_id (int32). A LAYER file is named layer_NN.parquet and has, row by row as the tokens,
the columns scores (list of k, descending) and indices (list of k): the experts of a token and their probabilities.
Written: token_ids, layers.N.topk_ids [T,k] i32, layers.N.topk_weights [T,k] f32. The files hold no logits, so other
gates cannot be replayed; give import --experts 64 (an expert that nobody chose is not in the file). Needs pyarrow
and numpy; there is no C library for parquet in Debian 12, and the program itself reads none.
"""
import json
import re
import struct
import sys


def write_safetensors(path, tensors):
    """Little-endian arrays by name, as the safetensors container."""
    header, offset = {}, 0
    for name, array in tensors.items():
        kind = {"int32": "I32", "float32": "F32"}[str(array.dtype)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            out.write(array.tobytes())


def matrix(column, rows, path, np):
    """A list column as [rows, k]; every row must have the same k."""
    lists = column.combine_chunks()
    lengths = set(np.unique(np.diff(lists.offsets.to_numpy())).tolist()) if hasattr(lists, "offsets") else {lists.type.list_size}
    if len(lists) != rows or len(lengths) != 1:
        sys.exit(f"{path}: found {len(lists)} rows of {sorted(lengths)} values, expected {rows} rows of one length")
    return lists.flatten().to_numpy().reshape(rows, lengths.pop())


def main(arguments):
    if len(arguments) < 3:
        sys.exit(__doc__)
    import numpy as np
    import pyarrow.parquet as parquet

    out, samples, layers = arguments[0], arguments[1], arguments[2:]
    ids = parquet.read_table(samples, columns=["token_id"])["token_id"].to_numpy().astype("<i4")
    tensors = {"token_ids": ids}
    for path in layers:
        number = re.search(r"layer_0*(\d+)\.parquet$", path)
        if not number:
            sys.exit(f"{path}: found another name, expected layer_NN.parquet")
        table = parquet.read_table(path, columns=["scores", "indices"])
        name = f"layers.{number.group(1)}."
        tensors[name + "topk_ids"] = matrix(table["indices"], len(ids), path, np).astype("<i4")
        tensors[name + "topk_weights"] = matrix(table["scores"], len(ids), path, np).astype("<f4")
    write_safetensors(out, tensors)


if __name__ == "__main__":
    main(sys.argv[1:])
