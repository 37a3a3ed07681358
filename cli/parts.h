/* parts.h - a capture by several processes: each writes a part, rank 0 joins them
 *
 * Layer 5. The documents are divided in order, so that the parts one after the other are the whole:
 * traces/merge.h makes of them row for row what one process would have written. Parts lie beside
 * the output (on a file system that all processes see), are kept when the capture is interrupted,
 * and go when they are joined. */
#ifndef CLI_PARTS_H
#define CLI_PARTS_H

#include "base/processes.h"
#include "base/progress.h"
#include "cli/corpus.h"

struct parts {
    struct processes *processes; /* NULL: alone, the part is the output */
    const char *out;             /* borrowed */
    char *path;                  /* owned: what this process writes */
    bool *used;                  /* [size] owned: has the process a document? */
};

/* Keeps of the corpus what this process captures; the corpus may be empty then. */
bool parts_deal(struct parts *parts, struct processes *processes, const char *out,
                struct corpus *corpus, struct err *err);
bool parts_mine(const struct parts *parts);
/* At rank 0, once all have ended: makes the output of the parts and removes them. Appends what the
 * user should know to notes. */
bool parts_join(const struct parts *parts, bool force, const struct progress *progress,
                struct str *notes, struct err *err);
void parts_free(struct parts *parts);

#endif
