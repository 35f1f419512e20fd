/* Merging the characters of one piece of text into tokens: of all neighbours that some merge joins, the best are joined
 * first (lowest rank, or highest score), of equals the leftmost, until none are left.
 *
 * A few characters are done with plain loops, many with a heap: O(n log n) for n characters, and no recursion. */
#ifndef LMI_TOKENIZER_MERGE_H
#define LMI_TOKENIZER_MERGE_H

#include "tokenizer/vocab.h"

typedef struct merge_cell {
    uint32_t value; /* of a symbol's first cell. bpe: token; spm: byte where it begins. DEAD inside of a symbol */
    uint32_t span;  /* cells of a symbol: kept in its first and in its last cell */
} merge_cell;

/* Tokens on their way out, and the memory that merging needs. Grows when it must and is reused. */
typedef struct merger {
    const tokenizer *t;
    merge_cell *cells;
    size_t cells_capacity;
    uint64_t *heap; /* level << 32 | cell */
    size_t heap_size;
    size_t heap_capacity;
    int32_t *tokens;
    size_t n_tokens;
    size_t tokens_capacity;
    bool after_unknown; /* the last token stands for unknown text: more of it is the same token */
} merger;

void merger_close(merger *m);
/* Gives memory that an unusual piece took back to the system. */
void merger_trim(merger *m);

/* Appends the tokens of text[0, size) to m->tokens; a piece of at most 2^32 - 2 characters. */
lmi_status merge_text(merger *m, const uint8_t *text, size_t size, lmi_error *error);
/* Appends one token. */
lmi_status merger_push(merger *m, int32_t token, lmi_error *error);

/* As merge_text, always with the heap: for tests. */
lmi_status merge_text_by_heap(merger *m, const uint8_t *text, size_t size, lmi_error *error);

#endif
