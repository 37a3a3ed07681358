/* closed_loop.h - running a model under other gates for real: `capture --gate`
 *
 * Layer 5: joins sim (what a gate and a bias rule mean at each layer), the engine (which runs them)
 * and the trace (which records them). The words mean what they mean to `replay`. */
#ifndef CLI_CLOSED_LOOP_H
#define CLI_CLOSED_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"
#include "cli/options.h"
#include "engine/engine.h"
#include "traces/loop.h"
#include "traces/trace.h"

/* As asked; NULL or 0 = not asked. */
struct closed_loop_words {
    const char *gate, *bias_rule, *bias_rate, *bias_start;
    int64_t batch_tokens;
};

/* Sets the gates of the engine, fills loop (closed = false when nothing was asked) and appends
 * lines for the user to notes. */
bool closed_loop_set(struct engine *engine, const struct closed_loop_words *words,
                     struct trace_loop *loop, struct str *notes, struct err *err);

/* Brings a moving bias to where the tokens that the trace holds already have left it. Refuses a
 * lossy trace, which does not know. */
bool closed_loop_resume(struct engine *engine, const struct trace_loop *loop,
                        const struct trace *trace, struct err *err);

#endif
