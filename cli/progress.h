/* progress.h - draws progress on stderr: one rewritten line with rate and time left
 *
 * Layer 5. Shown from two seconds on and only on a terminal (or, when forced by
 * STEELYARD_PROGRESS=1, as plain lines every few seconds). Ctrl-C asks the job to stop at its next
 * safe point. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include "base/progress.h"

struct progress_line {
    struct progress progress; /* hand &line.progress to libraries */
    double started, shown;
    const char *label;
    int64_t base; /* units already done before this run (resume) */
};

/* label = NULL: nothing is drawn, Ctrl-C still stops. */
void progress_begin(struct progress_line *line, const char *label);
/* Clears the line. */
void progress_end(struct progress_line *line);

/* Prints "note: LINE" on stderr for every line of notes. */
void print_notes(const char *notes);

#endif
