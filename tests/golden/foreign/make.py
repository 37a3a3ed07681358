# make.py - files as other programs write them, for tests/test_import.c (torch 2.x, numpy; `python make.py`)
# Values follow formulas that the test repeats: id(t,l,j) = (3t + 5l + 7j) % 16, logit(t,l,e) = ((7t + 3l + 5e) % 11 - 5) / 4.
import collections
import numpy as np
import torch

T, L, K, E = 6, 4, 3, 16

def ids(t, l):
    return [(3 * t + 5 * l + 7 * j) % E for j in range(K)]

top = torch.full((L, T, 8), -1, dtype=torch.int32)
top[0] = 0  # a dense layer
for l in range(1, L):
    for t in range(T):
        top[l, t, :K] = torch.tensor(ids(t, l))
record = lambda a, b: {"forward_pass_id": a, "rank": 0, "gatherer_key": "primary", "input_ids": list(range(100 + a, 100 + b)),
                       "positions": list(range(b - a)), "extend_seq_lens": [b - a], "forward_mode": 1,
                       "topk_ids_of_layer": top[:, a:b].clone(), "misc_objects": [],
                       "global_physical_count": torch.zeros(L, E, dtype=torch.int32)}
torch.save({"records": [record(0, 4), record(4, 6)], "last_physical_to_logical_map": torch.arange(E).repeat(L, 1)},
           "sglang_per_token.pt")
count = torch.zeros(2, L, E, dtype=torch.int32)
for t in range(T):
    for l in range(1, L):
        for i in ids(t, l):
            count[t % 2, l, i] += 1
torch.save({"rank": 0, "logical_count": count, "average_utilization_rate_over_window": None}, "sglang_stat.pt")
# per_pass of two ranks: expert e of pass 3 + p, rank r was chosen 1 + (e + p + r) % 3 times; physical 17 replicates expert 2
for r in range(2):
    torch.save({"records": [{"forward_pass_id": 3 + p, "rank": r, "gatherer_key": "primary", "global_physical_count":
                             torch.tensor([[0] * 17, [1 + (e + p + r) % 3 for e in range(16)] + [5]], dtype=torch.int32)} for p in range(2)],
                "last_physical_to_logical_map": torch.tensor([list(range(16)) + [2]] * 2)}, f"sglang_per_pass_{r}.pt")
logit = torch.tensor([[[((7 * t + 3 * l + 5 * e) % 11 - 5) / 4 for e in range(E)] for t in range(T)] for l in range(L)])
torch.save(tuple(logit[l].clone() for l in range(L)), "logits_f32.pt")
torch.save({"router_logits": logit.to(torch.bfloat16), "attention_mask": torch.ones(T, dtype=torch.int64)}, "logits_bf16.pt")
torch.save(collections.OrderedDict(a=logit.to(torch.float16)), "logits_f16.pt")
torch.save({"router_logits": logit.transpose(1, 2)}, "logits_strided.pt")
routed = np.array([[ids(t, l) if l else [0] * K for l in range(L)] for t in range(T)])
np.savez("routed.npz", request_id=np.array("r1"), prompt_token_ids=np.arange(100, 104), output_token_ids=np.arange(104, 107),
         routed_experts=routed.astype(np.uint8))
np.savez_compressed("routed_compressed.npz", routed_experts=routed.astype(np.int32))
np.savez_compressed("logits.npz", **{f"layer_{l}": logit[l].numpy() for l in range(L)})
