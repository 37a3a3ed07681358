/* tokenizer_open.c - a path becomes a tokenizer: which reader its file needs */
#include "base/file.h"
#include "base/gguf.h"
#include "engine/tokenizer_parts.h"

enum { FILE_MOST = 1 << 30 }; /* bytes of a tokenizer.json */

/* Loads a parsed document and frees it; NULL with err set. */
static struct tokenizer *load(struct json *doc, const char *name, struct err *err) {
    struct tokenizer *tokenizer = doc ? tokenizer_create(err) : NULL;
    bool ok = tokenizer && tokenizer_load(tokenizer, doc, err) && tokenizer_finish(tokenizer, err);
    json_free(doc);
    if (ok) return tokenizer;
    if (tokenizer) err_context(err, "%s", name);
    tokenizer_free(tokenizer);
    return NULL;
}

struct tokenizer *tokenizer_parse(const char *json, size_t len, const char *name, struct err *err) {
    struct json *doc = json_parse(json, len, err);
    if (!doc) err_context(err, "%s", name);
    return load(doc, name, err);
}

struct tokenizer *tokenizer_open(const char *path, struct err *err) {
    struct str file = {0};
    if (gguf_is(path)) return tokenizer_from_gguf(path, err);
    if (file_is_folder(path))
        file_join(&file, path, "tokenizer.json");
    else
        str_puts(&file, path);
    struct tokenizer *tokenizer =
        load(json_read(str_text(&file), FILE_MOST, err), str_text(&file), err);
    str_free(&file);
    return tokenizer;
}
