/* compare.h - open loop against closed loop: what a replay of the native capture foresaw, and what
 * running the gate for real did
 *
 * Layer 4 (sim): calls traces, router, analysis. Three ways to route the same tokens at a layer:
 *     native  the model's own gate, on its own hidden states
 *     open    the other gate on the scores that the native run recorded (a replay)
 *     closed  the other gate in a forward pass: layers above the first see changed inputs
 * A rule that moves the bias moves it in open and closed alike, over the same balance batches. */
#ifndef SIM_COMPARE_H
#define SIM_COMPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "analysis/bootstrap.h"
#include "base/err.h"
#include "base/progress.h"
#include "traces/trace.h"

enum compare_way { WAY_NATIVE, WAY_OPEN, WAY_CLOSED, COMPARE_WAYS };
/* Pairs: what they have in common, and how far their loads are apart. */
enum compare_pair { PAIR_OPEN_NATIVE, PAIR_CLOSED_NATIVE, PAIR_CLOSED_OPEN, COMPARE_PAIRS };

struct compare_layer {
    int layer;                       /* the model's own layer number */
    double maxvio[COMPARE_WAYS];     /* max load / mean load - 1, over all tokens */
    double agreement[COMPARE_PAIRS]; /* mean over tokens of (chosen by both) / (k of the first) */
    double variation[COMPARE_PAIRS]; /* total variation of the loads: sum_e |p_e - q_e| / 2 */
};

struct comparison {
    struct compare_layer *layer; /* [layers] owned */
    int layers;
    struct compare_layer mean; /* over layers; layer = -1 */
    int64_t tokens;
    double nll[COMPARE_WAYS];   /* per predicted token, nats; open: NaN */
    struct interval nll_change; /* closed - native, bootstrap over documents */
};

/* Compares a native capture with a closed-loop one of the same model and text. Refuses others,
 * naming the first difference. Release with comparison_free in any case. */
bool compare_traces(struct trace *native, struct trace *closed, struct comparison *out,
                    const struct progress *progress, struct err *err);
void comparison_free(struct comparison *comparison);

#endif
