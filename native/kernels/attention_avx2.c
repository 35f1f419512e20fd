/* AVX2 with FMA and F16C: a tile of 16 slots is two vectors; 6 query rows share a key vector. */
#include <immintrin.h>

#include "kernels/fill.h"
#include "kernels/vector.h"

typedef __m256 vf;
typedef __m256i vi;

enum { LANES = 8, TILE_VECTORS = 2, GROUP = 6, INT_ROWS = 3, ACCUMULATORS = 12 };

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

static inline vf vf_load(const float *x) { return _mm256_loadu_ps(x); }
static inline void vf_store(float *x, vf v) { _mm256_storeu_ps(x, v); }
static inline vf vf_all(float x) { return _mm256_set1_ps(x); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline float vf_sum(vf v) {
    __m128 half = _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1);
    half += _mm_movehl_ps(half, half);
    return half[0] + half[1];
}
static inline float vf_largest(vf v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return half[0] > half[1] ? half[0] : half[1];
}
static inline vf vf_multiply_add(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_only(uint32_t bits, vf x) {
    const vi lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const vi chosen = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int32_t)bits), lanes), lanes);
    return _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), x, _mm256_castsi256_ps(chosen));
}
static inline vf vf_from_f16(const uint16_t *x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)x)); }
static inline vf vf_from_int8(const int8_t *x) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)x)));
}
static inline vf vf_from_int(vi v) { return _mm256_cvtepi32_ps(v); }

static inline vi vi_load(const uint8_t *x) { return _mm256_loadu_si256((const __m256i *)(const void *)x); }
static inline vi vi_all(int32_t x) { return _mm256_set1_epi32(x); }
static inline vi vi_even(vi v) { return _mm256_and_si256(v, _mm256_set1_epi32(0x00ff00ff)); }
static inline vi vi_odd(vi v) { return _mm256_srli_epi16(v, 8); }
static inline vi vi_minus(vi a, vi b) { return _mm256_sub_epi32(a, b); }
static inline vi vi_dot_add(vi sum, vi a, vi b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }

/* exp_split of vector.h. The sum with EXP_MAGIC holds the power in its low bits. */
static inline vf vf_exp(vf x) {
    const vf normal = _mm256_cmp_ps(x, _mm256_set1_ps(EXP_NORMAL), _CMP_NLT_UQ);
    x = _mm256_max_ps(_mm256_set1_ps(EXP_NORMAL), x); /* x, if x is NaN */
    const vf magic = _mm256_set1_ps(EXP_MAGIC);
    const vf shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(EXP_LOG2_E), magic), k = shifted - magic;
    const vf high = _mm256_fnmadd_ps(k, _mm256_set1_ps(EXP_LN2_HIGH), x);
    const vf r = _mm256_fnmadd_ps(k, _mm256_set1_ps(EXP_LN2_LOW), high);
    vf e = _mm256_set1_ps(EXP_C6);
    e = _mm256_fmadd_ps(e, r, _mm256_set1_ps(EXP_C5));
    e = _mm256_fmadd_ps(e, r, _mm256_set1_ps(EXP_C4));
    e = _mm256_fmadd_ps(e, r, _mm256_set1_ps(EXP_C3));
    e = _mm256_fmadd_ps(e, r, _mm256_set1_ps(EXP_C2));
    e = _mm256_fmadd_ps(e, r, _mm256_set1_ps(1.0f));
    e = _mm256_fmadd_ps(e, r, _mm256_set1_ps(1.0f));
    const vi power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(e * _mm256_castsi256_ps(power), normal);
}

/* p 2^n + (2^n - 1), as tanh_f32 has it. */
static inline vf vf_expm1(vf x) {
    const vf magic = vf_all(EXP_MAGIC);
    x = vf_max(vf_all(-2.0f * TANH_ONE), x); /* x, if x is NaN */
    const vf shifted = _mm256_fmadd_ps(x, vf_all(EXP_LOG2_E), magic), k = shifted - magic;
    const vf high = _mm256_fnmadd_ps(k, vf_all(EXP_LN2_HIGH), x);
    const vf r = _mm256_fnmadd_ps(k, vf_all(EXP_LN2_LOW), high);
    vf q = vf_all(EXP_C6);
    q = _mm256_fmadd_ps(q, r, vf_all(EXP_C5));
    q = _mm256_fmadd_ps(q, r, vf_all(EXP_C4));
    q = _mm256_fmadd_ps(q, r, vf_all(EXP_C3));
    q = _mm256_fmadd_ps(q, r, vf_all(EXP_C2));
    const vf p = _mm256_fmadd_ps(r * r, q, r);
    const vi bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(shifted), vi_all(127)), 23);
    const vf power = _mm256_castsi256_ps(bits);
    return _mm256_fmadd_ps(p, power, power - vf_all(1.0f));
}
static inline vf vf_size(vf x) { return _mm256_andnot_ps(vf_all(-0.0f), x); }
static inline vf vf_sign(vf x, vf y) {
    return _mm256_or_ps(_mm256_and_ps(vf_all(-0.0f), x), _mm256_andnot_ps(vf_all(-0.0f), y));
}

#include "kernels/attention_simd.h"

void attention_fill_avx2(kernels *table) { fill(table); }
