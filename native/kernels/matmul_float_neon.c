/* F32, F16 and BF16 weights, NEON: everything in float32.
 *
 * Few tokens: one pass over each row. Many: tiles, converted and transposed so that a register holds one column of four
 * rows, with the loops of matmul_tiles.c. */
#include "base/half.h"
#include "kernels/matmul_neon.h"
#include "kernels/matmul_tiles.h"

enum { ROWS = 16, COLUMNS = 256, TILES = 6, TOKENS = 8, PASS_TOKENS = 4 };

typedef struct type_float {
    int bytes;                                  /* of a value */
    float32x4_t (*load)(const uint8_t *values); /* four */
    float (*load_one)(const uint8_t *value);
} type_float;

INLINE uint16_t load_u16(const void *p) {
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE uint16x4_t four_words(const uint8_t *values) { return vreinterpret_u16_u8(vld1_u8(values)); }

INLINE float32x4_t load_f32(const uint8_t *values) { return vreinterpretq_f32_u8(vld1q_u8(values)); }
INLINE float32x4_t load_f16(const uint8_t *values) { return vcvt_f32_f16(vreinterpret_f16_u16(four_words(values))); }
INLINE float32x4_t load_bf16(const uint8_t *values) { return vreinterpretq_f32_u32(vshll_n_u16(four_words(values), 16)); }

INLINE float one_f32(const uint8_t *value) {
    float v;
    memcpy(&v, value, sizeof v);
    return v;
}
INLINE float one_f16(const uint8_t *value) { return f16_to_f32(load_u16(value)); }
INLINE float one_bf16(const uint8_t *value) { return bf16_to_f32(load_u16(value)); }

static const type_float type_f32 = {4, load_f32, one_f32};
static const type_float type_f16 = {2, load_f16, one_f16};
static const type_float type_bf16 = {2, load_bf16, one_bf16};

/* The last n < 4 of a row, then zeros: nothing behind them is read. */
INLINE float32x4_t load_last(const type_float *type, const uint8_t *values, int n) {
    float lanes[4] = {0};
    for (int i = 0; i < n; i++) {
        lanes[i] = type->load_one(values + i * type->bytes);
    }
    return vld1q_f32(lanes);
}

INLINE float32x4_t load_up_to_4(const type_float *type, const uint8_t *values, int64_t n) {
    return n >= 4 ? type->load(values) : load_last(type, values, n < 0 ? 0 : (int)n);
}

/* ---- row by row ---------------------------------------------------------------------------------------------------- */

INLINE void pass_float(const matmul_args *a, const type_float *type, int64_t t0, int n) {
    const float *x[PASS_TOKENS];
    const int64_t whole = a->k / 32 * 32;
    UNROLL for (int t = 0; t < n; t++) {
        x[t] = (const float *)(const void *)((const char *)a->x + (size_t)(t0 + t) * a->x_stride);
    }
    for (int64_t r = a->row0; r < a->row1; r++) {
        const uint8_t *w = (const uint8_t *)a->w + (size_t)r * a->row_bytes;
        float32x4_t sum[PASS_TOKENS][4];
        UNROLL for (int t = 0; t < n; t++) {
            UNROLL for (int i = 0; i < 4; i++) { sum[t][i] = vdupq_n_f32(0); }
        }
        for (int64_t c = 0; c < whole; c += 32) {
            const uint8_t *values = w + (size_t)(c * type->bytes);
            fetch_rows_ahead(values, 32 * type->bytes, 1);
            UNROLL for (int i = 0; i < 8; i++) {
                float32x4_t v = type->load(values + 4 * i * type->bytes);
                UNROLL for (int t = 0; t < n; t++) { sum[t][i % 4] = vfmaq_f32(sum[t][i % 4], v, vld1q_f32(x[t] + c + 4 * i)); }
            }
        }
        for (int64_t c = whole; c < a->k; c += 4) { /* packed rows are padded with zeros */
            float32x4_t v = load_up_to_4(type, w + (size_t)(c * type->bytes), a->k - c);
            UNROLL for (int t = 0; t < n; t++) { sum[t][0] = vfmaq_f32(sum[t][0], v, vld1q_f32(x[t] + c)); }
        }
        UNROLL for (int t = 0; t < n; t++) {
            a->y[(t0 + t) * a->y_stride + r] = vaddvq_f32((sum[t][0] + sum[t][1]) + (sum[t][2] + sum[t][3]));
        }
    }
}

INLINE void row_wise(const matmul_args *a, const type_float *type) {
    int64_t t = 0;
    for (; t + 4 <= a->n_tokens; t += 4) {
        pass_float(a, type, t, 4);
    }
    for (; t < a->n_tokens; t++) {
        pass_float(a, type, t, 1);
    }
}

/* ---- tiles --------------------------------------------------------------------------------------------------------- */

typedef struct tile {
    float w[COLUMNS][ROWS];
} tile;

typedef struct panel {
    float x[TOKENS][COLUMNS + 16]; /* tokens apart in the L1 cache's sets */
} panel;

_Static_assert(TILES * sizeof(tile) + sizeof(panel) <= 144 * 1024, "half of a small L2 cache");

INLINE void unpack_tile(const type_float *type, const uint8_t *const *rows, int64_t c0, int columns, tile *out) {
    for (int r = 0; r < ROWS; r += 4) {
        for (int c = 0; c < columns; c += 4) {
            int32x4_t v[4];
            for (int i = 0; i < 4; i++) {
                const uint8_t *values = rows[r + i] + (size_t)((c0 + c) * type->bytes);
                v[i] = vreinterpretq_s32_f32(load_up_to_4(type, values, columns - c));
            }
            transpose_4x4(v);
            UNROLL for (int i = 0; i < 4; i++) { vst1q_f32(out->w[c + i] + r, vreinterpretq_f32_s32(v[i])); }
        }
    }
}

static void fill_panel(const void *const *x, int64_t k, int64_t c0, int columns, int n, void *out) {
    panel *p = out;
    (void)k;
    for (int t = 0; t < n; t++) {
        for (int c = 0; c < columns; c += 4) { /* packed rows are padded with zeros */
            vst1q_f32(p->x[t] + c, vld1q_f32((const float *)x[t] + c0 + c));
        }
    }
}

/* Column c + LANE of eight rows. */
#define ADD_COLUMN(LANE)                                                                                                       \
    {                                                                                                                          \
        float32x4_t low = vld1q_f32(w->w[c + LANE] + half), high = vld1q_f32(w->w[c + LANE] + half + 4);                       \
        UNROLL for (int t = 0; t < TOKENS; t++) {                                                                              \
            sum[t][0] = vfmaq_laneq_f32(sum[t][0], low, x[t], LANE);                                                           \
            sum[t][1] = vfmaq_laneq_f32(sum[t][1], high, x[t], LANE);                                                          \
        }                                                                                                                      \
    }

static void multiply(const void *tile_of_w, const void *panel_of_x, int columns, int n_rows, int n, fetch_plan *soon,
                     tile_sums sums) {
    const tile *w = tile_of_w;
    const panel *p = panel_of_x;
    (void)n;
    for (int half = 0; half < n_rows; half += 8) {
        float32x4_t sum[TOKENS][2];
        UNROLL for (int t = 0; t < TOKENS; t++) { sum[t][0] = sum[t][1] = vdupq_n_f32(0); }
        for (int c = 0; c < columns; c += 4) {
            if (half == 0 && c % TILE_STEP == 0) {
                fetch_some(soon);
            }
            float32x4_t x[TOKENS];
            UNROLL for (int t = 0; t < TOKENS; t++) { x[t] = vld1q_f32(p->x[t] + c); }
            ADD_COLUMN(0)
            ADD_COLUMN(1)
            ADD_COLUMN(2)
            ADD_COLUMN(3)
        }
        UNROLL for (int t = 0; t < TOKENS; t++) {
            UNROLL for (int i = 0; i < 2; i++) {
                float *y = sums.y + t * sums.stride + half + 4 * i;
                vst1q_f32(y, sums.first ? sum[t][i] : vld1q_f32(y) + sum[t][i]);
            }
        }
    }
}

size_t matmul_float_scratch_neon(void) {
    const tile_kernel kernel = {
        .rows = ROWS, .tiles = TILES, .tokens = TOKENS, .tile_bytes = sizeof(tile), .panel_bytes = sizeof(panel)};
    return matmul_tiled_scratch(&kernel);
}

#define FLOAT_TYPE(NAME)                                                                                                       \
    static __attribute__((noinline)) void NAME##_rows(const matmul_args *a) { row_wise(a, &type_##NAME); }                     \
    static void NAME##_unpack(const uint8_t *const *rows, int64_t c0, int columns, void *out) {                                \
        unpack_tile(&type_##NAME, rows, c0, columns, out);                                                                     \
    }                                                                                                                          \
    void matmul_##NAME##_neon(const matmul_args *a) {                                                                          \
        static const tile_kernel kernel = {ROWS,         TILES,         TOKENS,        COLUMNS,    4,                          \
                                           sizeof(tile), sizeof(panel), NAME##_unpack, fill_panel, multiply};                  \
        if (a->n_tokens <= MATMUL_ROWWISE_TOKENS) {                                                                            \
            NAME##_rows(a);                                                                                                    \
        } else {                                                                                                               \
            matmul_tiled(a, &kernel);                                                                                          \
        }                                                                                                                      \
    }

FLOAT_TYPE(f32)
FLOAT_TYPE(f16)
FLOAT_TYPE(bf16)
