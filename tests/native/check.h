/* A test program: static functions that CHECK, called from main, which ends with `return check_report();`. */
#ifndef LMI_TESTS_CHECK_H
#define LMI_TESTS_CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long check_passed, check_failed;

#define CHECK(condition, ...)                                                                                                  \
    do {                                                                                                                       \
        if (condition) {                                                                                                       \
            check_passed++;                                                                                                    \
        } else if (check_failed++ < 20) {                                                                                      \
            fprintf(stderr, "%s:%d: failed: %s  ", __FILE__, __LINE__, #condition);                                            \
            fprintf(stderr, " " __VA_ARGS__);                                                                                  \
            fprintf(stderr, "\n");                                                                                             \
        }                                                                                                                      \
    } while (0)

static inline int check_report(void) {
    printf("%ld passed, %ld failed\n", check_passed, check_failed);
    return check_failed != 0;
}

/* SplitMix64: the tests' random numbers. */
static inline uint64_t check_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline double check_uniform(uint64_t *state) { return (double)(check_random(state) >> 11) * 0x1p-53; }
static inline double check_normal(uint64_t *state) {
    double u = check_uniform(state), v = check_uniform(state);
    return sqrt(-2.0 * log(u + 1e-300)) * cos(6.283185307179586 * v);
}

#endif
