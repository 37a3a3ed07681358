/* rows.c - the rows of a job as bytes
 *
 * A row is its struct, that of its batches, then the arrays that both point to, in one order that
 * writing and reading share. All numbers of all arrays have eight bytes. */
#include "sim/rows.h"

#include <string.h>

/* One array: where the pointer to it is, and how many numbers it has. */
struct part {
    void *pointer;
    int64_t count;
};

enum { PARTS = 12 };

static void list_parts(struct replay_row *row, struct batches *b, int64_t documents,
                       struct part part[static PARTS]) {
    const struct part parts[PARTS] = {
        {&row->tokens, row->experts}, {&row->weight, row->experts},
        {&row->bias, row->experts},   {&row->rank_mean, row->topk},
        {&row->rank_sd, row->topk},   {&row->document, documents * row->experts},
        {&b->tokens, b->closed},      {&b->maxvio, b->closed},
        {&b->efficiency, b->closed},  {&b->response, b->closed},
        {&b->sum, b->experts},        {&b->squares, b->experts}};
    memcpy(part, parts, sizeof parts);
}

static void *array_of(const struct part *part) {
    void *array;
    memcpy(&array, part->pointer, sizeof array);
    return array;
}

/* What is of no use once the batches are closed. */
static void drop_scratch(struct batches *b) {
    b->counts = b->sent = b->load = NULL;
    b->first = b->before = NULL;
}

static void write_row(struct str *out, const struct replay_row *row, int64_t documents) {
    struct replay_row copy = *row;
    struct batches batches = *row->batches;
    struct part part[PARTS];
    drop_scratch(&batches);
    list_parts(&copy, &batches, documents, part);
    str_append(out, &copy, sizeof copy);
    str_append(out, &batches, sizeof batches);
    for (int i = 0; i < PARTS; i++)
        if (array_of(&part[i])) str_append(out, array_of(&part[i]), (size_t)part[i].count * 8);
}

void rows_write(struct str *out, const struct replay_job *job, const struct layer_run *run,
                int share) {
    for (int i = 0; i < job->variants->count; i++)
        if (job->share[i] == share) write_row(out, &run->row[i], job->source->documents);
}

/* ---- reading */

struct cursor {
    char *at;
    size_t left;
};

/* The next size bytes; NULL when there are fewer. */
static void *next(struct cursor *c, int64_t size) {
    void *bytes = c->at;
    if (size < 0 || (uint64_t)size > c->left) return NULL;
    c->at += size;
    c->left -= (size_t)size;
    return bytes;
}

static bool read_row(struct cursor *c, struct replay_row *row, struct arena *arena,
                     int64_t documents) {
    struct batches *b = arena_alloc(arena, 1, sizeof *b);
    struct part part[PARTS];
    const void *own = next(c, sizeof *row), *of_batches = next(c, sizeof *b);
    if (!b || !own || !of_batches) return false;
    memcpy(row, own, sizeof *row);
    memcpy(b, of_batches, sizeof *b);
    row->batches = b;
    list_parts(row, b, documents, part);
    for (int i = 0; i < PARTS; i++) {
        if (!array_of(&part[i])) continue;
        void *array = next(c, part[i].count * 8);
        if (!array) return false;
        memcpy(part[i].pointer, &array, sizeof array);
    }
    return true;
}

bool rows_read(struct layer_run *run, const struct replay_job *job, int share, const char *bytes,
               size_t size, struct err *err) {
    *run = (struct layer_run){0};
    arena_init(&run->arena, "rows");
    struct cursor c = {arena_alloc(&run->arena, 1, size), size};
    run->row = arena_alloc(&run->arena, (size_t)job->variants->count, sizeof *run->row);
    if (!c.at || !run->row) return err_memory(err, "rows");
    memcpy(c.at, bytes, size);
    for (int i = 0; i < job->variants->count; i++)
        if (job->share[i] == share &&
            !read_row(&c, &run->row[i], &run->arena, job->source->documents))
            return err_set(err, ERR_DATA, "rows of another process: found %zu bytes, expected more",
                           size);
    return true;
}
