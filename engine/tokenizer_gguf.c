/* tokenizer_gguf.c - a vocabulary from GGUF metadata becomes a struct tokenizer
 *
 * tokenizer.ggml.model "gpt2" is byte-level BPE with merges; its pre-tokenizer is only named, so
 * the patterns that the models publish in their tokenizer.json stand here in a table. "llama" is
 * SentencePiece's BPE: neighbours are joined while their text is a token, best score first.
 * Control and user-defined tokens are found in the text, as added tokens are in a tokenizer.json.
 */
#include "engine/tokenizer_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/gguf.h"

/* ---- the named pre-tokenizers: patterns applied one after the other, matches isolated */

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES       "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
/* cl100k (OpenAI tiktoken) and its descendants; they differ in how many digits make a word. */
#define CL100K(digits)                                                                             \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| "                                     \
                 "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES
/* Words of upper then lower case letters (o200k); tail = what may follow a word. */
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(upper, lower, tail)                                                                  \
    "[^\\r\\n\\p{L}\\p{N}]?" upper "*" lower "+" tail "|[^\\r\\n\\p{L}\\p{N}]?" upper "+" lower    \
    "*" tail
#define O200K_REST   "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES
#define NO_HAN_UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"
#define NO_HAN_LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"
#define DEEPSEEK_WORDS                                                                             \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?"           \
    "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACES
#define DEEPSEEK_CJK "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"
/* Letters with case, as DeepSeek-LLM's tokenizer.json lists them. */
/* clang-format off */
#define CASED_LETTERS \
    "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}" \
    "\\x{1C4}-\\x{293}\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}" \
    "\\x{37F}\\x{386}\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}" \
    "\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}" \
    "\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}" \
    "\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}" \
    "\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}" \
    "\\x{1F59}\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}" \
    "\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}" \
    "\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}" \
    "\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}\\x{212A}-\\x{212D}" \
    "\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}\\x{2183}" \
    "\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}" \
    "\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}\\x{A771}-\\x{A787}" \
    "\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}" \
    "\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}" \
    "\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}" \
    "\\x{1E900}-\\x{1E943}"
/* clang-format on */

enum { PATTERNS_MOST = 6 };

struct pre_tokenizer {
    const char *names; /* of tokenizer.ggml.pre, each between spaces */
    bool ignore_merges, add_bos;
    const char *patterns[PATTERNS_MOST];
};

static const struct pre_tokenizer pre_tokenizers[] = {
    {" gpt-2 phi-2 olmo mpt jais trillion exaone4 gigachat mellum a.x-4.0 granite-docling jina-es"
     " jina-de jina-v2-es jina-v2-de ",
     false,
     false,
     {pattern_gpt2}},
    {" llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 ",
     true,
     true,
     {CL100K("\\p{N}{1,3}")}},
    {" dbrx smaug-bpe glm4 chatglm-bpe ", false, false, {CL100K("\\p{N}{1,3}")}},
    {" qwen2 deepseek-r1-qwen kormo megrez stablelm2 hunyuan grok-2 ",
     false,
     false,
     {CL100K("\\p{N}")}},
    {" deepseek-llm ",
     false,
     false,
     {"[\\r\\n]", "\\s?[" CASED_LETTERS "]+",
      "\\s?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+",
      "\\s+$", DEEPSEEK_CJK, "\\p{N}"}},
    {" deepseek-coder ",
     false,
     false,
     {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", DEEPSEEK_CJK, "\\p{N}"}},
    {" deepseek-v3 hunyuan-dense ",
     false,
     false,
     {"\\p{N}{1,3}", "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+",
      DEEPSEEK_WORDS}},
    {" gpt-4o llama4 minimax-m2 ",
     false,
     false,
     {CASED(UPPER, LOWER, CONTRACTIONS "?") "|\\p{N}{1,3}" O200K_REST}},
    {" tekken ", true, true, {CASED(UPPER, LOWER, "") "|\\p{N}" O200K_REST}},
    {" kimi-k2 ",
     false,
     false,
     {"[\\p{Han}]+|" CASED(NO_HAN_UPPER, NO_HAN_LOWER,
                           CONTRACTIONS "?") "|\\p{N}{1,3}| "
                                             "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES}},
    {" bailingmoe bailingmoe2 llada-moe ",
     false,
     false,
     {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|"
      "\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"}},
    {" starcoder refact command-r smollm codeshell exaone minerva-7b ",
     false,
     false,
     {"\\p{N}", pattern_gpt2}},
};

enum { PRE_COUNT = sizeof pre_tokenizers / sizeof *pre_tokenizers };

static bool unknown_pre(const char *pre, struct err *err) {
    struct str known = {0};
    for (size_t i = 0; i < PRE_COUNT; i++) str_puts(&known, pre_tokenizers[i].names + (i > 0));
    err_set(err, ERR_UNSUPPORTED, "tokenizer.ggml.pre: found \"%.40s\", expected one of%s", pre,
            str_text(&known));
    str_free(&known);
    return false;
}

/* The row that names a pre-tokenizer. Files from before the key (GPT-NeoX) use GPT-2's. */
static const struct pre_tokenizer *find_pre(const char *pre, struct err *err) {
    char wanted[80];
    int len = snprintf(wanted, sizeof wanted, " %s ", pre ? pre : "gpt-2");
    bool one_word =
        len > 2 && len < (int)sizeof wanted && !strchr(strchr(wanted + 1, ' ') + 1, ' ');
    for (size_t i = 0; one_word && i < PRE_COUNT; i++)
        if (strstr(pre_tokenizers[i].names, wanted)) return &pre_tokenizers[i];
    unknown_pre(pre, err);
    return NULL;
}

/* ---- parts shared by both models */

enum token_type { TYPE_UNKNOWN = 2, TYPE_CONTROL, TYPE_USER_DEFINED };

struct building {
    struct tokenizer *t;
    const struct tokenizer_vocabulary *v;
    struct err *err;
};

static bool add_tokens(struct building *b) {
    const struct tokenizer_vocabulary *v = b->v;
    if (v->token_count < 1 || v->token_count > TOKEN_ID_MAX)
        return err_set(b->err, ERR_FORMAT, "tokenizer.ggml.tokens: found %lld, expected 1..%d",
                       (long long)v->token_count, TOKEN_ID_MAX);
    for (int64_t i = 0; i < v->token_count; i++) {
        const struct tokenizer_text *text = &v->tokens[i];
        if (!utf8_valid(text->data, text->len))
            return err_set(b->err, ERR_FORMAT, "tokenizer.ggml.tokens[%lld]: found malformed UTF-8",
                           (long long)i);
        if (!vocab_add(&b->t->vocab, text->data, text->len, (int32_t)i))
            return err_memory(b->err, "tokenizer.ggml.tokens");
    }
    return true;
}

/* Control and user-defined tokens, and the unknown token, are found in raw text. */
static bool add_special(struct building *b) {
    const struct tokenizer_vocabulary *v = b->v;
    for (int64_t i = 0; v->types && i < v->token_count; i++) {
        bool special = v->types[i] == TYPE_CONTROL || i == v->unk;
        if (!special && v->types[i] != TYPE_USER_DEFINED) continue;
        struct added_token token = {.id = (int32_t)i, .special = special};
        if (!added_insert(&b->t->raw, v->tokens[i].data, v->tokens[i].len, &token))
            return err_memory(b->err, "tokenizer.ggml.tokens");
    }
    return true;
}

static bool check_id(struct building *b, const char *key, int64_t id) {
    return id < b->v->token_count ||
           err_set(b->err, ERR_FORMAT, "tokenizer.ggml.%s: found %lld, expected 0..%lld", key,
                   (long long)id, (long long)b->v->token_count - 1);
}

static bool set_ends(struct building *b, bool add_bos) {
    const struct tokenizer_vocabulary *v = b->v;
    if (!check_id(b, "bos_token_id", v->bos) || !check_id(b, "eos_token_id", v->eos) ||
        !check_id(b, "unknown_token_id", v->unk))
        return false;
    if (v->add_bos >= 0) add_bos = v->add_bos;
    bool ok = !add_bos || v->bos < 0 || id_push(&b->t->before, (int32_t)v->bos);
    ok = ok && (v->add_eos != 1 || v->eos < 0 || id_push(&b->t->after, (int32_t)v->eos));
    return ok || err_memory(b->err, "tokenizer");
}

/* ---- "gpt2" */

static bool add_merge(struct building *b, int64_t row, struct str *joined) {
    const struct tokenizer_text *line = &b->v->merges[row];
    /* as the format asks, the cut is the first space behind the first byte */
    const char *space = line->len > 1 ? memchr(line->data + 1, ' ', line->len - 1) : NULL;
    if (!space)
        return err_set(b->err, ERR_FORMAT,
                       "tokenizer.ggml.merges[%lld]: found no space, expected "
                       "two tokens",
                       (long long)row);
    size_t left_len = (size_t)(space - line->data), right_len = line->len - left_len - 1;
    int32_t left = vocab_find(&b->t->vocab, line->data, left_len);
    int32_t right = vocab_find(&b->t->vocab, space + 1, right_len);
    str_clear(joined);
    str_append(joined, line->data, left_len);
    str_append(joined, space + 1, right_len);
    if (joined->failed) return err_memory(b->err, "tokenizer.ggml.merges");
    int32_t id = vocab_find(&b->t->vocab, joined->data, joined->len);
    if (left < 0 || right < 0 || id < 0)
        return err_set(b->err, ERR_FORMAT,
                       "tokenizer.ggml.merges[%lld]: found \"%.*s\", expected "
                       "tokens of the vocabulary",
                       (long long)row, line->len > 60 ? 60 : (int)line->len, line->data);
    if (merges_find(&b->t->merges, left, right)) return true; /* the first of equal pairs counts */
    return merges_set(&b->t->merges, left, right, (float)row, id) ||
           err_memory(b->err, "tokenizer.ggml.merges");
}

static bool build_gpt2(struct building *b) {
    struct tokenizer *t = b->t;
    const struct pre_tokenizer *pre = find_pre(b->v->pre, b->err);
    struct str joined = {0};
    if (!pre || !add_tokens(b)) return false;
    bool ok = b->v->merges && b->v->merge_count < 1 << 24;
    if (!ok) err_set(b->err, ERR_FORMAT, "tokenizer.ggml.merges: found none, expected an array");
    for (int64_t i = 0; ok && i < b->v->merge_count; i++) ok = add_merge(b, i, &joined);
    str_free(&joined);
    for (int i = 0; ok && i < PATTERNS_MOST && pre->patterns[i]; i++)
        ok = steps_add_pattern(&t->steps, pre->patterns[i], SPLIT_ISOLATED, false,
                               "tokenizer.ggml.pre", b->err);
    struct split_step *bytes = ok ? steps_add_split(&t->steps) : NULL;
    if (ok && !bytes) ok = err_memory(b->err, "tokenizer");
    if (!ok) return false;
    bytes->kind = SPLIT_BYTE_LEVEL;
    t->steps.byte_level = true;
    t->ignore_merges = pre->ignore_merges;
    return set_ends(b, pre->add_bos);
}

/* ---- "llama" */

static bool add_spaces(struct building *b) {
    static const char low_line[] = "\xE2\x96\x81";
    struct steps *steps = &b->t->steps;
    if (b->v->add_space_prefix != 0) {
        struct normalize_step *prepend = steps_add_normalize(steps);
        if (!prepend) return err_memory(b->err, "tokenizer");
        prepend->kind = NORMALIZE_PREPEND, prepend->text = low_line, prepend->len = 3;
    }
    struct pattern *space = pattern_compile(" ", 1, true, "tokenizer", b->err);
    struct normalize_step *replace = space ? steps_add_normalize(steps) : NULL;
    if (!replace) {
        pattern_free(space);
        return space ? err_memory(b->err, "tokenizer") : false;
    }
    replace->kind = NORMALIZE_REPLACE, replace->pattern = space;
    replace->text = low_line, replace->len = 3;
    return true;
}

static bool build_llama(struct building *b) {
    struct tokenizer *t = b->t;
    if (!add_tokens(b)) return false;
    if (!b->v->scores)
        return err_set(b->err, ERR_FORMAT, "tokenizer.ggml.scores: found none, expected an array");
    t->scores = malloc((size_t)b->v->token_count * sizeof *t->scores);
    if (!t->scores) return err_memory(b->err, "tokenizer.ggml.scores");
    for (int64_t i = 0; i < b->v->token_count; i++) {
        t->scores[i] = b->v->scores[i];
        if (isnan(t->scores[i]))
            return err_set(b->err, ERR_DATA, "tokenizer.ggml.scores[%lld]: found NaN",
                           (long long)i);
    }
    t->unk = (int32_t)b->v->unk;
    t->byte_fallback = true;
    tokenizer_find_bytes(t);
    return add_spaces(b) && set_ends(b, true);
}

static const struct model_row {
    const char *name;
    bool (*build)(struct building *b);
} models[] = {{"gpt2", build_gpt2}, {"llama", build_llama}};

static bool build(struct building *b) {
    static const char *const known[] = {"gpt2", "llama"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        if (b->v->model && !strcmp(models[i].name, b->v->model))
            return models[i].build(b) && add_special(b) && tokenizer_finish(b->t, b->err);
    return tokenizer_unknown(b->err, "tokenizer.ggml.model", b->v->model ? b->v->model : "", known,
                             2);
}

struct tokenizer *tokenizer_from_parts(const struct tokenizer_vocabulary *vocabulary,
                                       const char *name, struct err *err) {
    struct building b = {tokenizer_create(err), vocabulary, err};
    if (!b.t) return NULL;
    if (build(&b)) return b.t;
    err_context(err, "%s", name);
    tokenizer_free(b.t);
    return NULL;
}

/* ---- from a file's metadata */

static const char *const prefix = "tokenizer.ggml.";

/* An array of a kind: elements in *count; NULL with *count = 0 when absent. False with err set when
 * it is something else, or (expected >= 0) has another length. */
static bool find_array(const struct gguf *file, const char *key, bool text, int64_t expected,
                       const struct gguf_value **value, struct err *err) {
    char name[64];
    snprintf(name, sizeof name, "%s%s", prefix, key);
    *value = gguf_find(file, name);
    if (!*value) return true;
    if (!(*value)->array || ((*value)->kind == GGUF_TEXT) != text)
        return err_set(err, ERR_FORMAT, "%s: found another type, expected an array of %s", name,
                       text ? "texts" : "numbers");
    return expected < 0 || (*value)->count == expected ||
           err_set(err, ERR_FORMAT, "%s: found %lld elements, expected %lld", name,
                   (long long)(*value)->count, (long long)expected);
}

static bool get_id(const struct gguf *file, const char *key, int64_t *id, struct err *err) {
    char name[64];
    snprintf(name, sizeof name, "%s%s", prefix, key);
    return gguf_get_int(file, name, 0, UINT32_MAX, -1, id, err);
}

static bool get_flag(const struct gguf *file, const char *key, int *flag, struct err *err) {
    char name[64];
    bool value;
    snprintf(name, sizeof name, "%s%s", prefix, key);
    *flag = -1;
    if (!gguf_find(file, name)) return true;
    if (!gguf_get_bool(file, name, false, &value, err)) return false;
    *flag = value;
    return true;
}

/* Memory for what must be copied out of the mapping. */
struct copies {
    struct arena arena;
    struct err *err;
};

static bool copy_texts(struct copies *copies, const struct gguf_value *value,
                       const struct tokenizer_text **out, int64_t *count) {
    *out = NULL, *count = 0;
    if (!value) return true;
    struct tokenizer_text *texts = arena_alloc(&copies->arena, (size_t)value->count, sizeof *texts);
    if (!texts) return err_memory(copies->err, "vocabulary");
    for (int64_t i = 0; i < value->count; i++)
        texts[i] = (struct tokenizer_text){value->texts[i].data, value->texts[i].len};
    *out = texts, *count = value->count;
    return true;
}

static bool copy_numbers(struct copies *copies, const struct gguf_value *types,
                         const struct gguf_value *scores, struct tokenizer_vocabulary *v) {
    size_t count = (size_t)v->token_count;
    int32_t *ints = types ? arena_alloc(&copies->arena, count, sizeof *ints) : NULL;
    float *reals = scores ? arena_alloc(&copies->arena, count, sizeof *reals) : NULL;
    if ((types && !ints) || (scores && !reals)) return err_memory(copies->err, "vocabulary");
    for (size_t i = 0; types && i < count; i++) {
        int64_t type = gguf_int(types, (int64_t)i);
        ints[i] = type >= 0 && type <= 6 ? (int32_t)type : 0;
    }
    for (size_t i = 0; scores && i < count; i++) reals[i] = (float)gguf_real(scores, (int64_t)i);
    v->types = ints, v->scores = reals;
    return true;
}

static bool read_vocabulary(const struct gguf *file, struct copies *copies,
                            struct tokenizer_vocabulary *v, struct err *err) {
    const struct gguf_value *tokens, *merges, *types, *scores;
    if (!gguf_get_text(file, "tokenizer.ggml.model", NULL, &v->model, err) ||
        !gguf_get_text(file, "tokenizer.ggml.pre", NULL, &v->pre, err))
        return false;
    if (!find_array(file, "tokens", true, -1, &tokens, err) ||
        !find_array(file, "merges", true, -1, &merges, err))
        return false;
    if (!v->model || !tokens)
        return err_set(err, ERR_FORMAT, "tokenizer.ggml.%s: found none, expected a vocabulary",
                       v->model ? "tokens" : "model");
    if (!find_array(file, "token_type", false, tokens->count, &types, err) ||
        !find_array(file, "scores", false, tokens->count, &scores, err))
        return false;
    return copy_texts(copies, tokens, &v->tokens, &v->token_count) &&
           copy_texts(copies, merges, &v->merges, &v->merge_count) &&
           copy_numbers(copies, types, scores, v) && get_id(file, "bos_token_id", &v->bos, err) &&
           get_id(file, "eos_token_id", &v->eos, err) &&
           get_id(file, "unknown_token_id", &v->unk, err) &&
           get_flag(file, "add_bos_token", &v->add_bos, err) &&
           get_flag(file, "add_eos_token", &v->add_eos, err) &&
           get_flag(file, "add_space_prefix", &v->add_space_prefix, err);
}

struct tokenizer *tokenizer_from_gguf(const char *path, struct err *err) {
    struct gguf *file = gguf_open(path, err);
    if (!file) return NULL;
    struct copies copies = {.err = err};
    struct tokenizer_vocabulary vocabulary = {0};
    struct tokenizer *tokenizer = NULL;
    arena_init(&copies.arena, "vocabulary");
    if (read_vocabulary(file, &copies, &vocabulary, err))
        tokenizer = tokenizer_from_parts(&vocabulary, path, err);
    else if (strncmp(err->text, path, strlen(path)))
        err_context(err, "%s", path);
    arena_free(&copies.arena);
    gguf_close(file);
    return tokenizer;
}
