/* pages.c - large memory on huge pages, by advice: a system without them gives ordinary ones */
#include "base/pages.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { ALIGN = 64, HUGE_PAGE = 2 << 20, LARGE = 4 << 20 };

void *pages_alloc(size_t bytes) {
    void *memory = NULL;
    size_t align = bytes < LARGE ? ALIGN : HUGE_PAGE;
    if (posix_memalign(&memory, align, bytes ? bytes : ALIGN) != 0) return NULL;
#ifdef MADV_HUGEPAGE
    if (align == HUGE_PAGE) madvise(memory, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return memory;
}
