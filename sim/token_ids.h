/* token_ids.h - the vocabulary ids of all tokens, for gates that choose by them
 *
 * Layer 4 (sim): calls router and base. Read once, before the replay, and only when a variant asks:
 * four bytes a token. Letters: T tokens, k chosen, E experts. */
#ifndef SIM_TOKEN_IDS_H
#define SIM_TOKEN_IDS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "sim/variant.h"

/* All owned; id NULL: no variant chooses by token ids. */
struct token_ids {
    int32_t *id;        /* [T], all >= 0 */
    int32_t *frequent;  /* [vocabulary] ids, the most frequent first, then by rising id; NULL:
                           no variant balances by frequency */
    int64_t *count;     /* [vocabulary] tokens of that id */
    int32_t vocabulary; /* largest id + 1 */
};

enum { TOKEN_IDS_VOCABULARY = 1 << 24 }; /* the most that a table is made for */

/* Refuses sources without ids, naming the variant that needs them. Free with token_ids_free in any
 * case. */
bool token_ids_read(struct token_ids *ids, const struct variant_set *set,
                    const struct source *source, struct err *err);
void token_ids_free(struct token_ids *ids);

/* The table of balanced-hash (Hash Layers, arXiv 2106.04426 sec. 3.2): ids by falling frequency in
 * the text, each given to the k experts that have the fewest tokens so far (among equals the lower
 * index); ids that do not occur have the k that are least loaded in the end. [rows,k], rows >=
 * vocabulary, from the arena; NULL when there is no memory. */
int32_t *token_ids_balance(const struct token_ids *ids, int32_t rows, int experts, int topk,
                           struct arena *arena);

#endif
