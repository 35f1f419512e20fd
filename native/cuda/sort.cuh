/* Numbers with an id as integers that sort: larger numbers are larger, of equals that with the smaller id. */
#ifndef LMI_CUDA_SORT_CUH
#define LMI_CUDA_SORT_CUH

#include "cuda/primitives.cuh"

/* The bits of a float, those of negative ones turned over, sort like the floats. -0 counts as 0. */
static __device__ __forceinline__ uint64_t key_of_number(float z, int64_t id) {
    const uint32_t bits = __float_as_uint(z + 0.0f);
    const uint32_t ascending = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
    return (uint64_t)ascending << 32 | (0xffffffffu - (uint32_t)id);
}
static __device__ __forceinline__ float number_of_key(uint64_t key) {
    const uint32_t ascending = (uint32_t)(key >> 32);
    return __uint_as_float(ascending >> 31 != 0 ? ascending & 0x7fffffffu : ~ascending);
}

/* The larger of the two comes first, or last. */
static __device__ __forceinline__ void put_in_order(uint64_t *a, uint64_t *b, bool descending) {
    const uint64_t first = *a, second = *b;
    if ((first < second) == descending) {
        *a = second;
        *b = first;
    }
}

#endif
