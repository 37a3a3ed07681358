/* native.h - the load that a trace has under its own gate, for reports on traces never replayed */
#ifndef CLI_NATIVE_H
#define CLI_NATIVE_H

#include <stdbool.h>

#include "base/err.h"
#include "base/str.h"
#include "traces/trace.h"

/* Replays the trace under its own gate into a RESULT.db in a folder of its own below $TMPDIR and
 * appends its path. native_remove takes both away (an empty path is allowed). */
bool native_replay(const struct trace *trace, struct str *path, struct err *err);
void native_remove(const struct str *path);

#endif
