/* chance.c - how much imbalance chance alone makes, when every expert is equally likely */
#include "analysis/chance.h"

#include <gsl/gsl_cdf.h>
#include <math.h>

double chance_maxvio(int experts, int topk, int64_t tokens) {
    if (topk < 1 || topk > experts || tokens < 1 || tokens > INT32_MAX) return (double)NAN;
    double share = (double)topk / experts;
    double mean = share * (double)tokens;
    double sd = sqrt(mean * (1 - share));
    /* below the window the maximum certainly lies above, beyond it certainly not */
    int64_t first = (int64_t)fmax(0, floor(mean - sd));
    int64_t last = (int64_t)fmin((double)tokens, ceil(mean + 12 * sd + 12));
    double expected = 0;
    if (first > 0) { /* P(max < first) is not nil when there are few experts: start where it is */
        while (first > 0 && pow(gsl_cdf_binomial_P((unsigned)first - 1, share, (unsigned)tokens),
                                experts) > 1e-12)
            first = first > (int64_t)sd + 1 ? first - (int64_t)sd - 1 : 0;
        expected = (double)first;
    }
    for (int64_t x = first; x < last; x++)
        expected += 1 - pow(gsl_cdf_binomial_P((unsigned)x, share, (unsigned)tokens), experts);
    return expected / mean - 1;
}
