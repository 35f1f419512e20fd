/* All that kernels use beyond CUDA C++ itself: the one file with PTX in it.
 *
 * Kernels (*.cu) include this and compile in two ways: by nvcc for devices of compute capability 7.5 and later, and with -DLMI_SIMT
 * as C++17 against the emulator (tests/native/simt/simt.h), which defines the same names.
 *
 * Calls of a warp (shuffles, votes, mma_*, load_matrices*, warp_*) are made by all of its 32 lanes together, block_* by all threads of
 * the block. PTX names below are those of NVIDIA's PTX ISA manual. */
#ifndef LMI_CUDA_PRIMITIVES_CUH
#define LMI_CUDA_PRIMITIVES_CUH

#include <stdint.h>

#include "cuda/device.h"

#ifdef LMI_SIMT
#include "simt/simt.h"
static inline void fetch_ahead(const void *) {}
static inline int known_here(int value) { return value; }
#else
#include <cuda_runtime.h>

/* ---- shared memory and launching ---------------------------------------------------------------------------------- */

/* Before a definition inside a kernel: an array that the block shares, not initialised, 16-byte aligned. */
#define SHARED __shared__ __align__(16)

/* The shared memory whose size is a launch parameter, 16-byte aligned. */
static __device__ __forceinline__ unsigned char *dynamic_shared() {
    extern __shared__ __align__(16) unsigned char lmi_dynamic_shared[];
    return lmi_dynamic_shared;
}

/* Of device.cu: the queue of a stream, and what becomes of a failed launch. */
extern "C" cudaStream_t device_stream_queue(const device_stream *stream);
extern "C" void device_stream_note(device_stream *stream, cudaError_t result, const char *what);

/* Launches may overlap with the end of what came before (programmatic dependent launch): see wait_for_previous. */
template <typename... Params, typename... Args>
static void launch_kernel(device_stream *stream, const char *name, void (*kernel)(Params...), dim3 grid, dim3 block,
                          size_t shared_bytes, Args... args) {
    /* A block has 48 KiB, of arrays and of dynamic memory together, unless it asks for more. */
    const cudaError_t allowed =
        shared_bytes == 0
            ? cudaSuccess
            : cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
    if (allowed != cudaSuccess) {
        device_stream_note(stream, allowed, name);
        return;
    }
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = device_stream_queue(stream);
    config.attrs = &attribute;
    config.numAttrs = device_stream_info(stream)->major >= 9 ? 1 : 0;
    device_stream_note(stream, cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), name);
}

/* LAUNCH(stream, (kernel<A, B>), grid, block, shared_bytes, args...) */
#define LAUNCH(stream, kernel, grid, block, shared_bytes, ...)                                                                 \
    launch_kernel(stream, #kernel, kernel, grid, block, shared_bytes, __VA_ARGS__)

/* Every kernel calls this, in all threads, before it touches anything that an earlier kernel of the stream read or wrote: weights only may be
 * read before. A kernel that never waited could end before the one before it, and the next would not know. */
static __device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The next kernel may begin, up to its wait_for_previous, once all blocks have called this or ended. */
static __device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* ---- integers in fours -------------------------------------------------------------------------------------------- */

/* c + the sum of a[i] * b[i] over four int8. */
static __device__ __forceinline__ int dot4(int a, int b, int c) { return __dp4a(a, b, c); }

/* ---- loads of what no kernel in flight writes, aligned by their size ------------------------------------------------ */

static __device__ __forceinline__ uint4 load_16(const void *p) { return __ldg((const uint4 *)p); }
static __device__ __forceinline__ uint2 load_8(const void *p) { return __ldg((const uint2 *)p); }
static __device__ __forceinline__ uint32_t load_4(const void *p) { return __ldg((const unsigned *)p); }
static __device__ __forceinline__ uint16_t load_2(const void *p) { return __ldg((const unsigned short *)p); }

/* Weights: read once a token, so not kept in L1 and the first to leave L2. */
static __device__ __forceinline__ uint4 load_16_once(const void *p) {
    uint4 v;
#if __CUDA_ARCH__ >= 800
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p), "l"(policy));
#else
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
#endif
    return v;
}

/* The 128 bytes around p begin their way to L2; any address will do. */
static __device__ __forceinline__ void fetch_ahead(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

/* The same value, of which the compiler knows nothing: what is computed from it stays here, and takes no registers elsewhere. */
static __device__ __forceinline__ int known_here(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

/* ---- half floats, binary16 ---------------------------------------------------------------------------------------- */

static __device__ __forceinline__ float half_to_float(uint16_t half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

/* To nearest, ties to even. */
static __device__ __forceinline__ uint16_t float_to_half(float value) {
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

static __device__ __forceinline__ uint32_t pack_halves(float low, float high) {
    uint32_t pair;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    pair = (uint32_t)float_to_half(low) | (uint32_t)float_to_half(high) << 16;
#endif
    return pair;
}

/* ---- tensor cores ------------------------------------------------------------------------------------------------- */

/* D += A B, 16 x 16 times 16 x 8, binary16 into float. With g = lane / 4, t = lane % 4 a lane holds
 *   a[0] A[g][2t, 2t + 1]        a[1] A[g + 8][same]   a[2], a[3]: the same two, 8 columns on
 *   b[0] B[2t, 2t + 1][g]        b[1] B[2t + 8, 2t + 9][g]
 *   d[0], d[1] D[g][2t, 2t + 1]  d[2], d[3] D[g + 8][same]
 * the first of two in the low bits. */
static __device__ __forceinline__ void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
    for (int half = 0; half < 2; half++) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
#endif
}

/* Four matrices of 8 x 8 halves from shared memory: lane l gives the address of row l % 8 of matrix l / 8, 16 bytes and so aligned, and gets
 * in r[i] of matrix i the elements [l / 4][2 (l % 4)] and [l / 4][2 (l % 4) + 1]. */
static __device__ __forceinline__ void load_matrices(uint32_t r[4], const void *shared) {
    const unsigned address = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* The same of the transposed matrices: elements [2 (l % 4)][l / 4] and [2 (l % 4) + 1][l / 4]. */
static __device__ __forceinline__ void load_matrices_transposed(uint32_t r[4], const void *shared) {
    const unsigned address = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* ---- copies from global to shared memory that run beside the computing --------------------------------------------- */

/* 16 bytes, both addresses so aligned. They are there, for this thread, after copy_wait; for others after a barrier as well. */
static __device__ __forceinline__ void copy_16(void *shared, const void *global) {
#if __CUDA_ARCH__ >= 800
    const unsigned address = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
    *(uint4 *)shared = *(const uint4 *)global;
#endif
}

/* The thread's copies since the last commit become a group. */
static __device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* Waits until at most N of the thread's latest groups are under way. */
template <int N> static __device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

/* Several blocks may store the same value there. */
static __device__ __forceinline__ void store_same(int64_t *p, int64_t value) { *(volatile int64_t *)p = value; }

/* uint64_t is `unsigned long`, for which CUDA has none. */
static __device__ __forceinline__ uint64_t atomicAdd(uint64_t *p, uint64_t value) {
    return ::atomicAdd((unsigned long long *)p, (unsigned long long)value);
}
static __device__ __forceinline__ uint64_t atomicMax(uint64_t *p, uint64_t value) {
    return ::atomicMax((unsigned long long *)p, (unsigned long long)value);
}
#endif

/* ---- sums and maxima, in one order always, to all threads ----------------------------------------------------------- */

/* The larger; NaN if either is, unlike fmaxf. */
static __device__ __forceinline__ float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }

/* In the order of a butterfly: every lane adds the same pairs. */
template <typename T> static __device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    }
    return value;
}

/* NaN if any lane has it. */
static __device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        value = max_or_nan(value, __shfl_xor_sync(0xffffffffu, value, offset));
    }
    return value;
}

/* Of integers. */
template <typename T> static __device__ __forceinline__ T warp_max(T value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        const T other = __shfl_xor_sync(0xffffffffu, value, offset);
        value = other > value ? other : value;
    }
    return value;
}

/* Blocks of THREADS, a multiple of 32, in x only. Two barriers: shared memory written before is there for all after. */
template <int THREADS, typename T> static __device__ __forceinline__ T block_sum(T value) {
    SHARED T parts[THREADS / 32];
    value = warp_sum(value);
    __syncthreads(); /* the parts of the last call have been read */
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = value;
    }
    __syncthreads();
    T sum = parts[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; i++) {
        sum += parts[i];
    }
    return sum;
}

template <int THREADS> static __device__ __forceinline__ float block_max(float value) {
    SHARED float parts[THREADS / 32];
    value = warp_max(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = value;
    }
    __syncthreads();
    float max = parts[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; i++) {
        max = max_or_nan(max, parts[i]);
    }
    return max;
}

#endif
