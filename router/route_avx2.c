/* route_avx2.c - the portable loops compiled for AVX2: the same operations, eight lanes at a time
 *
 * Contraction is off as everywhere in router/, so the bits are those of the portable level. */
#define ROUTE_KERNELS route_kernels_avx2
#define ROUTE_NAME    "avx2"
#include "router/route_portable.c"
