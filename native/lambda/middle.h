/* The middle of a text, tokens that are neither sinks nor in the window any more: which of them are kept, and where. Index
 * arithmetic only; keys and values are the backend's.
 *
 * Of n tokens read, tokens G .. n - L have left the window for the next query: the middle. Before a chunk is read it is decided
 * where the tokens that leave with it will lie; what is decided depends on positions, on which blocks were chosen and on surprisals,
 * never on a layer or a head. Going back by a rewind needs nothing: what is beyond the middle of the moment is not shown, and
 * tokens that leave again are stored again. */
#ifndef LMI_LAMBDA_MIDDLE_H
#define LMI_LAMBDA_MIDDLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "lambda/window.h"

typedef struct middle_shape {
    lmi_recall kind;
    int64_t window, sinks; /* L, G */
    int64_t n;             /* K tokens, M tokens or N blocks */
    int64_t block;         /* B, tokens of a slot; SURPRISE: 1 */
    int64_t n_slots;       /* that there is room for */
    int64_t n_open;        /* blocks that may be begun and not all in the middle, whatever is rewound; SURPRISE: tokens whose
                              surprisal is remembered */
    int64_t distance;      /* at which recalled tokens seem to be */
    double decay;          /* SURPRISE: factor for every window of text */
} middle_shape;

/* Tokens of the middle after n tokens were read, for the next query. */
int64_t middle_size(const middle_shape *shape, int64_t n_read);

/* What leaves the window with the chunk of n tokens at `first`: tokens begin .. end - 1, at most n. */
typedef struct token_range {
    int64_t begin, end;
} token_range;
token_range middle_leaving(const middle_shape *shape, int64_t first, int64_t n);

/* ---- blocks: block b holds tokens G + b B .. G + (b + 1) B - 1 --------------------------------------------------------- */

typedef struct middle_blocks {
    int64_t n_used;          /* slots that were ever taken: the first ones */
    int64_t n_dropped;       /* blocks that gave way to others */
    int64_t *block;          /* [n_slots] that lies there */
    _Atomic int64_t *chosen; /* [n_slots] index of the chunk that last chose it, or with which it was begun */
    int64_t *slot;           /* [n_open] of block b at b % n_open */
} middle_blocks;

/* Slots for the blocks that the chunk's leaving tokens begin. When there is no room, that of the block that was not chosen for
 * longest, of two the older one; TOPK keeps all: LMI_OUT_OF_MEMORY. */
lmi_status middle_begin(middle_blocks *blocks, const middle_shape *shape, int64_t first, int64_t n, lmi_error *error);
/* Of a block that has leaving tokens, or is not wholly in the middle. */
int64_t middle_slot(const middle_blocks *blocks, const middle_shape *shape, int64_t block);
/* Finds the slots of open blocks again from blocks->block, as after loading. */
void middle_restore(middle_blocks *blocks, const middle_shape *shape);

/* ---- surprise ----------------------------------------------------------------------------------------------------------- */

typedef struct middle_move { /* token -> slot, where another was or none (-1) */
    int64_t token, slot, before;
    double rank_before;
} middle_move;

typedef struct middle_surprises {
    float *surprisal; /* [n_ring] nats, of token j at j % n_ring */
    int64_t n_ring;
    int64_t *token;     /* [n_slots] or -1 */
    double *rank;       /* [n_slots] ln surprisal, so much higher the later, that order does not change as all decay */
    int64_t n_used;     /* slots that were ever taken: the first ones */
    middle_move *moves; /* [chunk] of the chunk in progress */
    int64_t n_moves;
    slot_range *runs; /* [n_slots / 2 + 1] slots that the chunk in progress sees */
    int64_t n_runs;
} middle_surprises;

/* What the chunk sees, and which of its leaving tokens are stored once it has been attended. A rewound token is taken out. */
void middle_rank(middle_surprises *s, const middle_shape *shape, int64_t first, int64_t n);
/* The chunk was not finished, and nothing stored: those that were to give way are kept. */
void middle_take_back(middle_surprises *s);

#endif
