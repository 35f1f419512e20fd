/* A row of activations in the form that a weight type's dot product wants. Made once per row by kernels.pack, on every
 * instruction set bit for bit the same, so that results do not depend on who made it.
 *
 *   ACT_F32    float x[k]                                                         F32, F16, BF16 weights
 *   ACT_Q8_32  int8 q[k], float d[k/32], int32 sum[k/32] of q                      blocks of 32
 *   ACT_Q8_256 int8 q[k], float d[k/256], int16 sum[k/16] of q                     K-quants, IQ4_XS
 *
 * Rounding: d = max|x| / 127 (0 for a row of zeros: then every q is 0), q = x / d to nearest, ties to even, within -127..127.
 * A non-finite x makes d NaN, so that it shows in the result. */
#ifndef LMI_KERNELS_ACTIVATION_H
#define LMI_KERNELS_ACTIVATION_H

#include <stddef.h>
#include <stdint.h>

typedef enum act_kind { ACT_F32 = 0, ACT_Q8_32 = 1, ACT_Q8_256 = 2, ACT_KINDS = 3 } act_kind;

enum { ACT_ALIGN = 64 };

static inline size_t act_round(size_t bytes) { return (bytes + ACT_ALIGN - 1) / ACT_ALIGN * ACT_ALIGN; }

/* Parts of a packed row of k values, each 64-byte aligned if the row is. */
static inline size_t act_scale_offset(int64_t k) { return act_round((size_t)k); }
static inline size_t act_sum_offset(act_kind kind, int64_t k) {
    size_t n = (size_t)k / (kind == ACT_Q8_32 ? 32 : 256);
    return act_scale_offset(k) + act_round(n * sizeof(float));
}
static inline size_t act_row_bytes(act_kind kind, int64_t k) {
    switch (kind) {
    case ACT_Q8_32:
        return act_sum_offset(kind, k) + act_round((size_t)k / 32 * sizeof(int32_t));
    case ACT_Q8_256:
        return act_sum_offset(kind, k) + act_round((size_t)k / 16 * sizeof(int16_t));
    case ACT_F32:
    case ACT_KINDS:
        break;
    }
    return act_round((size_t)k * sizeof(float));
}

static inline const int8_t *act_q8(const void *row) { return (const int8_t *)row; }
static inline const float *act_scales(const void *row, int64_t k) {
    return (const float *)(const void *)((const char *)row + act_scale_offset(k));
}
static inline const int32_t *act_sums_32(const void *row, int64_t k) {
    return (const int32_t *)(const void *)((const char *)row + act_sum_offset(ACT_Q8_32, k));
}
static inline const int16_t *act_sums_16(const void *row, int64_t k) {
    return (const int16_t *)(const void *)((const char *)row + act_sum_offset(ACT_Q8_256, k));
}

#endif
