/* upgrade.h - databases of earlier versions of the schema become present ones
 *
 * Layer 3 (traces). The measured data has had one form since version 1; tables and views of results
 * have grown. Known forms are told by a hash of their definitions (upgrade.c), so that nothing is
 * changed that is not ours word for word. */
#ifndef TRACES_UPGRADE_H
#define TRACES_UPGRADE_H

#include <stdbool.h>

#include "base/err.h"

struct upgrade_report {
    int from, to;         /* versions; equal: nothing was to be done */
    const char *form;     /* of the file before, in words */
    bool lost_throughput; /* throughput results were there, and must be computed again */
};

/* Upgrades in place, in one transaction: a kill leaves the old form. Results keep their rows; new
 * columns say what was true of all older replays. Refuses foreign, newer and altered files. */
bool trace_upgrade(const char *path, struct upgrade_report *report, struct err *err);

#endif
