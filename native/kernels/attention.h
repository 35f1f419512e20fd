/* What the columns of attention kernels share: which slots a token sees, and how a query meets a Q8_0 bank.
 *
 * Slots are taken in blocks of 64 that begin at multiples of 64, blocks in ascending order, slots inside a block in ascending
 * order; what a row adds up depends on its own slots only, not on the rows beside it. */
#ifndef LMI_KERNELS_ATTENTION_H
#define LMI_KERNELS_ATTENTION_H

#include <math.h>
#include <stdbool.h>

#include "base/half.h"
#include "kernels/kernels.h"

enum { BLOCK_SLOTS = 64, BLOCK_TILES = BLOCK_SLOTS / KV_TILE };

/* Slots that one token sees: two ranges, either may be empty. */
typedef struct slot_view {
    int64_t begin[2], end[2];
} slot_view;

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

/* Of tokens first .. last, those that the ring still holds, as slots of the call. */
static inline slot_view ring_view(const attend_args *args, int64_t first, int64_t last) {
    const int64_t n = args->n_slots_used;
    slot_view view = {{0, 0}, {0, 0}};
    first = max_of(first, max_of(0, args->newest - n + 1));
    last = min_of(last, args->newest);
    if (n > 0 && first <= last) {
        const int64_t begin = first % n, end = begin + (last - first + 1);
        view.begin[0] = max_of(begin, args->slot0);
        view.end[0] = min_of(min_of(end, n), args->slot1);
        view.begin[1] = args->slot0;
        view.end[1] = min_of(end - n, args->slot1);
    }
    return view;
}

/* Slots that the tokens at first_pos .. last_pos see between them. */
static inline slot_view view_of(const attend_args *args, bool sinks, int64_t first_pos, int64_t last_pos) {
    if (!sinks) {
        return ring_view(args, first_pos - args->window + 1, last_pos);
    }
    const int64_t out_of_window = min_of(args->n_slots_used, last_pos - args->window + 1);
    return (slot_view){{args->slot0, 0}, {min_of(out_of_window, args->slot1), 0}};
}

static inline uint64_t bits_of(int64_t begin, int64_t end) {
    begin = max_of(begin, 0);
    end = min_of(end, BLOCK_SLOTS);
    return begin < end ? ~(uint64_t)0 >> (BLOCK_SLOTS - (end - begin)) << begin : 0;
}

/* Bit s: the slot block + s is seen. */
static inline uint64_t seen_in_block(const slot_view *view, int64_t block) {
    return bits_of(view->begin[0] - block, view->end[0] - block) | bits_of(view->begin[1] - block, view->end[1] - block);
}

/* ---- what becomes of a logit before the softmax ----------------------------------------------------------------------- */

static inline bool shapes_logits(const attend_args *args) { return args->softcap != 0 || args->slopes != NULL; }

/* Ring: ages[s] = newest - j of the token j in slot block + s, where there is one. A row at p sees it at the distance
 * ages[s] - (newest - p). */
static inline void ages_in_block(const attend_args *args, int64_t block, int32_t *ages) {
    const int64_t n = args->n_slots_used, last = args->newest % n;
    for (int64_t s = 0; s < BLOCK_SLOTS; s++) {
        const int64_t slot = min_of(block + s, n - 1);
        ages[s] = (int32_t)(slot <= last ? last - slot : last - slot + n);
    }
}

/* Q8_0 banks: the query is rounded to 16 bits per 32 values, q = scale * level with |level| <= 32767, and meets the stored bytes
 * in integers, exactly: 32 * 255 * 32767 < 2^31. On normal data this moves the output by 3e-10 of its mean square, where rounding
 * the key to 8 bits costs 3e-5. A query that is not finite has scale NaN. */
enum { QUERY_BLOCK = 32 };

static inline float round_query(const float *q, int16_t *levels) {
    uint32_t largest = 0; /* of the bits without sign: in the order of the numbers, NaN last */
    for (int i = 0; i < QUERY_BLOCK; i++) {
        const uint32_t bits = f32_to_bits(q[i]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    const float max = f32_from_bits(largest);
    if (!(max >= 1e-30f && max <= 3e38f)) {
        for (int i = 0; i < QUERY_BLOCK; i++) {
            levels[i] = 0;
        }
        return max < 1e-30f ? 0.0f : NAN;
    }
    const float inverse = 32767.0f / max, magic = 12582912.0f;
    for (int i = 0; i < QUERY_BLOCK; i++) {
        const int32_t level = (int32_t)((q[i] * inverse + magic) - magic); /* to nearest, ties to even */
        levels[i] = (int16_t)(level > 32767 ? 32767 : level < -32767 ? -32767 : level);
    }
    return max / 32767.0f;
}

#endif
