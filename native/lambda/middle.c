#include "lambda/middle.h"

#include <math.h>

int64_t middle_size(const middle_shape *shape, int64_t n_read) {
    const int64_t n = n_read - shape->window + 1 - shape->sinks;
    return n > 0 ? n : 0;
}

token_range middle_leaving(const middle_shape *shape, int64_t first, int64_t n) {
    const int64_t g = shape->sinks;
    return (token_range){g + middle_size(shape, first), g + middle_size(shape, first + n)};
}

/* ---- blocks ------------------------------------------------------------------------------------------------------------- */

int64_t middle_slot(const middle_blocks *blocks, const middle_shape *shape, int64_t block) {
    return blocks->slot[block % shape->n_open];
}

static bool is_placed(const middle_blocks *blocks, const middle_shape *shape, int64_t block) {
    const int64_t slot = middle_slot(blocks, shape, block);
    return slot >= 0 && slot < blocks->n_used && blocks->block[slot] == block;
}

/* Blocks from `block - n_open + 1` on may be needed as they are, where they are looked for: there are fewer of them than slots,
 * even if a loaded state has one of them several times. */
static int64_t give_way(const middle_blocks *blocks, const middle_shape *shape, int64_t block) {
    int64_t found = -1;
    for (int64_t s = 0; s < blocks->n_used; s++) {
        const int64_t b = blocks->block[s];
        if (b > block - shape->n_open && b <= block && middle_slot(blocks, shape, b) == s) {
            continue;
        }
        if (found < 0 || blocks->chosen[s] < blocks->chosen[found] ||
            (blocks->chosen[s] == blocks->chosen[found] && blocks->block[s] < blocks->block[found])) {
            found = s;
        }
    }
    return found;
}

lmi_status middle_begin(middle_blocks *blocks, const middle_shape *shape, int64_t first, int64_t n, lmi_error *error) {
    const token_range leaving = middle_leaving(shape, first, n);
    if (leaving.begin == leaving.end) {
        return LMI_OK;
    }
    const int64_t last = (leaving.end - 1 - shape->sinks) / shape->block;
    for (int64_t b = (leaving.begin - shape->sinks) / shape->block; b <= last; b++) {
        if (is_placed(blocks, shape, b)) {
            continue;
        }
        int64_t slot = blocks->n_used;
        if (slot == shape->n_slots && shape->kind == LMI_RECALL_TOPK) {
            fail(error, LMI_OUT_OF_MEMORY, "topk keeps every token, and its budget is used up at token %lld", (long long)first);
            remedy(error, "Raise --recall-budget, or use --recall blocks, which drops what is not looked for.");
            return LMI_OUT_OF_MEMORY;
        }
        if (slot == shape->n_slots) {
            slot = give_way(blocks, shape, b);
            blocks->n_dropped++;
        } else {
            blocks->n_used++;
        }
        blocks->block[slot] = b;
        blocks->chosen[slot] = first;
        blocks->slot[b % shape->n_open] = slot;
    }
    return LMI_OK;
}

void middle_restore(middle_blocks *blocks, const middle_shape *shape) {
    for (int64_t i = 0; i < shape->n_open; i++) {
        blocks->slot[i] = -1;
    }
    for (int64_t s = 0; s < blocks->n_used; s++) {
        int64_t *slot = &blocks->slot[blocks->block[s] % shape->n_open];
        if (*slot < 0 || blocks->block[*slot] < blocks->block[s]) {
            *slot = s;
        }
    }
}

/* ---- surprise ------------------------------------------------------------------------------------------------------------ */

static double rank_of(const middle_surprises *s, const middle_shape *shape, int64_t token) {
    const double surprisal = (double)s->surprisal[token % s->n_ring];
    const double aged = -log(shape->decay) * (double)token / (double)shape->window;
    return log(surprisal > 1e-30 ? fmin(surprisal, 1e30) : 1e-30) + aged; /* finite; a NaN counts as no surprise */
}

static int64_t place_for(middle_surprises *s, const middle_shape *shape, double rank) {
    int64_t worst = -1;
    for (int64_t i = 0; i < s->n_used; i++) {
        if (s->token[i] < 0) {
            return i;
        }
        worst = worst < 0 || s->rank[i] < s->rank[worst] ? i : worst;
    }
    if (s->n_used < shape->n_slots) {
        s->token[s->n_used] = -1;
        s->rank[s->n_used] = 0.0;
        return s->n_used++;
    }
    return s->rank[worst] < rank ? worst : -1;
}

void middle_rank(middle_surprises *s, const middle_shape *shape, int64_t first, int64_t n) {
    s->n_runs = 0;
    bool open = false;
    for (int64_t i = 0; i < s->n_used; i++) {
        if (s->token[i] > first - shape->window) {
            s->token[i] = -1; /* rewound: it is in the window again, or not read at all */
        }
        const bool seen = s->token[i] >= 0;
        if (seen && !open) {
            s->runs[s->n_runs++] = (slot_range){i, i};
        }
        if (seen) {
            s->runs[s->n_runs - 1].end = i + 1;
        }
        open = seen;
    }
    s->n_moves = 0;
    const token_range leaving = middle_leaving(shape, first, n);
    for (int64_t j = leaving.begin; j < leaving.end; j++) {
        const double rank = rank_of(s, shape, j);
        const int64_t slot = place_for(s, shape, rank);
        if (slot >= 0) {
            s->moves[s->n_moves++] = (middle_move){j, slot, s->token[slot], s->rank[slot]};
            s->token[slot] = j;
            s->rank[slot] = rank;
        }
    }
}

void middle_take_back(middle_surprises *s) {
    while (s->n_moves > 0) {
        const middle_move *m = &s->moves[--s->n_moves];
        s->token[m->slot] = m->before;
        s->rank[m->slot] = m->rank_before;
    }
}
