/* Activations to their packed form, portable. Every step is one correctly rounded operation, so the other instruction sets
 * give the same bits. */
#include <string.h>

#include "base/half.h"
#include "kernels/matmul_parts.h"

/* Scale of n values: max|x| / 127; 0 where that is too small for a float; NaN if a value is not finite. Magnitudes are
 * compared as integers, which orders floats and puts infinities and NaN on top. */
static float block_scale(const float *x, int n) {
    uint32_t largest = 0;
    for (int i = 0; i < n; i++) {
        uint32_t magnitude = f32_to_bits(x[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest >= 0x7f800000u ? f32_from_bits(PACK_NAN_BITS) : f32_from_bits(largest) / 127.0f;
}

/* x / d to nearest, ties to even. Clamping comes first: a subnormal d is so coarse that x / d may be far above 127. Adding
 * 1.5 * 2^23 leaves the rounded integer in the low bits of the sum. */
static int8_t quantize(float x, float d) {
    float ratio = x / d;
    ratio = ratio > 127.0f ? 127.0f : ratio;
    ratio = ratio < -127.0f ? -127.0f : ratio;
    return (int8_t)((int32_t)f32_to_bits(ratio + PACK_ROUNDER) - (int32_t)PACK_ROUNDER_BITS);
}

static void quantize_block(const float *x, int n, float d, int8_t *q) {
    if (!(d > 0)) { /* zeros, or NaN: then d alone carries the news */
        memset(q, 0, (size_t)n);
        return;
    }
    for (int i = 0; i < n; i++) {
        q[i] = quantize(x[i], d);
    }
}

static int32_t sum_of(const int8_t *q, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; i++) {
        sum += q[i];
    }
    return sum;
}

static void pack_f32(const float *x, int64_t k, void *row) {
    memcpy(row, x, (size_t)k * sizeof *x);
    pack_clear_tail(row, (size_t)k * sizeof *x);
}

static void pack_q8_32(const float *x, int64_t k, void *row) {
    packed_row p = packed_row_at(ACT_Q8_32, row, k);
    for (int64_t b = 0; b < k / 32; b++) {
        p.d[b] = block_scale(x + 32 * b, 32);
        quantize_block(x + 32 * b, 32, p.d[b], p.q + 32 * b);
        p.sum_32[b] = sum_of(p.q + 32 * b, 32);
    }
    pack_clear_tails(ACT_Q8_32, row, k);
}

static void pack_q8_256(const float *x, int64_t k, void *row) {
    packed_row p = packed_row_at(ACT_Q8_256, row, k);
    for (int64_t b = 0; b < k / 256; b++) {
        p.d[b] = block_scale(x + 256 * b, 256);
        quantize_block(x + 256 * b, 256, p.d[b], p.q + 256 * b);
    }
    for (int64_t g = 0; g < k / 16; g++) {
        p.sum_16[g] = (int16_t)sum_of(p.q + 16 * g, 16);
    }
    pack_clear_tails(ACT_Q8_256, row, k);
}

void pack_fill_ref(kernels *table) {
    table->pack[ACT_F32] = pack_f32;
    table->pack[ACT_Q8_32] = pack_q8_32;
    table->pack[ACT_Q8_256] = pack_q8_256;
}
