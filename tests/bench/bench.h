/* What the benchmarks share: a clock, memory, random bits, and what a core can do at most. They take such peaks right before
 * what they compare with them, since shared machines change speed from one second to the next. Include it first. */
#ifndef LMI_BENCH_H
#define LMI_BENCH_H

#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "kernels/kernels.h"
#include "kernels/matmul_parts.h"

/* Seconds that this thread has run: other processes do not count, a busy sibling core does. */
static inline double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of one call, the fewest of a fifth of a second and at least three timings. Short calls are timed many at once. */
static inline double fastest(void (*call)(void *), void *context) {
    double best = 1e9, all = 0;
    long n_calls = 1;
    for (int timings = 0; timings < 3 || all < 0.2; timings++) {
        double t = seconds();
        for (long i = 0; i < n_calls; i++) {
            call(context);
        }
        t = seconds() - t;
        all += t;
        best = t / (double)n_calls < best ? t / (double)n_calls : best;
        n_calls = t < 1e-3 ? 2 * n_calls : n_calls;
    }
    return best;
}

/* Zeroed; in large pages, as the library has its weights. */
static inline void *allocate(size_t size) {
    const size_t page = size < LARGE_PAGE ? 4096 : LARGE_PAGE;
    size = (size + page - 1) / page * page;
    void *memory = aligned_alloc(page, size);
    if (memory == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    memory_in_large_pages(memory, size);
    return memset(memory, 0, size);
}

static inline uint32_t random_bits(uint32_t *state) { /* xorshift32; state is not 0 */
    *state ^= *state << 13;
    *state ^= *state >> 17;
    return *state ^= *state << 5;
}

static inline double random_unit(uint32_t *state) { return (double)random_bits(state) * 0x1p-32; } /* 0 <= x < 1 */

/* ---- reading ------------------------------------------------------------------------------------------------------- */

typedef struct stretch {
    const void *memory; /* from allocate */
    size_t bytes;
} stretch;

#if defined(__x86_64__)
#define WIDE __attribute__((target("avx2")))
#else
#define WIDE
#endif

WIDE static inline void read_stretch(const stretch *s, int far, int near) {
    typedef uint64_t words __attribute__((vector_size(32)));
    words a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i + 128 <= s->bytes; i += 128) {
        const uintptr_t at = (uintptr_t)s->memory + i;
        const words *v = (const words *)at;
        for (uintptr_t line = 0; near > 0 && line < 128; line += 64) {
            __builtin_prefetch((const void *)(at + line + (uintptr_t)far), 0, 2);
            __builtin_prefetch((const void *)(at + line + (uintptr_t)near), 0, 3);
        }
        a += v[0];
        b += v[1];
        c += v[2];
        d += v[3];
    }
    a += b + c + d;
    __asm__ volatile("" : : "r"(a[0] + a[1] + a[2] + a[3]));
}

WIDE static inline void read_plainly(void *s) { read_stretch(s, 0, 0); }
WIDE static inline void read_ahead(void *s) { read_stretch(s, 4096, 1024); } /* as the kernels do */

/* GB/s of reading and nothing else. */
static inline double read_peak(const void *memory, size_t bytes) {
    stretch s = {memory, bytes};
    const double plain = fastest(read_plainly, &s), ahead = fastest(read_ahead, &s);
    return (double)bytes * 1e-9 / (plain < ahead ? plain : ahead);
}

/* ---- arithmetic ---------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#include <immintrin.h>

enum { SPINS = 100000 };

/* Twelve independent chains of the instruction, so that only its throughput counts. */
#define CHAINS(TYPE, ZERO, INSTRUCTIONS)                                                                                       \
    (void)unused;                                                                                                              \
    TYPE c[12];                                                                                                                \
    UNROLL for (int i = 0; i < 12; i++) { c[i] = ZERO; }                                                                       \
    for (long n = 0; n < SPINS; n++) {                                                                                         \
        UNROLL for (int i = 0; i < 12; i++) { INSTRUCTIONS; }                                                                  \
    }                                                                                                                          \
    UNROLL for (int i = 0; i < 12; i++) { __asm__ volatile("" : : "v"(c[i])); }

__attribute__((target("avx512f,avx512vnni"))) static inline void spin_dpbusd(void *unused) {
    __m512i x = _mm512_set1_epi8(1);
    CHAINS(__m512i, _mm512_setzero_si512(), __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(c[i]) : "v"(x)))
}
__attribute__((target("avx512f"))) static inline void spin_fma_512(void *unused) {
    __m512 x = _mm512_set1_ps(1);
    CHAINS(__m512, _mm512_setzero_ps(), __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(c[i]) : "v"(x)))
}
#if defined(LMI_HAS_AVXVNNI)
__attribute__((target("avx2"))) static inline void spin_dpbusd_256(void *unused) {
    __m256i x = _mm256_set1_epi8(1);
    CHAINS(__m256i, _mm256_setzero_si256(), __asm__ volatile("%{vex%} vpdpbusd %1, %1, %0" : "+x"(c[i]) : "x"(x)))
}
#endif
/* The int8 dot product of AVX2 is three instructions: multiply pairs, widen, add. */
__attribute__((target("avx2"))) static inline void spin_maddubs(void *unused) {
    __m256i x = _mm256_set1_epi8(1);
    CHAINS(__m256i, _mm256_setzero_si256(),
           __asm__ volatile("vpmaddubsw %1, %1, %%ymm15; vpmaddwd %%ymm15, %1, %%ymm15; vpaddd %%ymm15, %0, %0" : "+x"(
               c[i]) : "x"(x) : "xmm15"))
}
__attribute__((target("avx2,fma"))) static inline void spin_fma_256(void *unused) {
    __m256 x = _mm256_set1_ps(1);
    CHAINS(__m256, _mm256_setzero_ps(), __asm__ volatile("vfmadd231ps %1, %1, %0" : "+x"(c[i]) : "x"(x)))
}

static inline double spin_rate(void (*spin)(void *), int macs) { return 12e-9 * SPINS * macs / fastest(spin, NULL); }

#if defined(LMI_HAS_AMX)
/* [16][64] bytes times [64][16]. */
static inline void spin_tiles(void *unused) {
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1, .row_bytes = {64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
    for (long n = 0; n < SPINS; n++) {
        for (int i = 0; i < 4; i++) {
            __asm__ volatile("tdpbssd %%tmm4, %%tmm3, %%tmm0; tdpbssd %%tmm4, %%tmm3, %%tmm1; tdpbssd %%tmm4, %%tmm3, %%tmm2"
                             :
                             :);
        }
    }
    __asm__ volatile("tilerelease" : :);
    (void)unused;
}
#endif

/* G multiply-adds a second, of bytes and of float32; NAN where there is no measure. */
static inline double dot_peak(lmi_isa isa) {
#if defined(LMI_HAS_AMX)
    if (isa == LMI_ISA_AMX) {
        return spin_rate(spin_tiles, 16 * 16 * 64);
    }
#endif
#if defined(LMI_HAS_AVXVNNI)
    if (isa == LMI_ISA_AVXVNNI) {
        return spin_rate(spin_dpbusd_256, 32);
    }
#endif
    return isa == LMI_ISA_AVX512 ? spin_rate(spin_dpbusd, 64) : spin_rate(spin_maddubs, 32);
}
static inline double fma_peak(lmi_isa isa) {
    return isa >= LMI_ISA_AVX512 ? spin_rate(spin_fma_512, 16) : spin_rate(spin_fma_256, 8);
}
#else
static inline double dot_peak(lmi_isa isa) { return (void)isa, (double)NAN; }
static inline double fma_peak(lmi_isa isa) { return (void)isa, (double)NAN; }
#endif

#endif
