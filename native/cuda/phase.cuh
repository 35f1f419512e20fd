/* cos and sin of a phase. */
#ifndef LMI_CUDA_PHASE_CUH
#define LMI_CUDA_PHASE_CUH

#include "cuda/primitives.cuh"

/* phase is a fraction of a turn in 0.64 fixed point. The nearest quarter turn is taken off in integers, exactly; the rest, at
 * most 1/8, is rounded to float: off by 2^-28 turns at the most. */
static __device__ __forceinline__ void cos_sin_of(uint64_t phase, float *c, float *s) {
    const uint64_t quarter = (phase + ((uint64_t)1 << 61)) >> 62;
    const int64_t rest = (int64_t)(phase - (quarter << 62));
    float sine, cosine;
    sincospif((float)rest * 0x1p-63f, &sine, &cosine);
    const float a = (quarter & 1) != 0 ? sine : cosine, b = (quarter & 1) != 0 ? cosine : sine;
    *c = quarter == 1 || quarter == 2 ? -a : a;
    *s = quarter >= 2 ? -b : b;
}

#endif
