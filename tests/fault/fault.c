/* fault.c - preloaded into the program under test: the K-th operation of a kind fails or kills
 *
 * FAULT=KIND:K[:kill]   KIND is alloc, own, write or sql; K counts from 1; 0 = only count
 * FAULT_COUNT=FILE      the number of operations of the kind is written there at the end
 * FAULT_TRACE=1         prints who called the one that failed (addr2line reads it)
 *
 * alloc: malloc, calloc, realloc, aligned_alloc, posix_memalign return NULL; own: those that the
 * program itself calls, not its libraries. write: write, pwrite,
 * ftruncate, fsync, fdatasync, rename say that the disk is full; with kill the process dies there
 * by SIGKILL (a write having been done by half). sql: step, exec, prepare and blob calls of SQLite
 * fail with an I/O error. Only the K-th fails; the operations after it work. Works below
 * AddressSanitizer too (ASAN_OPTIONS=verify_asan_link_order=0). Built by test_fault.c; nothing of
 * it is in the program. */
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum kind { NONE, ALLOC, OWN, WRITE, SQL };

static int kind, kills, started, finding;
static long at, count;

/* Addresses of the program, which is the first object. */
static uintptr_t low = UINTPTR_MAX, high;

static int take_range(struct dl_phdr_info *info, size_t size, void *unused) {
    (void)size, (void)unused;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
        uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        if (begin < low) low = begin;
        if (begin + info->dlpi_phdr[i].p_memsz > high) high = begin + info->dlpi_phdr[i].p_memsz;
    }
    return 1;
}

static void start(void) {
    const char *text = getenv("FAULT");
    started = 1;
    dl_iterate_phdr(take_range, NULL);
    if (!text) return;
    kind = strncmp(text, "alloc:", 6) == 0   ? ALLOC
           : strncmp(text, "own:", 4) == 0   ? OWN
           : strncmp(text, "write:", 6) == 0 ? WRITE
           : strncmp(text, "sql:", 4) == 0   ? SQL
                                             : NONE;
    text = strchr(text, ':');
    at = text ? atol(text + 1) : 0;
    kills = text && strstr(text, ":kill") != NULL;
}

static void show_callers(void) {
    void *callers[24];
    int of = kind;
    kind = NONE;
    backtrace_symbols_fd(callers, backtrace(callers, 24), 2);
    kind = of;
}

/* Is this the operation that fails? */
static int hit(int of) {
    if (!started) start();
    if (kind != of || __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED) != at) return 0;
    if (getenv("FAULT_TRACE")) show_callers();
    return 1;
}

/* The same of calls that the program itself makes, not its libraries. */
static int hit_from(const void *caller, int of) {
    if (!started) start();
    return (uintptr_t)caller >= low && (uintptr_t)caller < high && hit(of);
}

static void *find(const char *name) {
    finding++;
    void *symbol = dlsym(RTLD_NEXT, name);
    finding--;
    return symbol;
}

#define REAL(type, name, ...)                                                                      \
    static type (*real)(__VA_ARGS__);                                                              \
    if (!real) *(void **)&real = find(#name)

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("FAULT_COUNT");
    char line[32];
    if (!path) return;
    kind = NONE;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    int n = snprintf(line, sizeof line, "%ld\n", count);
    if (fd < 0 || write(fd, line, (size_t)n) != n) _exit(99);
    close(fd);
}

/* ---- memory: not below AddressSanitizer, whose own allocator cannot be preceded */
#ifndef WITHOUT_MEMORY

/* dlsym itself allocates; what it takes then is never given back. */
static char early[65536];
static size_t early_used;

static void *take_early(size_t size) {
    size_t start_at = (early_used + 63) & ~(size_t)63;
    if (start_at + size > sizeof early) abort();
    early_used = start_at + size;
    return early + start_at;
}

static int is_early(const void *p) {
    return (const char *)p >= early && (const char *)p < early + sizeof early;
}

static void *no_memory(void) {
    errno = ENOMEM;
    return NULL;
}

void *malloc(size_t size) {
    if (finding) return take_early(size);
    REAL(void *, malloc, size_t);
    return (hit(ALLOC) || hit_from(__builtin_return_address(0), OWN)) ? no_memory() : real(size);
}

void *calloc(size_t n, size_t size) {
    if (finding) return take_early(n * size);
    REAL(void *, calloc, size_t, size_t);
    return (hit(ALLOC) || hit_from(__builtin_return_address(0), OWN)) ? no_memory() : real(n, size);
}

void *realloc(void *p, size_t size) {
    if (finding || is_early(p)) {
        void *q = take_early(size);
        return p ? memcpy(q, p, size) : q;
    }
    REAL(void *, realloc, void *, size_t);
    return (hit(ALLOC) || hit_from(__builtin_return_address(0), OWN)) ? no_memory() : real(p, size);
}

void *aligned_alloc(size_t align, size_t size) {
    REAL(void *, aligned_alloc, size_t, size_t);
    return (hit(ALLOC) || hit_from(__builtin_return_address(0), OWN)) ? no_memory()
                                                                      : real(align, size);
}

int posix_memalign(void **out, size_t align, size_t size) {
    REAL(int, posix_memalign, void **, size_t, size_t);
    return (hit(ALLOC) || hit_from(__builtin_return_address(0), OWN)) ? ENOMEM
                                                                      : real(out, align, size);
}

void free(void *p) {
    if (is_early(p)) return;
    REAL(void, free, void *);
    if (real) real(p);
}

#endif

/* ---- files */

/* True when the operation is to fail; with kill the process ends here. */
static int fails_here(void) {
    if (!hit(WRITE)) return 0;
    if (kills) kill(getpid(), SIGKILL);
    errno = ENOSPC;
    return 1;
}

ssize_t write(int fd, const void *bytes, size_t n) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (fd <= 2) return real(fd, bytes, n); /* messages are not meant */
    if (kills && kind == WRITE && count + 1 == at) real(fd, bytes, n / 2);
    return fails_here() ? -1 : real(fd, bytes, n);
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset) {
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    if (kills && kind == WRITE && count + 1 == at) real(fd, bytes, n / 2, offset);
    return fails_here() ? -1 : real(fd, bytes, n, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off_t offset) {
    return pwrite(fd, bytes, n, offset);
}

#define FAILING(name, parameters, ...)                                                             \
    int name parameters {                                                                          \
        static int(*real) parameters;                                                              \
        if (!real) *(void **)&real = find(#name);                                                  \
        return fails_here() ? -1 : real(__VA_ARGS__);                                              \
    }
FAILING(ftruncate, (int fd, off_t size), fd, size)
FAILING(ftruncate64, (int fd, off_t size), fd, size)
FAILING(fsync, (int fd), fd)
FAILING(fdatasync, (int fd), fd)
FAILING(rename, (const char *from, const char *to), from, to)

/* ---- SQLite */

enum { SQLITE_IOERR = 10 };

#define FAILING_SQL(name, parameters, ...)                                                         \
    int name parameters;                                                                           \
    int name parameters {                                                                          \
        static int(*real) parameters;                                                              \
        if (!real) *(void **)&real = find(#name);                                                  \
        return hit_from(__builtin_return_address(0), SQL) ? SQLITE_IOERR : real(__VA_ARGS__);      \
    }
FAILING_SQL(sqlite3_step, (void *row), row)
FAILING_SQL(sqlite3_exec, (void *db, const char *sql, void *f, void *x, char **message), db, sql, f,
            x, message)
FAILING_SQL(sqlite3_blob_read, (void *blob, void *out, int n, int offset), blob, out, n, offset)
FAILING_SQL(sqlite3_blob_reopen, (void *blob, int64_t row), blob, row)

/* These hand something out: nothing then. */
int sqlite3_prepare_v2(void *db, const char *sql, int n, void **row, const char **rest);
int sqlite3_prepare_v2(void *db, const char *sql, int n, void **row, const char **rest) {
    REAL(int, sqlite3_prepare_v2, void *, const char *, int, void **, const char **);
    if (!hit_from(__builtin_return_address(0), SQL)) return real(db, sql, n, row, rest);
    *row = NULL;
    return SQLITE_IOERR;
}

int sqlite3_blob_open(void *db, const char *base, const char *table, const char *column,
                      int64_t row, int flags, void **blob);
int sqlite3_blob_open(void *db, const char *base, const char *table, const char *column,
                      int64_t row, int flags, void **blob) {
    REAL(int, sqlite3_blob_open, void *, const char *, const char *, const char *, int64_t, int,
         void **);
    if (!hit_from(__builtin_return_address(0), SQL))
        return real(db, base, table, column, row, flags, blob);
    *blob = NULL;
    return SQLITE_IOERR;
}
