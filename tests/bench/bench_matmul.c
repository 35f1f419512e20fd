/* Speed of the matmul kernels on one core, next to what the core can do at that moment.
 *
 *   bench_matmul [isa] [type] [megabytes] [k]         all types on the best instruction set, 256 MB of weights, K = 4096
 *
 * Per type: one token over weights read once from memory (GB/s, and % of a plain read of the same bytes), the same for four
 * tokens, one token over weights in the L2 cache, and 512 tokens (G MAC/s, and % of the peak of the dot product
 * or multiply-add instruction in question). Peaks are measured right before each type, best of several, since shared
 * machines change speed from one second to the next. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
#include "base/half.h"
#include "kernels/kernels.h"

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* other processes do not count, a busy sibling core does */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *allocate(size_t size) {
    void *memory = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    if (memory == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    memset(memory, 0, size);
    return memory;
}

/* ---- peaks --------------------------------------------------------------------------------------------------------- */

typedef struct peaks {
    double read;    /* GB/s */
    double integer; /* G MAC/s of 8-bit products */
    double real;    /* G MAC/s of float32 */
} peaks;

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2"))) static uint64_t read_all(const char *p, size_t n, size_t ahead) {
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
    for (size_t i = 0; i + 128 <= n; i += 128) {
        const __m256i *v = (const void *)(p + i);
        _mm_prefetch(p + i + ahead, _MM_HINT_T0);
        _mm_prefetch(p + i + ahead + 64, _MM_HINT_T0);
        s0 = _mm256_add_epi64(s0, _mm256_loadu_si256(v));
        s1 = _mm256_add_epi64(s1, _mm256_loadu_si256(v + 1));
        s2 = _mm256_add_epi64(s2, _mm256_loadu_si256(v + 2));
        s3 = _mm256_add_epi64(s3, _mm256_loadu_si256(v + 3));
    }
    s0 = _mm256_add_epi64(_mm256_add_epi64(s0, s1), _mm256_add_epi64(s2, s3));
    return (uint64_t)_mm256_extract_epi64(s0, 0) + (uint64_t)_mm256_extract_epi64(s0, 2);
}

/* Twelve independent chains of the instruction, so that only its throughput counts. */
#define CHAINS(TYPE, ZERO, INSTRUCTIONS)                                                                                       \
    TYPE c[12];                                                                                                                \
    _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) { c[i] = ZERO; }                                                     \
    for (long n = 0; n < rounds; n++) {                                                                                        \
        _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) { INSTRUCTIONS; }                                                \
    }                                                                                                                          \
    _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) { __asm__ volatile("" : : "v"(c[i])); }

__attribute__((target("avx512f,avx512vnni"))) static void spin_dpbusd(long rounds) {
    __m512i x = _mm512_set1_epi8(1);
    CHAINS(__m512i, _mm512_setzero_si512(), __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(c[i]) : "v"(x)))
}
__attribute__((target("avx512f"))) static void spin_fma_512(long rounds) {
    __m512 x = _mm512_set1_ps(1);
    CHAINS(__m512, _mm512_setzero_ps(), __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(c[i]) : "v"(x)))
}
/* The int8 dot product of AVX2 is three instructions: multiply pairs, widen, add. */
__attribute__((target("avx2"))) static void spin_maddubs(long rounds) {
    __m256i x = _mm256_set1_epi8(1);
    CHAINS(__m256i, _mm256_setzero_si256(),
           __asm__ volatile("vpmaddubsw %1, %1, %%ymm15; vpmaddwd %%ymm15, %1, %%ymm15; vpaddd %%ymm15, %0, %0" : "+x"(
               c[i]) : "x"(x) : "xmm15"))
}
__attribute__((target("avx2,fma"))) static void spin_fma_256(long rounds) {
    __m256 x = _mm256_set1_ps(1);
    CHAINS(__m256, _mm256_setzero_ps(), __asm__ volatile("vfmadd231ps %1, %1, %0" : "+x"(c[i]) : "x"(x)))
}

static double rate(void (*spin)(long), double macs) {
    const long rounds = 1000000;
    double best = 0;
    for (int i = 0; i < 6; i++) {
        double t = seconds();
        spin(rounds);
        t = seconds() - t;
        double now = 12.0 * (double)rounds * macs / t * 1e-9;
        best = now > best ? now : best;
    }
    return best;
}

static peaks measure_peaks(lmi_isa isa, const void *bytes, size_t size) {
    peaks p = {0};
    for (int i = 0; i < 6; i++) { /* with and without prefetching */
        double t = seconds();
        volatile uint64_t sink = read_all(bytes, size, i % 2 * 2048);
        (void)sink;
        t = seconds() - t;
        p.read = (double)size / t * 1e-9 > p.read ? (double)size / t * 1e-9 : p.read;
    }
    if (isa == LMI_ISA_AVX512) {
        p.integer = rate(spin_dpbusd, 64);
        p.real = rate(spin_fma_512, 16);
    } else {
        p.integer = rate(spin_maddubs, 32);
        p.real = rate(spin_fma_256, 8);
    }
    return p;
}
#else
static peaks measure_peaks(lmi_isa isa, const void *bytes, size_t size) {
    (void)isa;
    (void)bytes;
    (void)size;
    return (peaks){1, 1, 1};
}
#endif

/* ---- one type -------------------------------------------------------------------------------------------------------- */

/* Blocks whose scales are small whatever their place in the block (every byte below 0x20), and no subnormal numbers where
 * that would be slow. */
static void fill(quant_type type, void *bytes, size_t size) {
    uint32_t *words = bytes;
    uint32_t state = 1, bits = 0, mask = 0x1f1f1f1fu;
    if (type == QUANT_F32 || type == QUANT_F16 || type == QUANT_BF16) {
        bits = type == QUANT_F32 ? 0x3f000000u : type == QUANT_F16 ? 0x30003000u : 0x3f003f00u;
        mask = type == QUANT_F32 ? 0x007fffffu : 0x007f007fu;
    }
    for (size_t i = 0; i < size / 4; i++) {
        state = state * 1664525u + 1013904223u;
        words[i] = bits | (state >> 3 & mask);
    }
    for (size_t at = 0; type == QUANT_MXFP4 && at < size; at += 17) {
        ((uint8_t *)bytes)[at] = 120;
    }
}

/* Seconds of the fastest of `rounds` passes. */
static double run(const kernels *table, quant_type type, matmul_args a, int rounds) {
    double best = 1e9;
    for (int i = 0; i < rounds; i++) {
        double t = seconds();
        for (int64_t r = 0; r < a.row1; r += 256) { /* in pieces, as a pool hands them out */
            matmul_args piece = a;
            piece.row0 = r;
            piece.row1 = r + 256 < a.row1 ? r + 256 : a.row1;
            table->matmul[type](&piece);
        }
        t = seconds() - t;
        best = t < best ? t : best;
    }
    return best;
}

static void bench(const kernels *table, quant_type type, void *weights, size_t size, int64_t k) {
    enum { TOKENS = 512 };
    const quant_info *info = quant_find(type);
    if (k % info->block_values != 0) {
        return;
    }
    size_t row_bytes = (size_t)k / info->block_values * info->block_bytes;
    act_kind act = table->act[type];
    size_t x_stride = act_row_bytes(act, k);
    fill(type, weights, size);
    char *x = allocate(x_stride * TOKENS);
    float *values = allocate((size_t)k * sizeof *values);
    for (int64_t t = 0; t < TOKENS; t++) {
        for (int64_t c = 0; c < k; c++) {
            values[c] = (float)((t * 31 + c * 17) % 255 - 127) / 64;
        }
        table->pack[act](values, k, x + (size_t)t * x_stride);
    }
    int64_t rows = (int64_t)(size / row_bytes), few_rows = (int64_t)((size_t)768 * 1024 / row_bytes), gemm_rows = 256;
    rows = rows > 16 ? rows / 16 * 16 : 16;
    few_rows = few_rows > 16 ? few_rows / 16 * 16 : 16;
    float *y = allocate((size_t)(rows * 4 + gemm_rows * TOKENS) * sizeof *y);
    matmul_args a = {.w = weights,
                     .row_bytes = row_bytes,
                     .k = k,
                     .row1 = rows,
                     .x = x,
                     .x_stride = x_stride,
                     .n_tokens = 1,
                     .y = y,
                     .y_stride = rows,
                     .scratch = allocate(table->matmul_scratch(k) + 64)};

    peaks p = measure_peaks(table->isa, weights, (size_t)rows * row_bytes);
    double bytes = (double)rows * (double)row_bytes;
    double one = bytes / run(table, type, a, 5) * 1e-9;
    a.n_tokens = 4;
    double four = bytes / run(table, type, a, 3) * 1e-9;
    a.n_tokens = 1;
    a.row1 = few_rows;
    double cached = (double)few_rows * (double)row_bytes / run(table, type, a, 40) * 1e-9;
    a.row1 = gemm_rows;
    a.n_tokens = TOKENS;
    a.y_stride = gemm_rows;
    double macs = (double)gemm_rows * (double)k * TOKENS / run(table, type, a, 3) * 1e-9;
    double peak = act == ACT_F32 ? p.real : p.integer;
    printf("%-7s %6.1f GB/s %4.0f%%  x4 %6.1f  cached %6.1f   %7.1f GMAC/s %4.0f%%   read %.1f GB/s, peak %.0f GMAC/s\n",
           info->name, one, 100 * one / p.read, four, cached, macs, 100 * macs / peak, p.read, peak);
    fflush(stdout);
    free(x);
    free(values);
    free(y);
    free(a.scratch);
}

int main(int argc, char **argv) {
    lmi_isa isa = LMI_ISA_AUTO;
    for (int i = LMI_ISA_REF; argc > 1 && i <= LMI_ISA_NEON; i++) {
        isa = strcmp(argv[1], cpu_isa_name((lmi_isa)i)) == 0 ? (lmi_isa)i : isa;
    }
    lmi_error error;
    const kernels *table;
    if (kernels_get(isa, &table, &error) != LMI_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    const char *only = argc > 2 ? argv[2] : "all";
    size_t size = (size_t)(argc > 3 ? atoi(argv[3]) : 256) << 20;
    int64_t k = argc > 4 ? atoi(argv[4]) : 4096;
    void *weights = allocate(size);
    printf("%s, K = %lld, %zu MB of weights; one token from memory, four, one from cache; 512 tokens\n",
           cpu_isa_name(table->isa), (long long)k, size >> 20);
    for (uint32_t type = 0; type < QUANT_TYPE_END; type++) {
        if (quant_find(type) != NULL && (strcmp(only, "all") == 0 || strcmp(only, quant_find(type)->name) == 0)) {
            bench(table, (quant_type)type, weights, size, k);
        }
    }
    free(weights);
    return 0;
}
