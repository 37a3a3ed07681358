"""eplb_numpy.py - hierarchical EPLB in numpy, as a yardstick for sim/placement.c

    python eplb_numpy.py WEIGHTS PLACED LAYERS EXPERTS REPLICAS RANKS NODES GROUPS

Reads WEIGHTS (text, LAYERS rows of EXPERTS numbers), places them several times, writes the expert of
every slot to PLACED and prints the median seconds. The algorithm is the published one (DeepSeek's
EPLB): groups to nodes, replicas within a node one by one where tokens per replica are most, replicas
to GPUs; packing is heaviest first onto the lightest pack with a free place. Written here as the
published code is organised: replication is vectorised over layers, packing loops over items.
"""
import sys
import time

import numpy as np


def pack(weight, packs):
    """weight [X,n] -> place [X,n]: pack * n/packs + position in the pack, of every item."""
    rows, items = weight.shape
    room = items // packs
    if room == 1:
        return np.tile(np.arange(items), (rows, 1))
    order = np.argsort(-weight, axis=1, kind="stable")
    place = np.empty((rows, items), dtype=np.int64)
    for x in range(rows):
        load, filled = [0.0] * packs, [0] * packs
        for item in order[x]:
            best = min((p for p in range(packs) if filled[p] < room), key=load.__getitem__)
            place[x, item] = best * room + filled[best]
            filled[best] += 1
            load[best] += weight[x, item]
    return place


def replicate(weight, slots):
    """weight [X,n] -> logical [X,slots], copies [X,n]."""
    rows, items = weight.shape
    logical = np.tile(np.arange(slots), (rows, 1))
    copies = np.ones((rows, items), dtype=np.int64)
    all_rows = np.arange(rows)
    for slot in range(items, slots):
        hottest = np.argmax(weight / copies, axis=1)
        logical[:, slot] = hottest
        copies[all_rows, hottest] += 1
    return logical, copies


def inverse(permutation):
    out = np.empty_like(permutation)
    np.put_along_axis(out, permutation, np.arange(permutation.shape[1])[None, :], axis=1)
    return out


def place(weight, slots, ranks, nodes, groups):
    """weight [L,E] -> expert of every slot [L,slots]."""
    layers, experts = weight.shape
    size, a_node = experts // groups, experts // nodes
    group_place = pack(weight.reshape(layers, groups, size).sum(axis=2), nodes)
    position = (group_place[:, :, None] * size + np.arange(size)).reshape(layers, experts)
    expert_at = inverse(position)
    local = np.take_along_axis(weight, expert_at, axis=1).reshape(layers * nodes, a_node)
    logical, copies = replicate(local, slots // nodes)
    share = np.take_along_axis(local / copies, logical, axis=1)
    slot_of = inverse(pack(share, ranks // nodes))
    chosen = np.take_along_axis(logical, slot_of, axis=1).reshape(layers, nodes, slots // nodes)
    chosen = (chosen + np.arange(nodes)[None, :, None] * a_node).reshape(layers, slots)
    return np.take_along_axis(expert_at, chosen, axis=1)


def main():
    layers, experts, replicas, ranks, nodes, groups = map(int, sys.argv[3:9])
    weight = np.loadtxt(sys.argv[1]).reshape(layers, experts)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        placed = place(weight, experts + replicas, ranks, nodes, groups)
        seconds.append(time.perf_counter() - start)
    np.savetxt(sys.argv[2], placed, fmt="%d")
    print(sorted(seconds)[len(seconds) // 2])


main()
