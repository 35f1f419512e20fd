/* Finding blocks of keys by what they can contain at most.
 *
 * A block's box is the largest and the smallest of its keys in every dimension; no key k in it has a larger product with q than
 *   bound(q, box) = sum over i of max(q_i smallest_i, q_i largest_i)
 * (Quest, arXiv 2406.10774, section 3.2). Boxes of 32 blocks have a box around them, and so on: a tree, whose search looks at a
 * few hundred of a million boxes. It keeps the best of every level: a box that holds a good block has a good bound, though of many
 * that do, some may be lost. `beam` boxes of blocks are looked into, and half as many of those above them: the bounds there say
 * so little that twice as many find no more.
 *
 * What a search costs is memory that it waits for. The sides of 32 boxes in one dimension fill a line of the cache each, and a
 * search fetches only that which the sign of q asks for. */
#ifndef LMI_LAMBDA_BOXES_H
#define LMI_LAMBDA_BOXES_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The best of what has been seen so far. */
typedef struct pick {
    float score;
    int32_t lane; /* the chooser's own */
    int64_t slot;
} pick;

/* picks[n], the best first, takes a better one in; of equals the earlier stays. Returns how many there are, at most `most`. */
int64_t pick_better(pick *picks, int64_t n, int64_t most, pick candidate);

enum { BOX_FAN = 32, BOX_LEVELS = 12 };

typedef struct boxes {
    int64_t d;
    int n_levels;
    int64_t n[BOX_LEVELS];       /* boxes of a level; n[0]: slots */
    uint16_t *level[BOX_LEVELS]; /* [n / 32][d][2][32] bfloat16: largest rounded up, smallest rounded down */
} boxes;

int64_t boxes_values(int64_t d, int64_t n_slots); /* that `memory` has */
boxes boxes_at(uint16_t *memory, int64_t d, int64_t n_slots);

/* The box of a slot anew, from what its keys have in each dimension [d], and the boxes around it; slots from n_used on are empty. */
void boxes_enclose(const boxes *b, int64_t slot, const float *largest, const float *smallest, int64_t n_used);

/* A slot whose block is not whole: its box is that of a key of zeros, whatever lay there. */
void boxes_empty(const boxes *b, int64_t slot, int64_t n_used);

/* As kernels.box_bounds. */
typedef void box_bounds(const float *q, const uint16_t *tile, const uint16_t *next, int64_t d, float *bounds);
/* The up to n slots below n_used with number[slot] < limit that have the best bounds, into picks[n]; beams[2 * beam] is work space. */
int64_t boxes_find(const boxes *b, box_bounds *bound, const float *q, int64_t n_used, const int64_t *number, int64_t limit,
                   int64_t n, pick *picks, int64_t beam, pick *beams);

#ifdef __cplusplus
}
#endif
#endif
