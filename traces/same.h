/* same.h - is what a trace was made of the same as in another? Names the first difference
 *
 * Private to traces/: a capture resumes, and traces merge, only when they are of one make. */
#ifndef TRACES_SAME_H
#define TRACES_SAME_H

#include "traces/trace.h"

/* For messages: "path: doing: what: found X, expected Y". */
struct same {
    const char *path;
    const char *doing;
};

bool same_capture(const struct same *same, const struct trace_capture *found,
                  const struct trace_capture *expected, struct err *err);
/* Number of routers, and of each: layer, experts, what it holds, gate, bias. */
bool same_layers(const struct same *same, const struct trace_setup *found,
                 const struct trace_setup *expected, struct err *err);
/* Both, and the documents. */
bool same_setup(const struct same *same, const struct trace_setup *found,
                const struct trace_setup *expected, struct err *err);

#endif
