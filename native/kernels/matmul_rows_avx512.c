/* Few tokens, AVX-512: one pass over each row of weights, as it lies in the file, for up to four tokens.
 *
 * 64 columns at a time: vpdpbusd leaves sixteen sums of four products, exact. Blocks of 32 scale these by float; super-blocks
 * of 256 first by their integer scales and by float once per super-block. */
#include "kernels/matmul_unpack_avx512.h"

#include "kernels/fill.h"
#include "kernels/matmul_avx512.h"
#include "kernels/matmul_parts.h"

enum { PASS_TOKENS = 4 };

/* Where the sums of a token start: -offset times the sum of its activations, four columns to a lane. Types without offset
 * start at zero and do without. */
typedef struct pass {
    const int8_t *x[PASS_TOKENS];
    const int32_t *start[PASS_TOKENS]; /* [k / 4], 64-byte aligned */
} pass;

size_t matmul_rows_scratch_avx512(int64_t k) { return PASS_TOKENS * act_round((size_t)k); }

static void fill_start(const int8_t *x, int64_t k, int offset, int32_t *start) {
    for (int64_t c = 0; c < k; c += 64) { /* the packed row is padded with zeros */
        __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8((char)offset), load_512(x + c));
        _mm512_store_si512(start + c / 4, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
    }
}

INLINE const void *token_row(const matmul_args *a, int64_t t) { return (const char *)a->x + (size_t)t * a->x_stride; }

INLINE pass begin_pass(const matmul_args *a, int64_t t0, int n, int offset) {
    pass p;
    for (int t = 0; t < n; t++) {
        p.x[t] = act_q8(token_row(a, t0 + t));
        p.start[t] = NULL;
        if (offset != 0) {
            int32_t *start = (int32_t *)(void *)((char *)a->scratch + (size_t)t * act_round((size_t)a->k));
            fill_start(p.x[t], a->k, offset, start);
            p.start[t] = start;
        }
    }
    return p;
}

INLINE __m512i dot_64(const pass *p, int t, int64_t chunk, __m512i u, int offset) {
    __m512i start = offset != 0 ? _mm512_load_si512(p->start[t] + 16 * chunk) : _mm512_setzero_si512();
    return _mm512_dpbusd_epi32(start, u, _mm512_load_si512(p->x[t] + 64 * chunk));
}

/* ---- blocks of 32 -------------------------------------------------------------------------------------------------- */

typedef struct sums_32 {
    __m512 dots[PASS_TOKENS];
    __m256 minima[PASS_TOKENS];
} sums_32;

/* Up to eight blocks from block g (a multiple of 8) on. */
INLINE void add_blocks_32(const type_32 *type, const pass *p, const float *const *dx, const int32_t *const *sum,
                          const uint8_t *b, int64_t g, int n_blocks, int n, sums_32 *s) {
    const size_t bytes = (size_t)type->bytes;
    fetch_rows_ahead(b, 8 * type->bytes);
    const __m512i pair = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    __m256 d = type->scale(gather_u16(b, bytes, n_blocks));
    __m512 scale[PASS_TOKENS];
    for (int t = 0; t < n; t++) {
        scale[t] = _mm512_castps256_ps512(_mm256_mul_ps(d, _mm256_load_ps(dx[t] + g)));
    }
    if (type->has_min) {
        __m256 m = half_scale(gather_u16(b + 2, bytes, n_blocks));
        for (int t = 0; t < n; t++) {
            __m256 x = _mm256_cvtepi32_ps(_mm256_load_si256((const __m256i *)(const void *)(sum[t] + g)));
            s->minima[t] = _mm256_fmadd_ps(m, _mm256_mul_ps(x, _mm256_load_ps(dx[t] + g)), s->minima[t]);
        }
    }
    for (int i = 0; i < (n_blocks + 1) / 2; i++) {
        const uint8_t *b0 = b + (size_t)(2 * i) * bytes;
        const uint8_t *b1 = 2 * i + 1 < n_blocks ? b0 + bytes : b0; /* an odd one out pairs with itself, at scale 0 */
        __m512i u = type->columns(b0, b1);
        __m512i lanes = _mm512_add_epi32(pair, _mm512_set1_epi32(2 * i));
        for (int t = 0; t < n; t++) {
            __m512 dots = _mm512_cvtepi32_ps(dot_64(p, t, g / 2 + i, u, type->offset));
            s->dots[t] = _mm512_fmadd_ps(dots, _mm512_permutexvar_ps(lanes, scale[t]), s->dots[t]);
        }
    }
}

INLINE void pass_32(const matmul_args *a, const type_32 *type, int64_t t0, int n) {
    const int64_t n_blocks = a->k / 32, whole = n_blocks / 8 * 8;
    pass p = begin_pass(a, t0, n, type->offset);
    const float *dx[PASS_TOKENS];
    const int32_t *sum[PASS_TOKENS];
    for (int t = 0; t < n; t++) {
        dx[t] = act_scales(token_row(a, t0 + t), a->k);
        sum[t] = act_sums_32(token_row(a, t0 + t), a->k);
    }
    for (int64_t r = a->row0; r < a->row1; r++) {
        const uint8_t *w = (const uint8_t *)a->w + (size_t)r * a->row_bytes;
        sums_32 s;
        for (int t = 0; t < n; t++) {
            s.dots[t] = _mm512_setzero_ps();
            s.minima[t] = _mm256_setzero_ps();
        }
        for (int64_t g = 0; g < whole; g += 8) {
            add_blocks_32(type, &p, dx, sum, w + (size_t)(g * type->bytes), g, 8, n, &s);
        }
        if (whole < n_blocks) {
            add_blocks_32(type, &p, dx, sum, w + (size_t)(whole * type->bytes), whole, (int)(n_blocks - whole), n, &s);
        }
        for (int t = 0; t < n; t++) {
            float y = _mm512_reduce_add_ps(s.dots[t]);
            if (type->has_min) {
                y += _mm512_reduce_add_ps(_mm512_zextps256_ps512(s.minima[t]));
            }
            a->y[(t0 + t) * a->y_stride + r] = y;
        }
    }
}

/* ---- super-blocks of 256 ------------------------------------------------------------------------------------------- */

INLINE void pass_256(const matmul_args *a, const type_256 *type, int64_t t0, int n) {
    const int64_t n_blocks = a->k / 256;
    pass p = begin_pass(a, t0, n, type->offset);
    const float *dx[PASS_TOKENS];
    const int16_t *sum[PASS_TOKENS];
    for (int t = 0; t < n; t++) {
        dx[t] = act_scales(token_row(a, t0 + t), a->k);
        sum[t] = act_sums_16(token_row(a, t0 + t), a->k);
    }
    /* Lanes of 16 columns: group 4 j + i of 16 sits in quarter i of chunk j; two chunks packed to 16 bits share a register. */
    const __m512i narrow =
        _mm512_set_epi16(7, 7, 7, 7, 3, 3, 3, 3, 6, 6, 6, 6, 2, 2, 2, 2, 5, 5, 5, 5, 1, 1, 1, 1, 4, 4, 4, 4, 0, 0, 0, 0);
    const __m512i wide = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);

    for (int64_t r = a->row0; r < a->row1; r++) {
        const uint8_t *b = (const uint8_t *)a->w + (size_t)r * a->row_bytes;
        __m512 dots[PASS_TOKENS];
        __m256 minima[PASS_TOKENS];
        for (int t = 0; t < n; t++) {
            dots[t] = _mm512_setzero_ps();
            minima[t] = _mm256_setzero_ps();
        }
        for (int64_t s = 0; s < n_blocks; s++, b += type->bytes) {
            fetch_rows_ahead(b, type->bytes);
            header_256 h = type->header(b);
            __m512i u[4], scale[4];
            for (int j = 0; j < 4; j++) {
                u[j] = type->columns(b, j);
            }
            if (type->wide_dots) {
                __m512i all = _mm512_cvtepi16_epi32(h.scale);
                for (int j = 0; j < 4; j++) {
                    scale[j] = _mm512_permutexvar_epi32(_mm512_add_epi32(wide, _mm512_set1_epi32(4 * j)), all);
                }
            } else {
                __m512i all = _mm512_castsi256_si512(h.scale);
                scale[0] = _mm512_permutexvar_epi16(narrow, all);
                scale[1] = _mm512_permutexvar_epi16(_mm512_add_epi16(narrow, _mm512_set1_epi16(8)), all);
            }
            for (int t = 0; t < n; t++) {
                __m512i dot[4], total;
                for (int j = 0; j < 4; j++) {
                    dot[j] = dot_64(&p, t, 4 * s + j, u[j], type->offset);
                }
                if (type->wide_dots) { /* |dot| <= 4 * 127 * 127, times 32 */
                    total = _mm512_add_epi32(
                        _mm512_add_epi32(_mm512_mullo_epi32(dot[0], scale[0]), _mm512_mullo_epi32(dot[1], scale[1])),
                        _mm512_add_epi32(_mm512_mullo_epi32(dot[2], scale[2]), _mm512_mullo_epi32(dot[3], scale[3])));
                } else { /* |dot| <= 4 * 32 * 127: packs does not saturate */
                    total = _mm512_madd_epi16(_mm512_packs_epi32(dot[0], dot[1]), scale[0]);
                    total = _mm512_dpwssd_epi32(total, _mm512_packs_epi32(dot[2], dot[3]), scale[1]);
                }
                dots[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), _mm512_set1_ps(h.d * dx[t][s]), dots[t]);
                if (type->has_min) {
                    __m256i m =
                        _mm256_madd_epi16(h.minimum, _mm256_load_si256((const __m256i *)(const void *)(sum[t] + 16 * s)));
                    minima[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(m), _mm256_set1_ps(h.dmin * dx[t][s]), minima[t]);
                }
            }
        }
        for (int t = 0; t < n; t++) {
            float y = _mm512_reduce_add_ps(dots[t]);
            if (type->has_min) {
                y -= _mm512_reduce_add_ps(_mm512_zextps256_ps512(minima[t]));
            }
            a->y[(t0 + t) * a->y_stride + r] = y;
        }
    }
}

/* ---- passes of four tokens and of one ---------------------------------------------------------------------------------- */

ROW_WISE_KERNELS(avx512)
