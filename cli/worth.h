/* worth.h - what gate, bias rate, placement and replicas are worth in tokens/s, in words
 *
 * Layer 5. From the last `steelyard throughput` on the database. */
#ifndef CLI_WORTH_H
#define CLI_WORTH_H

#include "base/err.h"
#include "cli/subject.h"

enum { WORTH_LINES = 24 };

/* Sentences, at most WORTH_LINES; none where the database holds no throughput run. */
struct worth {
    struct str line[WORTH_LINES];
    int count;
};
bool worth_read(const struct subject *subject, struct worth *worth, struct err *err);
void worth_free(struct worth *worth);

#endif
