/* Index arithmetic of the middle against plain lists of tokens: which leave, where blocks lie, which give way, which surprise. */
#include "check.h"

#include <stdbool.h>

#include "lambda/middle.h"

enum { MOST = 4000, SLOTS = 64, OPEN = 32 };

static void test_sizes(void) {
    for (int64_t window = 2; window <= 9; window++) {
        for (int64_t sinks = 0; sinks <= 12; sinks += 3) {
            const middle_shape shape = {.window = window, .sinks = sinks};
            for (int64_t first = 0; first < 40; first++) {
                for (int64_t n = 1; n <= 7; n++) {
                    int64_t size = 0, leaving = 0, begin = -1, end = -1;
                    for (int64_t j = 0; j < first + n; j++) { /* literally: G <= j <= p - L */
                        const bool before = j >= sinks && j <= first - window;
                        const bool after = j >= sinks && j <= first + n - window;
                        size += before;
                        if (after && !before) {
                            begin = leaving++ == 0 ? j : begin;
                            end = j + 1;
                        }
                    }
                    const token_range range = middle_leaving(&shape, first, n);
                    CHECK(middle_size(&shape, first) == size);
                    CHECK(range.end - range.begin == leaving, "L %lld G %lld", (long long)window, (long long)sinks);
                    CHECK(leaving == 0 || (range.begin == begin && range.end == end));
                }
            }
        }
    }
}

/* ---- blocks ------------------------------------------------------------------------------------------------------------- */

typedef struct blocks {
    middle_blocks b;
    int64_t block[SLOTS], slot[OPEN];
    _Atomic int64_t chosen[SLOTS];
} blocks;

static void blocks_at(blocks *x, const middle_shape *shape) {
    memset(x, 0, sizeof *x);
    x->b = (middle_blocks){.block = x->block, .chosen = x->chosen, .slot = x->slot};
    for (int64_t i = 0; i < shape->n_open; i++) {
        x->slot[i] = 0;
    }
}

/* Every leaving token's block lies in one slot; blocks that a rewind can open again are there; at most one block per slot. */
static void check_blocks(const blocks *x, const middle_shape *shape, int64_t first, int64_t n, int64_t furthest, int64_t back) {
    const token_range range = middle_leaving(shape, first, n);
    for (int64_t j = range.begin; j < range.end; j++) {
        const int64_t block = (j - shape->sinks) / shape->block, slot = middle_slot(&x->b, shape, block);
        CHECK(slot >= 0 && slot < x->b.n_used && x->block[slot] == block, "token %lld of %lld", (long long)j, (long long)first);
    }
    for (int64_t s = 0; s < x->b.n_used; s++) {
        for (int64_t other = 0; other < s; other++) {
            CHECK(x->block[s] != x->block[other], "block %lld lies twice", (long long)x->block[s]);
        }
    }
    const int64_t oldest = middle_size(shape, furthest - back > 0 ? furthest - back : 0) / shape->block;
    for (int64_t block = oldest; block * shape->block < middle_size(shape, furthest); block++) {
        bool there = false;
        for (int64_t s = 0; s < x->b.n_used; s++) {
            there = there || x->block[s] == block;
        }
        CHECK(there, "block %lld is gone, and a rewind from %lld would need it", (long long)block, (long long)furthest);
    }
}

/* Chunks and rewinds at random, with as few slots as are allowed, choices at random, and loading in between. */
static void test_blocks(int64_t chunk, int64_t rollback, int64_t seed_of) {
    const int64_t ahead = chunk > rollback ? chunk : rollback;
    const middle_shape shape = {.kind = LMI_RECALL_BLOCKS,
                                .window = 20,
                                .sinks = 5,
                                .n = 2,
                                .block = 16,
                                .n_slots = ahead / 16 + 3 + 2,
                                .n_open = ahead / 16 + 3};
    uint64_t seed = (uint64_t)seed_of;
    blocks x;
    lmi_error error;
    blocks_at(&x, &shape);
    int64_t at = 0, furthest = 0;
    while (at < MOST) {
        const int64_t n = 1 + (int64_t)(check_random(&seed) % (uint64_t)chunk);
        int64_t before[SLOTS], stamps[SLOTS];
        const int64_t n_before = x.b.n_used;
        memcpy(before, x.block, sizeof before);
        for (int s = 0; s < SLOTS; s++) {
            stamps[s] = x.chosen[s];
        }
        furthest = at + n > furthest ? at + n : furthest;
        CHECK(middle_begin(&x.b, &shape, at, n, &error) == LMI_OK);
        check_blocks(&x, &shape, at, n, furthest, ahead);
        for (int64_t s = 0; s < n_before; s++) { /* who gave way: nobody who may go was chosen longer ago and stays */
            if (x.block[s] == before[s]) {
                continue;
            }
            for (int64_t other = 0; other < n_before; other++) {
                const bool stays = x.block[other] == before[other];
                const bool may_go = before[other] <= x.block[s] - shape.n_open;
                const bool longer = stamps[other] < stamps[s] || (stamps[other] == stamps[s] && before[other] < before[s]);
                CHECK(!(stays && may_go && longer), "slot %lld gave way before slot %lld", (long long)s, (long long)other);
            }
        }
        at += n;
        x.chosen[check_random(&seed) % (uint64_t)(x.b.n_used + !x.b.n_used)] = at;
        if (check_random(&seed) % 4 == 0) {
            const int64_t back = (int64_t)(check_random(&seed) % (uint64_t)(rollback + 1));
            at = furthest - back > at ? at : furthest - back;
            at = at < 0 ? 0 : at;
        }
        if (check_random(&seed) % 5 == 0) {
            for (int64_t i = 0; i < shape.n_open; i++) {
                x.slot[i] = 12345;
            }
            middle_restore(&x.b, &shape);
        }
    }
    CHECK(x.b.n_dropped > 50);
}

static void test_topk_keeps_all(void) {
    const middle_shape shape = {
        .kind = LMI_RECALL_TOPK, .window = 4, .sinks = 1, .n = 2, .block = 16, .n_slots = 6, .n_open = 4};
    blocks x;
    lmi_error error = {0};
    blocks_at(&x, &shape);
    int64_t at = 0;
    while (middle_begin(&x.b, &shape, at, 1, &error) == LMI_OK) {
        at++;
    }
    CHECK(middle_size(&shape, at) == 6 * 16 && error.status == LMI_OUT_OF_MEMORY && error.remedy[0] != '\0');
    CHECK(x.b.n_used == 6 && x.b.n_dropped == 0);
}

/* ---- surprise ----------------------------------------------------------------------------------------------------------- */

/* Against a list of all tokens with their ranks: the M largest of those that have left. */
static void test_surprise(int64_t chunk, double decay) {
    const middle_shape shape = {
        .kind = LMI_RECALL_SURPRISE, .window = 20, .sinks = 3, .n = 9, .block = 1, .n_slots = 9, .n_open = 40, .decay = decay};
    static float surprisal[40];
    static double all[MOST];
    int64_t token[9];
    double rank[9];
    middle_move moves[20];
    slot_range runs[9 / 2 + 1];
    middle_surprises s = {.surprisal = surprisal, .n_ring = 40, .token = token, .rank = rank, .moves = moves, .runs = runs};
    uint64_t seed = (uint64_t)chunk;
    for (int64_t at = 0; at + chunk < 1000; at += chunk) {
        for (int64_t j = at; j < at + chunk; j++) {
            const float value = j % 50 == 7   ? NAN
                                : j % 50 == 8 ? INFINITY
                                : j % 50 == 9 ? 0.0f
                                              : (float)(8 * check_uniform(&seed));
            const double clamped = value > 1e-30f ? fmin((double)value, 1e30) : 1e-30;
            surprisal[j % 40] = value;
            all[j] = log(clamped) + -log(decay) * (double)j / 20;
        }
        bool before[MOST] = {false}, after[MOST] = {false};
        for (int64_t j = 3; j <= at + chunk - 20; j++) { /* nine at most have a larger rank: of equals the earlier stays */
            int64_t better_before = 0, better_after = 0;
            for (int64_t i = 3; i <= at + chunk - 20; i++) {
                const bool better = all[i] > all[j] || (all[i] == all[j] && i < j);
                better_before += better && i <= at - 20;
                better_after += better;
            }
            before[j] = j <= at - 20 && better_before < 9;
            after[j] = better_after < 9;
        }
        for (int cancelled = 1; cancelled >= 0; cancelled--) { /* a chunk that is not finished, and again */
            middle_rank(&s, &shape, at, chunk);
            for (int64_t r = 0; r < s.n_runs; r++) {
                CHECK(runs[r].begin < runs[r].end && runs[r].end <= s.n_used && (r == 0 || runs[r - 1].end < runs[r].begin));
            }
            if (cancelled) {
                middle_take_back(&s);
            }
            int64_t n = 0;
            const bool *wanted = cancelled ? before : after;
            for (int64_t i = 0; i < s.n_used; i++) {
                n += token[i] >= 0;
                CHECK(token[i] < 0 || (wanted[token[i]] && rank[i] == all[token[i]]), "token %lld", (long long)token[i]);
            }
            int64_t n_wanted = 0;
            for (int64_t j = 0; j < at + chunk; j++) {
                n_wanted += wanted[j];
            }
            CHECK(n == n_wanted, "%lld of %lld at %lld", (long long)n, (long long)n_wanted, (long long)at);
        }
    }
    middle_rank(&s, &shape, 500, 1); /* as after a rewind: tokens that are in the window again are let go */
    for (int64_t i = 0; i < s.n_used; i++) {
        CHECK(token[i] <= 500 - 20 || token[i] == 500 + 1 - 20, "token %lld", (long long)token[i]);
    }
}

int main(void) {
    test_sizes();
    for (int64_t seed = 0; seed < 4; seed++) {
        test_blocks(1, 1, seed);
        test_blocks(7, 50, seed);
        test_blocks(64, 8, seed);
        test_blocks(100, 100, seed);
    }
    test_topk_keeps_all();
    test_surprise(1, 0.9);
    test_surprise(7, 0.5);
    test_surprise(20, 1.0);
    return check_report();
}
