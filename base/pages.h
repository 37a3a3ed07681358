/* pages.h - large memory that is walked often: aligned, on huge pages where the system has them
 *
 * Layer 1. With ordinary pages a forward pass spent 8 % of its time in page faults and clearing,
 * and its weights missed the TLB (bench scene `llama`). */
#ifndef BASE_PAGES_H
#define BASE_PAGES_H

#include <stddef.h>

/* Memory for free(), aligned to 64 bytes; from 4 MiB on it begins at a huge page and asks for such
 * pages. Not zeroed. NULL when out of memory; bytes = 0 returns a valid pointer. */
void *pages_alloc(size_t bytes);

#endif
