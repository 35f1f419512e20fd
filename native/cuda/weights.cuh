/* Weights from their planes (planes.h) to numbers, 32 at a time.
 *
 * A unit is 32 columns of one row, as two runs of 16: what 16 bytes of quants hold, so that nothing is read twice. In blocks of 32 it
 * is the block; in super-blocks of 256 it is, by where the format puts quants that share a byte, two runs 32 columns (Q4_K, Q5_K) or 64
 * columns apart (Q2_K, Q3_K, Q6_K): unit_column says which columns these are. Units 2s and 2s + 1 together are the s-th "step" of 64
 * columns: they share sectors of memory, so neighbouring lanes should load them.
 *
 *   weight_unit<T> raw = load_unit<T>(w, row, unit);   a few registers, loads only
 *   decode_unit<T>(raw, v);                            v[i]: column unit_column(T, unit, i), bit-equal to quant/dequant_*.c
 *   halves_of_unit<T>(raw, factor, h);                 the same times factor, as f16
 *
 * row counts through all matrices of w. Columns beyond w.cols (F32, F16, BF16, whose rows may have any length) are zeros; a unit
 * must begin inside the row. */
#ifndef LMI_CUDA_WEIGHTS_CUH
#define LMI_CUDA_WEIGHTS_CUH

#include "cuda/launch.h"
#include "cuda/primitives.cuh"

/* ---- what is where ------------------------------------------------------------------------------------------------- */

enum { UNIT = 32, STEP = 64 };

__host__ __device__ constexpr bool is_float_type(int type) {
    return type == QUANT_F32 || type == QUANT_F16 || type == QUANT_BF16;
}
__host__ __device__ constexpr bool has_far_runs(int type) {
    return type == QUANT_Q2_K || type == QUANT_Q3_K || type == QUANT_Q6_K;
}
__host__ __device__ constexpr bool has_near_runs(int type) { return type == QUANT_Q4_K || type == QUANT_Q5_K; }

/* Which eight columns of the row chunk c (0 <= c < 8) of a step is; unit u of the step has chunks 4u .. 4u + 3. */
__host__ __device__ constexpr int row_chunk(int type, int step, int c) {
    return has_far_runs(type)    ? step / 2 * 16 + step % 2 * 2 + c / 4 * 4 + c / 2 % 2 * 8 + c % 2
           : has_near_runs(type) ? step * 8 + c / 4 * 2 + c / 2 % 2 * 4 + c % 2
                                 : step * 8 + c;
}

__host__ __device__ constexpr int64_t unit_column(int type, int64_t unit, int i) {
    return (int64_t)row_chunk(type, (int)(unit / 2), (int)(unit % 2) * 4 + i / 8) * 8 + i % 8;
}

/* ---- bytes ---------------------------------------------------------------------------------------------------------- */

/* Byte i of four, 0 .. 255, less zero: the bits of 2^23 + byte are put together, which costs less than a conversion. Exact. */
__device__ __forceinline__ float byte_to_float(uint32_t four, int i, int zero) {
    return __uint_as_float(__byte_perm(four, 0x4b000000u, 0x7540u | (uint32_t)i)) - (float)(8388608 + zero);
}

/* Table entries for the eight nibbles of q: those of the low halves of its bytes, and of the high halves. */
__device__ __forceinline__ void look_up(uint32_t q, uint32_t t0, uint32_t t1, uint32_t t2, uint32_t t3, uint32_t *low,
                                        uint32_t *high) {
    const uint32_t index = q & 0x77777777u, upper = 0x32103210u | (q & 0x88888888u) >> 1;
    const uint32_t a = __byte_perm(__byte_perm(t0, t1, index), __byte_perm(t2, t3, index), upper);
    const uint32_t b = __byte_perm(__byte_perm(t0, t1, index >> 16), __byte_perm(t2, t3, index >> 16), upper >> 16);
    *low = __byte_perm(a, b, 0x6420u);
    *high = __byte_perm(a, b, 0x7531u);
}

/* ---- loading -------------------------------------------------------------------------------------------------------- */

/* quants: 16 bytes, of Q8_0 32. more: high bits of the quants. scales: as they lie in the planes. */
template <int TYPE> struct weight_unit {
    uint4 quants;
    uint32_t part; /* of the super-block: its step, 0 .. 3, times 2, plus the unit in the step */
    uint32_t scales, d;
};
template <> struct weight_unit<QUANT_Q4_0> {
    uint4 quants;
    uint32_t d;
};
template <> struct weight_unit<QUANT_Q4_1> {
    uint4 quants;
    uint32_t d;
};
template <> struct weight_unit<QUANT_Q5_0> {
    uint4 quants;
    uint32_t more, d;
};
template <> struct weight_unit<QUANT_Q5_1> {
    uint4 quants;
    uint32_t more, d;
};
template <> struct weight_unit<QUANT_Q8_0> {
    uint4 quants, more;
    uint32_t d;
};
template <> struct weight_unit<QUANT_IQ4_NL> {
    uint4 quants;
    uint32_t d;
};
template <> struct weight_unit<QUANT_MXFP4> {
    uint4 quants;
    uint32_t d;
};
template <> struct weight_unit<QUANT_Q3_K> {
    uint4 quants, more;
    uint32_t part, scales, high_scales, d;
};
template <> struct weight_unit<QUANT_Q4_K> {
    uint4 quants, head;
    uint32_t part;
};
template <> struct weight_unit<QUANT_Q5_K> {
    uint4 quants, more, head;
    uint32_t part;
};
template <> struct weight_unit<QUANT_Q6_K> {
    uint4 quants, more;
    uint32_t part, scales, d;
};
template <> struct weight_unit<QUANT_IQ4_XS> {
    uint4 quants;
    uint2 head;
    uint32_t part;
};
template <> struct weight_unit<QUANT_F16> {
    uint4 quarter[4];
};
template <> struct weight_unit<QUANT_BF16> {
    uint4 quarter[4];
};
template <> struct weight_unit<QUANT_F32> {
    uint4 quarter[8];
};

/* Values of 2 or 4 bytes, 32 from column `column` on of rows that may lie at any multiple of their size. */
template <int TYPE>
__device__ __forceinline__ void load_floats(const cuda_weight &w, int64_t row, int64_t column, weight_unit<TYPE> *raw) {
    constexpr int SIZE = TYPE == QUANT_F32 ? 4 : 2;
    const uint8_t *at = w.plane[0] + (row * w.cols + column) * SIZE;
    if (w.cols % (16 / SIZE) == 0 && column + UNIT <= w.cols) {
#pragma unroll
        for (int i = 0; i < 2 * SIZE; i++) {
            raw->quarter[i] = load_16(at + 16 * i);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 2 * SIZE; i++) {
        uint32_t word[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int64_t c = column + (16 * i + 4 * j) / SIZE;
            const uint8_t *p = at + 16 * i + 4 * j;
            if (SIZE == 4) {
                word[j] = c < w.cols ? load_4(p) : 0;
            } else {
                word[j] = (c < w.cols ? load_2(p) : 0u) | (c + 1 < w.cols ? (uint32_t)load_2(p + 2) << 16 : 0u);
            }
        }
        raw->quarter[i] = make_uint4(word[0], word[1], word[2], word[3]);
    }
}

/* Bytes of a block in plane p: planes.c. */
__host__ __device__ constexpr int plane_bytes(int type, int p) {
    return type == QUANT_F32                         ? 4
           : type == QUANT_F16 || type == QUANT_BF16 ? 2
           : type == QUANT_Q4_1                      ? (p == 0 ? 16 : 4)
           : type == QUANT_Q5_0                      ? (p == 0   ? 16
                                                        : p == 1 ? 4
                                                                 : 2)
           : type == QUANT_Q5_1                      ? (p == 0 ? 16 : 8)
           : type == QUANT_Q8_0                      ? (p == 0 ? 32 : 2)
           : type == QUANT_Q2_K                      ? (p == 0   ? 64
                                                        : p == 1 ? 16
                                                                 : 4)
           : type == QUANT_Q3_K                      ? (p == 0   ? 96
                                                        : p == 1 ? 12
                                                                 : 2)
           : type == QUANT_Q4_K                      ? (p == 0 ? 128 : 16)
           : type == QUANT_Q5_K                      ? (p == 0   ? 128
                                                        : p == 1 ? 32
                                                                 : 16)
           : type == QUANT_Q6_K                      ? (p == 0   ? 192
                                                        : p == 1 ? 16
                                                                 : 2)
           : type == QUANT_IQ4_XS                    ? (p == 0 ? 128 : 8)
           : type == QUANT_MXFP4                     ? (p == 0 ? 16 : 1)
                                                     : (p == 0 ? 16 : 2);
}

__host__ __device__ constexpr int block_values(int type) {
    return is_float_type(type) ? 1 : has_far_runs(type) || has_near_runs(type) || type == QUANT_IQ4_XS ? 256 : 32;
}

/* w from that row on: for loops over a row, which then need little besides its pointers. */
template <int TYPE> __device__ __forceinline__ cuda_weight skip_rows(cuda_weight w, int64_t row) {
    const int64_t block = row * (w.cols / block_values(TYPE));
#pragma unroll
    for (int p = 0; p < MAX_PLANES; p++) {
        w.plane[p] += block * plane_bytes(TYPE, p);
    }
    return w;
}

template <int TYPE> __device__ __forceinline__ weight_unit<TYPE> load_unit(const cuda_weight &w, int64_t row, int64_t unit) {
    weight_unit<TYPE> raw;
    if constexpr (is_float_type(TYPE)) {
        load_floats<TYPE>(w, row, unit * UNIT, &raw);
    } else if constexpr (TYPE == QUANT_Q2_K || TYPE == QUANT_Q3_K || TYPE == QUANT_Q4_K || TYPE == QUANT_Q5_K ||
                         TYPE == QUANT_Q6_K || TYPE == QUANT_IQ4_XS) {
        const int64_t block = row * (w.cols / 256) + unit / 8;
        const uint32_t part = (uint32_t)unit & 7, step = part >> 1, u = part & 1;
        const uint32_t half = step >> 1, lanes = step & 1; /* of types with far runs: half of the block, which 16 of 32 bytes */
        raw.part = part;
        if constexpr (TYPE == QUANT_Q2_K) {
            raw.quants = load_16(w.plane[0] + block * plane_bytes(TYPE, 0) + 32 * half + 16 * lanes);
            const uint8_t *s = w.plane[1] + block * plane_bytes(TYPE, 1) + 8 * half + 2 * u;
            raw.scales = load_2(s) | (uint32_t)load_2(s + 4) << 16;
            raw.d = load_4(w.plane[2] + block * plane_bytes(TYPE, 2));
        } else if constexpr (TYPE == QUANT_Q3_K) {
            raw.quants = load_16(w.plane[0] + block * plane_bytes(TYPE, 0) + 32 + 32 * half + 16 * lanes);
            raw.more = load_16(w.plane[0] + block * plane_bytes(TYPE, 0) + 16 * lanes);
            const uint8_t *s = w.plane[1] + block * plane_bytes(TYPE, 1) + 2 * u;
            raw.scales = load_2(s) | (uint32_t)load_2(s + 4) << 16;
            raw.high_scales = load_2(s + 8);
            raw.d = load_2(w.plane[2] + block * plane_bytes(TYPE, 2));
        } else if constexpr (TYPE == QUANT_Q6_K) {
            raw.quants = load_16(w.plane[0] + block * plane_bytes(TYPE, 0) + 64 * half + 32 * u + 16 * lanes);
            raw.more = load_16(w.plane[0] + block * plane_bytes(TYPE, 0) + 128 + 32 * half + 16 * lanes);
            const uint8_t *s = w.plane[1] + block * plane_bytes(TYPE, 1) + 8 * half + 2 * u;
            raw.scales = load_2(s) | (uint32_t)load_2(s + 4) << 16;
            raw.d = load_2(w.plane[2] + block * plane_bytes(TYPE, 2));
        } else if constexpr (TYPE == QUANT_IQ4_XS) {
            raw.quants = load_16(w.plane[0] + block * plane_bytes(TYPE, 0) + 16 * part);
            raw.head = load_8(w.plane[1] + block * plane_bytes(TYPE, 1));
        } else {
            raw.quants = load_16(w.plane[0] + block * plane_bytes(TYPE, 0) + 16 * part);
            if constexpr (TYPE == QUANT_Q5_K) {
                raw.more = load_16(w.plane[1] + block * plane_bytes(TYPE, 1) + 16 * u);
            }
            raw.head = load_16(w.plane[TYPE == QUANT_Q5_K ? 2 : 1] + block * 16);
        }
        (void)half, (void)lanes;
    } else {
        const int64_t block = row * (w.cols / 32) + unit;
        if constexpr (TYPE == QUANT_Q8_0) {
            raw.quants = load_16(w.plane[0] + block * plane_bytes(TYPE, 0));
            raw.more = load_16(w.plane[0] + block * plane_bytes(TYPE, 0) + 16);
        } else {
            raw.quants = load_16(w.plane[0] + block * plane_bytes(TYPE, 0));
        }
        if constexpr (TYPE == QUANT_Q5_0) {
            raw.more = load_4(w.plane[1] + block * plane_bytes(TYPE, 1));
            raw.d = load_2(w.plane[2] + block * plane_bytes(TYPE, 2));
        } else if constexpr (TYPE == QUANT_Q5_1) {
            const uint2 both = load_8(w.plane[1] + block * plane_bytes(TYPE, 1));
            raw.d = both.x;
            raw.more = both.y;
        } else if constexpr (TYPE == QUANT_Q4_1) {
            raw.d = load_4(w.plane[1] + block * plane_bytes(TYPE, 1));
        } else if constexpr (TYPE == QUANT_MXFP4) {
            raw.d = w.plane[1][block];
        } else {
            raw.d = load_2(w.plane[1] + block * plane_bytes(TYPE, 1));
        }
    }
    return raw;
}

/* ---- scales --------------------------------------------------------------------------------------------------------- */

/* A value of run r is scale[r] * q + offset[r]; offset only in types that have one. */
struct unit_scales {
    float scale[2], offset[2];
};

__host__ __device__ constexpr bool has_offset(int type) {
    return type == QUANT_Q4_1 || type == QUANT_Q5_1 || type == QUANT_Q2_K || type == QUANT_Q4_K || type == QUANT_Q5_K;
}

/* The largest |q|. */
__host__ __device__ constexpr int largest_quant(int type) {
    return type == QUANT_Q4_0                         ? 8
           : type == QUANT_Q4_1 || type == QUANT_Q4_K ? 15
           : type == QUANT_Q5_0                       ? 16
           : type == QUANT_Q5_1 || type == QUANT_Q5_K ? 31
           : type == QUANT_Q2_K                       ? 3
           : type == QUANT_Q3_K                       ? 4
           : type == QUANT_Q6_K                       ? 32
           : type == QUANT_MXFP4                      ? 12
                                                      : 128;
}

__device__ __forceinline__ float low_half(uint32_t pair) { return half_to_float((uint16_t)(pair & 0xffffu)); }
__device__ __forceinline__ float high_half(uint32_t pair) { return half_to_float((uint16_t)(pair >> 16)); }

template <int TYPE> __device__ __forceinline__ unit_scales scales_of(const weight_unit<TYPE> &raw) {
    unit_scales s;
    if constexpr (TYPE == QUANT_Q4_K || TYPE == QUANT_Q5_K) {
        /* eight scales and eight minima of 6 bits: four whole ones each, then low halves of four with the high bits of the first */
        const uint32_t a = raw.head.y, b = raw.head.z, c = raw.head.w;
        const bool late = raw.part >= 4;
        const uint32_t scale4 = late ? (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u) : a & 0x3f3f3f3fu;
        const uint32_t minimum4 = late ? (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u) : b & 0x3f3f3f3fu;
        const uint32_t shift = (raw.part >> 1 & 1) * 16;
        const float d = low_half(raw.head.x), dmin = high_half(raw.head.x);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            s.scale[r] = __fmul_rn(d, byte_to_float(scale4 >> shift, r, 0));
            s.offset[r] = -__fmul_rn(dmin, byte_to_float(minimum4 >> shift, r, 0));
        }
    } else if constexpr (TYPE == QUANT_Q2_K) {
        const uint32_t both = raw.scales >> (raw.part >> 1 & 1) * 8; /* bytes 0 and 2 */
        const float d = low_half(raw.d), dmin = high_half(raw.d);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            s.scale[r] = __fmul_rn(d, byte_to_float(both & 0x000f000fu, 2 * r, 0));
            s.offset[r] = -__fmul_rn(dmin, byte_to_float(both >> 4 & 0x000f000fu, 2 * r, 0));
        }
    } else if constexpr (TYPE == QUANT_Q3_K) {
        /* groups g and g + 4 with g = 8 half + 2 u + lanes: low bits in nibbles `half` of bytes g % 8, high bits in one byte */
        const uint32_t lanes = raw.part >> 1 & 1, half = raw.part >> 2;
        const uint32_t low = raw.scales >> (8 * lanes + 4 * half) & 0x000f000fu;
        const uint32_t high = raw.high_scales >> (8 * lanes + 4 * half); /* two bits of each */
        const uint32_t both = low | (high & 3) << 4 | (high >> 2 & 3) << 20;
        const float d = low_half(raw.d);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            s.scale[r] = d * byte_to_float(both, 2 * r, 32);
        }
    } else if constexpr (TYPE == QUANT_Q6_K) {
        const uint32_t both = (raw.scales >> (raw.part >> 1 & 1) * 8 & 0x00ff00ffu) ^ 0x00800080u;
        const float d = low_half(raw.d);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            s.scale[r] = d * byte_to_float(both, 2 * r, 128);
        }
    } else if constexpr (TYPE == QUANT_IQ4_XS) {
        const uint32_t low = raw.head.y >> 4 * raw.part & 15, high = raw.head.x >> (16 + 2 * raw.part) & 3;
        s.scale[0] = s.scale[1] = low_half(raw.head.x) * byte_to_float(low | high << 4, 0, 32);
    } else if constexpr (TYPE == QUANT_MXFP4) {
        /* 2^(e - 128), half of the block's scale, since the table holds twice the values; the two smallest are subnormal */
        const float d = __uint_as_float(raw.d < 2 ? 0x00200000u << raw.d : (raw.d - 1) << 23);
        s.scale[0] = s.scale[1] = d;
    } else {
        s.scale[0] = s.scale[1] = low_half(raw.d);
        if constexpr (has_offset(TYPE)) {
            s.offset[0] = s.offset[1] = high_half(raw.d);
        }
    }
    return s;
}

/* ---- quants --------------------------------------------------------------------------------------------------------- */

__device__ __forceinline__ uint32_t word_of(const uint4 &v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

/* What is subtracted from the bytes that quants_of gives. */
__host__ __device__ constexpr int zero_quant(int type) {
    return type == QUANT_Q4_0                                                                          ? 8
           : type == QUANT_Q5_0                                                                        ? 16
           : type == QUANT_Q3_K                                                                        ? 4
           : type == QUANT_Q6_K                                                                        ? 32
           : type == QUANT_Q8_0 || type == QUANT_IQ4_NL || type == QUANT_IQ4_XS || type == QUANT_MXFP4 ? 128
                                                                                                       : 0;
}

/* Columns 4i .. 4i + 3 of both runs, as bytes. */
template <int TYPE> __device__ __forceinline__ void quants_of(const weight_unit<TYPE> &raw, int i, uint32_t run[2]) {
    const uint32_t q = word_of(raw.quants, i);
    if constexpr (TYPE == QUANT_IQ4_NL || TYPE == QUANT_IQ4_XS) {
        /* -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113, each plus 128 */
        look_up(q, 0x3f2d1801u, 0x766a5d4fu, 0xa6998d81u, 0xf1d9c5b5u, &run[0], &run[1]);
    } else if constexpr (TYPE == QUANT_MXFP4) {
        /* 0 1 2 3 4 6 8 12 and their negatives, each plus 128 */
        look_up(q, 0x83828180u, 0x8c888684u, 0x7d7e7f80u, 0x74787a7cu, &run[0], &run[1]);
    } else if constexpr (TYPE == QUANT_Q8_0) {
        run[0] = q ^ 0x80808080u;
        run[1] = word_of(raw.more, i) ^ 0x80808080u;
    } else if constexpr (TYPE == QUANT_Q2_K || TYPE == QUANT_Q3_K) {
        const uint32_t s = raw.part & 1; /* pairs of bits s and s + 2 */
        run[0] = q >> 2 * s & 0x03030303u;
        run[1] = q >> (2 * s + 4) & 0x03030303u;
        if constexpr (TYPE == QUANT_Q3_K) {
            const uint32_t high = word_of(raw.more, i) >> ((raw.part >> 2) * 4 + s);
            run[0] |= (high & 0x01010101u) << 2;
            run[1] |= (high >> 2 & 0x01010101u) << 2;
        }
    } else {
        run[0] = q & 0x0f0f0f0fu;
        run[1] = q >> 4 & 0x0f0f0f0fu;
        if constexpr (TYPE == QUANT_Q5_0 || TYPE == QUANT_Q5_1) {
            /* bit j of the word belongs to column j: bits 0 .. 3 to bit 4 of bytes 0 .. 3 */
            run[0] |= (raw.more >> 4 * i & 15) * 0x02040810u & 0x10101010u;
            run[1] |= (raw.more >> (16 + 4 * i) & 15) * 0x02040810u & 0x10101010u;
        } else if constexpr (TYPE == QUANT_Q5_K) {
            const uint32_t high = word_of(raw.more, i) >> (raw.part & 6);
            run[0] |= (high & 0x01010101u) << 4;
            run[1] |= (high >> 1 & 0x01010101u) << 4;
        } else if constexpr (TYPE == QUANT_Q6_K) {
            const uint32_t high = word_of(raw.more, i) >> 2 * (raw.part & 1);
            run[0] |= (high & 0x03030303u) << 4;
            run[1] |= (high >> 4 & 0x03030303u) << 4;
        }
    }
}

/* ---- values --------------------------------------------------------------------------------------------------------- */

/* Value i of F32, F16 or BF16. */
template <int TYPE> __device__ __forceinline__ float float_of(const weight_unit<TYPE> &raw, int i) {
    if constexpr (TYPE == QUANT_F32) {
        return __uint_as_float(word_of(raw.quarter[i / 4], i % 4));
    } else {
        const uint32_t pair = word_of(raw.quarter[i / 8], i / 2 % 4);
        if constexpr (TYPE == QUANT_F16) {
            return i % 2 != 0 ? high_half(pair) : low_half(pair);
        } else {
            return __uint_as_float(i % 2 != 0 ? pair & 0xffff0000u : pair << 16);
        }
    }
}

/* __fmul_rn: the product is rounded before anything is added to it, which nvcc would otherwise fuse. */
template <int TYPE> __device__ __forceinline__ void decode_unit(const weight_unit<TYPE> &raw, float v[UNIT]) {
    if constexpr (is_float_type(TYPE)) {
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            v[i] = float_of<TYPE>(raw, i);
        }
    } else {
        const unit_scales s = scales_of<TYPE>(raw);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t run[2];
            quants_of<TYPE>(raw, i, run);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const int r = j / 4;
                float value = __fmul_rn(s.scale[r], byte_to_float(run[r], j % 4, zero_quant(TYPE)));
                if constexpr (has_offset(TYPE)) {
                    value += s.offset[r];
                }
                v[16 * r + 4 * i + j % 4] = value;
            }
        }
    }
}

/* At least max|v|, and of the same magnitude unless scale and offset cancel. Not finite only if scales (of float types: values) are not:
 * compared as bits, a NaN is larger than all. */
template <int TYPE> __device__ __forceinline__ float bound_of_unit(const weight_unit<TYPE> &raw) {
    uint32_t bound = 0;
    if constexpr (is_float_type(TYPE)) {
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            const uint32_t size = __float_as_uint(float_of<TYPE>(raw, i)) & 0x7fffffffu;
            bound = size > bound ? size : bound;
        }
    } else {
        const unit_scales s = scales_of<TYPE>(raw);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float size = fabsf(s.scale[r]) * (float)largest_quant(TYPE);
            if constexpr (has_offset(TYPE)) {
                size += fabsf(s.offset[r]);
            }
            const uint32_t bits = __float_as_uint(size) & 0x7fffffffu;
            bound = bits > bound ? bits : bound;
        }
    }
    return __uint_as_float(bound);
}

/* Quants below 128 can do with 128 + q, made of bits as well, and an offset that takes 128 scales back: no subtraction. */
__host__ __device__ constexpr bool has_small_quants(int type) { return zero_quant(type) < 128; }
__device__ __forceinline__ float byte_and_128(uint32_t four, int i) {
    return __uint_as_float(__byte_perm(four, 0x43000000u, 0x7044u | (uint32_t)i << 8));
}

/* h[i]: values 2i (low) and 2i + 1, times factor, a power of two. Of quantized types within half a unit of f16 plus 2^-17 of scale and
 * offset: float32 rounds once or twice before. */
template <int TYPE>
__device__ __forceinline__ void halves_of_unit(const weight_unit<TYPE> &raw, float factor, uint32_t h[UNIT / 2]) {
    if constexpr (is_float_type(TYPE)) {
#pragma unroll
        for (int i = 0; i < UNIT / 2; i++) {
            h[i] = pack_halves(float_of<TYPE>(raw, 2 * i) * factor, float_of<TYPE>(raw, 2 * i + 1) * factor);
        }
    } else {
        unit_scales s = scales_of<TYPE>(raw);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            s.scale[r] *= factor;
            if constexpr (has_small_quants(TYPE)) {
                s.offset[r] =
                    fmaf(s.scale[r], (float)(-128 - zero_quant(TYPE)), has_offset(TYPE) ? s.offset[r] * factor : 0.0f);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t run[2];
            quants_of<TYPE>(raw, i, run);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float v[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    v[j] = has_small_quants(TYPE) ? fmaf(s.scale[r], byte_and_128(run[r], j), s.offset[r])
                                                  : s.scale[r] * byte_to_float(run[r], j, zero_quant(TYPE));
                }
                h[8 * r + 2 * i] = pack_halves(v[0], v[1]);
                h[8 * r + 2 * i + 1] = pack_halves(v[2], v[3]);
            }
        }
    }
}

#endif
