/* Small steps between matrices: a block's normed output added to the residual stream, and the choice of experts. */
#include <math.h>

#include "cuda/launch.h"
#include "cuda/primitives.cuh"

/* ---- y += norm(x) -------------------------------------------------------------------------------------------------- */

enum { NORM_THREADS = 256 };

/* What x becomes: (x - mean - rest) * factor. */
typedef struct moments {
    float mean, rest, factor;
} moments;

/* Sums over a row, in one order always, of d = (x - mean) * unit and of its square. */
static __device__ __forceinline__ moments measure(const float *x, int64_t n, float mean, bool centre, float unit, float eps) {
    float sum = 0.0f, squares = 0.0f;
    for (int64_t i = threadIdx.x; i < n; i += NORM_THREADS) {
        const float d = (x[i] - mean) * unit;
        sum += d;
        squares += d * d;
    }
    /* What rounding left in the mean is taken off as well: it matters where the mean is large and the spread is not. */
    const float rest = centre ? block_sum<NORM_THREADS>(sum) / (float)n : 0.0f;
    const float variance = block_sum<NORM_THREADS>(squares) / (float)n - rest * rest;
    return {mean, rest / unit, unit / sqrtf(variance + eps * unit * unit)};
}

static __global__ void __launch_bounds__(NORM_THREADS) add_norm(const float *x, float *y, cuda_norm norm, int64_t width) {
    let_next_start();
    wait_for_previous();
    x += (int64_t)blockIdx.x * width;
    y += (int64_t)blockIdx.x * width;
    moments m = {0.0f, 0.0f, 1.0f};
    if (norm.kind != CUDA_NORM_NONE) {
        const bool centre = norm.kind == CUDA_NORM_LAYER;
        float sum = 0.0f;
        for (int64_t i = threadIdx.x; centre && i < width; i += NORM_THREADS) {
            sum += x[i];
        }
        const float mean = centre ? block_sum<NORM_THREADS>(sum) / (float)width : 0.0f;
        m = measure(x, width, mean, centre, 1.0f, norm.eps);
        if (m.factor == 0.0f) { /* squares overflow: again with smaller ones, for rows of 10^20 are rows, too */
            m = measure(x, width, mean, centre, 0x1p-80f, norm.eps);
        }
    }
    for (int64_t i = threadIdx.x; i < width; i += NORM_THREADS) {
        const float scale = norm.scale != NULL ? norm.scale[i] : 1.0f, bias = norm.bias != NULL ? norm.bias[i] : 0.0f;
        y[i] += (x[i] - m.mean - m.rest) * m.factor * scale + bias;
    }
}

void cuda_launch_add_norm(const float *x, float *y, cuda_norm norm, int64_t width, int32_t n_tokens, device_stream *stream) {
    LAUNCH(stream, add_norm, dim3((unsigned)n_tokens), dim3(NORM_THREADS), 0, x, y, norm, width);
}

/* ---- experts ------------------------------------------------------------------------------------------------------- */

/* exp_f32 of kernels/vector_ref.c, bit for bit, for experts are chosen by what it gives: exponentials that round to the same
 * are equal, and the first of them goes first. The constants are those of kernels/vector.h. */
static __device__ __forceinline__ float exp_like_cpu(float x) {
    x = x < -120.0f ? -120.0f : x > 89.0f ? 89.0f : x;
    const float shifted = __fmul_rn(x, 0x1.715476p+0f) + 12582912.0f;
    const float k = shifted - 12582912.0f;
    const float r = (x - __fmul_rn(k, 0x1.62e4p-1f)) - __fmul_rn(k, 0x1.7f7d1cp-20f);
    float q = 0x1.6a23dp-10f;
    q = __fmul_rn(q, r) + 0x1.123a2p-7f;
    q = __fmul_rn(q, r) + 0x1.5558f2p-5f;
    q = __fmul_rn(q, r) + 0x1.555492p-3f;
    q = __fmul_rn(q, r) + 0x1.fffffcp-2f;
    const uint32_t bits = __float_as_uint(shifted);
    const int n = (int)(bits & 0x3ff) - ((int)(bits & 0x200) << 1), half = n >> 1;
    const float m = 1.0f + (r + __fmul_rn(__fmul_rn(r, r), q));
    return m * __uint_as_float((unsigned)(half + 127) << 23) * __uint_as_float((unsigned)(n - half + 127) << 23);
}

static constexpr float CHOSEN = -1.0f; /* takes the place of odds, which are never negative */

/* A larger key goes first: odds, of equal ones the smaller expert. 0: chosen, or no number. */
static __device__ __forceinline__ uint64_t key_of_odds(float odds, int64_t e) {
    return odds > CHOSEN ? (uint64_t)(__float_as_uint(odds) + 1) << 32 | (0xffffffffu - (uint32_t)e) : 0;
}

static __device__ __forceinline__ uint64_t best_of_lane(const float *odds, int64_t n_experts) {
    uint64_t best = 0;
    for (int64_t e = threadIdx.x; e < n_experts; e += 32) {
        const uint64_t key = key_of_odds(odds[e], e);
        best = key > best ? key : best;
    }
    return best;
}

/* One warp a token. Lane l has experts l, l + 32, ...; nobody else touches their odds. */
static __global__ void __launch_bounds__(32)
    route(const float *logits, int64_t n_experts, int32_t n_used, bool normed, int32_t *expert, float *share) {
    let_next_start();
    wait_for_previous();
    float *odds = (float *)dynamic_shared();
    logits += (int64_t)blockIdx.x * n_experts;
    expert += (int64_t)blockIdx.x * n_used;
    share += (int64_t)blockIdx.x * n_used;
    float top = -INFINITY, all = 0.0f, chosen = 0.0f;
    for (int64_t e = threadIdx.x; e < n_experts; e += 32) {
        top = logits[e] > top ? logits[e] : top; /* a NaN is never larger */
    }
    top = warp_max(top);
    for (int64_t e = threadIdx.x; e < n_experts; e += 32) {
        odds[e] = exp_like_cpu(logits[e] - top);
        all += odds[e];
    }
    all = warp_sum(all);
    uint64_t own = best_of_lane(odds, n_experts);
    for (int32_t i = 0; i < n_used; i++) {
        const uint64_t best = warp_max(own);
        int64_t e = (int64_t)(0xffffffffu - (uint32_t)best);
        float value = __uint_as_float((uint32_t)(best >> 32) - 1);
        if (best == 0) { /* only those that are no number are left: the first of them */
            e = threadIdx.x;
            while (e < n_experts && odds[e] == CHOSEN) {
                e += 32;
            }
            e = (int64_t)(0xffffffffu - warp_max(0xffffffffu - (uint32_t)e));
            value = NAN;
        }
        if (e % 32 == threadIdx.x) {
            odds[e] = CHOSEN;
            own = best_of_lane(odds, n_experts);
        }
        if (threadIdx.x == 0) {
            expert[i] = (int32_t)e;
            share[i] = value;
        }
        chosen += value;
    }
    if (threadIdx.x == 0) {
        const float whole = normed ? chosen : all;
        for (int32_t i = 0; i < n_used; i++) {
            share[i] /= whole;
        }
    }
}

void cuda_launch_route(const float *r, int64_t n_experts, int32_t n_used, bool normed, int32_t *expert, float *share,
                       int32_t n_tokens, device_stream *stream) {
    LAUNCH(stream, route, dim3((unsigned)n_tokens), dim3(32), (size_t)n_experts * sizeof(float), r, n_experts, n_used, normed,
           expert, share);
}
