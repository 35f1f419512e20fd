#include "engine/draft.h"

#include <stdbool.h>
#include <string.h>

enum {
    HISTORY = 1 << 16, /* tokens that can be looked back at */
    SLOTS = 1 << 16,   /* of a table: where a few tokens were seen last */
    ORDERS = 2,
    PROBE_EVERY = 48 /* where guesses do not pay, one is tried all the same now and then: text changes */
};
static const int LENGTH[ORDERS] = {4, 2}; /* tokens that must agree: the longer first */

struct draft {
    int64_t n;                      /* tokens of the text */
    int32_t tokens[HISTORY];        /* token i at i % HISTORY */
    uint32_t seen[ORDERS][SLOTS];   /* low bits of the index after such tokens, of the last occurrence */
    int64_t follows[ORDERS];        /* index of what followed the last tokens' earlier occurrence, or -1 */
    int order;                      /* of the last guess */
    double chance[ORDERS];          /* that a guessed token comes true if those before it did */
    double seconds[DRAFT_MOST + 1]; /* of a pass over 1 + i tokens; 0: not known yet */
    int64_t since_guess;            /* chances to guess that were let pass */
};

size_t draft_bytes(void) { return sizeof(draft); }

draft *draft_at(void *memory) {
    draft *d = memory;
    memset(d, 0, sizeof *d);
    for (int o = 0; o < ORDERS; o++) {
        d->chance[o] = 0.6;
        d->follows[o] = -1;
    }
    return d;
}

void draft_clear(draft *d) {
    d->n = 0;
    for (int o = 0; o < ORDERS; o++) {
        d->follows[o] = -1;
    }
}

static int32_t token_at(const draft *d, int64_t i) { return d->tokens[i % HISTORY]; }

static uint32_t hash_last(const draft *d, int length) {
    uint64_t h = 0;
    for (int i = 1; i <= length; i++) {
        h = (h ^ (uint32_t)token_at(d, d->n - i)) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return (uint32_t)(h >> 32) % SLOTS;
}

/* The index in the text that a table's entry means, if the tokens before it are really the last ones; else -1. */
static int64_t check(const draft *d, uint32_t entry, int length) {
    const int64_t back = (int64_t)(uint32_t)((uint32_t)d->n - entry), at = d->n - back;
    if (back < 1 || back > HISTORY - length || at < length) {
        return -1;
    }
    for (int i = 1; i <= length; i++) {
        if (token_at(d, at - i) != token_at(d, d->n - i)) {
            return -1;
        }
    }
    return at;
}

void draft_add(draft *d, int32_t token) {
    d->tokens[d->n % HISTORY] = token;
    d->n++;
    for (int o = 0; o < ORDERS; o++) {
        d->follows[o] = -1;
        if (d->n >= LENGTH[o]) {
            uint32_t *entry = &d->seen[o][hash_last(d, LENGTH[o])];
            d->follows[o] = check(d, *entry, LENGTH[o]);
            *entry = (uint32_t)d->n;
        }
    }
}

void draft_take_back(draft *d, int64_t n) {
    d->n = n < d->n ? d->n - n : 0;
    for (int o = 0; n > 0 && o < ORDERS; o++) {
        d->follows[o] = -1; /* entries that point beyond the end do not pass the check later */
    }
}

/* Passes over more tokens are taken to cost a little more each until they were measured. */
static double cost_of(const draft *d, int64_t n_guessed) {
    int64_t known = n_guessed;
    while (known > 0 && d->seconds[known] == 0.0) {
        known--;
    }
    return d->seconds[known] * (1.0 + 0.05 * (double)(n_guessed - known));
}

/* The number of tokens whose expected gain per second is best: 1 + p + p^2 + ... tokens for the time of the pass. */
static int64_t best_length(const draft *d, int64_t most, double p) {
    double tokens = 1.0, power = 1.0, best = 1.0 / cost_of(d, 0);
    int64_t length = 0;
    for (int64_t i = 1; i <= most; i++) {
        power *= p;
        tokens += power;
        if (tokens / cost_of(d, i) > 1.02 * best) {
            best = tokens / cost_of(d, i);
            length = i;
        }
    }
    return length;
}

int64_t draft_guess(draft *d, int64_t most, int32_t *tokens) {
    most = most < DRAFT_MOST ? most : DRAFT_MOST;
    for (int o = 0; o < ORDERS; o++) {
        const int64_t at = d->follows[o];
        if (at < 0 || d->seconds[0] == 0.0) {
            continue;
        }
        int64_t n = best_length(d, most, d->chance[o]);
        if (n == 0) {
            if (++d->since_guess < PROBE_EVERY) {
                return 0;
            }
            n = most < 2 ? most : 2;
        }
        d->since_guess = 0;
        d->order = o;
        /* Where the earlier place is so near that it runs into the end, the text repeats itself: go on from its start. */
        const int64_t period = d->n - at;
        for (int64_t i = 0; i < n; i++) {
            tokens[i] = token_at(d, at + i % period);
        }
        return n;
    }
    return 0;
}

void draft_learn(draft *d, int64_t n_guessed, int64_t n_true) {
    double *chance = &d->chance[d->order];
    for (int64_t i = 0; i < n_guessed && i <= n_true; i++) {
        *chance += 0.08 * ((i < n_true ? 1.0 : 0.0) - *chance);
    }
}

void draft_time(draft *d, int64_t n_guessed, double seconds) {
    double *mean = &d->seconds[n_guessed];
    /* A pass that was held up by another program says nothing about the next: a step is at most doubled. */
    const double taken = *mean > 0.0 && seconds > 2.0 * *mean ? 2.0 * *mean : seconds;
    *mean = *mean == 0.0 ? taken : *mean + 0.1 * (taken - *mean);
}
