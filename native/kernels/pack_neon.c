/* Activations to their packed form: the steps of pack_ref.c, four at a time. */
#include <arm_neon.h>

#include "base/half.h"
#include "kernels/matmul_parts.h"

/* From the largest magnitude, as bits. */
static inline float scale_of(uint32_t largest) {
    return largest >= 0x7f800000u ? f32_from_bits(PACK_NAN_BITS) : f32_from_bits(largest) / 127.0f;
}

static inline uint32_t largest_bits(const float *x, int n) {
    uint32x4_t even = vdupq_n_u32(0), odd = even;
    for (int i = 0; i < n; i += 8) {
        even = vmaxq_u32(even, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
        odd = vmaxq_u32(odd, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i + 4))));
    }
    return vmaxvq_u32(vmaxq_u32(even, odd));
}

static inline int32x4_t quantize_4(const float *x, float32x4_t d) {
    float32x4_t ratio = vld1q_f32(x) / d;
    ratio = vminq_f32(vmaxq_f32(ratio, vdupq_n_f32(-127.0f)), vdupq_n_f32(127.0f));
    return vcvtnq_s32_f32(ratio);
}

/* 16 values to bytes, which all fit. */
static inline int8x16_t quantize_16(const float *x, float d) {
    float32x4_t scale = vdupq_n_f32(d);
    int16x8_t low = vuzp1q_s16(vreinterpretq_s16_s32(quantize_4(x, scale)), vreinterpretq_s16_s32(quantize_4(x + 4, scale)));
    int16x8_t high =
        vuzp1q_s16(vreinterpretq_s16_s32(quantize_4(x + 8, scale)), vreinterpretq_s16_s32(quantize_4(x + 12, scale)));
    return vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high));
}

static void pack_q8_32(const float *x, int64_t k, void *row) {
    packed_row p = packed_row_at(ACT_Q8_32, row, k);
    for (int64_t b = 0; b < k / 32; b++, x += 32) {
        float d = scale_of(largest_bits(x, 32));
        int8x16_t low = vdupq_n_s8(0), high = low;
        if (d > 0) {
            low = quantize_16(x, d);
            high = quantize_16(x + 16, d);
        }
        vst1q_s8(p.q + 32 * b, low);
        vst1q_s8(p.q + 32 * b + 16, high);
        p.d[b] = d;
        p.sum_32[b] = vaddlvq_s8(low) + vaddlvq_s8(high);
    }
    pack_clear_tails(ACT_Q8_32, row, k);
}

static void pack_q8_256(const float *x, int64_t k, void *row) {
    packed_row p = packed_row_at(ACT_Q8_256, row, k);
    for (int64_t b = 0; b < k / 256; b++, x += 256) {
        float d = scale_of(largest_bits(x, 256));
        for (int i = 0; i < 16; i++) {
            int8x16_t q = d > 0 ? quantize_16(x + 16 * i, d) : vdupq_n_s8(0);
            vst1q_s8(p.q + 256 * b + 16 * i, q);
            p.sum_16[16 * b + i] = vaddlvq_s8(q);
        }
        p.d[b] = d;
    }
    pack_clear_tails(ACT_Q8_256, row, k);
}

void pack_fill_neon(kernels *table) {
    table->pack[ACT_Q8_32] = pack_q8_32;
    table->pack[ACT_Q8_256] = pack_q8_256;
}
