/* support_logits.h - random logits as routers have them; for tests and benchmarks */
#ifndef TESTS_SUPPORT_LOGITS_H
#define TESTS_SUPPORT_LOGITS_H

#include <stdint.h>

#include "base/rng.h"

/* Logits [T,E] of unequal experts that drift over the text, as routers' are: sd about `spread`. */
float *random_logits(struct rng *rng, int64_t tokens, int experts, double spread);

#endif
