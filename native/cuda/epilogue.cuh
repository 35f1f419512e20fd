/* What is done to a sum once it is known: activations, bounds, gates. The definitions are those of kernels/kernels.h;
 * results are within a few units of the last place of |x|. NaN stays NaN everywhere. */
#ifndef LMI_CUDA_EPILOGUE_CUH
#define LMI_CUDA_EPILOGUE_CUH

#include "cuda/primitives.cuh"
#include "kernels/kernels.h"

/* 1 / (1 + exp(-x)). */
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* x / (1 + exp(-u)), where u has the sign of x. The exponential is of -|u|: it cannot overflow. A negative x beyond -most
 * counts as that: its result is 0, where inf * 0 would be none. */
__device__ __forceinline__ float times_sigmoid(float x, float u, float most) {
    const float e = expf(-fabsf(u));
    const float numerator = x < 0.0f ? (x < -most ? -most : x) * e : x;
    return numerator / (1.0f + e);
}

__device__ __forceinline__ float within_limit(float limit, float x) { return x > limit ? limit : x < -limit ? -limit : x; }

__device__ __forceinline__ float activated(activation kind, float x) {
    switch (kind) {
    case ACTIVATION_GELU_TANH: {
        /* by tanh(u) = 1 - 2 / (1 + exp(2u)): nothing cancels where results are small; from |x| = 16 on it is x or 0 */
        const float size = fabsf(within_limit(16.0f, x));
        const float u = size * (1.5957691216f + 0.0713548163f * (size * size));
        return times_sigmoid(x, x < 0.0f ? -u : u, 16.0f);
    }
    case ACTIVATION_GELU_ERF: /* erfc(x) is 0 long before -16 */
        return x < -16.0f ? 0.0f : 0.5f * x * erfcf(x * -0.70710678119f);
    case ACTIVATION_SWIGLU_OAI: {
        const float c = x > 7.0f ? 7.0f : x;
        return times_sigmoid(c, 1.702f * c, 120.0f);
    }
    case ACTIVATION_SILU:
    case ACTIVATIONS:
        break;
    }
    return times_sigmoid(x, x, 120.0f);
}

/* What f(gate) is multiplied by. */
__device__ __forceinline__ float factor_of(activation kind, float up) {
    return kind == ACTIVATION_SWIGLU_OAI ? 1.0f + within_limit(7.0f, up) : up;
}

/* Of CUDA_STORE: 0 asks for nothing. */
__device__ __forceinline__ float bounded(float x, float clamp, float softcap) {
    if (clamp > 0.0f) {
        x = within_limit(clamp, x);
    }
    if (softcap > 0.0f) {
        const float inverse = 1.0f / softcap;
        x = softcap * tanhf(x * inverse);
    }
    return x;
}

#endif
