/* throughput_notes.h - what a reader of `steelyard throughput` must know, in lines
 *
 * Layer 5. Errors of the layer times, what is modelled only, what was left out or extrapolated, how
 * far the trace's load is from others, and what the best gate and placement are worth. */
#ifndef CLI_THROUGHPUT_NOTES_H
#define CLI_THROUGHPUT_NOTES_H

#include "cli/throughput_request.h"

void throughput_notes(const struct throughput_request *request, const struct routed *routed,
                      const struct throughput_run *run, const struct cluster *cluster,
                      bool moe_only, struct str *out);

#endif
