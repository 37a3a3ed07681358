/* support_program.h - runs the program under test, and compares what it wrote */
#ifndef TESTS_SUPPORT_PROGRAM_H
#define TESTS_SUPPORT_PROGRAM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

/* Makes an empty folder of this name the test's place. */
void enter(const char *name);
/* The folder entered last. */
const char *test_place(void);
/* A path in it; static, 16 in turn. */
const char *at(const char *name);

/* Runs `steelyard ARGUMENTS`, returns its exit status; errors (if not NULL) gets stderr, owned. */
int program(char **errors, const char *format, ...) ERR_PRINTF(2, 3);
/* Must succeed. */
void runs(const char *format, ...) ERR_PRINTF(1, 2);
/* Must fail with this status, and say `expected`. */
void refuses(int status, const char *expected, const char *format, ...) ERR_PRINTF(3, 4);

/* Kills a child after so many microseconds; false when it had ended by itself, which must be with
 * status 0. */
bool killed_after(pid_t child, int64_t us);

/* All content of a database as text, owned. */
char *dump(const char *path);
/* The same content, row for row. */
void same_content(const char *a, const char *b);

/* An ids file: `lines` documents of `tokens` random ids below 320 each. */
void write_ids(const char *path, int lines, int tokens, unsigned seed);

#endif
