/* loop.h - what a trace says of a closed loop: the gates that ran were not the model's own
 *
 * Layer 3 (traces): calls router and base. Such a capture has the gates that ran as its layers'
 * gates, the bias at the start as their bias, and one clause in the options of its capture row:
 *
 *     closed-loop rule=sign rate=0.001 start=captured batch-tokens=4096 gate=native,softmax
 *
 * Where the rule updates, the bias moved while tokens passed: `rate` and `batch-tokens` are there,
 * and the live choices are those of a route_stream over the layer's tokens (router/stream.h). */
#ifndef TRACES_LOOP_H
#define TRACES_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"
#include "router/bias.h"

enum { TRACE_LOOP_TEXT = 256 };

struct trace_loop {
    bool closed;                  /* false: the model's own gates ran; then nothing else is set */
    char gate[TRACE_LOOP_TEXT];   /* specification as asked, relative to the native one */
    char rule_name[32];           /* "mixed" where layers differ */
    char start[16];               /* "zero", "captured", "" without a bias */
    const struct bias_rule *rule; /* NULL: the bias stayed as it was */
    double rate;
    int64_t batch_tokens;
};

/* Reads the options of a capture row. Refuses a clause that is not one of ours. */
bool trace_loop_read(const char *options, struct trace_loop *loop, struct err *err);
/* Appends the clause; nothing when not closed. */
void trace_loop_print(const struct trace_loop *loop, struct str *out);

#endif
