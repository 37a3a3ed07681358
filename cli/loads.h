/* loads.h - expert loads of one variant document by document, and intervals from them
 *
 * Layer 5: joins traces and analysis. Documents are gathered into at most LOADS_CLUSTERS clusters
 * of one domain each: the units that a bootstrap draws. Letters: D clusters, L routers, E experts.
 */
#ifndef CLI_LOADS_H
#define CLI_LOADS_H

#include <stdbool.h>
#include <stdint.h>

#include "analysis/bootstrap.h"
#include "base/err.h"
#include "base/str.h"
#include "cli/subject.h"

enum { LOADS_CLUSTERS = 256 };

struct loads {
    bool found;   /* false: the replay recorded no loads per document */
    int clusters; /* D */
    int64_t documents;
    int layers;      /* L */
    int *first;      /* [L+1] where a router's experts begin in a row */
    int64_t *counts; /* [D, first[L]] */
    int *domain;     /* [D] index of the domain */
    int domains;
};

bool loads_read(const struct subject *subject, int v, struct loads *loads, struct err *err);
void loads_free(struct loads *loads);

/* total[first[L]] <- sum over the clusters of a domain; domain = -1: of all. */
void loads_sum(const struct loads *loads, int domain, int64_t *total);
/* Mean over layers of MaxVio over all tokens of a domain (-1: of all); NaN where it is not defined.
 */
double loads_maxvio(const struct loads *loads, int domain);

/* Interval of loads_maxvio(a, domain_a) - loads_maxvio(b, domain_b), both seen on the same draw of
 * documents. b = NULL: of the first alone. */
struct loads_contrast {
    const struct loads *a, *b;
    int domain_a, domain_b;
};
bool loads_interval(const struct loads_contrast *contrast, struct interval *out, struct err *err);

/* Appends "(95 % interval 0.21 to 0.43, bootstrap over 80 documents)", or what is wrong with it. */
void loads_put_interval(const struct loads *loads, const struct interval *interval,
                        struct str *out);

#endif
