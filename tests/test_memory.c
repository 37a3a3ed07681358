/* test_memory.c - `capture --memory`: the same numbers within a bound, and refusals below the least
 */
#include "tests/test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/ahead.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/rng.h"
#include "base/spill.h"
#include "base/spool.h"
#include "engine/model.h"

static const char *folder;

static int begin(void **state) {
    struct rng rng;
    char path[600];
    (void)state;
    folder = test_folder("memory");
    snprintf(path, sizeof path, "%s/ids.txt", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    rng_init(&rng, 9);
    for (int i = 0; i < 40 * 120; i++)
        fprintf(file, "%d%c", (int)rng_below(&rng, 256), i % 120 == 119 ? '\n' : ' ');
    fclose(file);
    return 0;
}

/* `capture MODEL` with options to OUT.db, and its export to OUT.csv; stderr is returned owned. */
static char *capture(const char *model, const char *out, const char *options, int *status) {
    char command[3000], *errors;
    snprintf(command, sizeof command,
             "%s capture %s --ids %s/ids.txt --out %s/%s.db --force --pass-tokens 4800 %s && "
             "%s export %s/%s.db --to csv --out %s/%s.csv --force",
             test_program(), model, folder, folder, out, options, test_program(), folder, out,
             folder, out);
    *status = test_run(command, NULL, &errors);
    return errors;
}

static void a_bound_gives_the_same_numbers_bit_for_bit(void **state) {
    (void)state;
    static const char *const models[] = {"tests/golden/deepseek_v3_fp8", "tests/golden/olmoe"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char command[1500], options[100];
        int status;
        char *errors = capture(models[i], "free", "", &status);
        if (status != 0) fail_msg("%s: %s", models[i], errors);
        free(errors);
        /* too little is refused with the least; with that, experts come one by one */
        errors = capture(models[i], "least", "--memory 1000", &status);
        char *least = strstr(errors, "expected at least ");
        if (!status || !least) fail_msg("%s: %s", models[i], errors);
        long long bytes = atoll(least + strlen("expected at least "));
        free(errors);
        assert_true(bytes > 1000);
        for (int share = 0; share < 3; share++) {
            snprintf(options, sizeof options, "--memory %lld", bytes + share * bytes / 4);
            errors = capture(models[i], "least", options, &status);
            if (status != 0) fail_msg("%s %s: %s", models[i], options, errors);
            free(errors);
            snprintf(command, sizeof command, "cmp %s/free.csv %s/least.csv", folder, folder);
            if (test_run(command, NULL, NULL) != 0)
                fail_msg("%s %s: differs from the unbounded run", models[i], options);
        }
    }
}

/* ---- in process: every family, and what is read */

/* A model and a pass of one long window and many short ones. */
struct bounded {
    struct pool *pool;
    struct engine *engine;
    int32_t *ids;
    int64_t *start;
    struct engine_pass pass;
    uint64_t told[3][64], nll; /* hashes of logits, choices, weights by router */
};

static uint64_t hash(uint64_t h, const void *data, size_t bytes) {
    const unsigned char *at = data;
    for (size_t i = 0; i < bytes; i++) h = (h ^ at[i]) * 1099511628211u;
    return h;
}

static bool hash_routes(void *context, int r, int64_t first, int64_t n, const float *logits,
                        const int32_t *expert, const float *weight, struct err *err) {
    struct bounded *b = context;
    const struct engine_router *router = &engine_info(b->engine)->router[r];
    size_t choices = (size_t)(n * router->gate.topk);
    (void)first, (void)err;
    assert_in_range(r, 0, 63);
    b->told[0][r] = hash(b->told[0][r], logits, (size_t)(n * router->experts) * sizeof *logits);
    b->told[1][r] = hash(b->told[1][r], expert, choices * sizeof *expert);
    b->told[2][r] = hash(b->told[2][r], weight, choices * sizeof *weight);
    return true;
}

static bool hash_nll(void *context, int64_t first, int64_t n, const float *nll, struct err *err) {
    struct bounded *b = context;
    (void)first, (void)err;
    b->nll = hash(b->nll, nll, (size_t)n * sizeof *nll);
    return true;
}

static bool open_bounded(struct bounded *b, const char *model, int threads, int64_t bytes,
                         struct err *err) {
    *b = (struct bounded){.pool = pool_create(threads, err)};
    assert_non_null(b->pool);
    const struct engine_options options = {.pool = b->pool, .memory_bytes = bytes};
    b->engine = engine_open(model, &options, err);
    return b->engine != NULL;
}

enum { SHORT_WINDOW = 40, SHORT_WINDOWS = 9 };

/* The first window is `longest` tokens. */
static void make_pass(struct bounded *b, int64_t longest) {
    const struct engine_info *info = engine_info(b->engine);
    struct rng rng;
    rng_init(&rng, 5);
    b->pass.windows = SHORT_WINDOWS + 1;
    b->pass.tokens = longest + SHORT_WINDOWS * SHORT_WINDOW;
    b->ids = calloc((size_t)b->pass.tokens, sizeof *b->ids);
    b->start = calloc((size_t)b->pass.windows + 1, sizeof *b->start);
    for (int64_t t = 0; t < b->pass.tokens; t++)
        b->ids[t] = (int32_t)rng_below(&rng, (uint64_t)info->vocab);
    for (int w = 0; w <= SHORT_WINDOWS; w++) b->start[w + 1] = longest + w * SHORT_WINDOW;
    b->pass.ids = b->ids;
    b->pass.window_start = b->start;
}

static bool run_bounded(struct bounded *b, struct err *err) {
    const struct engine_sink sink = {.context = b, .routes = hash_routes, .nll = hash_nll};
    return engine_run(b->engine, &b->pass, &sink, NULL, err);
}

static void close_bounded(struct bounded *b) {
    engine_close(b->engine);
    pool_free(b->pool);
    free(b->ids);
    free(b->start);
}

/* The least bound that a model can run in: a layer without its routed experts, and one of them. */
static int64_t least_bound(const char *model) {
    struct bounded b;
    struct err err = {0};
    assert_false(open_bounded(&b, model, 1, 1000, &err));
    const char *least = strstr(err.text, "expected at least ");
    if (!least) fail_msg("%s: %s", model, err.text);
    close_bounded(&b);
    return atoll(least + strlen("expected at least "));
}

/* Every kind of mixture: plain, grouped, gated and identity experts, input-scaled, biased, parallel
 * blocks, blocks without a norm before the feed-forward or that keep the normed stream. */
static const struct {
    const char *model;
    int64_t longest; /* window */
} mixtures[] = {
    {"tests/golden/deepseek_v3", 250},       {"tests/golden/mixtral", 1500},
    {"tests/golden/gpt_oss_mxfp4", 250},     {"tests/golden/olmoe", 4500},
    {"tests/golden/llama4_text", 250},       {"tests/golden/deepseek_v2", 250},
    {"../shared/golden/gpt_oss", 250},       {"../shared/golden/granitemoeshared", 250},
    {"../shared/golden/ernie4_5_moe", 250},  {"../shared/golden/qwen2_moe", 250},
    {"../shared/golden/phimoe", 250},        {"../shared/golden/hunyuan_v1_moe", 250},
    {"../shared/golden/longcat_flash", 250}, {"../shared/golden/cohere2_moe", 250},
    {"../shared/golden/flex_olmo", 250},     {"../shared/golden/minimax", 250},
    {"../shared/golden/dbrx", 250},
};

static void experts_in_groups_give_the_same_bits_in_every_family(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof mixtures / sizeof *mixtures; i++) {
        const char *model = mixtures[i].model;
        struct bounded whole;
        struct err err = {0};
        if (strncmp(model, "..", 2) == 0 && !file_is_folder(model)) continue;
        test_ok(open_bounded(&whole, model, 2, 0, &err), &err);
        make_pass(&whole, mixtures[i].longest);
        test_ok(run_bounded(&whole, &err), &err);
        int64_t least = least_bound(model);
        for (int run = 0; run < 2; run++) {
            struct bounded b;
            test_ok(open_bounded(&b, model, 1 + 2 * run, least + least * run / 2, &err), &err);
            if (!b.engine->grouped && run == 0) fail_msg("%s: experts in no groups", model);
            make_pass(&b, mixtures[i].longest);
            test_ok(run_bounded(&b, &err), &err);
            if (memcmp(b.told, whole.told, sizeof b.told) != 0 || b.nll != whole.nll)
                fail_msg("%s, run %d: differs from the unbounded run", model, run);
            close_bounded(&b);
        }
        close_bounded(&whole);
    }
}

static bool is_routed(const char *name) {
    if (strstr(name, "shared_")) return false;
    return strstr(name, "experts.") || strstr(name, "moe.input_linear") ||
           strstr(name, "moe.output_linear");
}

static void a_bounded_pass_reads_every_weight_once(void **state) {
    (void)state;
    static const char *const models[] = {
        "tests/golden/deepseek_v3",      "tests/golden/deepseek_v3_fp8",
        "tests/golden/gpt_oss_mxfp4",    "tests/golden/mixtral",
        "tests/golden/llama4_text",      "../shared/golden/granitemoe",
        "../shared/golden/longcat_flash"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        if (strncmp(models[i], "..", 2) == 0 && !file_is_folder(models[i])) continue;
        struct bounded b;
        struct err err = {0};
        test_ok(open_bounded(&b, models[i], 2, least_bound(models[i]), &err), &err);
        make_pass(&b, 200);
        int64_t experts = 0, all = 0;
        for (int passes = 1; passes <= 2; passes++) {
            test_ok(run_bounded(&b, &err), &err);
            for (int64_t t = 0; t < b.engine->tensors.count; t++) {
                const struct tensor *tensor = &b.engine->tensors.items[t];
                bool routed = is_routed(tensor->name);
                if (!tensor->used || strstr(tensor->name, "embed_tokens")) continue;
                if (!routed && passes == 2) continue; /* norms and biases are read on opening */
                if (tensor->read_bytes != passes * tensor->bytes)
                    fail_msg("%s: %s: read %lld bytes of %lld in %d passes", models[i],
                             tensor->name, (long long)tensor->read_bytes, (long long)tensor->bytes,
                             passes);
                experts += routed;
                all += tensor->bytes * (passes == 1);
            }
            if (passes == 1) assert_int_equal(engine_read_bytes(b.engine), all);
        }
        assert_true(experts > 0);
        close_bounded(&b);
    }
}

enum { AHEAD_BYTES = 16 << 20 };

/* Pages of a mapping that are in memory. */
static int64_t present(void *data) {
    static unsigned char pages[AHEAD_BYTES / 4096];
    int64_t count = 0, all = AHEAD_BYTES / sysconf(_SC_PAGESIZE);
    if (mincore(data, AHEAD_BYTES, pages) != 0) return -1;
    for (int64_t i = 0; i < all; i++) count += pages[i] & 1;
    return count;
}

static void pages_that_were_asked_for_come_before_they_are_touched(void **state) {
    (void)state;
    static char zeros[1 << 20];
    char path[600];
    int64_t all = AHEAD_BYTES / sysconf(_SC_PAGESIZE);
    snprintf(path, sizeof path, "%s/ahead", test_folder("memory"));
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    for (int i = 0; i < AHEAD_BYTES >> 20; i++)
        assert_int_equal(write(fd, zeros, sizeof zeros), sizeof zeros);
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    void *data = mmap(NULL, AHEAD_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(data, MAP_FAILED);
    bool cold = present(data) < all / 2; /* a file system in memory keeps its pages */
    struct ahead *ahead = ahead_create();
    assert_non_null(ahead);
    ahead_ask(ahead, data, AHEAD_BYTES);
    double until = clock_seconds() + 20;
    while (present(data) < all && clock_seconds() < until) usleep(1000);
    if (!cold) printf("skip: the page cache was not given back\n");
    assert_int_equal(present(data), all);
    for (int i = 0; i < 1000; i++) ahead_ask(ahead, data, AHEAD_BYTES); /* may be left undone */
    ahead_free(ahead);
    ahead_ask(NULL, data, 1);
    ahead_free(NULL);
    munmap(data, AHEAD_BYTES);
    close(fd);
}

static void what_was_dropped_from_a_spill_comes_back(void **state) {
    (void)state;
    enum { COUNT = 1 << 20 };
    struct err err = {0};
    for (int in_file = 0; in_file < 2; in_file++) {
        struct spill spill;
        test_ok(spill_open(&spill, COUNT * sizeof(uint32_t), in_file, &err), &err);
        uint32_t *data = spill.data;
        for (uint32_t i = 0; i < COUNT; i++) data[i] = i * 2654435761u;
        spill_drop(&spill, 1000, spill.bytes - 2000);
        for (uint32_t i = 0; i < COUNT; i++) assert_int_equal(data[i], i * 2654435761u);
        spill_close(&spill);
    }
}

static void a_spill_without_a_place_is_one_clear_error(void **state) {
    (void)state;
    struct err err = {0};
    struct spill spill;
    setenv("TMPDIR", "/nonexistent/folder", 1);
    assert_false(spill_open(&spill, 100, true, &err));
    unsetenv("TMPDIR");
    if (!strstr(err.text, "/nonexistent/folder")) fail_msg("%s", err.text);
    spill_close(&spill);
}

/* Three times as much as stays in memory, in pieces of all sizes. */
static void what_was_spooled_reads_back(void **state) {
    (void)state;
    enum { PIECES = 700 };
    static unsigned char piece[150000];
    static int64_t at[PIECES];
    struct spool spool = {0};
    struct err err = {0};
    size_t size = 0;
    for (size_t i = 0; i < PIECES; i++) {
        size = i * 7919 % sizeof piece;
        memset(piece, (int)(i % 251), size);
        test_ok(spool_add(&spool, piece, size, &at[i], &err), &err);
    }
    assert_true(spool.size > 2 * SPOOL_MEMORY_BYTES);
    assert_true(spool.file && !spool.memory);
    for (size_t i = 0; i < PIECES; i += 3) {
        size = i * 7919 % sizeof piece;
        memset(piece, 255, sizeof piece);
        test_ok(spool_read(&spool, at[i], piece, size, &err), &err);
        for (size_t j = 0; j < size; j++) assert_int_equal(piece[j], i % 251);
    }
    spool_close(&spool);
}

int test_memory(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_bound_gives_the_same_numbers_bit_for_bit, begin),
        cmocka_unit_test(experts_in_groups_give_the_same_bits_in_every_family),
        cmocka_unit_test(a_bounded_pass_reads_every_weight_once),
        cmocka_unit_test(pages_that_were_asked_for_come_before_they_are_touched),
        cmocka_unit_test(what_was_dropped_from_a_spill_comes_back),
        cmocka_unit_test(a_spill_without_a_place_is_one_clear_error),
        cmocka_unit_test(what_was_spooled_reads_back),
    };
    return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
