/* support_logits.c - random logits as routers have them; for tests and benchmarks */
#include "tests/support_logits.h"

#include <stdlib.h>

float *random_logits(struct rng *rng, int64_t tokens, int experts, double spread) {
    float *logits = malloc((size_t)tokens * (size_t)experts * sizeof *logits);
    double *popular = malloc((size_t)experts * sizeof *popular);
    if (!logits || !popular) abort();
    for (int e = 0; e < experts; e++) popular[e] = rng_normal(rng);
    for (int64_t t = 0; t < tokens; t++) {
        for (int e = 0; e < experts; e++) {
            if (t % 512 == 511) popular[e] += 0.2 * rng_normal(rng);
            logits[t * experts + e] = (float)(spread * (0.6 * popular[e] + 0.8 * rng_normal(rng)));
        }
    }
    free(popular);
    return logits;
}
