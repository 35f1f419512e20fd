/* Sixteen float32 lanes in portable C: four of the compiler's own vectors of four, which every machine has in some form. The AVX
 * headers give the same names and, operation by operation, the same bits, so that what is encoded does not depend on the machine.
 * Rounding is to nearest, ties to even; minimum and maximum return y where neither is smaller. */
#ifndef LMI_QUANT_LANES_REF_H
#define LMI_QUANT_LANES_REF_H

#include <stdint.h>
#include <string.h>

#define LANES_INLINE static inline __attribute__((always_inline))

typedef float quad __attribute__((vector_size(16)));
typedef int32_t quad_mask __attribute__((vector_size(16))); /* 0 or -1 in each lane, or places in a table */

typedef struct lanes {
    quad v[4];
} lanes;
typedef struct lanes_mask {
    quad_mask v[4];
} lanes_mask;
typedef lanes_mask lanes_codes; /* places in a table of 16 */

/* clang-format off */
#define EACH_QUAD(type, expression) type r; for (int i = 0; i < 4; i++) { r.v[i] = (expression); } return r

LANES_INLINE quad quad_select(quad_mask mask, quad yes, quad no) { return (quad)((mask & (quad_mask)yes) | (~mask & (quad_mask)no)); }

LANES_INLINE lanes lanes_set(float x) { EACH_QUAD(lanes, ((quad){x, x, x, x})); }
LANES_INLINE lanes lanes_load(const float *p) { lanes x; memcpy(&x, p, sizeof x); return x; }
LANES_INLINE void lanes_store(float *p, lanes x) { memcpy(p, &x, sizeof x); }
LANES_INLINE lanes lanes_add(lanes x, lanes y) { EACH_QUAD(lanes, x.v[i] + y.v[i]); }
LANES_INLINE lanes lanes_sub(lanes x, lanes y) { EACH_QUAD(lanes, x.v[i] - y.v[i]); }
LANES_INLINE lanes lanes_mul(lanes x, lanes y) { EACH_QUAD(lanes, x.v[i] * y.v[i]); }
LANES_INLINE lanes lanes_div(lanes x, lanes y) { EACH_QUAD(lanes, x.v[i] / y.v[i]); }
LANES_INLINE lanes lanes_min(lanes x, lanes y) { EACH_QUAD(lanes, quad_select(x.v[i] < y.v[i], x.v[i], y.v[i])); }
LANES_INLINE lanes lanes_max(lanes x, lanes y) { EACH_QUAD(lanes, quad_select(x.v[i] > y.v[i], x.v[i], y.v[i])); }
LANES_INLINE lanes_mask lanes_greater(lanes x, lanes y) { EACH_QUAD(lanes_mask, x.v[i] > y.v[i]); }
LANES_INLINE lanes lanes_select(lanes_mask mask, lanes yes, lanes no) { EACH_QUAD(lanes, quad_select(mask.v[i], yes.v[i], no.v[i])); }
/* clang-format on */

/* Adding and taking away 1.5 * 2^23 leaves the nearest integer of anything below 2^22. What is larger is cut off by every set of
 * codes, and stays as it is. */
LANES_INLINE lanes lanes_round(lanes x) {
    const quad magic = {12582912.0f, 12582912.0f, 12582912.0f, 12582912.0f};
    const quad limit = {4194304.0f, 4194304.0f, 4194304.0f, 4194304.0f};
    for (int i = 0; i < 4; i++) {
        const quad_mask small = (x.v[i] < limit) & (x.v[i] > -limit);
        x.v[i] = quad_select(small, (x.v[i] + magic) - magic, x.v[i]);
    }
    return x;
}

LANES_INLINE quad quad_look_up(const float table[16], quad_mask at) {
    return (quad){table[at[0]], table[at[1]], table[at[2]], table[at[3]]};
}

LANES_INLINE lanes lanes_look_up(const float table[16], lanes_codes codes) {
    lanes x;
    for (int i = 0; i < 4; i++) {
        x.v[i] = quad_look_up(table, codes.v[i]);
    }
    return x;
}

/* The number of thresholds (15, ascending, and one that does not count) below each lane. */
LANES_INLINE lanes_codes lanes_find(const float thresholds[16], lanes x) {
    const quad middle = {thresholds[7], thresholds[7], thresholds[7], thresholds[7]};
    lanes_codes codes;
    for (int i = 0; i < 4; i++) {
        codes.v[i] = (x.v[i] > middle) & 8;
        for (int step = 4; step > 0; step /= 2) {
            codes.v[i] += (x.v[i] > quad_look_up(thresholds, codes.v[i] + (step - 1))) & step;
        }
    }
    return codes;
}

LANES_INLINE void lanes_store_codes(int8_t *p, lanes_codes codes) {
    for (int i = 0; i < 16; i++) {
        p[i] = (int8_t)codes.v[i / 4][i % 4];
    }
}

LANES_INLINE void lanes_store_i8(int8_t *p, lanes x) { /* integers already */
    for (int i = 0; i < 16; i++) {
        p[i] = (int8_t)x.v[i / 4][i % 4];
    }
}

#endif
