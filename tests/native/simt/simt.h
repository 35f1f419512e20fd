/* An emulator of CUDA threads on one CPU thread: what kernels see. native/cuda/primitives.cuh includes it where LMI_SIMT is defined.
 *
 * Every thread of a block is a fiber; it runs until it must wait for others, so a block's threads take turns at barriers and at calls of
 * a warp. Blocks run one after the other. What CUDA leaves undefined ends the process with a message: a call of a warp that a lane never makes, a
 * barrier that a thread never reaches, addresses that are not aligned, shared memory out of bounds. Shared memory begins as NaN, cp.async arrives as
 * late as it may, the order of blocks and lanes turns round with every launch. Under ThreadSanitizer two accesses without a barrier between are a race:
 * blocks are ordered by fences and atomics only, launches from wait_for_previous on. */
#ifndef LMI_TESTS_SIMT_H
#define LMI_TESTS_SIMT_H

#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <tuple>
#include <type_traits>

#include "base/half.h"
#include "cuda/device.h"

/* ---- words of CUDA C++ -------------------------------------------------------------------------------------------- */

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
/* Thread-local variables lie side by side, so that a block can find all of them to spoil what the last one left. */
#define SHARED static thread_local __align__(16)

/* clang-format off */
struct uint2 { unsigned x, y; } __align__(8);
struct uint3 { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; } __align__(16);
struct int2 { int x, y; } __align__(8);
struct int4 { int x, y, z, w; } __align__(16);
struct float2 { float x, y; } __align__(8);
struct float4 { float x, y, z, w; } __align__(16);
struct dim3 { unsigned x, y, z; constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {} };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
/* clang-format on */

namespace simt {

enum meeting { SHUFFLE, VOTE, MMA, LOAD_MATRICES, SYNC_WARP, SYNC_BLOCK };

struct slot { /* what a lane brings to a call of its warp */
    unsigned char bytes[64];
};

struct pending_copy {
    void *to;
    const void *from;
    int group;
};

/* What the code of a running thread needs to know of itself. */
struct thread {
    uint3 index;
    unsigned lane;
};

extern thread *current;
extern dim3 grid_size, block_size;
extern uint3 block_index;

[[noreturn]] void stop(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Brings `bytes` and waits until all lanes have; what each brought, until the lane's next meeting. */
const slot *meet_warp(meeting kind, unsigned mask, const void *value, size_t bytes);
void meet_block();
void fence();
void before_atomic(const void *address);
bool is_shared(const void *address, size_t bytes);
unsigned char *dynamic();
void copy_later(void *to, const void *from);
void copy_commit();
const pending_copy *
copy_due(int groups); /* the next that must have arrived when at most so many groups are under way; NULL: none */
void wait_for_previous();

/* Runs a grid. device_simt.cpp decides when: at once, or when its graph is launched. */
void run(const char *name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &kernel);
void launch(device_stream *stream, const char *name, dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel);
/* The host waits for all that ran: only ThreadSanitizer needs to be told. */
void host_waits();

template <typename... Params, typename... Args>
void launch_kernel(device_stream *stream, const char *name, void (*kernel)(Params...), dim3 grid, dim3 block,
                   size_t shared_bytes, Args... args) {
    launch(stream, name, grid, block, shared_bytes,
           [kernel, values = std::tuple<Params...>(static_cast<Params>(args)...)] { std::apply(kernel, values); });
}

inline void check_aligned(const void *address, size_t bytes, const char *what) {
    if ((uintptr_t)address % bytes != 0) {
        stop("%s: address %p is not a multiple of %zu", what, address, bytes);
    }
}

template <typename T> T load(const void *address) {
    check_aligned(address, sizeof(T), "load");
    return *(const T *)address;
}

/* The i-th T that a lane brought. */
template <typename T> T value_of(const slot &from, unsigned i = 0) {
    T value;
    memcpy(&value, from.bytes + i * sizeof value, sizeof value);
    return value;
}

/* What lane `source` of the caller's group of `width` lanes brought; its own where there is no such lane. */
template <typename T> T shuffle(unsigned mask, T value, unsigned source, bool exists) {
    static_assert(sizeof(T) <= 8 && std::is_arithmetic<T>::value, "what shuffles take");
    const slot *slots = meet_warp(SHUFFLE, mask, &value, sizeof value);
    return exists ? value_of<T>(slots[source % 32]) : value;
}

inline unsigned ballot(unsigned mask, bool yes) {
    const unsigned own = yes;
    const slot *slots = meet_warp(VOTE, mask, &own, sizeof own);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
        votes |= value_of<unsigned>(slots[lane]) << lane;
    }
    return votes;
}

inline void load_matrices(uint32_t r[4], const void *shared, bool transposed) {
    check_aligned(shared, 16, "load_matrices");
    if (!is_shared(shared, 16)) {
        stop("load_matrices: %p is not in shared memory", shared);
    }
    const slot *slots = meet_warp(LOAD_MATRICES, 0xffffffffu, &shared, sizeof shared);
    const unsigned g = current->lane / 4, t = current->lane % 4;
    for (unsigned i = 0; i < 4; i++) {
        uint32_t pair = 0;
        for (unsigned j = 0; j < 2; j++) {
            const unsigned row = transposed ? 2 * t + j : g, column = transposed ? g : 2 * t + j;
            pair |= (uint32_t)value_of<const uint16_t *>(slots[8 * i + row])[column] << (16 * j);
        }
        r[i] = pair;
    }
}

} // namespace simt

#define threadIdx (simt::current->index)
#define blockIdx (simt::block_index)
#define blockDim (simt::block_size)
#define gridDim (simt::grid_size)
#define LAUNCH(stream, kernel, grid, block, shared_bytes, ...)                                                                 \
    simt::launch_kernel(stream, #kernel, kernel, grid, block, shared_bytes, __VA_ARGS__)

/* ---- calls of a block, of a warp ------------------------------------------------------------------------------------ */

static inline void __syncthreads() { simt::meet_block(); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::meet_warp(simt::SYNC_WARP, mask, nullptr, 0); }
static inline void __threadfence() { simt::fence(); }

template <typename T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned w = (unsigned)width, first = simt::current->lane & ~(w - 1);
    return simt::shuffle(mask, value, first | ((unsigned)source & (w - 1)), true);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const unsigned w = (unsigned)width, source = simt::current->lane ^ (unsigned)bits;
    return simt::shuffle(mask, value, source, source < (simt::current->lane & ~(w - 1)) + w);
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned w = (unsigned)width;
    return simt::shuffle(mask, value, simt::current->lane + delta, (simt::current->lane & (w - 1)) + delta < w);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned w = (unsigned)width;
    return simt::shuffle(mask, value, simt::current->lane - delta, (simt::current->lane & (w - 1)) >= delta);
}
static inline unsigned __ballot_sync(unsigned mask, int yes) { return simt::ballot(mask, yes != 0); }
static inline int __any_sync(unsigned mask, int yes) { return simt::ballot(mask, yes != 0) != 0; }
static inline int __all_sync(unsigned mask, int yes) { return simt::ballot(mask, yes != 0) == 0xffffffffu; }

/* What they order is told by before_atomic and fence, not by how they are made here. */
#define NOT_WATCHED __attribute__((no_sanitize("thread")))
template <typename T> NOT_WATCHED T atomicAdd(T *p, std::common_type_t<T> value) {
    static_assert(std::is_integral<T>::value && sizeof(T) >= 4, "sums of floats would depend on the order");
    simt::before_atomic(p);
    return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}
static NOT_WATCHED inline void store_same(int64_t *p, int64_t value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }
template <typename T> NOT_WATCHED T atomicExch(T *p, std::common_type_t<T> value) {
    simt::before_atomic(p);
    return __atomic_exchange_n(p, value, __ATOMIC_RELAXED);
}
template <typename T> NOT_WATCHED T atomicMax(T *p, std::common_type_t<T> value) {
    simt::before_atomic(p);
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (old < value && !__atomic_compare_exchange_n(p, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}

/* ---- numbers ------------------------------------------------------------------------------------------------------- */

/* clang-format off */
static inline float __uint_as_float(unsigned bits) { return f32_from_bits(bits); }
static inline unsigned __float_as_uint(float value) { return f32_to_bits(value); }
static inline float __int_as_float(int bits) { return f32_from_bits((uint32_t)bits); }
static inline int __float_as_int(float value) { return (int)f32_to_bits(value); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline int __float2int_rn(float value) { return (int)rintf(value); }
static inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
static inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
static inline int __ffs(int bits) { return __builtin_ffs(bits); }
static inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz((unsigned)bits); }
static inline int __clzll(long long bits) { return bits == 0 ? 64 : __builtin_clzll((unsigned long long)bits); }
static inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)((unsigned __int128)a * b >> 64); }
template <typename T> constexpr T min(T a, T b) { return b < a ? b : a; }
template <typename T> constexpr T max(T a, T b) { return a < b ? b : a; }
/* clang-format on */

/* Byte i of the result is byte (selector >> 4 i) % 8 of x, y side by side. */
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned result = 0;
    for (unsigned i = 0; i < 4; i++) {
        result |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    }
    return result;
}

static inline void sincospif(float x, float *sine, float *cosine) {
    const double turn = (double)x - 2 * nearbyint((double)x / 2); /* exact */
    *sine = (float)sin(3.141592653589793238 * turn);
    *cosine = (float)cos(3.141592653589793238 * turn);
}

/* ---- what primitives.cuh defines for devices ------------------------------------------------------------------------- */

static inline unsigned char *dynamic_shared() { return simt::dynamic(); }
static inline void wait_for_previous() { simt::wait_for_previous(); }
static inline void let_next_start() {}

static inline int dot4(int a, int b, int c) {
    uint32_t sum = (uint32_t)c;
    for (int i = 0; i < 32; i += 8) {
        sum += (uint32_t)((int8_t)(a >> i) * (int8_t)(b >> i));
    }
    return (int)sum;
}

static inline uint4 load_16(const void *p) { return simt::load<uint4>(p); }
static inline uint2 load_8(const void *p) { return simt::load<uint2>(p); }
static inline uint32_t load_4(const void *p) { return simt::load<uint32_t>(p); }
static inline uint16_t load_2(const void *p) { return simt::load<uint16_t>(p); }
static inline uint4 load_16_once(const void *p) { return simt::load<uint4>(p); }

static inline float half_to_float(uint16_t half) { return f16_to_f32(half); }
static inline uint16_t float_to_half(float value) { return f32_to_f16(value); }
static inline uint32_t pack_halves(float low, float high) {
    return (uint32_t)f32_to_f16(low) | (uint32_t)f32_to_f16(high) << 16;
}

/* The layout is in primitives.cuh. Each lane brings its elements of A, then those of B, and adds up its four of D. */
static inline void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    float own[12];
    for (int i = 0; i < 12; i++) {
        own[i] = f16_to_f32((uint16_t)((i < 8 ? a[i / 2] : b[i / 2 - 4]) >> 16 * (i % 2)));
    }
    const simt::slot *slots = simt::meet_warp(simt::MMA, 0xffffffffu, own, sizeof own);
    const unsigned g = simt::current->lane / 4, t = simt::current->lane % 4;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned column = 2 * t + i % 2;
        double sum = 0;
        for (unsigned k = 0; k < 16; k++) {
            const float left = simt::value_of<float>(slots[4 * g + k % 8 / 2], k / 8 * 4 + i / 2 * 2 + k % 2);
            const float right = simt::value_of<float>(slots[4 * column + k % 8 / 2], 8 + k / 8 * 2 + k % 2);
            sum += (double)left * (double)right;
        }
        d[i] = (float)((double)d[i] + sum);
    }
}

static inline void load_matrices(uint32_t r[4], const void *shared) { simt::load_matrices(r, shared, false); }
static inline void load_matrices_transposed(uint32_t r[4], const void *shared) { simt::load_matrices(r, shared, true); }

static inline void copy_16(void *shared, const void *global) {
    simt::check_aligned(shared, 16, "copy_16 to");
    simt::check_aligned(global, 16, "copy_16 from");
    if (!simt::is_shared(shared, 16)) {
        simt::stop("copy_16: %p is not in shared memory", shared);
    }
    simt::copy_later(shared, global);
}
static inline void copy_commit() { simt::copy_commit(); }
template <int N> void copy_wait() {
    while (const simt::pending_copy *copy = simt::copy_due(N)) {
        *(uint4 *)copy->to = *(const uint4 *)copy->from;
    }
}

#endif
