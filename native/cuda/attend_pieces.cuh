/* What a warp of the row-wise attention does with 32 slots of a bank: keys against queries, and values weighted. */
#ifndef LMI_CUDA_ATTEND_PIECES_CUH
#define LMI_CUDA_ATTEND_PIECES_CUH

#include "cuda/launch.h"
#include "cuda/primitives.cuh"

/* ---- keys: a lane's 16 bytes against G queries -------------------------------------------------------------------- */

/* The G values of one dimension, `q` [head_dim][G] in shared memory. */
template <int G> static __device__ __forceinline__ void load_group(const float *q, float (&values)[G]) {
    if constexpr (G % 4 == 0) {
#pragma unroll
        for (int g = 0; g < G; g += 4) {
            const float4 four = *(const float4 *)(q + g);
            values[g] = four.x;
            values[g + 1] = four.y;
            values[g + 2] = four.z;
            values[g + 3] = four.w;
        }
    } else {
#pragma unroll
        for (int g = 0; g < G; g++) {
            values[g] = q[g];
        }
    }
}

static __device__ __forceinline__ void widen_halves(uint32_t pair, float *values) {
    values[0] = half_to_float((uint16_t)(pair & 0xffff));
    values[1] = half_to_float((uint16_t)(pair >> 16));
}

/* A byte as a float: 2^23 + byte, from its bits. */
static __device__ __forceinline__ float float_of_byte(uint32_t word, int i) {
    return __uint_as_float(0x4b000000u | (word >> (8 * i) & 0xffu)) - 8388608.0f;
}

/* Of a tile of 16 slots: a piece is 16 bytes of its keys, SLOTS slots of DEPTH dimensions; a lane's pieces are those of the
 * same slots. */
template <lmi_kv_type TYPE> struct key_pieces;

template <> struct key_pieces<LMI_KV_F16> {
    enum { SLOTS = 8, DEPTH = 1 };
    typedef uint4 raw;
    static __device__ __forceinline__ raw load(const kv_bank &bank, int64_t tile, int piece) {
        return ((const uint4 *)bank.keys)[tile * bank.head_dim * 2 + piece];
    }
    static __device__ __forceinline__ void widen(const raw &from, float (&keys)[SLOTS * DEPTH]) {
        widen_halves(from.x, keys);
        widen_halves(from.y, keys + 2);
        widen_halves(from.z, keys + 4);
        widen_halves(from.w, keys + 6);
    }
};

template <> struct key_pieces<LMI_KV_F32> {
    enum { SLOTS = 4, DEPTH = 1 };
    typedef float4 raw;
    static __device__ __forceinline__ raw load(const kv_bank &bank, int64_t tile, int piece) {
        return ((const float4 *)bank.keys)[tile * bank.head_dim * 4 + piece];
    }
    static __device__ __forceinline__ void widen(const raw &from, float (&keys)[SLOTS * DEPTH]) {
        keys[0] = from.x;
        keys[1] = from.y;
        keys[2] = from.z;
        keys[3] = from.w;
    }
};

template <> struct key_pieces<LMI_KV_Q8_0> {
    enum { SLOTS = 4, DEPTH = 4 };
    typedef struct raw {
        uint4 bytes;
        uint2 scales;
    } raw;
    static __device__ __forceinline__ raw load(const kv_bank &bank, int64_t tile, int piece) {
        raw from;
        from.bytes = ((const uint4 *)bank.keys)[tile * bank.head_dim + piece];
        from.scales = ((const uint2 *)bank.key_scales)[(tile * (bank.head_dim / 32) + piece / 32) * 4 + piece % 4];
        return from;
    }
    /* [DEPTH][SLOTS]; level times scale is exact. */
    static __device__ __forceinline__ void widen(const raw &from, float (&keys)[SLOTS * DEPTH]) {
        const uint32_t words[SLOTS] = {from.bytes.x, from.bytes.y, from.bytes.z, from.bytes.w};
        float scales[SLOTS];
        widen_halves(from.scales.x, scales);
        widen_halves(from.scales.y, scales + 2);
#pragma unroll
        for (int s = 0; s < SLOTS; s++) {
#pragma unroll
            for (int i = 0; i < DEPTH; i++) {
                keys[i * SLOTS + s] = (float_of_byte(words[s], i) - 128.0f) * scales[s];
            }
        }
    }
};

/* Adds to sums[g][slot] what the lane's pieces of a tile give. */
template <lmi_kv_type TYPE, int G>
static __device__ __forceinline__ void multiply_keys(const kv_bank &bank, int64_t tile, const float *q, int lane,
                                                     float (&sums)[G][key_pieces<TYPE>::SLOTS]) {
    typedef key_pieces<TYPE> pieces;
    enum { SLOTS = pieces::SLOTS, DEPTH = pieces::DEPTH, ROW = 16 / SLOTS, AHEAD = TYPE == LMI_KV_Q8_0 || G > 4 ? 4 : 8 };
    const int n = bank.head_dim / DEPTH * ROW;
#pragma unroll 1
    for (int first = 0; first < n; first += 32 * AHEAD) {
        typename pieces::raw raw[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int piece = first + 32 * i + lane;
            if (piece < n) {
                raw[i] = pieces::load(bank, tile, piece);
            }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int piece = first + 32 * i + lane;
            if (piece < n) {
                float keys[SLOTS * DEPTH];
                pieces::widen(raw[i], keys);
#pragma unroll
                for (int j = 0; j < DEPTH; j++) {
                    float values[G];
                    load_group<G>(q + (piece / ROW * DEPTH + j) * G, values);
#pragma unroll
                    for (int g = 0; g < G; g++) {
#pragma unroll
                        for (int s = 0; s < SLOTS; s++) {
                            sums[g][s] += values[g] * keys[j * SLOTS + s];
                        }
                    }
                }
            }
        }
    }
}

/* Lanes that hold sums of the same slots (they differ in bits 3, 2 and, with eight slots, 1) share them out: at each step a
 * lane gives half of its sums away and gets what belongs to the other half. What is left belongs to the slot slot_of_lane;
 * lanes 16 apart still hold two parts. */
template <int SLOTS> static __device__ __forceinline__ float share_out(float (&sums)[SLOTS], int lane) {
#pragma unroll
    for (int half = SLOTS / 2; half >= 1; half /= 2) {
        const int mask = 8 / half;
        const bool upper = (lane & mask) != 0;
#pragma unroll
        for (int j = 0; j < half; j++) {
            const float given = upper ? sums[j] : sums[j + half], kept = upper ? sums[j + half] : sums[j];
            sums[j] = kept + __shfl_xor_sync(0xffffffffu, given, mask);
        }
    }
    return sums[0];
}

/* Of the warp's 32 slots, two tiles. */
template <int SLOTS> static __device__ __forceinline__ int slot_of_lane(int lane) {
    const int low = SLOTS == 8 ? (lane & 1) << 3 | (lane & 2) << 1 : (lane & 3) << 2;
    return (lane & 16) | low | (lane & 4) >> 1 | (lane & 8) >> 3;
}

/* ---- values: a lane's columns, weighted ---------------------------------------------------------------------------- */

/* V columns of a row at a time. */
template <lmi_kv_type TYPE, int V> struct value_piece;

template <> struct value_piece<LMI_KV_F16, 8> {
    typedef uint4 raw;
    static __device__ __forceinline__ raw load(const kv_bank &bank, int64_t slot, int column) {
        return *(const uint4 *)((const uint16_t *)bank.values + slot * bank.head_dim + column);
    }
    static __device__ __forceinline__ void widen(const raw &from, float *values) {
        widen_halves(from.x, values);
        widen_halves(from.y, values + 2);
        widen_halves(from.z, values + 4);
        widen_halves(from.w, values + 6);
    }
};

template <> struct value_piece<LMI_KV_F16, 2> {
    typedef uint32_t raw;
    static __device__ __forceinline__ raw load(const kv_bank &bank, int64_t slot, int column) {
        return *(const uint32_t *)((const uint16_t *)bank.values + slot * bank.head_dim + column);
    }
    static __device__ __forceinline__ void widen(const raw &from, float *values) { widen_halves(from, values); }
};

template <> struct value_piece<LMI_KV_F32, 2> {
    typedef float2 raw;
    static __device__ __forceinline__ raw load(const kv_bank &bank, int64_t slot, int column) {
        return *(const float2 *)((const float *)bank.values + slot * bank.head_dim + column);
    }
    static __device__ __forceinline__ void widen(const raw &from, float *values) {
        values[0] = from.x;
        values[1] = from.y;
    }
};

template <> struct value_piece<LMI_KV_Q8_0, 8> {
    typedef struct raw {
        uint2 bytes;
        uint16_t scale;
    } raw;
    static __device__ __forceinline__ raw load(const kv_bank &bank, int64_t slot, int column) {
        raw from;
        from.bytes = *(const uint2 *)((const int8_t *)bank.values + slot * bank.head_dim + column);
        from.scale = bank.value_scales[slot * (bank.head_dim / 32) + column / 32];
        return from;
    }
    static __device__ __forceinline__ void widen(const raw &from, float *values) {
        const float scale = half_to_float(from.scale);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            values[i] = (float_of_byte(from.bytes.x ^ 0x80808080u, i) - 128.0f) * scale;
            values[4 + i] = (float_of_byte(from.bytes.y ^ 0x80808080u, i) - 128.0f) * scale;
        }
    }
};

/* How a warp lies over rows of values: `stride` lanes a row, a power of two; a lane has columns column + 32 V c. */
typedef struct value_lanes {
    int stride, column;
    bool active;
} value_lanes;

template <int V> static __device__ __forceinline__ value_lanes value_lanes_of(int head_dim, int lane) {
    value_lanes lanes = {32, lane * V, lane * V < head_dim};
    if (V == 8) {
        while (lanes.stride * V / 2 >= head_dim) {
            lanes.stride /= 2;
        }
        lanes.column = lane % lanes.stride * V;
        lanes.active = lanes.column < head_dim;
    }
    return lanes;
}

/* Adds to sums[g][c] of the lane's columns: weights [32][G] of the warp's slots from slot0 on, of which the bits of `seen` say which
 * are read. */
template <lmi_kv_type TYPE, int G, int V>
static __device__ __forceinline__ void add_values(const kv_bank &bank, int64_t slot0, uint32_t seen, const float *weights,
                                                  const value_lanes &lanes, int lane, float (&sums)[G][8]) {
    typedef value_piece<TYPE, V> pieces;
    enum { COLUMNS = 8 / V, AHEAD = (G > 2 ? 4 : 8) / COLUMNS };
    const int rows = 32 / lanes.stride;
#pragma unroll 1
    for (int first = lane / lanes.stride; first < 32; first += AHEAD * rows) {
        typename pieces::raw raw[AHEAD][COLUMNS];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int s = first + i * rows;
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                const int column = lanes.column + 32 * V * c;
                raw[i][c] = typename pieces::raw();
                if (s < 32 && (seen >> s & 1) != 0 && lanes.active && column < bank.head_dim) {
                    raw[i][c] = pieces::load(bank, slot0 + s, column);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int s = first + i * rows;
            if (s < 32) {
                float given[G];
                load_group<G>(weights + s * G, given);
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
                    float values[V];
                    pieces::widen(raw[i][c], values);
#pragma unroll
                    for (int g = 0; g < G; g++) {
#pragma unroll
                        for (int v = 0; v < V; v++) {
                            sums[g][c * V + v] += given[g] * values[v];
                        }
                    }
                }
            }
        }
    }
}

/* Lanes of the same columns add up what they have. */
template <int G> static __device__ __forceinline__ void sum_rows(const value_lanes &lanes, float (&sums)[G][8]) {
#pragma unroll 1
    for (int mask = lanes.stride; mask < 32; mask *= 2) {
#pragma unroll
        for (int g = 0; g < G; g++) {
#pragma unroll
            for (int c = 0; c < 8; c++) {
                sums[g][c] += __shfl_xor_sync(0xffffffffu, sums[g][c], mask);
            }
        }
    }
}

#endif
