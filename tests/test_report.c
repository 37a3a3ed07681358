/* test_report.c - figures, captions and the page, from a trace whose loads are known by hand
 *
 * Four experts, one chosen, one layer (number 3), 12 documents of 32 tokens. The first six (domain
 * "plain") send 3 of 4 tokens to expert 0 and one to expert 1; the others (a hostile name) 3 of 4
 * to expert 3 and one to expert 2. So over all text the loads are 144, 48, 48, 144: MaxVio 0.5;
 * within a domain 144, 48, 0, 0: MaxVio 2. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/balance.h"
#include "analysis/bootstrap.h"
#include "analysis/chance.h"
#include "base/file.h"
#include "base/rng.h"
#include "plots/plot.h"
#include "plots/report.h"
#include "tests/test.h"
#include "traces/trace.h"

enum { DOCUMENTS = 12, EACH = 32, TOKENS = DOCUMENTS * EACH, EXPERTS = 4 };

static const char hostile[] = "<script>alert(1)</script> \"'&\t`touch owned` {x_1^2} \xff";

static int chosen(int token) {
    bool plain = token / EACH < DOCUMENTS / 2;
    return token % 4 == 3 ? (plain ? 1 : 2) : plain ? 0 : 3;
}

static void write_trace(const char *path, enum trace_holds holds) {
    struct trace_document documents[DOCUMENTS];
    for (int d = 0; d < DOCUMENTS; d++)
        documents[d] = (struct trace_document){
            "a.txt", d < DOCUMENTS / 2 ? "plain" : hostile, "", 64, d * EACH, EACH};
    struct err err;
    struct trace_layer layer = {
        .layer = 3, .experts = EXPERTS, .topk = 1, .holds = holds, .has_gate = true};
    test_ok(gate_parse("softmax,topk=1", NULL, &layer.gate, &err), &err);
    const struct trace_setup setup = {.capture = {.model = "$(touch owned) <b>",
                                                  .family = "",
                                                  .model_id = "",
                                                  .config = "",
                                                  .source = "test",
                                                  .compute = "",
                                                  .kernels = "",
                                                  .options = "",
                                                  .lacks = "",
                                                  .vocabulary = ""},
                                      .layers = &layer,
                                      .layer_count = 1,
                                      .documents = documents,
                                      .document_count = DOCUMENTS};
    float logits[TOKENS][EXPERTS];
    int32_t expert[TOKENS], position[TOKENS];
    for (int t = 0; t < TOKENS; t++) {
        expert[t] = chosen(t);
        position[t] = t % EACH;
        for (int e = 0; e < EXPERTS; e++) logits[t][e] = e == expert[t] ? 2 : -0.1f * (float)e;
    }
    struct trace *trace = trace_create(path, &setup, TRACE_FORCE, &err);
    test_ok(trace, &err);
    const struct trace_routes routes = {
        0, 0, TOKENS, holds == TRACE_SCORES ? &logits[0][0] : NULL, expert, NULL};
    test_ok(trace_pass_begin(trace, &(struct trace_pass){TOKENS, NULL, position}, &err), &err);
    test_ok(trace_pass_routes(trace, &routes, &err), &err);
    test_ok(trace_pass_commit(trace, &err), &err);
    test_ok(trace_close(trace, true, &err), &err);
}

/* ---- running the program */

struct ran {
    int status;
    char *out, *errors;
};

static struct ran run(const char *before, const char *arguments) {
    char command[2048];
    struct ran ran;
    snprintf(command, sizeof command, "%s %s %s", before, test_program(), arguments);
    ran.status = test_run(command, &ran.out, &ran.errors);
    return ran;
}

static void done(struct ran *ran) {
    free(ran->out);
    free(ran->errors);
}

static void succeeds(const char *arguments) {
    struct ran ran = run("", arguments);
    if (ran.status != 0) print_error("%s: %s", arguments, ran.errors);
    assert_int_equal(ran.status, 0);
    done(&ran);
}

/* The command ends with `status` and stderr holds `text`. */
static void fails(const char *before, const char *arguments, int status, const char *text) {
    struct ran ran = run(before, arguments);
    if (ran.status != status || !strstr(ran.errors, text)) print_error("found: %s", ran.errors);
    assert_int_equal(ran.status, status);
    assert_non_null(strstr(ran.errors, text));
    done(&ran);
}

#define FOLDER "build/test-out/report"
static const char trace_file[] = FOLDER "/run.db", result_file[] = FOLDER "/result.db";

static int set_up(void **state) {
    (void)state;
    test_folder("report");
    write_trace(trace_file, TRACE_SCORES);
    char command[1024];
    snprintf(command, sizeof command,
             "replay %s --out %s --score softmax,sigmoid --norm none,sum --bias-rule none,sign "
             "--bias-rate 0.001,0.1 --batch-tokens 64,128 --ranks 2,4",
             trace_file, result_file);
    succeeds(command);
    return 0;
}

static void need_gnuplot(void) {
    if (test_run("gnuplot --version", NULL, NULL) == 0) return;
    printf("skip: needs gnuplot\n");
    skip();
}

/* The caption that `plot` prints for a figure, owned. */
static char *caption_of(const char *database, const char *figure) {
    char arguments[512];
    snprintf(arguments, sizeof arguments, "plot %s %s --out " FOLDER "/x.svg --force", database,
             figure);
    struct ran ran = run("", arguments);
    if (ran.status != 0) print_error("%s: %s", figure, ran.errors);
    assert_int_equal(ran.status, 0);
    free(ran.errors);
    return ran.out;
}

static char *whole(const char *path) {
    struct err err;
    size_t len;
    char *text = file_read(path, (size_t)1 << 28, &len, &err);
    test_ok(text, &err);
    return text;
}

/* ---- captions */

static void captions_state_the_numbers_that_follow_by_hand(void **state) {
    (void)state;
    need_gnuplot();
    static const char *const cases[][2] = {
        {"load_map",
         "The busiest expert is number 0 of layer 3 with 1.5 times the mean; 0 of 4 experts"},
        {"load_map", "MaxVio over all tokens, mean over layers: 0.5 (95 % interval 0 to 0.5,"},
        {"load_map", "bootstrap over 12 documents"},
        {"load_curves", "takes 15.0 % of the load under the native gate"},
        {"layer_balance", "MaxVio is largest in layer 3 (0.5)"},
        {"domain_map", "Layer 3 tells the domains apart most (drawn here): on average 50.0 %"},
        {"domain_map", "expert 0 gets 3 times the mean in \"plain\" and 1.5 times in all text"},
        {"domain_balance", "MaxVio 2 against 0.5 for all text together, a difference of 1.5"},
        {"ranks", "the native gate allows at most 33.3 % of the speed of an even load on 4 ranks, "
                  "50.0 % on 2"},
        {"gate_weights", "The load is the same under all of them"},
        {"batch_size", "MaxVio within a batch goes from 2 at 64 tokens to 1.5 at 128"},
        {"bias_trajectory", "With the sign rule on balance batches of 64 tokens, rate 0.001"},
        {"bias_rate", "Under the sign rule the most even rate is"},
        {"domain_drift", "on average 100.0 % of the choices of the reference move to other experts "
                         "(Jensen-Shannon divergence 1.000 bits)"},
        {"domain_drift", "means over 1 changes; balance batches of 64 tokens"},
        {"tradeoff", "on the frontier"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *caption = caption_of(result_file, cases[i][0]);
        if (!strstr(caption, cases[i][1]))
            print_error("%s: found: %s expected: %s\n", cases[i][0], caption, cases[i][1]);
        assert_non_null(strstr(caption, cases[i][1]));
        free(caption);
    }
}

static void a_trace_never_replayed_is_reported_under_its_own_gate(void **state) {
    (void)state;
    need_gnuplot();
    char *caption = caption_of(trace_file, "load_map");
    assert_non_null(strstr(caption, "Load under the native gate"));
    assert_non_null(strstr(caption, "with 1.5 times the mean"));
    free(caption);
    write_trace(FOLDER "/ids.db", TRACE_IDS);
    caption = caption_of(FOLDER "/ids.db", "load_map");
    assert_non_null(strstr(caption, "with 1.5 times the mean"));
    free(caption);
}

/* ---- the page */

static bool is_void(const char *name, size_t length) {
    static const char *const names[] = {"meta", "br", "hr", "img", "link", "input"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strlen(names[i]) == length && memcmp(names[i], name, length) == 0) return true;
    return false;
}

/* Every element is closed in order; style and script are raw text. */
static void assert_well_formed(const char *html) {
    char stack[64][16];
    int depth = 0;
    const char *at = strstr(html, "<html");
    while ((at = strchr(at, '<'))) {
        bool closing = at[1] == '/';
        const char *name = at + 1 + closing;
        size_t length = strcspn(name, " \t\n>/");
        assert_true(length > 0 && length < sizeof stack[0] && isalpha((unsigned char)*name));
        const char *end = name;
        for (char quote = 0; *end && (quote || *end != '>'); end++) {
            if (quote)
                quote = *end == quote ? 0 : quote;
            else if (*end == '"' || *end == '\'')
                quote = *end;
        }
        assert_true(*end == '>');
        if (closing) {
            assert_true(depth > 0);
            if (strlen(stack[depth - 1]) != length || memcmp(stack[depth - 1], name, length) != 0)
                fail_msg("found </%.*s>, expected </%s>", (int)length, name, stack[depth - 1]);
            depth--;
        } else if (end[-1] != '/' && !is_void(name, length)) {
            assert_in_range(depth, 0, 63);
            memcpy(stack[depth], name, length);
            stack[depth++][length] = '\0';
            if (strcmp(stack[depth - 1], "style") == 0) end = strstr(end, "</style>") - 1;
            if (depth && strcmp(stack[depth - 1], "script") == 0)
                end = strstr(end, "</script>") - 1;
        }
        at = end + 1;
    }
    assert_int_equal(depth, 0);
}

/* Whatever the page refers to lies inside it or beside it. */
static void assert_self_contained(const char *html) {
    assert_null(strstr(html, " src="));
    assert_null(strstr(html, "<link"));
    assert_null(strstr(html, "@import"));
    for (const char *at = html; (at = strstr(at, "http")); at++)
        assert_true(strncmp(at, "http://www.w3.org/", 18) == 0 ||
                    strncmp(at, "http-equiv", 10) == 0);
    for (const char *at = html; (at = strstr(at, "href=")); at++)
        assert_true(at[6] == '#' || islower((unsigned char)at[6]));
    for (const char *at = html; (at = strstr(at, "url(")); at++) assert_true(strchr("#'", at[4]));
}

static char *report(const char *name) {
    char arguments[512], path[256];
    snprintf(arguments, sizeof arguments, "report %s --out " FOLDER "/%s", result_file, name);
    succeeds(arguments);
    snprintf(path, sizeof path, FOLDER "/%s/report.html", name);
    return whole(path);
}

static void the_page_is_well_formed_and_needs_nothing_else(void **state) {
    (void)state;
    need_gnuplot();
    char *html = report("page");
    assert_well_formed(html);
    assert_self_contained(html);
    assert_non_null(strstr(html, "prefers-color-scheme: dark"));
    assert_non_null(strstr(html, "class=\"sortable\""));
    assert_non_null(strstr(html, "Empty comparisons"));
    assert_non_null(strstr(html, "open loop"));
    int figures = 0, images = 0;
    for (const char *at = html; (at = strstr(at, "<figure id=")); at++) figures++;
    for (const char *at = html; (at = strstr(at, "<svg role=\"img\" aria-label=\"")); at++)
        images++;
    assert_int_equal(figures, 12); /* all but the comparison of models */
    assert_int_equal(images, figures);
    free(html);
}

static void hostile_names_are_shown_and_never_run(void **state) {
    (void)state;
    need_gnuplot();
    char *html = report("hostile");
    assert_null(strstr(html, "<script>alert"));
    assert_null(strstr(html, "<b>"));
    assert_non_null(strstr(html, "&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert_false(file_exists("owned"));
    assert_false(file_exists(FOLDER "/owned"));
    free(html);
}

static void the_same_result_gives_the_same_bytes(void **state) {
    (void)state;
    need_gnuplot();
    char *first = report("one"), *second = report("two");
    assert_string_equal(first, second);
    free(first);
    free(second);
    assert_int_equal(test_run("diff -r " FOLDER "/one " FOLDER "/two", NULL, NULL), 0);
}

static void every_template_runs_by_hand_on_its_data_file(void **state) {
    (void)state;
    need_gnuplot();
    free(report("hand"));
    static const char *const names[] = {
#define X(name) #name,
        PLOT_FIGURES(X)
#undef X
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char command[1024], path[256], *errors;
        snprintf(path, sizeof path, FOLDER "/hand/%s.tsv", names[i]);
        if (!file_exists(path)) continue; /* models needs two databases */
        snprintf(command, sizeof command,
                 "gnuplot -d -e \"data='%s'; out='%s.hand.svg'\" plots/%s.gp && "
                 "cd " FOLDER "/hand && gnuplot -d -e \"data='%s.tsv'; out='again.svg'\" %s.gp",
                 path, path, names[i], names[i], names[i]);
        assert_int_equal(test_run(command, NULL, &errors), 0);
        assert_string_equal(errors, "");
        free(errors);
    }
}

static void models_are_compared_when_several_databases_are_given(void **state) {
    (void)state;
    need_gnuplot();
    struct ran ran =
        run("", "report " FOLDER "/result.db " FOLDER "/run.db --out " FOLDER "/both --json");
    assert_int_equal(ran.status, 0);
    assert_non_null(strstr(ran.out, "\"report\": \"" FOLDER "/both/report.html\""));
    assert_non_null(strstr(ran.out, "\"finding\": 3"));
    assert_true(file_exists(FOLDER "/both/models.svg"));
    done(&ran);
}

static void images_have_the_format_that_their_name_says(void **state) {
    (void)state;
    need_gnuplot();
    static const char *const cases[][2] = {
        {"a.svg", "<?xml"}, {"a.png", "\x89PNG"}, {"a.pdf", "%PDF"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char arguments[512], path[256];
        snprintf(path, sizeof path, FOLDER "/%s", cases[i][0]);
        snprintf(arguments, sizeof arguments, "plot %s ranks --out %s", result_file, path);
        succeeds(arguments);
        char *image = whole(path);
        assert_memory_equal(image, cases[i][1], strlen(cases[i][1]));
        free(image);
        fails("", arguments, 1, "expected none or --force");
    }
}

/* ---- what goes wrong */

static void a_missing_or_failing_gnuplot_is_named_and_leaves_nothing(void **state) {
    (void)state;
    static const char fake[] = FOLDER "/fake";
    static const char *const scripts[][2] = {
        {"#!/bin/sh\\necho \"line 7: undefined thing\" >&2\\nexit 1\\n", "line 7: undefined thing"},
        {"#!/bin/sh\\nexit 0\\n", "expected an image"},
        {"#!/bin/sh\\nkill -9 $$\\n", "signal 9"}};
    static const char command[] = "report " FOLDER "/result.db --out " FOLDER "/none";
    fails("PATH=/nonexistent", command, 1, "expected the program in PATH");
    char before[512];
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        snprintf(before, sizeof before,
                 "mkdir -p %s && printf '%s' >%s/gnuplot && chmod +x %s/gnuplot", fake,
                 scripts[i][0], fake, fake);
        assert_int_equal(test_run(before, NULL, NULL), 0);
        snprintf(before, sizeof before, "PATH=\"$PWD/%s:$PATH\"", fake);
        fails(before, command, 1, scripts[i][1]);
        assert_false(file_exists(FOLDER "/none"));
    }
}

/* A limit on the size of files stands in for a full disk: only the page is larger. */
static void a_report_that_cannot_be_written_leaves_no_folder(void **state) {
    static const char out[] = FOLDER "/full";
    char arguments[512];
    (void)state;
    need_gnuplot();
    snprintf(arguments, sizeof arguments, "report %s --out %s", result_file, out);
    fails("trap '' XFSZ; ulimit -f 200;", arguments, 1, "report.html: cannot write");
    assert_false(file_exists(out));
    succeeds(arguments);
    /* one that was there stays as it was */
    assert_int_equal(
        test_run("cd " FOLDER " && echo older > full/style.gp && cp -r full older", NULL, NULL), 0);
    strcat(arguments, " --force");
    fails("trap '' XFSZ; ulimit -f 200;", arguments, 1, "report.html: cannot write");
    assert_int_equal(test_run("diff -r " FOLDER "/full " FOLDER "/older", NULL, NULL), 0);
}

static void bad_arguments_get_one_clear_line(void **state) {
    (void)state;
    test_ok_(file_write(FOLDER "/text", "hello", 5, &(struct err){0}), &(struct err){0},
             "file_write", __FILE__, __LINE__);
    write_trace(FOLDER "/ids.db", TRACE_IDS);
    static const struct {
        const char *arguments;
        int status;
        const char *text;
    } cases[] = {
        {"report " FOLDER "/result.db", 2, "expected --out DIR"},
        {"report --out " FOLDER "/new", 2, "found no database"},
        {"report " FOLDER "/result.db --out " FOLDER, 1, "expected --force"},
        {"report " FOLDER "/result.db --out " FOLDER "/text", 1, "expected a folder"},
        {"report " FOLDER "/absent.db --out " FOLDER "/new", 1, "absent.db"},
        {"report " FOLDER "/text --out " FOLDER "/new", 1, "text: "},
        {"plot " FOLDER "/ids.db tradeoff --out " FOLDER "/n.svg", 1, "router scores"},
        {"plot " FOLDER "/result.db nonsense --out " FOLDER "/n.svg", 2,
         "expected one of: load_map"},
        {"plot " FOLDER "/result.db ranks --out " FOLDER "/n.gif", 2,
         "expected .svg, .png or .pdf"},
        {"plot " FOLDER "/result.db models --out " FOLDER "/n.svg", 1, "compares databases"},
        {"plot " FOLDER "/run.db bias_rate --out " FOLDER "/n.svg", 1, "--bias-rate"},
        {"figures extra", 2, "expected no argument"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        fails("", cases[i].arguments, cases[i].status, cases[i].text);
    assert_false(file_exists(FOLDER "/new"));
    assert_false(file_exists(FOLDER "/n.svg"));
}

static void figures_are_listed_with_their_questions(void **state) {
    (void)state;
    struct ran ran = run("", "figures --csv");
    assert_int_equal(ran.status, 0);
#define X(name) assert_non_null(strstr(ran.out, "\n" #name ","));
    PLOT_FIGURES(X)
#undef X
    done(&ran);
}

/* ---- parts */

static void data_files_cannot_be_broken_by_names(void **state) {
    (void)state;
    struct err err;
    const struct table_column columns[] = {{"a\tb", "", TABLE_TEXT}, {"x", "", TABLE_REAL}};
    struct table *table = table_create(columns, 2, &err);
    table_text(table, "one\ntwo\t\"three\"");
    table_real(table, 0.5);
    table_text(table, NULL);
    table_real(table, (double)NAN);
    const struct table *blocks[] = {table, table};
    struct str out = {0};
    test_ok(plot_data(blocks, 2, &out, &err), &err);
    const char block[] = "a b\tx\none two 'three'\t0.5\n\t\n";
    assert_memory_equal(out.data, block, strlen(block));
    assert_memory_equal(out.data + strlen(block), "\n\n", 2);
    assert_string_equal(out.data + strlen(block) + 2, block);
    str_free(&out);
    table_free(table);
}

static void ids_of_a_figure_get_its_name(void **state) {
    (void)state;
    struct str html = {0};
    report_figure(
        &html, &(struct report_figure){.name = "f",
                                       .question = "a<b?",
                                       .title = "t",
                                       .caption = "c & d",
                                       .svg = "<?xml?><svg><circle id='p'/><use xlink:href='#p'/>"
                                              "<g id=\"q\" fill=\"url(#p)\"/></svg>"});
    assert_non_null(strstr(html.data, "<circle id='f-p'/><use xlink:href='#f-p'/>"));
    assert_non_null(strstr(html.data, "<g id=\"f-q\" fill=\"url(#f-p)\"/>"));
    assert_non_null(strstr(html.data, "<h3>a&lt;b?</h3>"));
    assert_non_null(strstr(html.data, "aria-label=\"t: c &amp; d\""));
    assert_null(strstr(html.data, "<?xml"));
    str_free(&html);
}

static void escaping_repairs_what_is_no_utf8(void **state) {
    (void)state;
    struct str html = {0};
    report_escape(&html,
                  "a\x01<\"'&> \xc3\xa9 \xff \xc0\xaf \xed\xa0\x80 \xf0\x9f\x98\x80 \xe2\x82");
    assert_string_equal(html.data, "a &lt;&quot;&#39;&amp;&gt; \xc3\xa9 \xef\xbf\xbd "
                                   "\xef\xbf\xbd\xef\xbf\xbd \xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd "
                                   "\xf0\x9f\x98\x80 \xef\xbf\xbd\xef\xbf\xbd");
    str_free(&html);
}

static void chance_alone_agrees_with_dice(void **state) {
    (void)state;
    test_near(chance_maxvio(2, 1, 1), 0.5, 1e-12); /* E[max of two coins] = 3/4, m = 1/2 */
    test_near(chance_maxvio(4, 4, 100), 0, 1e-12);
    assert_true(isnan(chance_maxvio(4, 5, 10)));
    enum { E = 64, K = 4, TRIES = 300 };
    struct rng rng;
    rng_init(&rng, 7);
    static const int64_t sizes[] = {16, 256, 2048};
    for (size_t s = 0; s < 3; s++) {
        double sum = 0;
        for (int i = 0; i < TRIES; i++) {
            int n[E] = {0}, most = 0;
            for (int64_t t = 0; t < sizes[s]; t++) {
                int64_t order[E];
                for (int e = 0; e < E; e++) order[e] = e;
                for (int k = 0; k < K; k++) {
                    int64_t pick = k + (int64_t)rng_below(&rng, (uint64_t)(E - k)), e = order[pick];
                    order[pick] = order[k];
                    n[e]++;
                }
            }
            for (int e = 0; e < E; e++) most = n[e] > most ? n[e] : most;
            sum += (double)most / ((double)sizes[s] * K / E) - 1;
        }
        test_near(chance_maxvio(E, K, sizes[s]) / (sum / TRIES), 1, 0.05);
    }
}

/* 20 documents of 800 choices among 32 experts with falling shares, the first 1.25 times the mean.
 */
static void draw_even_load(struct rng *rng, int64_t *counts) {
    for (int d = 0; d < 20; d++)
        for (int i = 0; i < 800; i++) {
            int e = (int)rng_below(rng, 32);
            /* an expert of the last half gives way to its mirror, the more the farther back */
            if (e >= 16 && rng_uniform(rng) < 0.25 * (e - 15) / 16) e = 31 - e;
            counts[d * 32 + e]++;
        }
}

static void intervals_of_a_nearly_even_load_hold_the_truth(void **state) {
    (void)state;
    enum { TRIALS = 60 };
    struct rng rng;
    rng_init(&rng, 5);
    int held[3] = {0};
    for (int t = 0; t < TRIALS; t++) {
        int64_t counts[20 * 32] = {0};
        draw_even_load(&rng, counts);
        for (int kind = BOOTSTRAP_BCA; kind <= BOOTSTRAP_BASIC; kind++) {
            struct bootstrap_options options = {
                .resamples = 200, .seed = (uint64_t)t, .kind = (enum bootstrap_kind)kind};
            struct interval interval;
            struct err err;
            test_ok(bootstrap_load(counts, 20, 32, balance_maxvio, &options, &interval, &err),
                    &err);
            held[kind] += interval.low <= 0.25 && 0.25 <= interval.high;
        }
    }
    assert_in_range(held[BOOTSTRAP_BASIC], TRIALS * 8 / 10, TRIALS);
    assert_true(held[BOOTSTRAP_BASIC] > held[BOOTSTRAP_BCA]);
    assert_true(held[BOOTSTRAP_BASIC] > held[BOOTSTRAP_PERCENTILE]);
}

int test_report(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(captions_state_the_numbers_that_follow_by_hand),
        cmocka_unit_test(a_trace_never_replayed_is_reported_under_its_own_gate),
        cmocka_unit_test(the_page_is_well_formed_and_needs_nothing_else),
        cmocka_unit_test(hostile_names_are_shown_and_never_run),
        cmocka_unit_test(the_same_result_gives_the_same_bytes),
        cmocka_unit_test(every_template_runs_by_hand_on_its_data_file),
        cmocka_unit_test(models_are_compared_when_several_databases_are_given),
        cmocka_unit_test(images_have_the_format_that_their_name_says),
        cmocka_unit_test(a_missing_or_failing_gnuplot_is_named_and_leaves_nothing),
        cmocka_unit_test(a_report_that_cannot_be_written_leaves_no_folder),
        cmocka_unit_test(bad_arguments_get_one_clear_line),
        cmocka_unit_test(figures_are_listed_with_their_questions),
        cmocka_unit_test(data_files_cannot_be_broken_by_names),
        cmocka_unit_test(ids_of_a_figure_get_its_name),
        cmocka_unit_test(escaping_repairs_what_is_no_utf8),
        cmocka_unit_test(chance_alone_agrees_with_dice),
        cmocka_unit_test(intervals_of_a_nearly_even_load_hold_the_truth),
    };
    return cmocka_run_group_tests_name("report", tests, set_up, NULL);
}
