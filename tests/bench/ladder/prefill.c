/* Many tokens: from plain C to the library's kernel, a rung at a time.
 *
 *   ladder_prefill
 *
 * 256 rows of Q4_0 weights times 480 packed rows of activations, K = 4096, on one core; all of it, plain C too, is compiled for
 * AVX-512. Every rung is first compared with sums in float64, those without scales with the exact integers. Then: G multiply-adds
 * a second, beside what vpdpbusd alone does, measured right before. Rungs 2 to 4 find weights and activations laid out; the
 * library lays them out itself, in the same time. */
#include "../bench.h"

#include "base/half.h"
#include "quant/blocks.h"

#if defined(__x86_64__)

#define AVX512 __attribute__((target("avx2,fma,avx512f,avx512vnni")))

enum { K = 4096, BLOCKS = K / QK, ROWS = 256, TOKENS = 480, TILE = 32, COLUMNS = 1024, PARTS = K / COLUMNS };

/* The weights of a tile are 32 KiB that stay in the L2 cache; the activations of 12 or 16 tokens stay in the L1 cache, where
 * 64 more bytes a token keep them out of each other's sets. */
typedef struct problem {
    uint8_t u[PARTS][ROWS / TILE][COLUMNS / 4][TILE][4]; /* 0..15: four columns of a row to a lane of a register */
    int8_t x[PARTS][TOKENS][COLUMNS + 64];
    float w_scale[BLOCKS][ROWS], x_scale[TOKENS][BLOCKS];
    int32_t start[TOKENS][BLOCKS];                     /* -8 times the sum of a block's activations, since w = d * (u - 8) */
    int32_t want_sum[TOKENS][ROWS], sum[TOKENS][ROWS]; /* of u * x */
    double want[TOKENS][ROWS];
    float y[TOKENS][ROWS];
    block_q4_0 *blocks; /* the weights as in a file, the activations as the library packs them */
    char *rows;
    size_t row_bytes;
    const kernels *table;
    void *scratch;
} problem;

static const void *row_of(const problem *p, int t) { return p->rows + (size_t)t * p->row_bytes; }

/* ---- 1: what the format says --------------------------------------------------------------------------------------- */

AVX512 static void plain(problem *p) {
    for (int t = 0; t < TOKENS; t++) {
        const void *row = row_of(p, t);
        const int8_t *x = act_q8(row);
        const float *dx = act_scales(row, K);
        for (int r = 0; r < ROWS; r++) {
            const block_q4_0 *b = p->blocks + r * BLOCKS;
            float sum = 0;
            for (int i = 0; i < BLOCKS; i++) {
                int dot = 0;
                for (int j = 0; j < 16; j++) {
                    dot += ((b[i].qs[j] & 15) - 8) * x[QK * i + j] + ((b[i].qs[j] >> 4) - 8) * x[QK * i + 16 + j];
                }
                sum += f16_to_f32(b[i].d) * dx[i] * (float)dot;
            }
            p->y[t][r] = sum;
        }
    }
}

/* ---- 2, 3: vpdpbusd, as many sums in registers as fit ---------------------------------------------------------------- */

/* 32 columns, in registers: 16 rows to a register, four columns to a lane. */
AVX512 INLINE void add_block(const uint8_t (*u)[TILE][4], const int8_t (*x)[COLUMNS + 64], int registers, int n,
                             __m512i (*dot)[2]) {
    UNROLL for (int i = 0; i < QK / 4; i++) {
        __m512i w[2];
        UNROLL for (int r = 0; r < registers; r++) { w[r] = _mm512_load_si512(u[i][16 * r]); }
        UNROLL for (int t = 0; t < n; t++) {
            int32_t four;
            memcpy(&four, x[t] + 4 * i, sizeof four);
            const __m512i all = _mm512_set1_epi32(four);
            UNROLL for (int r = 0; r < registers; r++) { dot[t][r] = _mm512_dpbusd_epi32(dot[t][r], w[r], all); }
        }
    }
}

/* Rows row .. row + 16 * registers - 1 of a tile, n tokens from t0 on. */
AVX512 INLINE void multiply(problem *p, int part, int tile, int row, int t0, int registers, int n) {
    __m512i dot[8][2];
    int32_t (*sum)[ROWS] = &p->sum[t0];
    const int at = TILE * tile + row;
    UNROLL for (int t = 0; t < n; t++) {
        UNROLL for (int r = 0; r < registers; r++) {
            dot[t][r] = part == 0 ? _mm512_setzero_si512() : _mm512_load_si512(sum[t] + at + 16 * r);
        }
    }
    for (int c = 0; c < COLUMNS; c += QK) {
        const uint8_t (*u)[TILE][4] = &p->u[part][tile][c / 4];
        add_block((const void *)&u[0][row], (const void *)&p->x[part][t0][c], registers, n, dot);
    }
    UNROLL for (int t = 0; t < n; t++) {
        UNROLL for (int r = 0; r < registers; r++) { _mm512_store_si512(sum[t] + at + 16 * r, dot[t][r]); }
    }
}

AVX512 static void one_by_eight(problem *p, int part, int tile, int t) {
    multiply(p, part, tile, 0, t, 1, 8);
    multiply(p, part, tile, 16, t, 1, 8);
}
AVX512 static void two_by_six(problem *p, int part, int tile, int t) { multiply(p, part, tile, 0, t, 2, 6); }

/* ---- 4: with scales --------------------------------------------------------------------------------------------------- */

AVX512 static void two_by_six_scaled(problem *p, int part, int tile, int t0) {
    __m512 sum[6][2];
    float (*y)[ROWS] = &p->y[t0];
    const int at = TILE * tile;
    UNROLL for (int t = 0; t < 6; t++) {
        UNROLL for (int r = 0; r < 2; r++) { sum[t][r] = part == 0 ? _mm512_setzero_ps() : _mm512_load_ps(y[t] + at + 16 * r); }
    }
    for (int c = 0; c < COLUMNS; c += QK) {
        const int b = (part * COLUMNS + c) / QK;
        __m512i dot[6][2];
        UNROLL for (int t = 0; t < 6; t++) { dot[t][0] = dot[t][1] = _mm512_set1_epi32(p->start[t0 + t][b]); }
        add_block(&p->u[part][tile][c / 4], (const void *)&p->x[part][t0][c], 2, 6, dot);
        UNROLL for (int r = 0; r < 2; r++) {
            const __m512 scale = _mm512_load_ps(p->w_scale[b] + at + 16 * r);
            UNROLL for (int t = 0; t < 6; t++) {
                const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[t][r]), scale);
                sum[t][r] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(p->x_scale[t0 + t][b]), sum[t][r]);
            }
        }
    }
    UNROLL for (int t = 0; t < 6; t++) {
        UNROLL for (int r = 0; r < 2; r++) { _mm512_store_ps(y[t] + at + 16 * r, sum[t][r]); }
    }
}

/* ---- 5: the library's ------------------------------------------------------------------------------------------------- */

static void of_lmi(problem *p) {
    const matmul_args args = {.w = p->blocks,
                              .row_bytes = BLOCKS * sizeof *p->blocks,
                              .k = K,
                              .row1 = ROWS,
                              .x = p->rows,
                              .x_stride = p->row_bytes,
                              .n_tokens = TOKENS,
                              .y = p->y[0],
                              .y_stride = ROWS,
                              .scratch = p->scratch};
    p->table->matmul[QUANT_Q4_0](&args);
}

/* ---- checking and measuring ------------------------------------------------------------------------------------------ */

static void fill(problem *p) {
    uint32_t seed = 1;
    for (int i = 0; i < ROWS * BLOCKS; i++) {
        p->blocks[i].d = f32_to_f16((float)(0.5 + random_unit(&seed)));
        for (int j = 0; j < 16; j++) {
            p->blocks[i].qs[j] = (uint8_t)random_bits(&seed);
        }
    }
    for (int t = 0; t < TOKENS; t++) {
        float values[K];
        for (int c = 0; c < K; c++) {
            values[c] = (float)(random_unit(&seed) - 0.5);
        }
        p->table->pack[ACT_Q8_32](values, K, p->rows + (size_t)t * p->row_bytes);
    }
}

/* Lays weights and activations out for the rungs 2 to 4. */
static void lay_out(problem *p) {
    for (int r = 0; r < ROWS; r++) {
        const block_q4_0 *b = p->blocks + r * BLOCKS;
        for (int c = 0; c < K; c++) {
            const int j = c % QK, q = j < 16 ? b[c / QK].qs[j] & 15 : b[c / QK].qs[j - 16] >> 4;
            p->u[c / COLUMNS][r / TILE][c % COLUMNS / 4][r % TILE][c % 4] = (uint8_t)q;
            p->w_scale[c / QK][r] = f16_to_f32(b[c / QK].d);
        }
    }
    for (int t = 0; t < TOKENS; t++) {
        const void *row = row_of(p, t);
        for (int c = 0; c < K; c++) {
            p->x[c / COLUMNS][t][c % COLUMNS] = act_q8(row)[c];
            p->x_scale[t][c / QK] = act_scales(row, K)[c / QK];
            p->start[t][c / QK] = -8 * act_sums_32(row, K)[c / QK];
        }
    }
}

static void sum_in_float64(problem *p) {
    for (int t = 0; t < TOKENS; t++) {
        const void *row = row_of(p, t);
        for (int r = 0; r < ROWS; r++) {
            const block_q4_0 *b = p->blocks + r * BLOCKS;
            int32_t whole = 0;
            double sum = 0;
            for (int c = 0; c < K; c++) {
                const int j = c % QK, q = j < 16 ? b[c / QK].qs[j] & 15 : b[c / QK].qs[j - 16] >> 4;
                const int x = act_q8(row)[c];
                whole += q * x;
                sum += (double)f16_to_f32(b[c / QK].d) * (double)act_scales(row, K)[c / QK] * ((q - 8) * x);
            }
            p->want_sum[t][r] = whole;
            p->want[t][r] = sum;
        }
    }
}

typedef struct rung {
    const char *name;
    void (*whole)(problem *);               /* or: */
    void (*pass)(problem *, int, int, int); /* part, tile, first token */
    int tokens;                             /* of a pass */
    bool has_scales;
    problem *p;
} rung;

/* As the library does: while two passes' activations stay in the L1 cache, all tiles go by. */
static void climb(void *context) {
    const rung *r = context;
    if (r->whole != NULL) {
        r->whole(r->p);
        return;
    }
    for (int part = 0; part < PARTS; part++) {
        for (int t = 0; t < TOKENS; t += 2 * r->tokens) {
            for (int tile = 0; tile < ROWS / TILE; tile++) {
                r->pass(r->p, part, tile, t);
                r->pass(r->p, part, tile, t + r->tokens);
            }
        }
    }
}

static void check(rung *r) {
    problem *p = r->p;
    double error = 0, all = 0;
    memset(p->y, 0xff, sizeof p->y); /* NaN: what is left out shows */
    memset(p->sum, 0xff, sizeof p->sum);
    climb(r);
    if (!r->has_scales) {
        if (memcmp(p->sum, p->want_sum, sizeof p->sum) != 0) {
            fprintf(stderr, "%s: the sums are not the integers they should be\n", r->name);
            exit(1);
        }
        return;
    }
    for (int i = 0; i < TOKENS * ROWS; i++) {
        const double want = p->want[i / ROWS][i % ROWS], off = p->y[i / ROWS][i % ROWS] - want;
        error += off * off;
        all += want * want;
    }
    if (!(error <= 1e-12 * all)) {
        fprintf(stderr, "%s: wrong, relative NMSE %.1e\n", r->name, error / all);
        exit(1);
    }
}

int main(void) {
    const kernels *table;
    if (kernels_get(LMI_ISA_AVX512, &table, NULL) != LMI_OK) {
        printf("ladder_prefill needs AVX512-VNNI\n");
        return 0;
    }
    problem *p = allocate(sizeof *p);
    p->table = table;
    p->row_bytes = act_row_bytes(ACT_Q8_32, K);
    p->blocks = allocate(ROWS * BLOCKS * sizeof *p->blocks);
    p->rows = allocate(TOKENS * p->row_bytes);
    p->scratch = allocate(table->matmul_scratch(K));
    fill(p);
    lay_out(p);
    sum_in_float64(p);

    const rung rungs[] = {
        {.name = "plain C", .whole = plain, .has_scales = true, .p = p},
        {.name = "1 register x 8 tokens, no scales", .pass = one_by_eight, .tokens = 8, .p = p},
        {.name = "2 registers x 6 tokens, no scales", .pass = two_by_six, .tokens = 6, .p = p},
        {.name = "2 registers x 6 tokens, scales", .pass = two_by_six_scaled, .tokens = 6, .has_scales = true, .p = p},
        {.name = "lmi, unpacking included", .whole = of_lmi, .has_scales = true, .p = p},
    };
    printf("%d tokens, Q4_0, %d rows, K = %d: G multiply-adds a second, %% of vpdpbusd alone\n", TOKENS, ROWS, K);
    for (size_t i = 0; i < sizeof rungs / sizeof *rungs; i++) {
        rung r = rungs[i];
        check(&r);
        const double peak = dot_peak(LMI_ISA_AVX512), rate = 1e-9 * ROWS * K * TOKENS / fastest(climb, &r);
        printf("%-34s %6.1f GMAC/s %4.0f%% of %5.1f\n", r.name, rate, 100 * rate / peak, peak);
        fflush(stdout);
    }
    free(p->blocks);
    free(p->rows);
    free(p->scratch);
    free(p);
    return 0;
}

#else

int main(void) {
    printf("ladder_prefill needs AVX512-VNNI\n");
    return 0;
}

#endif
