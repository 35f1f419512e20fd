#include "lambda/boxes.h"

#include <stdbool.h>
#include <string.h>

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

int64_t boxes_values(int64_t d, int64_t n_slots) {
    int64_t n_boxes = n_slots;
    for (int64_t n = n_slots; n > BOX_FAN; n_boxes += n) {
        n = above(n);
    }
    return n_boxes * 2 * d;
}

boxes boxes_at(uint16_t *memory, int64_t d, int64_t n_slots) {
    boxes b = {.d = d};
    for (int64_t n = n_slots;; n = above(n)) {
        b.n[b.n_levels] = n;
        b.level[b.n_levels++] = memory;
        memory += n * 2 * d;
        if (n <= BOX_FAN) {
            return b;
        }
    }
}

static uint16_t *box(const boxes *b, int level, int64_t i) { return b->level[level] + i * 2 * b->d; }

/* The nearest bfloat16 that is not less, and one that is not more; NaN stays NaN. */
static uint16_t round_up(float x) {
    const uint32_t bits = f32_to_bits(x);
    const bool more = (bits & 0xffff) != 0 && bits >> 31 == 0;
    return x != x ? 0x7fc0 : (uint16_t)((bits >> 16) + more);
}

static uint16_t round_down(float x) { return round_up(-x) ^ 0x8000; }

void boxes_clear(const boxes *b, int64_t slot) {
    uint16_t *largest = box(b, 0, slot), *smallest = largest + b->d;
    for (int64_t i = 0; i < b->d; i++) {
        largest[i] = 0xff80; /* -inf */
        smallest[i] = 0x7f80;
    }
}

void boxes_add(const boxes *b, int64_t slot, const float *key) {
    uint16_t *largest = box(b, 0, slot), *smallest = largest + b->d;
    for (int64_t i = 0; i < b->d; i++) {
        largest[i] = key[i] <= bf16_to_f32(largest[i]) ? largest[i] : round_up(key[i]);
        smallest[i] = key[i] >= bf16_to_f32(smallest[i]) ? smallest[i] : round_down(key[i]);
    }
}

/* `outer` grows to hold `inner`. */
static void enclose(uint16_t *outer, const uint16_t *inner, int64_t d) {
    for (int64_t i = 0; i < d; i++) {
        outer[i] = bf16_to_f32(inner[i]) > bf16_to_f32(outer[i]) ? inner[i] : outer[i];
        outer[d + i] = bf16_to_f32(inner[d + i]) < bf16_to_f32(outer[d + i]) ? inner[d + i] : outer[d + i];
    }
}

void boxes_close(const boxes *b, int64_t slot, int64_t n_used) {
    int64_t used = n_used;
    for (int level = 1; level < b->n_levels; level++, used = above(used)) {
        const int64_t first = slot / BOX_FAN * BOX_FAN, end = first + BOX_FAN < used ? first + BOX_FAN : used;
        slot /= BOX_FAN;
        uint16_t *outer = box(b, level, slot);
        memcpy(outer, box(b, level - 1, first), (size_t)(2 * b->d) * sizeof *outer);
        for (int64_t i = first + 1; i < end; i++) {
            enclose(outer, box(b, level - 1, i), b->d);
        }
    }
}

void boxes_empty(const boxes *b, int64_t slot, int64_t n_used) {
    memset(box(b, 0, slot), 0, (size_t)(2 * b->d) * sizeof *b->level[0]);
    boxes_close(b, slot, n_used);
}

void boxes_query(const float *q, int64_t d, float *query) {
    for (int64_t i = 0; i < d; i++) {
        query[i] = q[i] > 0.0f ? q[i] : 0.0f;
        query[d + i] = q[i] > 0.0f ? 0.0f : q[i];
    }
}

int64_t boxes_find(const boxes *b, box_products *products, const float *query, int64_t n_used, const int64_t *number,
                   int64_t limit, int64_t n, pick *picks, int64_t beam, pick *beams) {
    int64_t used[BOX_LEVELS];
    used[0] = n_used;
    for (int level = 1; level < b->n_levels; level++) {
        used[level] = above(used[level - 1]);
    }
    pick *from = beams, *to = beams + beam;
    int64_t n_from = 1; /* the box around everything, which nobody needs to keep */
    from[0] = (pick){.slot = 0};
    for (int level = b->n_levels - 1; level >= 0; level--) {
        int64_t found = 0;
        for (int64_t f = 0; f < n_from; f++) {
            const int64_t first = from[f].slot * BOX_FAN, end = first + BOX_FAN < used[level] ? first + BOX_FAN : used[level];
            float bounds[BOX_FAN];
            products(query, box(b, level, first), end - first, 2 * b->d, bounds);
            for (int64_t i = first; i < end; i++) {
                const pick candidate = {.score = bounds[i - first], .slot = i};
                if (level > 0) {
                    found = pick_better(to, found, beam, candidate);
                } else if (number[i] < limit) {
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
