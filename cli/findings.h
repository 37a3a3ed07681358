/* findings.h - what matters most in a replay, in plain words, by rules on the numbers
 *
 * Layer 5. Each rule is a row of a table, the most important first: it says one sentence, or
 * nothing where the data do not speak. The first three that speak are the findings. */
#ifndef CLI_FINDINGS_H
#define CLI_FINDINGS_H

#include "base/err.h"
#include "base/table.h"
#include "cli/subject.h"

enum { FINDINGS = 3 };

/* Columns: finding (from 1), text, measure (what the numbers are), estimate, low, high (95 %
 * interval by bootstrap over documents; missing where there is none). Returns owned. */
struct table *findings_of(const struct subject *subjects, int count, struct err *err);

#endif
