/* NEON: a tile of 16 slots is four vectors; 6 query rows share a key vector. */
#include <arm_neon.h>

#include "kernels/attention.h"
#include "kernels/fill.h"
#include "kernels/vector.h"

typedef float32x4_t vf;
typedef int32x4_t vi;

enum { LANES = 4, TILE_VECTORS = 4, GROUP = 6, INT_ROWS = 3, ACCUMULATORS = 24 };

#define EACH_ROWS(n, DO)                                                                                                       \
    switch (n) {                                                                                                               \
    case 1:                                                                                                                    \
        DO(1);                                                                                                                 \
        break;                                                                                                                 \
    case 2:                                                                                                                    \
        DO(2);                                                                                                                 \
        break;                                                                                                                 \
    case 3:                                                                                                                    \
        DO(3);                                                                                                                 \
        break;                                                                                                                 \
    case 4:                                                                                                                    \
        DO(4);                                                                                                                 \
        break;                                                                                                                 \
    case 5:                                                                                                                    \
        DO(5);                                                                                                                 \
        break;                                                                                                                 \
    default:                                                                                                                   \
        DO(6);                                                                                                                 \
        break;                                                                                                                 \
    }

static inline vf vf_load(const float *x) { return vld1q_f32(x); }
static inline void vf_store(float *x, vf v) { vst1q_f32(x, v); }
static inline vf vf_all(float x) { return vdupq_n_f32(x); }
static inline vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); } /* fmax would keep a NaN in a */
static inline float vf_sum(vf v) { return vaddvq_f32(v); }
static inline float vf_largest(vf v) { return vmaxvq_f32(v); }
static inline vf vf_multiply_add(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf vf_only(uint32_t bits, vf x) {
    const uint32x4_t lanes = {1, 2, 4, 8};
    return vbslq_f32(vtstq_u32(vdupq_n_u32(bits), lanes), x, vdupq_n_f32(-INFINITY));
}
static inline vf vf_from_f16(const uint16_t *x) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x))); }
static inline vf vf_from_int8(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
static inline vf vf_from_int(vi v) { return vcvtq_f32_s32(v); }

static inline vi vi_load(const uint8_t *x) { return vreinterpretq_s32_u8(vld1q_u8(x)); }
static inline vi vi_all(int32_t x) { return vdupq_n_s32(x); }
static inline vi vi_minus(vi a, vi b) { return vsubq_s32(a, b); }

/* A level is 256 times a signed byte and an unsigned one: the first meets the key in sdot, the second meets the key + 128 in
 * udot. Both sums are exact: 32 * 255 * 255 < 2^24. */
#define OWN_DOTS
typedef struct vi_dots {
    int32x4_t high;
    uint32x4_t low;
} vi_dots;

static inline void level_words(const int16_t levels[4], uint32_t words[2]) {
    words[0] = words[1] = 0;
    for (int i = 0; i < 4; i++) {
        words[0] |= (uint32_t)((uint16_t)levels[i] >> 8) << (8 * i);
        words[1] |= (uint32_t)((uint16_t)levels[i] & 255) << (8 * i);
    }
}

static inline int32_t level_offset(const int16_t *levels) {
    int32_t sum = 0;
    for (int i = 0; i < QUERY_BLOCK; i++) {
        sum += (uint16_t)levels[i] & 255;
    }
    return -128 * sum;
}

static inline vi_dots dots_from(int32_t offset) { return (vi_dots){vdupq_n_s32(0), vdupq_n_u32((uint32_t)offset)}; }
static inline vi_dots dots_add(vi_dots sum, vi bytes, const int32_t *words, int64_t stride) {
    const uint8x16_t key = vreinterpretq_u8_s32(bytes);
    const int8x16_t own = vreinterpretq_s8_u8(key ^ vdupq_n_u8(128));
    sum.high = vdotq_s32(sum.high, own, vreinterpretq_s8_s32(vdupq_n_s32(words[0])));
    sum.low = vdotq_u32(sum.low, key, vreinterpretq_u8_s32(vdupq_n_s32(words[stride])));
    return sum;
}
static inline vi dots_total(vi_dots sum) { return (sum.high << 8) + vreinterpretq_s32_u32(sum.low); }

/* The parts of exp_parts of vector.h: r, and the power with EXP_MAGIC, in the low bits. */
static inline vf vf_exp_rest(vf x, vf *shifted) {
    const vf magic = vf_all(EXP_MAGIC);
    *shifted = vfmaq_f32(magic, x, vf_all(EXP_LOG2_E));
    const vf k = *shifted - magic;
    return vfmsq_f32(vfmsq_f32(x, k, vf_all(EXP_LN2_HIGH)), k, vf_all(EXP_LN2_LOW));
}
static inline vf vf_exp_series(vf r) {
    vf q = vf_all(EXP_C6);
    q = vfmaq_f32(vf_all(EXP_C5), q, r);
    q = vfmaq_f32(vf_all(EXP_C4), q, r);
    q = vfmaq_f32(vf_all(EXP_C3), q, r);
    return vfmaq_f32(vf_all(EXP_C2), q, r);
}
static inline vf vf_exp_power(vf shifted) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(shifted) + vdupq_n_s32(127), 23));
}

static inline vf vf_exp(vf x) {
    const uint32x4_t tiny = vcltq_f32(x, vf_all(EXP_NORMAL)); /* not NaN */
    vf shifted;
    const vf r = vf_exp_rest(vf_max(vf_all(EXP_NORMAL), x), &shifted); /* x, if x is NaN */
    vf e = vfmaq_f32(vf_all(1.0f), vf_exp_series(r), r);
    e = vfmaq_f32(vf_all(1.0f), e, r) * vf_exp_power(shifted);
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(e), tiny));
}

/* p 2^n + (2^n - 1), as tanh_f32 has it. */
static inline vf vf_expm1(vf x) {
    vf shifted;
    const vf r = vf_exp_rest(vf_max(vf_all(-2.0f * TANH_ONE), x), &shifted); /* x, if x is NaN */
    const vf p = vfmaq_f32(r, r * r, vf_exp_series(r)), power = vf_exp_power(shifted);
    return vfmaq_f32(power - vf_all(1.0f), p, power);
}
static inline vf vf_size(vf x) { return vabsq_f32(x); }
static inline vf vf_sign(vf x, vf y) { return vbslq_f32(vdupq_n_u32(0x80000000u), x, y); }

#include "kernels/attention_simd.h"

void attention_fill_neon(kernels *table) { fill(table); }
