/* Guesses at what comes next, from what came before: where the last tokens have occurred earlier, what followed them then is
 * likely to follow again (prompt lookup; "n-gram" drafting). How many to guess is decided by what guessing cost and gave lately.
 *
 * A guess never changes what is written: every guessed token is checked against what the model says. */
#ifndef LMI_ENGINE_DRAFT_H
#define LMI_ENGINE_DRAFT_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* Tokens guessed at once: with the one that is certain, what kernels compute row by row, bit for bit as they do single tokens. */
enum { DRAFT_MOST = MATMUL_ROWWISE_TOKENS - 1 };

typedef struct draft draft;

size_t draft_bytes(void);
draft *draft_at(void *memory); /* draft_bytes of it, aligned to 64 */

/* Forgets the text. What was learned about costs and gains stays. */
void draft_clear(draft *d);
/* The text goes on with this token; with all of them, in order, the guesses are best, but any may be left out. */
void draft_add(draft *d, int32_t token);
/* The last `n` tokens that were added are taken back. */
void draft_take_back(draft *d, int64_t n);

/* Writes at most min(most, DRAFT_MOST) tokens that may come next; returns how many are worth a try: 0 where guesses do not pay. */
int64_t draft_guess(draft *d, int64_t most, int32_t *tokens);
/* What became of the last guess: how many of its tokens came true before the first that did not. */
void draft_learn(draft *d, int64_t n_guessed, int64_t n_true);
/* A pass over 1 + n_guessed tokens took so long. */
void draft_time(draft *d, int64_t n_guessed, double seconds);

#endif
