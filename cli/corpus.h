/* corpus.h - the texts of a capture: documents with domains, tokenised, cut into windows
 *
 * Layer 5. A TEXT file is one document, its domain the file's name without extension. `--domain
 * NAME=FILE` names the domain of a file that is given otherwise, or adds it; a folder stands for
 * the files in it (by name, not deeper). An ids file holds one document of decimal ids a line. */
#ifndef CLI_CORPUS_H
#define CLI_CORPUS_H

#include "base/arena.h"
#include "base/err.h"
#include "cli/options.h"
#include "engine/tokenizer.h"
#include "traces/trace.h"

struct corpus_request {
    const struct text_list *texts, *id_files, *domains;
    const struct tokenizer *tokenizer; /* NULL: texts are refused */
    const char *no_tokenizer;          /* why there is none, for the message */
    bool special;                      /* run the tokenizer's template at each document */
    int vocab;                         /* of the model: ids must be below */
    int64_t max_tokens;                /* in all, in the order given; 0 = no limit */
    int64_t context_tokens;            /* longest window */
    const char *out;                   /* must not be one of the texts */
};

struct corpus {
    struct arena arena;
    struct trace_document *documents;
    int64_t document_count;
    int32_t *ids, *positions; /* [T] */
    int64_t tokens;           /* T */
    int64_t *window_start;    /* [windows+1] */
    int64_t windows;
};

/* Reads, tokenises, cuts. corpus_free also after a failure. */
bool corpus_read(const struct corpus_request *request, struct corpus *corpus, struct err *err);
/* Keeps documents first..last-1 (whole ones, and their windows), numbered anew from 0. */
void corpus_keep(struct corpus *corpus, int64_t first, int64_t last);
void corpus_free(struct corpus *corpus);

#endif
