/* rows.h - the rows of a job as bytes, so that another process can hand them on
 *
 * Layer 4 (sim), private to the replay. The bytes are for a process of the same program on the same
 * kind of machine, and only while it runs. */
#ifndef SIM_ROWS_H
#define SIM_ROWS_H

#include "base/str.h"
#include "sim/layer_run.h"

/* Appends the rows of a share's variants, in the order of the variants. */
void rows_write(struct str *out, const struct replay_job *job, const struct layer_run *run,
                int share);

/* Fills run->row of the share's variants from what rows_write wrote, as layer_run would have.
 * Release with layer_run_free in any case. */
bool rows_read(struct layer_run *run, const struct replay_job *job, int share, const char *bytes,
               size_t size, struct err *err);

#endif
