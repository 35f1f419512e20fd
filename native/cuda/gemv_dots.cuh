/* Dot products of two weight rows with up to T rows of packed activations in shared memory, for one warp (or several that
 * share the columns): what lies in the inner loop of gemv.cu.
 *
 * A chunk is what a lane takes at a time: 64 columns of a super-block, a block of 32 (of Q8_0 half a one), 16 bytes of
 * floats. Neighbouring lanes take neighbouring chunks, which together are whole sectors of memory. Two rows share the loads
 * of activations. Sums of a block are exact integers; what depends on the activations alone, their sums for offsets and
 * minima, is read, not computed.
 *
 * The lane sums: in order of chunks, whatever T is, so that a row's result does not depend on how many tokens go with it. */
#ifndef LMI_CUDA_GEMV_DOTS_CUH
#define LMI_CUDA_GEMV_DOTS_CUH

#include "cuda/launch.h"
#include "cuda/primitives.cuh"
#include "cuda/weights.cuh"

/* ---- activations in shared memory ---------------------------------------------------------------------------------- */

/* Units of 16 bytes change places within eight, by bits 3 and 4 of their number, so that eight lanes that read at one of the
 * distances below meet eight different groups of banks: 1, 2, and the patterns of run_unit. */
__device__ __forceinline__ int place_of(int unit) {
    const int k = unit >> 3 & 3;
    return unit ^ (2 * k | ((k ^ k >> 1) & 1));
}

/* What a type wants of the input. */
enum input_form {
    FORM_32,    /* int8 [columns], then { float d, int32 sum of a block } [columns / 32] */
    FORM_256,   /* int8 [columns], then int32 sums [columns / 16], then float d [columns / 256] */
    FORM_VALUES /* float [columns] */
};

__host__ __device__ constexpr input_form form_of(int type) {
    return is_float_type(type) ? FORM_VALUES : block_values(type) == 256 ? FORM_256 : FORM_32;
}

/* Bytes of a row of so many columns, a multiple of 256; where the second and the third part of it begin. */
__host__ __device__ constexpr int64_t held_bytes(input_form form, int64_t columns) {
    return form == FORM_VALUES ? 4 * columns : columns + columns / 4 + (form == FORM_256 ? (columns / 64 + 15) / 16 * 16 : 0);
}
__host__ __device__ constexpr int sums_at(int columns) { return columns; }
__host__ __device__ constexpr int scales_at(input_form form, int columns) {
    return form == FORM_256 ? columns + columns / 4 : columns;
}

/* Rows of input, from some column on. Places of the values as place_of says. The sums of FORM_256 lie in order of chunks:
 * those of the four runs of a chunk (see run_unit) side by side. */
struct held_rows {
    const unsigned char *values, *sums, *scales;
    int stride; /* to the next row, of each of these */
};

/* ---- where two rows and a piece of their columns are --------------------------------------------------------------- */

struct row_pair {
    const uint8_t *plane[2][MAX_PLANES];
    int64_t row[2];              /* counted through all matrices */
    int cols, column, n_columns; /* of a row; of the piece, which begins at a multiple of 512 */
    int first, step;             /* chunks of this lane: first, first + step, ...; step is a multiple of 32 */
};

struct row_at {
    const uint8_t *plane[MAX_PLANES];
};

/* Where row i of the pair has its piece. */
template <int TYPE> __device__ __forceinline__ row_at place_row(const row_pair &p, int i) {
    const int64_t block = p.row[i] * (p.cols / block_values(TYPE)) + p.column / block_values(TYPE);
    row_at at;
#pragma unroll
    for (int n = 0; n < MAX_PLANES; n++) {
        at.plane[n] = p.plane[i][n] + block * plane_bytes(TYPE, n);
    }
    return at;
}

__device__ __forceinline__ int byte_of(uint32_t word, int i) { return (int)(word >> 8 * i & 255); }

/* ---- super-blocks of 256: chunks of 64, in four runs of 16 --------------------------------------------------------- */

/* Bytes of a chunk as the planes have them. k: which chunk of its block; h = k / 2, half = k % 2. */
struct raw_256 {
    uint4 q[2], high, head;
    uint32_t d;
};

template <int TYPE> __device__ __forceinline__ raw_256 load_256(const row_at &row, int chunk) {
    const int64_t block = chunk >> 2;
    const int k = chunk & 3, h = k >> 1, half = k & 1;
    raw_256 raw = {};
    if constexpr (TYPE == QUANT_Q4_K || TYPE == QUANT_Q5_K) {
        const uint8_t *q = row.plane[0] + block * 128 + 64 * h + 16 * half;
        raw.q[0] = load_16_once(q);
        raw.q[1] = load_16_once(q + 32);
        if constexpr (TYPE == QUANT_Q5_K) {
            raw.high = load_16(row.plane[1] + block * 32 + 16 * half);
        }
        raw.head = load_16(row.plane[TYPE == QUANT_Q5_K ? 2 : 1] + block * 16);
    } else if constexpr (TYPE == QUANT_Q6_K) {
        const uint8_t *q = row.plane[0] + block * 192 + 16 * half;
        raw.q[0] = load_16_once(q + 64 * h);
        raw.q[1] = load_16_once(q + 64 * h + 32);
        raw.high = load_16_once(q + 128 + 32 * h);
        const uint2 scales = load_8(row.plane[1] + block * 16 + 8 * h);
        raw.head.x = scales.x, raw.head.y = scales.y;
        raw.d = load_2(row.plane[2] + block * 2);
    } else if constexpr (TYPE == QUANT_Q2_K) {
        raw.q[0] = load_16_once(row.plane[0] + block * 64 + 32 * h + 16 * half);
        const uint2 scales = load_8(row.plane[1] + block * 16 + 8 * h);
        raw.head.x = scales.x, raw.head.y = scales.y;
        raw.d = load_4(row.plane[2] + block * 4);
    } else if constexpr (TYPE == QUANT_Q3_K) {
        const uint8_t *q = row.plane[0] + block * 96 + 16 * half;
        raw.q[0] = load_16_once(q + 32 + 32 * h);
        raw.high = load_16(q); /* two chunks want it */
        const uint8_t *scales = row.plane[1] + block * 12;
        raw.head.x = load_4(scales), raw.head.y = load_4(scales + 4), raw.head.z = load_4(scales + 8);
        raw.d = load_2(row.plane[2] + block * 2);
    } else {
        static_assert(TYPE == QUANT_IQ4_XS, "a type of super-blocks");
        const uint8_t *q = row.plane[0] + block * 128 + 16 * k;
        raw.q[0] = load_16_once(q);
        raw.q[1] = load_16_once(q + 64);
        const uint2 head = load_8(row.plane[1] + block * 8);
        raw.head.x = head.x, raw.head.y = head.y;
    }
    return raw;
}

/* Which 16 columns of the block run g of chunk k is. */
template <int TYPE> __device__ __forceinline__ int run_unit(int k, int g) {
    return TYPE == QUANT_IQ4_XS ? 2 * k + (g & 1) + (g >> 1) * 8 : (k >> 1) * 8 + 2 * g + (k & 1);
}

/* A chunk as whole numbers: w = d * scale * (q - ZERO) - dmin * minimum. */
struct whole_256 {
    int q[16]; /* of run g: 4g .. 4g + 3, four columns each */
    int scale[4], minimum[4];
    float d, dmin;
};

__host__ __device__ constexpr bool has_minima(int type) {
    return type == QUANT_Q2_K || type == QUANT_Q4_K || type == QUANT_Q5_K;
}
__host__ __device__ constexpr int zero_of_256(int type) { return type == QUANT_Q3_K ? 4 : type == QUANT_Q6_K ? 32 : 0; }

template <int TYPE> __device__ __forceinline__ void unpack_scales(const raw_256 &raw, int k, whole_256 *w) {
    const int h = k >> 1, half = k & 1;
    if constexpr (TYPE == QUANT_Q4_K || TYPE == QUANT_Q5_K) {
        /* groups 4h .. 4h + 3, of 6 bits: the first four are whole, the others halves with the high bits of the first */
        const uint32_t a = raw.head.y, b = raw.head.z, c = raw.head.w;
        const uint32_t scales = h == 0 ? a & 0x3f3f3f3fu : (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u);
        const uint32_t minima = h == 0 ? b & 0x3f3f3f3fu : (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u);
#pragma unroll
        for (int g = 0; g < 4; g++) {
            w->scale[g] = byte_of(scales, g);
            w->minimum[g] = byte_of(minima, g);
        }
        w->d = low_half(raw.head.x);
        w->dmin = high_half(raw.head.x);
    } else if constexpr (TYPE == QUANT_Q2_K || TYPE == QUANT_Q6_K) {
        const uint32_t first = raw.head.x >> 8 * half, second = raw.head.y >> 8 * half; /* groups 8h + half + 0, 2, 4, 6 */
#pragma unroll
        for (int g = 0; g < 4; g++) {
            const int byte = byte_of(g < 2 ? first : second, 2 * (g & 1));
            w->scale[g] = TYPE == QUANT_Q6_K ? (byte ^ 128) - 128 : byte & 15;
            w->minimum[g] = byte >> 4;
        }
        w->d = low_half(raw.d);
        w->dmin = high_half(raw.d);
    } else if constexpr (TYPE == QUANT_Q3_K) {
        /* group 8h + 2g + half: four bits in nibble h of byte 2g + half, two in the third word */
        const uint32_t first = raw.head.x >> (8 * half + 4 * h), second = raw.head.y >> (8 * half + 4 * h);
        const uint32_t high = raw.head.z >> (8 * half + 4 * h);
#pragma unroll
        for (int g = 0; g < 4; g++) {
            const int low4 = byte_of(g < 2 ? first : second, 2 * (g & 1)) & 15;
            const int high2 = (int)(high >> (16 * (g & 1) + 2 * (g >> 1)) & 3);
            w->scale[g] = (low4 | high2 << 4) - 32;
        }
        w->d = low_half(raw.d);
    } else {
#pragma unroll
        for (int g = 0; g < 4; g += 2) {
            const int group = k + 2 * g;
            const int low4 = (int)(raw.head.y >> 4 * group & 15), high2 = (int)(raw.head.x >> (16 + 2 * group) & 3);
            w->scale[g] = w->scale[g + 1] = (low4 | high2 << 4) - 32;
        }
        w->d = low_half(raw.head.x);
    }
}

template <int TYPE> __device__ __forceinline__ void unpack_256(const raw_256 &raw, int k, whole_256 *w) {
    unpack_scales<TYPE>(raw, k, w);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t q = word_of(raw.q[0], i);
        if constexpr (TYPE == QUANT_Q2_K || TYPE == QUANT_Q3_K) {
#pragma unroll
            for (int g = 0; g < 4; g++) {
                uint32_t values = q >> 2 * g & 0x03030303u;
                if constexpr (TYPE == QUANT_Q3_K) {
                    values |= (word_of(raw.high, i) >> (4 * (k >> 1) + g) & 0x01010101u) << 2;
                }
                w->q[4 * g + i] = (int)values;
            }
        } else if constexpr (TYPE == QUANT_IQ4_XS) {
            uint32_t run[4];
            look_up(q, 0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u, &run[0], &run[1]);
            look_up(word_of(raw.q[1], i), 0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u, &run[2], &run[3]);
#pragma unroll
            for (int g = 0; g < 4; g++) {
                w->q[4 * g + i] = (int)run[g];
            }
        } else {
            const uint32_t p = word_of(raw.q[1], i);
            uint32_t run[4] = {q & 0x0f0f0f0fu, q >> 4 & 0x0f0f0f0fu, p & 0x0f0f0f0fu, p >> 4 & 0x0f0f0f0fu};
            if constexpr (TYPE == QUANT_Q5_K) {
                const uint32_t high = word_of(raw.high, i) >> 4 * (k >> 1);
#pragma unroll
                for (int g = 0; g < 4; g++) {
                    run[g] |= (high >> g & 0x01010101u) << 4;
                }
            } else if constexpr (TYPE == QUANT_Q6_K) {
                const uint32_t high = word_of(raw.high, i), swap = run[1];
                run[1] = run[2], run[2] = swap; /* low halves of both first */
#pragma unroll
                for (int g = 0; g < 4; g++) {
                    run[g] |= (high >> 2 * g & 0x03030303u) << 4;
                }
            }
#pragma unroll
            for (int g = 0; g < 4; g++) {
                w->q[4 * g + i] = (int)run[g];
            }
        }
    }
}

__device__ __forceinline__ int dot_16(const int *q, const int4 &x) {
    return dot4(q[3], x.w, dot4(q[2], x.z, dot4(q[1], x.y, dot4(q[0], x.x, 0))));
}

template <int TYPE> __device__ __forceinline__ float value_256(const whole_256 &w, const int4 x[4], const int4 &sums) {
    constexpr int ZERO = zero_of_256(TYPE);
    int dot = 0;
#pragma unroll
    for (int g = 0; g < 4; g++) {
        dot += w.scale[g] * dot_16(w.q + 4 * g, x[g]);
    }
    if constexpr (ZERO != 0) {
        dot -= ZERO * (w.scale[0] * sums.x + w.scale[1] * sums.y + w.scale[2] * sums.z + w.scale[3] * sums.w);
    }
    float value = w.d * (float)dot;
    if constexpr (has_minima(TYPE)) {
        const int minima = w.minimum[0] * sums.x + w.minimum[1] * sums.y + w.minimum[2] * sums.z + w.minimum[3] * sums.w;
        value = fmaf(-w.dmin, (float)minima, value);
    }
    return value;
}

template <int TYPE, int T>
__device__ __forceinline__ void dot_rows_256(const row_pair &p, const held_rows &x, int n_tokens, float *sum) {
    constexpr int AHEAD = T == 1 && (TYPE == QUANT_Q4_K || TYPE == QUANT_Q2_K) ? 2 : 1; /* others load more a chunk */
    const row_at a = place_row<TYPE>(p, 0), b = place_row<TYPE>(p, 1);
    const int n = p.n_columns / 64, k = p.first & 3;
    int offset
        [4]; /* of a run, less 64 bytes a chunk: the same for all chunks of the lane, since 32 chunks are whole 512 columns */
#pragma unroll
    for (int g = 0; g < 4; g++) {
        offset[g] = 16 * place_of((p.first >> 2) * 16 + run_unit<TYPE>(k, g)) - 64 * p.first;
    }
    for (int c0 = p.first; c0 < n; c0 += AHEAD * p.step) {
        raw_256 raw[AHEAD][2];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int c = c0 + u * p.step;
            if (c < n) {
                raw[u][0] = load_256<TYPE>(a, c);
                raw[u][1] = load_256<TYPE>(b, c);
            }
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int c = c0 + u * p.step;
            if (c >= n) {
                break;
            }
            whole_256 w[2];
            unpack_256<TYPE>(raw[u][0], k, &w[0]);
            unpack_256<TYPE>(raw[u][1], k, &w[1]);
#pragma unroll
            for (int t = 0; t < T; t++) {
                if (t >= n_tokens) {
                    break;
                }
                const unsigned char *q = x.values + t * x.stride + 64 * c;
                int4 values[4], sums = make_int4(0, 0, 0, 0);
#pragma unroll
                for (int g = 0; g < 4; g++) {
                    values[g] = *(const int4 *)(q + offset[g]);
                }
                if constexpr (TYPE != QUANT_IQ4_XS) {
                    sums = *(const int4 *)(x.sums + t * x.stride + 16 * c);
                }
                const float d = *(const float *)(x.scales + t * x.stride + 4 * (c >> 2));
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    sum[r * T + t] = fmaf(d, value_256<TYPE>(w[r], values, sums), sum[r * T + t]);
                }
            }
        }
    }
}

/* ---- blocks of 32 -------------------------------------------------------------------------------------------------- */

struct raw_32 {
    uint4 q;
    uint32_t high, d;
};

/* Q8_0: chunks of 16, half a block. */
template <int TYPE> __device__ __forceinline__ raw_32 load_32(const row_at &row, int chunk) {
    raw_32 raw = {};
    const int64_t c = chunk;
    raw.q = load_16_once(row.plane[0] + 16 * c);
    if constexpr (TYPE == QUANT_Q8_0) {
        raw.d = load_2(row.plane[1] + c / 2 * 2);
    } else if constexpr (TYPE == QUANT_Q5_0) {
        raw.high = load_4(row.plane[1] + 4 * c);
        raw.d = load_2(row.plane[2] + 2 * c);
    } else if constexpr (TYPE == QUANT_Q5_1) {
        const uint2 both = load_8(row.plane[1] + 8 * c);
        raw.d = both.x, raw.high = both.y;
    } else if constexpr (TYPE == QUANT_Q4_1) {
        raw.d = load_4(row.plane[1] + 4 * c);
    } else if constexpr (TYPE == QUANT_MXFP4) {
        raw.d = row.plane[1][c];
    } else {
        raw.d = load_2(row.plane[1] + 2 * c);
    }
    return raw;
}

/* w = d * (q - ZERO) + m */
struct whole_32 {
    int q[8]; /* columns 0 .. 15, 16 .. 31 */
    float d, m;
};

__host__ __device__ constexpr int zero_of_32(int type) { return type == QUANT_Q4_0 ? 8 : type == QUANT_Q5_0 ? 16 : 0; }
__host__ __device__ constexpr bool has_m(int type) { return type == QUANT_Q4_1 || type == QUANT_Q5_1; }

template <int TYPE> __device__ __forceinline__ void unpack_32(const raw_32 &raw, whole_32 *w) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t q = word_of(raw.q, i);
        uint32_t low = q & 0x0f0f0f0fu, high = q >> 4 & 0x0f0f0f0fu;
        if constexpr (TYPE == QUANT_Q8_0) {
            low = q;
        } else if constexpr (TYPE == QUANT_IQ4_NL) {
            look_up(q, 0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u, &low, &high);
        } else if constexpr (TYPE == QUANT_MXFP4) {
            look_up(q, 0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu, &low, &high);
        } else if constexpr (TYPE == QUANT_Q5_0 || TYPE == QUANT_Q5_1) {
            /* bit j of the word belongs to column j: bits 0 .. 3 go to bit 4 of bytes 0 .. 3 */
            low |= (raw.high >> 4 * i & 15) * 0x02040810u & 0x10101010u;
            high |= (raw.high >> (16 + 4 * i) & 15) * 0x02040810u & 0x10101010u;
        }
        w->q[i] = (int)low;
        w->q[4 + i] = (int)high;
    }
    if constexpr (TYPE == QUANT_MXFP4) { /* 2^(e - 128): the table holds twice the values; the two smallest are subnormal */
        w->d = __uint_as_float(raw.d < 2 ? 0x00200000u << raw.d : (raw.d - 1) << 23);
    } else {
        w->d = low_half(raw.d);
    }
    w->m = high_half(raw.d);
}

template <int TYPE, int T>
__device__ __forceinline__ void dot_rows_32(const row_pair &p, const held_rows &x, int n_tokens, float *sum) {
    constexpr int AHEAD = T == 1 ? 4 : 2, UNITS = TYPE == QUANT_Q8_0 ? 1 : 2, ZERO = zero_of_32(TYPE);
    const row_at a = place_row<TYPE>(p, 0), b = place_row<TYPE>(p, 1);
    const int n = p.n_columns / (16 * UNITS);
    int offset[UNITS];
#pragma unroll
    for (int g = 0; g < UNITS; g++) {
        offset[g] = 16 * place_of(p.first * UNITS + g) - 16 * UNITS * p.first;
    }
    for (int c0 = p.first; c0 < n; c0 += AHEAD * p.step) {
        raw_32 raw[AHEAD][2];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int c = c0 + u * p.step;
            if (c < n) {
                raw[u][0] = load_32<TYPE>(a, c);
                raw[u][1] = load_32<TYPE>(b, c);
            }
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int c = c0 + u * p.step;
            if (c >= n) {
                break;
            }
            whole_32 w[2];
            unpack_32<TYPE>(raw[u][0], &w[0]);
            unpack_32<TYPE>(raw[u][1], &w[1]);
#pragma unroll
            for (int t = 0; t < T; t++) {
                if (t >= n_tokens) {
                    break;
                }
                const unsigned char *q = x.values + t * x.stride + 16 * UNITS * c;
                int4 values[UNITS];
#pragma unroll
                for (int g = 0; g < UNITS; g++) {
                    values[g] = *(const int4 *)(q + offset[g]);
                }
                const int2 d_sum = *(const int2 *)(x.scales + t * x.stride + 8 * (UNITS == 1 ? c >> 1 : c));
                const float d = __uint_as_float((uint32_t)d_sum.x);
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    int dot = -ZERO * d_sum.y;
#pragma unroll
                    for (int g = 0; g < UNITS; g++) {
                        dot += dot_16(w[r].q + 4 * g, values[g]);
                    }
                    float value = w[r].d * (float)dot;
                    if constexpr (has_m(TYPE)) {
                        value = fmaf(w[r].m, (float)d_sum.y, value);
                    }
                    sum[r * T + t] = fmaf(d, value, sum[r * T + t]);
                }
            }
        }
    }
}

/* ---- floats -------------------------------------------------------------------------------------------------------- */

template <int TYPE> __device__ __forceinline__ float float_at(const uint8_t *row, int column) {
    if constexpr (TYPE == QUANT_F32) {
        return __uint_as_float(load_4(row + 4 * (int64_t)column));
    } else {
        const uint16_t half = load_2(row + 2 * (int64_t)column);
        return TYPE == QUANT_F16 ? half_to_float(half) : __uint_as_float((uint32_t)half << 16);
    }
}

template <int TYPE, int T>
__device__ __forceinline__ void dot_rows_float(const row_pair &p, const held_rows &x, int n_tokens, float *sum) {
    constexpr int SIZE = TYPE == QUANT_F32 ? 4 : 2, VALUES = 16 / SIZE, UNITS = VALUES / 4, AHEAD = T == 1 ? 4 : 2;
    const row_at a = place_row<TYPE>(p, 0), b = place_row<TYPE>(p, 1);
    if (p.cols % VALUES != 0) { /* rows of any length: one value at a time */
        for (int c = p.first; c < p.n_columns; c += p.step) {
            const float w[2] = {float_at<TYPE>(a.plane[0], c), float_at<TYPE>(b.plane[0], c)};
            const int at = 16 * place_of(c >> 2) + 4 * (c & 3);
#pragma unroll
            for (int t = 0; t < T; t++) {
                if (t >= n_tokens) {
                    break;
                }
                const float value = *(const float *)(x.values + t * x.stride + at);
                sum[t] = fmaf(w[0], value, sum[t]);
                sum[T + t] = fmaf(w[1], value, sum[T + t]);
            }
        }
        return;
    }
    const int n = p.n_columns / VALUES;
    int offset[UNITS];
#pragma unroll
    for (int g = 0; g < UNITS; g++) {
        offset[g] = 16 * place_of(p.first * UNITS + g) - 16 * UNITS * p.first;
    }
    for (int c0 = p.first; c0 < n; c0 += AHEAD * p.step) {
        uint4 raw[AHEAD][2];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int c = c0 + u * p.step;
            if (c < n) {
                raw[u][0] = load_16_once(a.plane[0] + 16 * (int64_t)c);
                raw[u][1] = load_16_once(b.plane[0] + 16 * (int64_t)c);
            }
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int c = c0 + u * p.step;
            if (c >= n) {
                break;
            }
#pragma unroll
            for (int t = 0; t < T; t++) {
                if (t >= n_tokens) {
                    break;
                }
                float part[2] = {0.0f, 0.0f};
#pragma unroll
                for (int g = 0; g < UNITS; g++) {
                    const float4 four = *(const float4 *)(x.values + t * x.stride + 16 * UNITS * c + offset[g]);
                    const float value[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                    for (int i = 0; i < 4; i++) {
#pragma unroll
                        for (int r = 0; r < 2; r++) {
                            if constexpr (TYPE == QUANT_F32) {
                                part[r] = fmaf(__uint_as_float(word_of(raw[u][r], i)), value[i], part[r]);
                            } else {
                                const uint32_t pair = word_of(raw[u][r], 2 * g + i / 2);
                                const float w = TYPE == QUANT_F16
                                                    ? (i % 2 != 0 ? high_half(pair) : low_half(pair))
                                                    : __uint_as_float(i % 2 != 0 ? pair & 0xffff0000u : pair << 16);
                                part[r] = fmaf(w, value[i], part[r]);
                            }
                        }
                    }
                }
                sum[t] += part[0];
                sum[T + t] += part[1];
            }
        }
    }
}

/* ---- the choice ---------------------------------------------------------------------------------------------------- */

/* sum[r * T + t] += this lane's part of row r times token t < n_tokens. */
template <int TYPE, int T>
__device__ __forceinline__ void dot_rows(const row_pair &p, const held_rows &x, int n_tokens, float *sum) {
    if constexpr (is_float_type(TYPE)) {
        dot_rows_float<TYPE, T>(p, x, n_tokens, sum);
    } else if constexpr (block_values(TYPE) == 256) {
        dot_rows_256<TYPE, T>(p, x, n_tokens, sum);
    } else {
        dot_rows_32<TYPE, T>(p, x, n_tokens, sum);
    }
}

/* The types, X(type). */
#define GEMV_TYPES(X)                                                                                                          \
    X(QUANT_F32)                                                                                                               \
    X(QUANT_F16)                                                                                                               \
    X(QUANT_BF16)                                                                                                              \
    X(QUANT_Q4_0)                                                                                                              \
    X(QUANT_Q4_1)                                                                                                              \
    X(QUANT_Q5_0)                                                                                                              \
    X(QUANT_Q5_1)                                                                                                              \
    X(QUANT_Q8_0)                                                                                                              \
    X(QUANT_IQ4_NL)                                                                                                            \
    X(QUANT_MXFP4)                                                                                                             \
    X(QUANT_Q2_K)                                                                                                              \
    X(QUANT_Q3_K)                                                                                                              \
    X(QUANT_Q4_K)                                                                                                              \
    X(QUANT_Q5_K)                                                                                                              \
    X(QUANT_Q6_K)                                                                                                              \
    X(QUANT_IQ4_XS)

#endif
