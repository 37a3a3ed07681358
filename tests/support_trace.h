/* support_trace.h - writes small traces of random scores for tests */
#ifndef TESTS_SUPPORT_TRACE_H
#define TESTS_SUPPORT_TRACE_H

#include "sim/source.h"
#include "traces/trace.h"

/* Three documents in two domains; the layers and logits of the source, which must be one over
 * arrays. holds: TRACE_SCORES, or TRACE_IDS (choices of the native gate). Fails the test on error.
 */
void write_random_trace(const char *path, const struct source *source, enum trace_holds holds);

#endif
