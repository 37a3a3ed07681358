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
    const char *gate, *bias_rule, *bias_rate, *bias_start, *hash_table;
    int64_t batch_tokens;
    int64_t seed; /* of what a gate draws that does not name its own */
};

/* Sets the gates of the engine, fills loop (closed = false when nothing was asked) and appends
 * lines for the user to notes. id[tokens] is the whole text: a balanced hash layer runs as the
 * table that follows from it. */
bool closed_loop_set(struct engine *engine, const struct closed_loop_words *words,
                     const int32_t *id, int64_t tokens, struct trace_loop *loop, struct str *notes,
                     struct err *err);
/* Do the gates that are set draw by the number of a token, which differs between processes? */
bool closed_loop_draws(const struct engine *engine);

/* Brings a moving bias to where the tokens that the trace holds already have left it. Refuses a
 * lossy trace, which does not know. */
bool closed_loop_resume(struct engine *engine, const struct trace_loop *loop,
                        const struct trace *trace, struct err *err);

#endif
