/* AVX-512: a tile of 16 slots is one vector; 8 query rows share a key vector. */
#include <immintrin.h>

#include "kernels/fill.h"
#include "kernels/vector.h"

typedef __m512 vf;
typedef __m512i vi;

enum { LANES = 16, TILE_VECTORS = 1, GROUP = 8, INT_ROWS = 8, ACCUMULATORS = 16 };

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
    case 6:                                                                                                                    \
        DO(6);                                                                                                                 \
        break;                                                                                                                 \
    case 7:                                                                                                                    \
        DO(7);                                                                                                                 \
        break;                                                                                                                 \
    default:                                                                                                                   \
        DO(8);                                                                                                                 \
        break;                                                                                                                 \
    }

static inline vf vf_load(const float *x) { return _mm512_loadu_ps(x); }
static inline void vf_store(float *x, vf v) { _mm512_storeu_ps(x, v); }
static inline vf vf_all(float x) { return _mm512_set1_ps(x); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline float vf_sum(vf v) { return _mm512_reduce_add_ps(v); }
static inline float vf_largest(vf v) { return _mm512_reduce_max_ps(v); }
static inline vf vf_multiply_add(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_only(uint32_t bits, vf x) { return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), (__mmask16)bits, x); }
static inline vf vf_from_f16(const uint16_t *x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)x));
}
static inline vf vf_from_int8(const int8_t *x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)x)));
}
static inline vf vf_from_int(vi v) { return _mm512_cvtepi32_ps(v); }

static inline vi vi_load(const uint8_t *x) { return _mm512_loadu_si512(x); }
static inline vi vi_all(int32_t x) { return _mm512_set1_epi32(x); }
static inline vi vi_even(vi v) { return _mm512_and_si512(v, _mm512_set1_epi32(0x00ff00ff)); }
static inline vi vi_odd(vi v) { return _mm512_srli_epi16(v, 8); }
static inline vi vi_minus(vi a, vi b) { return _mm512_sub_epi32(a, b); }
static inline vi vi_dot_add(vi sum, vi a, vi b) { return _mm512_dpwssd_epi32(sum, a, b); }

/* exp_split of vector.h. Lanes below EXP_NORMAL, -inf among them, are masked: they cost nothing there. */
static inline vf vf_exp(vf x) {
    const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP_NORMAL), _CMP_NLT_UQ);
    const vf magic = _mm512_set1_ps(EXP_MAGIC);
    const vf k = _mm512_fmadd_ps(x, _mm512_set1_ps(EXP_LOG2_E), magic) - magic;
    const vf high = _mm512_fnmadd_ps(k, _mm512_set1_ps(EXP_LN2_HIGH), x);
    const vf r = _mm512_fnmadd_ps(k, _mm512_set1_ps(EXP_LN2_LOW), high);
    vf e = _mm512_set1_ps(EXP_C6);
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(EXP_C5));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(EXP_C4));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(EXP_C3));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(EXP_C2));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1.0f));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(normal, e, k);
}

/* p 2^n + (2^n - 1), as tanh_f32 has it. */
static inline vf vf_expm1(vf x) {
    const vf magic = vf_all(EXP_MAGIC);
    x = vf_max(vf_all(-2.0f * TANH_ONE), x); /* x, if x is NaN */
    const vf shifted = _mm512_fmadd_ps(x, vf_all(EXP_LOG2_E), magic), k = shifted - magic;
    const vf high = _mm512_fnmadd_ps(k, vf_all(EXP_LN2_HIGH), x);
    const vf r = _mm512_fnmadd_ps(k, vf_all(EXP_LN2_LOW), high);
    vf q = vf_all(EXP_C6);
    q = _mm512_fmadd_ps(q, r, vf_all(EXP_C5));
    q = _mm512_fmadd_ps(q, r, vf_all(EXP_C4));
    q = _mm512_fmadd_ps(q, r, vf_all(EXP_C3));
    q = _mm512_fmadd_ps(q, r, vf_all(EXP_C2));
    const vf p = _mm512_fmadd_ps(r * r, q, r);
    const vi bits = _mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(shifted), vi_all(127)), 23);
    const vf power = _mm512_castsi512_ps(bits);
    return _mm512_fmadd_ps(p, power, power - vf_all(1.0f));
}
static inline vf vf_size(vf x) { return _mm512_andnot_ps(vf_all(-0.0f), x); }
static inline vf vf_sign(vf x, vf y) {
    return _mm512_or_ps(_mm512_and_ps(vf_all(-0.0f), x), _mm512_andnot_ps(vf_all(-0.0f), y));
}

#include "kernels/attention_simd.h"

void attention_fill_avx512(kernels *table) { fill(table); }
