#include "lambda/boxes.h"

#include <stdbool.h>

#include "base/half.h"

int64_t pick_better(pick *picks, int64_t n, int64_t most, pick candidate) {
    if (n == most && !(candidate.score > picks[n - 1].score)) {
        return n;
    }
    int64_t i = n < most ? n : n - 1;
    for (; i > 0 && candidate.score > picks[i - 1].score; i--) {
        picks[i] = picks[i - 1];
    }
    picks[i] = candidate;
    return n < most ? n + 1 : n;
}

static int64_t above(int64_t n) { return (n + BOX_FAN - 1) / BOX_FAN; }

/* Whole tiles of 32 boxes. */
static int64_t level_values(int64_t d, int64_t n) { return above(n) * BOX_FAN * 2 * d; }

int64_t boxes_values(int64_t d, int64_t n_slots) {
    int64_t n_values = level_values(d, n_slots);
    for (int64_t n = n_slots; n > BOX_FAN; n_values += level_values(d, n)) {
        n = above(n);
    }
    return n_values;
}

boxes boxes_at(uint16_t *memory, int64_t d, int64_t n_slots) {
    boxes b = {.d = d};
    for (int64_t n = n_slots;; n = above(n)) {
        b.n[b.n_levels] = n;
        b.level[b.n_levels++] = memory;
        memory += level_values(d, n);
        if (n <= BOX_FAN) {
            return b;
        }
    }
}

enum { NEXT = 2 * BOX_FAN }; /* from a box's number to that of the next dimension */

static uint16_t *tile_of(const boxes *b, int level, int64_t i) { return b->level[level] + i / BOX_FAN * NEXT * b->d; }
static uint16_t *largest_of(const boxes *b, int level, int64_t i) { return tile_of(b, level, i) + i % BOX_FAN; }
static uint16_t *smallest_of(const boxes *b, int level, int64_t i) { return largest_of(b, level, i) + BOX_FAN; }

/* The nearest bfloat16 that is not less, and one that is not more; NaN stays NaN. */
static uint16_t round_up(float x) {
    const uint32_t bits = f32_to_bits(x);
    const bool more = (bits & 0xffff) != 0 && bits >> 31 == 0;
    return x != x ? 0x7fc0 : (uint16_t)((bits >> 16) + more);
}

static uint16_t round_down(float x) { return round_up(-x) ^ 0x8000; }

/* Bits of bfloat16 as integers in the order of the numbers, and back; NaN is beyond all of them, by its sign. */
static int16_t in_order(uint16_t bits) { return (int16_t)(bits ^ ((bits & 0x8000) != 0 ? 0x7fff : 0)); }

/* The box around the first n of a tile. */
static void enclose(uint16_t *largest, uint16_t *smallest, const uint16_t *tile, int64_t n, int64_t d) {
    for (int64_t i = 0; i < d; i++, largest += NEXT, smallest += NEXT, tile += NEXT) {
        int16_t most = INT16_MIN, least = INT16_MAX;
        for (int64_t j = 0; j < n; j++) {
            const int16_t high = in_order(tile[j]), low = in_order(tile[BOX_FAN + j]);
            most = high > most ? high : most;
            least = low < least ? low : least;
        }
        *largest = (uint16_t)in_order((uint16_t)most);
        *smallest = (uint16_t)in_order((uint16_t)least);
    }
}

/* The boxes around a slot. */
static void enclose_above(const boxes *b, int64_t slot, int64_t n_used) {
    int64_t used = n_used;
    for (int level = 1; level < b->n_levels; level++, used = above(used)) {
        const int64_t first = slot / BOX_FAN * BOX_FAN, n = used - first < BOX_FAN ? used - first : BOX_FAN;
        slot /= BOX_FAN;
        enclose(largest_of(b, level, slot), smallest_of(b, level, slot), tile_of(b, level - 1, first), n, b->d);
    }
}

void boxes_enclose(const boxes *b, int64_t slot, const float *largest, const float *smallest, int64_t n_used) {
    uint16_t *high = largest_of(b, 0, slot), *low = smallest_of(b, 0, slot);
    for (int64_t i = 0; i < b->d; i++) {
        high[i * NEXT] = round_up(largest[i]);
        low[i * NEXT] = round_down(smallest[i]);
    }
    enclose_above(b, slot, n_used);
}

void boxes_empty(const boxes *b, int64_t slot, int64_t n_used) {
    uint16_t *high = largest_of(b, 0, slot), *low = smallest_of(b, 0, slot);
    for (int64_t i = 0; i < b->d; i++) {
        high[i * NEXT] = low[i * NEXT] = 0;
    }
    enclose_above(b, slot, n_used);
}

int64_t boxes_find(const boxes *b, box_bounds *bound, const float *q, int64_t n_used, const int64_t *number, int64_t limit,
                   int64_t n, pick *picks, int64_t beam, pick *beams) {
    int64_t used[BOX_LEVELS];
    used[0] = n_used;
    for (int level = 1; level < b->n_levels; level++) {
        used[level] = above(used[level - 1]);
    }
    pick *from = beams, *to = beams + beam;
    int64_t n_from = 1; /* the box around everything, which nobody needs to keep */
    from[0] = (pick){.slot = 0};
    for (int level = b->n_levels - 1; level >= 0; level--) {
        const int64_t most = level > 1 ? beam / 2 + 1 : beam;
        int64_t found = 0;
        for (int64_t f = 0; f < n_from; f++) {
            const int64_t first = from[f].slot * BOX_FAN, end = first + BOX_FAN < used[level] ? first + BOX_FAN : used[level];
            float bounds[BOX_FAN];
            /* A search jumps from tile to tile: the next one is on its way while this one is looked at. */
            const uint16_t *next = f + 1 < n_from ? tile_of(b, level, from[f + 1].slot * BOX_FAN) : NULL;
            bound(q, tile_of(b, level, first), next, b->d, bounds);
            for (int64_t i = first; i < end; i++) {
                const pick candidate = {.score = bounds[i - first], .slot = i};
                if (level > 0) {
                    found = pick_better(to, found, most, candidate);
                } else if ((found < n || candidate.score > picks[n - 1].score) && number[i] < limit) {
                    found = pick_better(picks, found, n, candidate);
                }
            }
        }
        if (level == 0) {
            return found;
        }
        pick *const swap = from;
        from = to;
        to = swap;
        n_from = found;
    }
    return 0;
}
