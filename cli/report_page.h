/* report_page.h - writes the report: one page, and every figure with its data and template beside
 * it */
#ifndef CLI_REPORT_PAGE_H
#define CLI_REPORT_PAGE_H

#include <stdbool.h>

#include "base/err.h"
#include "cli/subject.h"

/* Draws everything first, then writes into the folder (made when absent): report.html, and per
 * figure NAME.svg, NAME.tsv, NAME.gp, and style.gp. The page is written last.
 * A failure to write leaves the folder as it was. */
bool report_write(const struct subject *subjects, int count, const struct table *findings,
                  const char *folder, struct err *err);

#endif
