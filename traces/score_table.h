/* score_table.h - the virtual table router_score: every logit as a row, for people who write SQL
 *
 * Layer 3 (traces). Registered on the program's own connections and, as a loadable extension
 * (build/steelyard.so), in the sqlite3 shell:
 *
 *     router_score(layer, token, expert, logit, score, weight, rank, chosen)
 *
 * over the chunks of the main database; score = the native score function without bias; weight,
 * rank (from 0) and chosen = what the native gate does. Hidden columns of the token, by name only:
 * document, domain, position, id, text, nll. Layers of ids have rows for the chosen experts only.
 */
#ifndef TRACES_SCORE_TABLE_H
#define TRACES_SCORE_TABLE_H

struct sqlite3;

/* Returns an SQLite result code. */
int score_table_register(struct sqlite3 *db);

#endif
