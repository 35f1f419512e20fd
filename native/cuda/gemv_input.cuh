/* The input of a row-wise product, made by every block for itself: norm, then int8 as kernels/activation.h says, into shared
 * memory. Bit for bit what kernels.pack makes of the same values. */
#ifndef LMI_CUDA_GEMV_INPUT_CUH
#define LMI_CUDA_GEMV_INPUT_CUH

#include "cuda/gemv_dots.cuh"

enum { WARPS = 8, INPUT_ROWS = 64 }; /* warps of a block; rows of input that it may have */

/* ---- norms --------------------------------------------------------------------------------------------------------- */

/* What a norm makes of a row: y = ((x - mean_high) - mean_low) * factor, with means of 0 for RMS. */
struct row_norm {
    float mean_high, mean_low, factor;
};

/* A sum in two floats, of which low is what high lacks: as good as double, which many devices do not have in hardware. */
struct long_sum {
    float high, low;
};

__device__ __forceinline__ void add_long(long_sum *sum, float value, float more) {
    const float s = sum->high + value, part = s - sum->high; /* Knuth's two-sum */
    sum->low += (sum->high - (s - part)) + (value - part) + more;
    sum->high = s;
}

__device__ __forceinline__ void add_value(long_sum *sum, long_sum *squares, float x) {
    const float square = x * x;
    add_long(sum, x, 0.0f);
    add_long(squares, square, fmaf(x, x, -square));
}

/* 1 / sqrt(s), to a float's last place at least. A float is improved by Newton's step: a division and a root in double are
 * long. */
__device__ __forceinline__ float inverse_root(double s) {
    if (s > 1e-30 && s < 1e30) {
        const double y = (double)(1.0f / sqrtf((float)s));
        return (float)(y + 0.5 * y * (1.0 - s * y * y));
    }
    return (float)(1.0 / sqrt(s));
}

/* Over the warp, for lane 0. */
__device__ __forceinline__ long_sum add_lanes(long_sum sum) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        const float high = __shfl_xor_sync(0xffffffffu, sum.high, offset);
        const float low = __shfl_xor_sync(0xffffffffu, sum.low, offset);
        add_long(&sum, high, low);
    }
    return sum;
}

/* Fills norms[0 .. n_rows) from rows of x; all threads of the block call. Each warp sums an eighth of a row, whatever n_rows
 * is. one_of: 1 / cols. */
__device__ __forceinline__ void find_norms(const cuda_norm &norm, const float *x, int64_t cols, double one_of, int n_rows,
                                           row_norm *norms) {
    SHARED long_sum parts[8][WARPS][2];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    for (int row0 = 0; row0 < n_rows; row0 += 8) {
        const int n = n_rows - row0 < 8 ? n_rows - row0 : 8;
        for (int r = 0; r < n; r++) {
            const float *row = x + (row0 + r) * cols;
            long_sum sum = {0.0f, 0.0f}, squares = {0.0f, 0.0f};
            if (cols % 4 == 0) {
#pragma unroll 4
                for (int64_t c = (int64_t)threadIdx.x * 4; c < cols; c += WARPS * 128) {
                    const float4 four = *(const float4 *)(row + c);
                    add_value(&sum, &squares, four.x);
                    add_value(&sum, &squares, four.y);
                    add_value(&sum, &squares, four.z);
                    add_value(&sum, &squares, four.w);
                }
            } else {
                for (int64_t c = (int64_t)threadIdx.x; c < cols; c += WARPS * 32) {
                    add_value(&sum, &squares, row[c]);
                }
            }
            sum = add_lanes(sum);
            squares = add_lanes(squares);
            if (lane == 0) {
                parts[r][warp][0] = sum;
                parts[r][warp][1] = squares;
            }
        }
        __syncthreads();
        if ((int)threadIdx.x < n) {
            long_sum sum = {0.0f, 0.0f}, squares = {0.0f, 0.0f};
            for (int w = 0; w < WARPS; w++) {
                const long_sum *part = parts[threadIdx.x][w];
                add_long(&sum, part[0].high, part[0].low);
                add_long(&squares, part[1].high, part[1].low);
            }
            const double mean = norm.kind == CUDA_NORM_LAYER ? ((double)sum.high + (double)sum.low) * one_of : 0.0;
            double square = ((double)squares.high + (double)squares.low) * one_of - mean * mean;
            square = square < 0.0 ? 0.0 : square; /* not NaN */
            const float mean_high = (float)mean;
            norms[row0 + (int)threadIdx.x] = {mean_high, (float)(mean - (double)mean_high),
                                              inverse_root(square + (double)norm.eps)};
        }
        __syncthreads();
    }
}

/* Columns column .. column + 7 of a row, normed; 0 from `end` on. */
__device__ __forceinline__ void load_normed(const cuda_norm &norm, const row_norm &n, const float *row, int64_t cols,
                                            int64_t column, int64_t end, float v[8]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int64_t c = column + 4 * half;
        float *four = v + 4 * half;
        float scale[4] = {1.0f, 1.0f, 1.0f, 1.0f}, bias[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (cols % 4 == 0 && c < end) {
            *(float4 *)four = *(const float4 *)(row + c);
            if (norm.kind != CUDA_NORM_NONE && norm.scale != nullptr) {
                *(float4 *)scale = *(const float4 *)(norm.scale + c);
            }
            if (norm.kind != CUDA_NORM_NONE && norm.bias != nullptr) {
                *(float4 *)bias = *(const float4 *)(norm.bias + c);
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const bool there = c + i < end;
                four[i] = there ? row[c + i] : 0.0f;
                if (there && norm.kind != CUDA_NORM_NONE && norm.scale != nullptr) {
                    scale[i] = norm.scale[c + i];
                }
                if (there && norm.kind != CUDA_NORM_NONE && norm.bias != nullptr) {
                    bias[i] = norm.bias[c + i];
                }
            }
        }
        if (norm.kind != CUDA_NORM_NONE) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float y = (four[i] - n.mean_high - n.mean_low) * n.factor * scale[i];
                four[i] = c + i >= end ? 0.0f : norm.bias != nullptr ? y + bias[i] : y;
            }
        }
    }
}

/* ---- int8 ---------------------------------------------------------------------------------------------------------- */

/* max|x| / 127 from the bits of max|x|, which order floats and put infinities and NaN on top: NaN if a value is not finite. */
__device__ __forceinline__ float scale_of(uint32_t largest) {
    return largest >= 0x7f800000u ? __uint_as_float(0x7fc00000u) : __uint_as_float(largest) / 127.0f;
}

/* x / d to nearest, ties to even: adding 1.5 * 2^23 leaves the integer in the low bits. First the bounds: a subnormal d is
 * coarse. */
__device__ __forceinline__ uint32_t quantize(float x, float d) {
    float ratio = x / d;
    ratio = ratio > 127.0f ? 127.0f : ratio;
    ratio = ratio < -127.0f ? -127.0f : ratio;
    return __float_as_uint(ratio + 12582912.0f) & 255;
}

/* Eight values; 0 where d is not above 0: zeros, or NaN, of which d alone tells. */
__device__ __forceinline__ uint2 quantize_8(const float v[8], float d) {
    uint32_t word[2] = {0, 0};
    if (d > 0.0f) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            word[i / 4] |= quantize(v[i], d) << (8 * (i % 4));
        }
    }
    return make_uint2(word[0], word[1]);
}

/* ---- holding ------------------------------------------------------------------------------------------------------- */

/* Rows of x, columns column .. column + n_columns - 1, into rows of `room` columns; a warp takes 256 at a time. All threads
 * call; barriers are the caller's. */
template <input_form FORM>
__device__ __forceinline__ void hold_rows(unsigned char *memory, int room, const cuda_norm &norm, const row_norm *norms,
                                          const float *x, int64_t cols, int n_rows, int column, int n_columns) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int groups = (n_columns + 255) / 256, all = groups * n_rows;
    for (int i = warp; i < all; i += WARPS) {
        const int r = i / groups, group = i - r * groups, at = 256 * group + 8 * lane; /* columns of this lane: at .. at + 7 */
        unsigned char *row = memory + r * (int)held_bytes(FORM, room);
        float v[8];
        load_normed(norm, norms[r], x + r * cols, cols, column + at, column + n_columns, v);
        if constexpr (FORM == FORM_VALUES) {
            if (at < n_columns) {
                *(float4 *)(row + 16 * place_of(at >> 2)) = make_float4(v[0], v[1], v[2], v[3]);
                *(float4 *)(row + 16 * place_of((at >> 2) + 1)) = make_float4(v[4], v[5], v[6], v[7]);
            }
        } else {
            uint32_t largest = 0;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const uint32_t size = __float_as_uint(v[j]) & 0x7fffffffu;
                largest = size > largest ? size : largest;
            }
#pragma unroll
            for (int lanes = 1; lanes < (FORM == FORM_32 ? 4 : 32); lanes *= 2) {
                const uint32_t other = __shfl_xor_sync(0xffffffffu, largest, lanes);
                largest = other > largest ? other : largest;
            }
            const float d = scale_of(largest);
            const uint2 q = quantize_8(v, d);
            int sum = dot4((int)q.x, 0x01010101, dot4((int)q.y, 0x01010101, 0));
#pragma unroll
            for (int lanes = 1; lanes < (FORM == FORM_32 ? 4 : 2); lanes *= 2) {
                sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
            }
            if (at < n_columns) {
                *(uint2 *)(row + 16 * place_of(at >> 4) + 8 * (lane & 1)) = q;
                if (FORM == FORM_32 && lane % 4 == 0) {
                    *(int2 *)(row + scales_at(FORM, room) + 8 * (at >> 5)) = make_int2((int)__float_as_uint(d), sum);
                }
                if (FORM == FORM_256 &&
                    lane % 2 == 0) { /* 16 columns u of the block are run u / 2 % 4 of chunk (u / 8, u % 2) */
                    const int u = lane >> 1, chunk = (u >> 3) * 2 + (u & 1);
                    *(int *)(row + sums_at(room) + 4 * (16 * group + 4 * chunk + (u >> 1 & 3))) = sum;
                }
                if (FORM == FORM_256 && lane == 0) {
                    *(float *)(row + scales_at(FORM, room) + 4 * group) = d;
                }
            }
        }
    }
}

#endif
