/* cmd_tokenize.c - steelyard tokenize: the ids of texts, one document a line */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "cli/commands.h"
#include "engine/tokenizer.h"

enum { TEXT_MOST = 1 << 30 }; /* bytes of one document */

struct tokenize_options {
    bool special, json;
};

static char *read_document(const char *path, size_t *len, struct err *err) {
    return path ? file_read(path, TEXT_MOST, len, err)
                : file_read_stream(stdin, "standard input", TEXT_MOST, len, err);
}

static void put_ids(struct str *out, const int32_t *ids, int64_t count, const char *separator) {
    for (int64_t i = 0; i < count; i++) str_printf(out, "%s%" PRId32, i ? separator : "", ids[i]);
}

/* One document as a line of ids, or as an object of the JSON array. path NULL: standard input. */
static bool tokenize(const struct tokenizer *tokenizer, const char *path,
                     struct tokenize_options options, struct str *out, struct err *err) {
    size_t len;
    int64_t count;
    int32_t *ids;
    const char *name = path ? path : "-";
    char *text = read_document(path, &len, err);
    bool got = text != NULL;
    bool ok = got && tokenizer_encode(tokenizer, text, len, options.special, &ids, &count, err);
    free(text);
    if (!ok) return got ? err_context(err, "%s", name) : false;
    if (options.json) {
        str_puts(out, "{\"file\": ");
        json_quote(out, name, strlen(name));
        str_puts(out, ", \"ids\": [");
    }
    put_ids(out, ids, count, options.json ? ", " : " ");
    str_puts(out, options.json ? "]}" : "\n");
    free(ids);
    return !out->failed || err_memory(err, "ids");
}

static bool tokenize_all(const struct text_list *rest, struct tokenize_options options,
                         struct err *err) {
    struct tokenizer *tokenizer = tokenizer_open(rest->items[0], err);
    struct str out = {0};
    bool ok = tokenizer != NULL;
    if (options.json) str_puts(&out, "[");
    for (int i = 1; ok && (i < rest->count || i == 1); i++) {
        if (options.json && i > 1) str_puts(&out, ",\n ");
        ok = tokenize(tokenizer, i < rest->count ? rest->items[i] : NULL, options, &out, err);
    }
    if (options.json) str_puts(&out, "]\n");
    if (ok && (out.failed || fwrite(out.data, 1, out.len, stdout) != out.len))
        ok = err_errno(err, "standard output", "cannot write");
    str_free(&out);
    tokenizer_free(tokenizer);
    return ok;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    struct tokenize_options options = {false, false};
    const struct option table[] = {
        {"special", OPTION_FLAG, &options.special, NULL,
         "add the template's tokens (BOS and the like)", 0, 0},
        {"json", OPTION_FLAG, &options.json, NULL, "print an array of {file, ids}", 0, 0},
        {0},
    };
    struct text_list rest = {0};
    bool done = false;
    bool ok = options_parse(command, table, argc, argv, &rest, &done, err);
    if (ok && !done && rest.count < 1) ok = err_set(err, ERR_USAGE, "found no MODEL");
    if (ok && !done) ok = tokenize_all(&rest, options, err);
    text_list_free(&rest);
    return ok;
}

const struct command command_tokenize = {
    .name = "tokenize",
    .arguments = "MODEL|tokenizer.json [FILE...]",
    .summary = "print the token ids of texts, one document a line",
    .example = "steelyard tokenize models/v3-lossfree README.md",
    .run = run,
};
