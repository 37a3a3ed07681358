/* support_amx.h - the AMX level on emulated tile instructions (tests only) */
#ifndef TESTS_SUPPORT_AMX_H
#define TESTS_SUPPORT_AMX_H

#include "engine/kernels/kernels.h"

/* NULL when this machine cannot run the AVX-512 part of the level. */
const struct kernels *support_amx(void);

#endif
