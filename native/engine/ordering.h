/* Tokens in the order of their logits, as the sampler sees them: keys that sort, and the front of an order without a full
 * sort. */
#ifndef LMI_ENGINE_ORDERING_H
#define LMI_ENGINE_ORDERING_H

#include <stdint.h>

#include "base/half.h"

/* `key` sorts candidates: the smaller, the earlier. Its upper half is the order, its lower half the id. */
typedef struct candidate {
    uint64_t key;
    double weight;
} candidate;

/* The bits of a float, negative ones turned over, sort like the floats; turned over once more they put the largest first. */
static inline uint64_t key_of(float z, int64_t id) {
    uint32_t bits = f32_to_bits(z + 0.0f); /* -0 becomes 0 */
    uint32_t ascending = bits ^ ((0u - (bits >> 31)) | 0x80000000u);
    return (uint64_t)~ascending << 32 | (uint64_t)id;
}

static inline int32_t id_of(candidate c) { return (int32_t)(c.key & 0x7fffffff); }

static inline float logit_of(candidate c) {
    uint32_t ascending = ~(uint32_t)(c.key >> 32);
    return f32_from_bits(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
}

typedef enum front { COUNT, MASS_AT_LEAST, MASS_ABOVE } front;

/* Brings to the front the shortest run of the order whose number or mass reaches the target, all if none does; returns its
 * length, n >= 1. The last of the run is at its end; the rest of it is in any order. */
int64_t find_front(candidate *c, int64_t n, front by, double target);

/* The smallest key first; quick where they are in order already. */
void sort_candidates(candidate *c, int64_t n);

#endif
