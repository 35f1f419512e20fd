/* Boxes around keys: they hold their keys, a search of few finds what brute force finds, one of many finds what stands out. */
#include "check.h"

#include <stdbool.h>

#include "base/cpu.h"
#include "base/half.h"
#include "kernels/kernels.h"
#include "lambda/boxes.h"

enum { MAX_D = 128, BLOCK = 16 };

typedef struct fixture {
    boxes b;
    uint16_t *memory;
    float *keys;     /* [n][BLOCK][d] */
    int64_t *number; /* [n] */
    int64_t d, n;
} fixture;

static fixture make(int64_t d, int64_t n, uint64_t *seed) {
    fixture f = {.d = d, .n = n};
    f.memory = calloc((size_t)boxes_values(d, n), sizeof *f.memory);
    f.keys = malloc((size_t)(n * BLOCK * d) * sizeof *f.keys);
    f.number = malloc((size_t)n * sizeof *f.number);
    f.b = boxes_at(f.memory, d, n);
    for (int64_t i = 0; i < n * BLOCK * d; i++) {
        f.keys[i] = (float)check_normal(seed);
    }
    for (int64_t s = 0; s < n; s++) {
        f.number[s] = (s * 7919) % (2 * n);
    }
    return f;
}

static void drop(fixture *f) {
    free(f->memory);
    free(f->keys);
    free(f->number);
}

static void enclose(const fixture *f, int64_t slot, int64_t n_used) {
    float largest[MAX_D], smallest[MAX_D];
    for (int64_t k = 0; k < f->d; k++) {
        largest[k] = -INFINITY;
        smallest[k] = INFINITY;
        for (int64_t i = 0; i < BLOCK; i++) {
            largest[k] = fmaxf(largest[k], f->keys[(slot * BLOCK + i) * f->d + k]);
            smallest[k] = fminf(smallest[k], f->keys[(slot * BLOCK + i) * f->d + k]);
        }
    }
    boxes_enclose(&f->b, slot, largest, smallest, n_used);
}

/* Of a box's dimension k, as boxes.h lays them out. */
static float largest(const fixture *f, int level, int64_t i, int64_t k) {
    return bf16_to_f32(f->b.level[level][((i / 32 * f->d + k) * 2 + 0) * 32 + i % 32]);
}

static float smallest(const fixture *f, int level, int64_t i, int64_t k) {
    return bf16_to_f32(f->b.level[level][((i / 32 * f->d + k) * 2 + 1) * 32 + i % 32]);
}

static double bound(const fixture *f, int level, int64_t i, const float *q) {
    double sum = 0;
    for (int64_t k = 0; k < f->d; k++) {
        sum += (double)q[k] * (double)(q[k] > 0 ? largest(f, level, i, k) : smallest(f, level, i, k));
    }
    return sum;
}

/* Every box of every level that has slots in use, against the keys under it; and none is larger than rounding makes it. */
static void test_hold(int64_t d, int64_t n, int64_t n_used) {
    uint64_t seed = (uint64_t)(d + n);
    fixture f = make(d, n, &seed);
    for (int64_t s = 0; s < n_used; s++) {
        enclose(&f, (s * 5) % n_used, n_used); /* in another order, some of them twice */
    }
    for (int64_t s = 0; s < n_used; s++) {
        enclose(&f, s, n_used);
    }
    int64_t width = 1, used = n_used;
    for (int level = 0; level < f.b.n_levels; level++, width *= BOX_FAN, used = (used + BOX_FAN - 1) / BOX_FAN) {
        for (int64_t i = 0; i < used; i++) {
            const int64_t first = i * width * BLOCK, end = (i + 1) * width < n_used ? (i + 1) * width * BLOCK : n_used * BLOCK;
            for (int64_t k = 0; k < d; k++) {
                float most = -INFINITY, least = INFINITY;
                for (int64_t key = first; key < end; key++) {
                    most = fmaxf(most, f.keys[key * d + k]);
                    least = fminf(least, f.keys[key * d + k]);
                }
                const float high = largest(&f, level, i, k), low = smallest(&f, level, i, k);
                CHECK(high >= most && high - most <= fabsf(most) / 128, "level %d box %lld: %g for %g", level, (long long)i,
                      (double)high, (double)most);
                CHECK(low <= least && least - low <= fabsf(least) / 128, "level %d box %lld: %g for %g", level, (long long)i,
                      (double)low, (double)least);
            }
        }
    }
    drop(&f);
}

/* No box but the slot's own and those around it change; what lay there leaves no trace. */
static void test_empty(void) {
    uint64_t seed = 5;
    const int64_t d = 32, n = 700;
    fixture f = make(d, n, &seed);
    const size_t bytes = (size_t)boxes_values(d, n) * sizeof *f.memory;
    uint16_t *without = malloc(bytes);
    for (int64_t s = 0; s < n; s++) {
        if (s == 333) {
            boxes_empty(&f.b, s, n);
        } else {
            enclose(&f, s, n);
        }
    }
    memcpy(without, f.memory, bytes);
    enclose(&f, 333, n);
    CHECK(memcmp(without, f.memory, bytes) != 0);
    boxes_empty(&f.b, 333, n);
    CHECK(memcmp(without, f.memory, bytes) == 0, "an emptied slot left something");
    free(without);
    drop(&f);
}

static void look(float *q, int64_t d, uint64_t *seed) {
    for (int64_t i = 0; i < d; i++) {
        q[i] = i % 11 == 3 ? 0.0f : (float)check_normal(seed);
    }
}

static int64_t find(const fixture *f, const kernels *k, const float *q, int64_t n_used, int64_t limit, int64_t n, int64_t beam,
                    pick *picks) {
    pick *beams = malloc((size_t)(2 * beam) * sizeof *beams); /* exactly, so that a sanitizer sees one too many */
    const int64_t found = boxes_find(&f->b, k->box_bounds, q, n_used, f->number, limit, n, picks, beam, beams);
    free(beams);
    return found;
}

/* With all boxes of a level in the beam: the best, in order, of those with a number below the limit. */
static void test_find_few(const kernels *k, int64_t d, int64_t n_used, int64_t n) {
    uint64_t seed = (uint64_t)(d * 1000 + n_used);
    fixture f = make(d, 96, &seed);
    for (int64_t s = 0; s < n_used; s++) {
        enclose(&f, s, n_used);
    }
    for (int64_t limit = 0; limit <= 192; limit += 24) {
        float q[MAX_D];
        look(q, d, &seed);
        pick picks[16];
        const int64_t found = find(&f, k, q, n_used, limit, n, n + 8, picks);
        int64_t below = 0;
        for (int64_t s = 0; s < n_used; s++) {
            below += f.number[s] < limit;
        }
        CHECK(found == (below < n ? below : n), "%lld found of %lld", (long long)found, (long long)below);
        for (int64_t i = 0; i < found; i++) {
            const double score = bound(&f, 0, picks[i].slot, q);
            int64_t better = 0;
            for (int64_t s = 0; s < n_used; s++) {
                better += f.number[s] < limit && bound(&f, 0, s, q) > score + 1e-4;
            }
            CHECK(f.number[picks[i].slot] < limit && better <= i, "pick %lld", (long long)i);
            CHECK(fabs(score - (double)picks[i].score) < 1e-4 * (double)d, "%g, not %g", (double)picks[i].score, score);
            CHECK(i == 0 || picks[i - 1].score >= picks[i].score);
            for (int64_t other = 0; other < i; other++) {
                CHECK(picks[other].slot != picks[i].slot, "twice");
            }
        }
    }
    drop(&f);
}

/* Sums in double, whatever q's signs; the same bits from every instruction set, and whatever tile comes next. */
static void test_bounds(int64_t d) {
    uint64_t seed = (uint64_t)d;
    fixture f = make(d, 2 * BOX_FAN, &seed);
    float q[MAX_D], first[BOX_FAN];
    for (int64_t s = 0; s < f.n; s++) {
        enclose(&f, s, f.n);
    }
    look(q, d, &seed);
    int n_isas = 0;
    for (lmi_isa isa = LMI_ISA_REF; isa <= LMI_ISA_NEON; isa++) {
        const kernels *k;
        if (kernels_get(isa, &k, NULL) != LMI_OK) {
            continue;
        }
        float bounds[BOX_FAN], alone[BOX_FAN];
        k->box_bounds(q, f.b.level[0], f.b.level[0] + 2 * BOX_FAN * d, d, bounds);
        k->box_bounds(q, f.b.level[0], NULL, d, alone);
        if (n_isas++ == 0) {
            memcpy(first, bounds, sizeof first);
        }
        CHECK(memcmp(bounds, first, sizeof first) == 0 && memcmp(bounds, alone, sizeof alone) == 0, "%s, d %lld",
              cpu_isa_name(isa), (long long)d);
        for (int64_t i = 0; i < BOX_FAN; i++) {
            CHECK(fabs((double)bounds[i] - bound(&f, 0, i, q)) < 1e-6 * (double)d * 4, "%s box %lld: %g", cpu_isa_name(isa),
                  (long long)i, (double)bounds[i]);
        }
    }
    drop(&f);
}

enum { MOST = 4096 };

/* Of `n` boxes of a level those with the best bounds, in double; how far the last of them is from the next one. */
static int64_t best_of(const fixture *f, int level, int64_t *boxes, int64_t n, int64_t most, const float *q, double *gap) {
    double bounds[MOST];
    for (int64_t i = 0; i < n; i++) {
        const int64_t box = boxes[i];
        const double x = bound(f, level, box, q);
        int64_t at = i;
        for (; at > 0 && x > bounds[at - 1]; at--) {
            bounds[at] = bounds[at - 1];
            boxes[at] = boxes[at - 1];
        }
        bounds[at] = x;
        boxes[at] = box;
    }
    *gap = n > most ? fmin(*gap, bounds[most - 1] - bounds[most]) : *gap;
    return n < most ? n : most;
}

/* From level to level as boxes.h says, in double: the same blocks, but where float32 may see two bounds the other way round. */
static void test_find_as_said(const kernels *k) {
    enum { D = 32, N = 5000, WANTED = 7, BEAM = 6 };
    uint64_t seed = 21;
    fixture f = make(D, N, &seed);
    int clear = 0;
    for (int64_t s = 0; s < N; s++) {
        enclose(&f, s, N);
    }
    for (int round = 0; round < 40; round++) {
        float q[MAX_D];
        int64_t list[MOST], next[MOST], n_list = 0;
        double gap = INFINITY;
        pick picks[WANTED];
        look(q, D, &seed);
        const int64_t limit = round % 2 ? 2 * N : N, found = find(&f, k, q, N, limit, WANTED, BEAM, picks);
        int64_t used[BOX_LEVELS] = {N};
        for (int level = 1; level < f.b.n_levels; level++) {
            used[level] = (used[level - 1] + BOX_FAN - 1) / BOX_FAN;
        }
        for (int64_t i = 0; i < used[f.b.n_levels - 1]; i++) {
            list[n_list++] = i;
        }
        for (int level = f.b.n_levels - 1; level > 0; level--) {
            const int64_t n = best_of(&f, level, list, n_list, level > 1 ? BEAM / 2 + 1 : BEAM, q, &gap);
            n_list = 0;
            for (int64_t i = 0; i < n * BOX_FAN; i++) {
                const int64_t child = list[i / BOX_FAN] * BOX_FAN + i % BOX_FAN;
                if (child < used[level - 1] && (level > 1 || f.number[child] < limit)) {
                    next[n_list++] = child;
                }
            }
            memcpy(list, next, (size_t)n_list * sizeof *list);
        }
        const int64_t n = best_of(&f, 0, list, n_list, WANTED, q, &gap);
        CHECK(found == n);
        clear += gap > 1e-4;
        for (int64_t i = 0; gap > 1e-4 && i < found; i++) {
            bool there = false;
            for (int64_t j = 0; j < n; j++) {
                there |= list[j] == picks[i].slot;
            }
            CHECK(there, "round %d: slot %lld", round, (long long)picks[i].slot);
        }
    }
    CHECK(clear > 30, "%d of 40 searches", clear);
    drop(&f);
}

/* A block that has what is looked for stands out of thousands, wherever it lies. */
static void test_find_many(const kernels *k) {
    uint64_t seed = 3;
    const int64_t d = 32, n = 5000;
    fixture f = make(d, n, &seed);
    float q[MAX_D];
    int64_t hits = 0;
    for (int64_t s = 0; s < n; s++) {
        enclose(&f, s, n);
    }
    for (int round = 0; round < 50; round++) {
        const int64_t planted = (int64_t)(check_random(&seed) % (uint64_t)n);
        float *key = f.keys + (planted * BLOCK + round % BLOCK) * d, before[MAX_D];
        look(q, d, &seed);
        memcpy(before, key, (size_t)d * sizeof *key);
        for (int64_t i = 0; i < d; i++) {
            key[i] = 10 * q[i];
        }
        enclose(&f, planted, n);
        pick picks[4];
        CHECK(find(&f, k, q, n, 2 * n, 4, 12, picks) == 4);
        hits += picks[0].slot == planted;
        for (int64_t i = 0; i < 4; i++) {
            CHECK(fabs(bound(&f, 0, picks[i].slot, q) - (double)picks[i].score) < 1e-3);
        }
        memcpy(key, before, (size_t)d * sizeof *key);
        enclose(&f, planted, n);
    }
    CHECK(hits == 50, "%lld of 50 found", (long long)hits);
    drop(&f);
}

static void test_pick_better(void) {
    static const float scores[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5};
    pick picks[4];
    int64_t n = 0;
    for (int i = 0; i < 11; i++) {
        n = pick_better(picks, n, 4, (pick){scores[i], 0, i});
    }
    CHECK(n == 4 && picks[0].slot == 5 && picks[1].slot == 7 && picks[2].slot == 4 && picks[3].slot == 8,
          "of equals the first");
}

int main(void) {
    static const int64_t used[] = {1, 15, 16, 17, 96};
    test_pick_better();
    test_empty();
    test_bounds(64);
    test_bounds(7);
    test_hold(5, 2100, 2070); /* three levels */
    for (size_t i = 0; i < 5; i++) {
        test_hold(32, 96, used[i]);
        test_hold(5, 300, used[i] + 200);
    }
    for (lmi_isa isa = LMI_ISA_REF; isa <= LMI_ISA_NEON; isa++) {
        const kernels *k;
        if (kernels_get(isa, &k, NULL) != LMI_OK) {
            continue;
        }
        for (size_t i = 0; i < 5; i++) {
            test_find_few(k, 64, used[i], 4);
            test_find_few(k, 6, used[i], 1);
            test_find_few(k, 128, used[i], 16);
        }
        test_find_many(k);
        test_find_as_said(k);
    }
    return check_report();
}
