/* One token: from plain C to the library's kernel, a rung at a time.
 *
 *   ladder_decode [megabytes of weights, default 256]
 *
 * Rows of Q4_0 weights times one packed row of activations, K = 4096, on one core; all of it, plain C too, is compiled for
 * AVX-512. Every rung is first compared with sums in float64. Then: GB/s of weights that are read once from memory, as a model
 * does for every token it writes, and of a few that stay in the L2 cache, where only arithmetic counts; each beside reading the
 * same bytes without arithmetic, measured right before. */
#include "../bench.h"

#include <stdbool.h>

#include "base/half.h"
#include "quant/blocks.h"

#if defined(__x86_64__)

#define AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

enum { K = 4096, BLOCKS = K / QK, CACHED = 768 << 10 };

static const block_q4_0 *row_of(const matmul_args *a, int64_t r) {
    return (const void *)((const char *)a->w + (size_t)r * a->row_bytes);
}

/* ---- 1: what the format says --------------------------------------------------------------------------------------- */

AVX512 static void plain(const matmul_args *a) {
    const int8_t *x = act_q8(a->x);
    const float *dx = act_scales(a->x, K);
    for (int64_t r = a->row0; r < a->row1; r++) {
        const block_q4_0 *b = row_of(a, r);
        float sum = 0;
        for (int i = 0; i < BLOCKS; i++) {
            int dot = 0;
            for (int j = 0; j < 16; j++) {
                dot += ((b[i].qs[j] & 15) - 8) * x[QK * i + j] + ((b[i].qs[j] >> 4) - 8) * x[QK * i + 16 + j];
            }
            sum += f16_to_f32(b[i].d) * dx[i] * (float)dot;
        }
        a->y[r] = sum;
    }
}

/* ---- 2: vpdpbusd, 32 products at once -------------------------------------------------------------------------------- */

AVX512 INLINE __m128i load_128(const void *p) { return _mm_loadu_si128(p); }
AVX512 INLINE __m256i load_256(const void *p) { return _mm256_loadu_si256(p); }
AVX512 INLINE __m512i load_512(const void *p) { return _mm512_loadu_si512(p); }

/* vpdpbusd wants one side unsigned: nibbles stay 0..15, and what that is too much, 8 times the activations that a lane sees, is
 * what its sum starts below zero. */
AVX512 static void block_at_a_time(const matmul_args *a) {
    const int8_t *x = act_q8(a->x);
    const float *dx = act_scales(a->x, K);
    const __m256i none = _mm256_setzero_si256();
    __m256i *start = a->scratch;
    for (int i = 0; i < BLOCKS; i++) {
        start[i] = _mm256_sub_epi32(none, _mm256_dpbusd_epi32(none, _mm256_set1_epi8(8), load_256(x + QK * i)));
    }
    for (int64_t r = a->row0; r < a->row1; r++) {
        const block_q4_0 *b = row_of(a, r);
        __m256 sum = _mm256_setzero_ps();
        for (int i = 0; i < BLOCKS; i++) {
            const __m128i q = load_128(b[i].qs);
            const __m256i u = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(q, 4), q), _mm256_set1_epi8(15));
            const __m256i dot = _mm256_dpbusd_epi32(start[i], u, load_256(x + QK * i));
            sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(_cvtsh_ss(b[i].d) * dx[i]), sum);
        }
        a->y[r] = _mm512_reduce_add_ps(_mm512_zextps256_ps512(sum));
    }
}

/* ---- 3, 4: two blocks to a register ----------------------------------------------------------------------------------- */

/* Where the sums of 64 activations start, four to a lane. */
AVX512 INLINE __m512i start_of(__m512i x) {
    const __m512i none = _mm512_setzero_si512();
    return _mm512_sub_epi32(none, _mm512_dpbusd_epi32(none, _mm512_set1_epi8(8), x));
}

AVX512 INLINE __m512i nibbles_of_two(const block_q4_0 *b) {
    const __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_broadcastsi128_si256(load_128(b[0].qs))),
                                         _mm256_broadcastsi128_si256(load_128(b[1].qs)), 1);
    return _mm512_and_si512(_mm512_srlv_epi64(v, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4)), _mm512_set1_epi8(15));
}

AVX512 INLINE void two_blocks(const matmul_args *a, bool ahead) {
    const int8_t *x = act_q8(a->x);
    const float *dx = act_scales(a->x, K);
    const __m512i pair = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    __m512i *start = a->scratch;
    for (int i = 0; i < K / 64; i++) {
        start[i] = start_of(load_512(x + 64 * i));
    }
    for (int64_t r = a->row0; r < a->row1; r++) {
        const block_q4_0 *b = row_of(a, r);
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < BLOCKS; i += 8, b += 8) {
            if (ahead) { /* 4 KiB to the L2 cache, 1 KiB to the L1 cache */
                fetch_rows_ahead(b, 8 * sizeof *b, 1);
            }
            const __m128i d = _mm_setr_epi16((short)b[0].d, (short)b[1].d, (short)b[2].d, (short)b[3].d, (short)b[4].d,
                                             (short)b[5].d, (short)b[6].d, (short)b[7].d);
            const __m512 scale = _mm512_castps256_ps512(_mm256_mul_ps(_mm256_cvtph_ps(d), _mm256_loadu_ps(dx + i)));
            UNROLL for (int j = 0; j < 4; j++) {
                const __m512i dot =
                    _mm512_dpbusd_epi32(start[i / 2 + j], nibbles_of_two(b + 2 * j), load_512(x + QK * i + 64 * j));
                const __m512i lanes = _mm512_add_epi32(pair, _mm512_set1_epi32(2 * j));
                sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(lanes, scale), sum);
            }
        }
        a->y[r] = _mm512_reduce_add_ps(sum);
    }
}

AVX512 static void two_to_a_register(const matmul_args *a) { two_blocks(a, false); }
AVX512 static void two_and_prefetch(const matmul_args *a) { two_blocks(a, true); }

/* ---- 5: units of eight blocks ----------------------------------------------------------------------------------------- */

/* Per register of weights: the low nibbles of four blocks are their first 16 columns, the high ones their second 16. Both
 * belong to the same scales, so they share a sum, a conversion and a multiplication. */
typedef struct four_blocks {
    __m512i first, second, start;
} four_blocks;

AVX512 INLINE __m512i nibbles_of_four(const block_q4_0 *b) {
    __m512i v = _mm512_castsi128_si512(load_128(b[0].qs));
    v = _mm512_inserti32x4(v, load_128(b[1].qs), 1);
    v = _mm512_inserti32x4(v, load_128(b[2].qs), 2);
    return _mm512_inserti32x4(v, load_128(b[3].qs), 3);
}

/* The first words of eight blocks, of which four fit a register: two loads and a permutation instead of eight loads. */
AVX512 INLINE __m256 scales_of_eight(const block_q4_0 *b) {
    const __m512i index = _mm512_castsi128_si512(_mm_setr_epi16(0, 9, 18, 27, 32, 41, 50, 59));
    return _mm256_cvtph_ps(_mm512_castsi512_si128(_mm512_permutex2var_epi16(load_512(b), index, load_512(b + 4))));
}

AVX512 static void units_of_eight(const matmul_args *a) {
    const int8_t *x = act_q8(a->x);
    const float *dx = act_scales(a->x, K);
    const __m512i quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), low = _mm512_set1_epi8(15);
    four_blocks *fours = a->scratch;
    for (int i = 0; i < BLOCKS / 4; i++) { /* activations in the order of the nibbles */
        const __m512i p = load_512(x + 128 * i), q = load_512(x + 128 * i + 64);
        const __m512i first = _mm512_shuffle_i32x4(p, q, 0x88), second = _mm512_shuffle_i32x4(p, q, 0xdd);
        fours[i] = (four_blocks){first, second, _mm512_add_epi32(start_of(first), start_of(second))};
    }
    for (int64_t r = a->row0; r < a->row1; r++) {
        const block_q4_0 *b = row_of(a, r);
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < BLOCKS; i += 8, b += 8) {
            fetch_rows_ahead(b, 8 * sizeof *b, 1);
            const __m512 scale = _mm512_castps256_ps512(_mm256_mul_ps(scales_of_eight(b), _mm256_loadu_ps(dx + i)));
            UNROLL for (int j = 0; j < 2; j++) {
                const four_blocks *y = &fours[i / 4 + j];
                const __m512i q = nibbles_of_four(b + 4 * j);
                __m512i dot = _mm512_dpbusd_epi32(y->start, _mm512_and_si512(q, low), y->first);
                dot = _mm512_dpbusd_epi32(dot, _mm512_and_si512(_mm512_srli_epi16(q, 4), low), y->second);
                const __m512i lanes = _mm512_add_epi32(quarters, _mm512_set1_epi32(4 * j));
                sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(lanes, scale), sum);
            }
        }
        a->y[r] = _mm512_reduce_add_ps(sum);
    }
}

/* ---- checking and measuring ------------------------------------------------------------------------------------------ */

static void fill(block_q4_0 *blocks, int64_t n, uint32_t *seed) {
    for (int64_t i = 0; i < n; i++) {
        blocks[i].d = f32_to_f16((float)(0.5 + random_unit(seed)));
        for (int j = 0; j < 16; j += 4) {
            const uint32_t bits = random_bits(seed);
            memcpy(blocks[i].qs + j, &bits, sizeof bits);
        }
    }
}

static void sum_in_float64(const matmul_args *a, double *want) {
    const int8_t *x = act_q8(a->x);
    const float *dx = act_scales(a->x, K);
    for (int64_t r = 0; r < a->row1; r++) {
        const block_q4_0 *b = row_of(a, r);
        want[r] = 0;
        for (int c = 0; c < K; c++) {
            const int j = c % QK, q = j < 16 ? b[c / QK].qs[j] & 15 : b[c / QK].qs[j - 16] >> 4;
            want[r] += (double)f16_to_f32(b[c / QK].d) * (q - 8) * ((double)dx[c / QK] * x[c]);
        }
    }
}

typedef struct rung {
    const char *name;
    matmul_kernel *kernel;
    matmul_args args;
} rung;

static void climb(void *context) {
    const rung *r = context;
    r->kernel(&r->args);
}

static void check(rung *r, const double *want) {
    double error = 0, all = 0;
    memset(r->args.y, 0xff, (size_t)r->args.row1 * sizeof *r->args.y); /* NaN: a row that is left out shows */
    climb(r);
    for (int64_t i = 0; i < r->args.row1; i++) {
        error += (r->args.y[i] - want[i]) * (r->args.y[i] - want[i]);
        all += want[i] * want[i];
    }
    if (!(error <= 1e-12 * all)) {
        fprintf(stderr, "%s: wrong, relative NMSE %.1e\n", r->name, error / all);
        exit(1);
    }
}

static void measure(rung r, int64_t n_rows, const char *where) {
    const double bytes = (double)n_rows * (double)r.args.row_bytes;
    const double peak = read_peak(r.args.w, (size_t)bytes);
    r.args.row1 = n_rows;
    const double rate = bytes * 1e-9 / fastest(climb, &r);
    printf("  %s %6.1f GB/s %4.0f%% of %5.1f", where, rate, 100 * rate / peak, peak);
}

int main(int argc, char **argv) {
    const kernels *table;
    if (kernels_get(LMI_ISA_AVX512, &table, NULL) != LMI_OK) {
        printf("ladder_decode needs AVX512-VNNI\n");
        return 0;
    }
    const int megabytes = argc > 1 ? atoi(argv[1]) : 256;
    const size_t row_bytes = BLOCKS * sizeof(block_q4_0), size = (size_t)(megabytes > 1 ? megabytes : 1) << 20;
    const int64_t rows = (int64_t)(size / row_bytes), cached = (int64_t)(CACHED / row_bytes);
    uint32_t seed = 1;
    block_q4_0 *weights = allocate(size);
    float values[K], *y = allocate((size_t)rows * sizeof *y);
    double *want = allocate((size_t)rows * sizeof *want);
    void *x = allocate(act_row_bytes(ACT_Q8_32, K)), *scratch = allocate(table->matmul_scratch(K));
    fill(weights, rows * BLOCKS, &seed);
    for (int c = 0; c < K; c++) {
        values[c] = (float)(random_unit(&seed) - 0.5);
    }
    table->pack[ACT_Q8_32](values, K, x);
    const matmul_args args = {weights, row_bytes, K, 0, rows, x, act_row_bytes(ACT_Q8_32, K), 1, y, rows, scratch};
    sum_in_float64(&args, want);

    const rung rungs[] = {
        {"plain C", plain, args},
        {"vpdpbusd, a block at a time", block_at_a_time, args},
        {"two blocks to a register", two_to_a_register, args},
        {"the same, prefetching", two_and_prefetch, args},
        {"units of eight blocks", units_of_eight, args},
        {"lmi", table->matmul[QUANT_Q4_0], args},
    };
    printf("one token, Q4_0, K = %d: GB/s from %zu MB of memory and from %d KiB in the L2 cache, %% of reading\n", K,
           size >> 20, CACHED >> 10);
    for (size_t i = 0; i < sizeof rungs / sizeof *rungs; i++) {
        rung r = rungs[i];
        check(&r, want);
        printf("%-28s", r.name);
        measure(r, rows, "memory");
        measure(r, cached, "L2");
        printf("\n");
        fflush(stdout);
    }
    free(weights);
    free(y);
    free(want);
    free(x);
    free(scratch);
    return 0;
}

#else

int main(void) {
    printf("ladder_decode needs AVX512-VNNI\n");
    return 0;
}

#endif
