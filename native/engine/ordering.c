#include "engine/ordering.h"

#include <stdbool.h>

static inline void swap(candidate *a, candidate *b) {
    candidate held = *a;
    *a = *b;
    *b = held;
}

static void sift_down(candidate *c, int64_t root, int64_t n) {
    for (int64_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && c[child + 1].key > c[child].key) {
            child++;
        }
        if (c[root].key >= c[child].key) {
            return;
        }
        swap(&c[root], &c[child]);
    }
}

static void heap_sort(candidate *c, int64_t n) {
    for (int64_t root = n / 2; root-- > 0;) {
        sift_down(c, root, n);
    }
    for (int64_t last = n - 1; last > 0; last--) {
        swap(&c[0], &c[last]);
        sift_down(c, 0, last);
    }
}

static void insertion_sort(candidate *c, int64_t n) {
    for (int64_t i = 1; i < n; i++) {
        candidate held = c[i];
        int64_t j = i;
        for (; j > 0 && c[j - 1].key > held.key; j--) {
            c[j] = c[j - 1];
        }
        c[j] = held;
    }
}

void sort_candidates(candidate *c, int64_t n) {
    int64_t ordered = 1;
    while (ordered < n && c[ordered - 1].key < c[ordered].key) {
        ordered++;
    }
    if (n > 16 && ordered < n) {
        heap_sort(c, n);
    } else {
        insertion_sort(c, n);
    }
}

static uint64_t middle(uint64_t a, uint64_t b, uint64_t c) {
    return a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
}

/* Splits [0, n), n >= 3, at a pivot out of its middle: keys up to it come first. Both sides get at least one (keys differ).
 * Every element is exchanged, wanted or not: a jump would be guessed wrong for half of them, which costs twice as much. */
static int64_t partition(candidate *c, int64_t n) {
    uint64_t pivot = middle(c[0].key, c[n / 2].key, c[n - 1].key);
    int64_t cut = 0;
    for (int64_t i = 0; i < n; i++) {
        candidate next = c[i];
        c[i] = c[cut];
        c[cut] = next;
        cut += next.key <= pivot;
    }
    return cut;
}

static inline double measure(candidate c, front by) { return by == COUNT ? 1.0 : c.weight; }
static inline bool reached(double sum, double target, front by) { return by == MASS_ABOVE ? sum > target : sum >= target; }

int64_t find_front(candidate *c, int64_t n, front by, double target) {
    int64_t begin = 0, end = n; /* the run ends in here; `sum` is what lies before */
    double sum = 0;
    int budget = 0; /* halvings, with a reserve: bad pivots must not cost quadratic time */
    for (int64_t i = n; i > 0; i >>= 1) {
        budget += 3;
    }
    while (end - begin > 16 && budget-- > 0) {
        int64_t cut = begin + partition(c + begin, end - begin);
        double part = 0;
        for (int64_t i = begin; i < cut; i++) {
            part += measure(c[i], by);
        }
        if (reached(sum + part, target, by)) {
            end = cut;
        } else {
            sum += part;
            begin = cut;
        }
    }
    sort_candidates(c + begin, end - begin);
    for (int64_t i = begin; i < end; i++) {
        sum += measure(c[i], by);
        if (reached(sum, target, by)) {
            return i + 1;
        }
    }
    return end; /* where the sum in another order reached it, or all */
}
