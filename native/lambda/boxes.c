#include "lambda/boxes.h"

#include <math.h>
#include <string.h>

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

int64_t boxes_floats(int64_t d, int64_t n_slots) {
    int64_t n_boxes = n_slots;
    for (int64_t n = n_slots; n > BOX_FAN; n_boxes += n) {
        n = above(n);
    }
    return n_boxes * 2 * d;
}

boxes boxes_at(float *memory, int64_t d, int64_t n_slots) {
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

static float *box(const boxes *b, int level, int64_t i) { return b->level[level] + i * 2 * b->d; }

void boxes_clear(const boxes *b, int64_t slot) {
    float *largest = box(b, 0, slot), *smallest = largest + b->d;
    for (int64_t i = 0; i < b->d; i++) {
        largest[i] = -INFINITY;
        smallest[i] = INFINITY;
    }
}

void boxes_add(const boxes *b, int64_t slot, const float *key) {
    float *largest = box(b, 0, slot), *smallest = largest + b->d;
    for (int64_t i = 0; i < b->d; i++) {
        largest[i] = key[i] > largest[i] ? key[i] : largest[i];
        smallest[i] = key[i] < smallest[i] ? key[i] : smallest[i];
    }
}

void boxes_close(const boxes *b, int64_t slot, int64_t n_used) {
    int64_t used = n_used;
    for (int level = 1; level < b->n_levels; level++, used = above(used)) {
        const int64_t first = slot / BOX_FAN * BOX_FAN, end = first + BOX_FAN < used ? first + BOX_FAN : used;
        slot /= BOX_FAN;
        float *outer = box(b, level, slot);
        memcpy(outer, box(b, level - 1, first), (size_t)(2 * b->d) * sizeof *outer);
        for (int64_t i = first + 1; i < end; i++) {
            const float *inner = box(b, level - 1, i);
            for (int64_t k = 0; k < b->d; k++) {
                outer[k] = inner[k] > outer[k] ? inner[k] : outer[k];
            }
            for (int64_t k = b->d; k < 2 * b->d; k++) {
                outer[k] = inner[k] < outer[k] ? inner[k] : outer[k];
            }
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

static float bound(const float *query, const float *around, int64_t n) {
    float sums[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int64_t k = 0; k < 16; k++) {
            sums[k] += query[i + k] * around[i + k];
        }
    }
    float sum = 0.0f;
    for (int64_t k = 0; k < 16; k++) {
        sum += sums[k];
    }
    for (; i < n; i++) {
        sum += query[i] * around[i];
    }
    return sum;
}

int64_t boxes_find(const boxes *b, const float *query, int64_t n_used, const int64_t *number, int64_t limit, int64_t n,
                   pick *picks, int64_t beam, pick *beams) {
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
            for (int64_t i = first; i < end; i++) {
                if (level == 0 && number[i] >= limit) {
                    continue;
                }
                const pick candidate = {.score = bound(query, box(b, level, i), 2 * b->d), .slot = i};
                found = level == 0 ? pick_better(picks, found, n, candidate) : pick_better(to, found, beam, candidate);
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
