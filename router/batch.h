/* batch.h - gates that need a whole balance batch: capacity, expert choice, Sinkhorn, BASE
 *
 * Layer 2, pure: the caller owns all memory. What a token gets may depend on every other token of
 * the batch, so these gates run in training and in a replay, never token by token. Formulas and
 * sources: MATH.md section 11. Letters: T tokens of the batch, E experts, k chosen, S slots of a
 * row (gate_slots), C capacity. Every order is total (ties: the lower token, then the lower
 * expert), so the bits are the same on every machine. */
#ifndef ROUTER_BATCH_H
#define ROUTER_BATCH_H

#include <stdint.h>

#include "router/route.h"

/* Bytes of memory that route_batch needs; SIZE_MAX when they cannot be counted, 0 for gates that do
 * not need a batch. */
size_t route_batch_bytes(const struct gate *gate, int experts, int64_t tokens);

/* With assign=token: takes choices over the capacity from out->expert[T,k], which route_scored has
 * filled, and zeroes their weights. Otherwise: chooses, weighs, then applies the capacity.
 * logits[T,E] finite; scores[T,E] of the gate's score function (not read with order=topk-score).
 * out->expert[T,S] and out->weight[T,S] are required; tie and escape are set to 0 where experts are
 * not each token's k best. memory: route_batch_bytes, 64-byte aligned. Borrows everything. */
void route_batch(const struct gate *gate, int experts, int64_t tokens, const float *logits,
                 const float *scores, struct routes *out, void *memory);

#endif
