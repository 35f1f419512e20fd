/* Arithmetic on sizes that come from a file: the only way such numbers are added or multiplied. */
#ifndef LMI_BASE_CHECKED_H
#define LMI_BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

/* Each returns false, and leaves *result alone or unspecified, if the true result does not fit. */
static inline bool ck_add(uint64_t a, uint64_t b, uint64_t *result) { return !__builtin_add_overflow(a, b, result); }
static inline bool ck_mul(uint64_t a, uint64_t b, uint64_t *result) { return !__builtin_mul_overflow(a, b, result); }

/* Rounds up to a multiple of `alignment`, a power of two. */
static inline bool ck_align(uint64_t a, uint64_t alignment, uint64_t *result) {
    uint64_t sum;
    if (!ck_add(a, alignment - 1, &sum)) {
        return false;
    }
    *result = sum & ~(alignment - 1);
    return true;
}

#endif
