/* Attention by instruction set and kind of bank: decode in GB/s of keys and values, prefill in G multiply-adds per second, beside
 * the machine's read bandwidth and FMA peak measured in the same process.
 *
 *   bench_attention [MiB of banks to walk through, default 600]
 *
 * Decode walks through many layers' banks, so that nothing but the last-level cache can help; prefill attends one block of 64
 * tokens to a full window again and again. One thread, by its own time; best of several rounds. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
#include "kernels/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { SLOTS = 4160, WINDOW = 4096, SEGMENT = 512, TOKENS = 64, ROUNDS = 3 };

/* Seconds that this thread has run: what else the machine does shows less. */
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static float sink; /* keeps results alive */

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static double fma_peak_avx512(void) {
    __m512 a[16];
    const __m512 b = _mm512_set1_ps(0.999f), c = _mm512_set1_ps(0.001f);
    for (int i = 0; i < 16; i++) {
        a[i] = _mm512_set1_ps((float)i);
    }
    const double start = now();
    for (int n = 0; n < 4000000; n++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            a[i] = _mm512_fmadd_ps(a[i], b, c);
        }
    }
    const double seconds = now() - start;
    for (int i = 0; i < 16; i++) {
        sink += _mm512_reduce_add_ps(a[i]);
    }
    return 4e6 * 16 * 16 / seconds;
}

__attribute__((target("avx2,fma"))) static double fma_peak_avx2(void) {
    __m256 a[12];
    const __m256 b = _mm256_set1_ps(0.999f), c = _mm256_set1_ps(0.001f);
    for (int i = 0; i < 12; i++) {
        a[i] = _mm256_set1_ps((float)i);
    }
    const double start = now();
    for (int n = 0; n < 4000000; n++) {
#pragma GCC unroll 16
        for (int i = 0; i < 12; i++) {
            a[i] = _mm256_fmadd_ps(a[i], b, c);
        }
    }
    const double seconds = now() - start;
    for (int i = 0; i < 12; i++) {
        sink += a[i][0];
    }
    return 4e6 * 12 * 8 / seconds;
}
#endif

/* f32 multiply-adds per second, best of rounds; 0 if there is no measure for the set. */
static double fma_peak(lmi_isa isa) {
    double best = 0;
    for (int i = 0; i < 5; i++) {
        double peak = 0;
#if defined(__x86_64__)
        peak = isa == LMI_ISA_AVX512 ? fma_peak_avx512() : isa == LMI_ISA_AVX2 ? fma_peak_avx2() : 0;
#endif
        best = peak > best ? peak : best;
    }
    return best;
}

static double read_bandwidth(const void *memory, size_t bytes) {
    typedef uint64_t words __attribute__((vector_size(16)));
    double best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        const words *data = memory;
        words sums[8] = {{0}};
        const double start = now();
        for (size_t i = 0; i + 8 <= bytes / sizeof(words); i += 8) {
            for (size_t j = 0; j < 8; j++) {
                sums[j] ^= data[i + j];
            }
        }
        const double rate = (double)bytes / (now() - start);
        for (size_t j = 1; j < 8; j++) {
            sums[0] ^= sums[j];
        }
        sink += (float)sums[0][0];
        best = rate > best ? rate : best;
    }
    return best;
}

static float random_normal(uint32_t *state) {
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        *state = *state * 1664525u + 1013904223u;
        sum += (float)(*state >> 8) * 0x1p-24f - 0.5f;
    }
    return sum * 1.7320508f;
}

static void fill_bank(const kernels *k, const kv_bank *bank, uint32_t *seed) {
    float *key = malloc((size_t)bank->head_dim * 2 * sizeof *key), *value = key + bank->head_dim;
    for (int64_t s = 0; s < bank->n_slots; s++) {
        for (int32_t i = 0; i < bank->head_dim; i++) {
            key[i] = random_normal(seed);
            value[i] = random_normal(seed);
        }
        k->kv_store[bank->type](bank, s, key, value);
    }
    free(key);
}

typedef struct setup {
    const kernels *k;
    lmi_kv_type type;
    int32_t d;
    int64_t group;
    char *memory; /* banks one after another */
    size_t stride;
    int64_t n_banks;
    float *q, *m, *z, *o;
    void *scratch;
} setup;

static void clear_state(const setup *s, int64_t rows) {
    for (int64_t r = 0; r < rows; r++) {
        s->m[r] = -INFINITY;
        s->z[r] = 0;
    }
    memset(s->o, 0, (size_t)(rows * s->d) * sizeof *s->o);
}

static attend_args args_of(const setup *s, const kv_bank *bank, int64_t tokens, int64_t newest) {
    return (attend_args){.bank = bank,
                         .q = s->q,
                         .n_rows = tokens * s->group,
                         .rows_per_token = s->group,
                         .first_pos = newest - tokens + 1,
                         .newest = newest,
                         .n_slots_used = SLOTS,
                         .window = WINDOW,
                         .slot1 = SLOTS,
                         .m = s->m,
                         .z = s->z,
                         .o = s->o,
                         .scratch = s->scratch};
}

/* GB/s of keys and values that a token sees. */
static double decode(const setup *s) {
    double best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        const double start = now();
        for (int64_t b = 0; b < s->n_banks; b++) {
            const kv_bank bank = kv_bank_at(s->memory + (size_t)b * s->stride, s->type, s->d, SLOTS);
            attend_args a = args_of(s, &bank, 1, 10 * SLOTS + 1234);
            for (a.slot0 = 0; a.slot0 < SLOTS; a.slot0 += SEGMENT) {
                a.slot1 = a.slot0 + SEGMENT < SLOTS ? a.slot0 + SEGMENT : SLOTS;
                clear_state(s, s->group);
                s->k->attend_ring[s->type](&a);
                sink += s->o[0];
            }
        }
        const double rate = (double)s->n_banks * (double)kv_bank_bytes(s->type, s->d, WINDOW) / (now() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

/* Multiply-adds per second over the pairs (query, key) that are seen, keys and values both. */
static double prefill(const setup *s) {
    double best = 0;
    const kv_bank bank = kv_bank_at(s->memory, s->type, s->d, SLOTS);
    const attend_args a = args_of(s, &bank, TOKENS, 10 * SLOTS + 1234);
    for (int round = 0; round < 2 * ROUNDS; round++) {
        clear_state(s, TOKENS * s->group);
        const double start = now();
        s->k->attend_ring[s->type](&a);
        const double rate = (double)(TOKENS * s->group) * WINDOW * 2.0 * s->d / (now() - start);
        sink += s->o[0];
        best = rate > best ? rate : best;
    }
    return best;
}

int main(int argc, char **argv) {
    const size_t asked = (argc > 1 ? (size_t)strtoul(argv[1], NULL, 10) : 600) << 20;
    const size_t least = 2 * kv_bank_bytes(LMI_KV_F32, 128, SLOTS), budget = asked > least ? asked : least;
    const struct {
        int32_t d;
        int64_t group;
    } shapes[] = {{128, 4}, {64, 8}, {128, 1}};
    const lmi_kv_type types[] = {LMI_KV_F16, LMI_KV_Q8_0, LMI_KV_F32};
    const char *names[] = {"f16", "q8_0", "f32"};
    uint32_t seed = 1;

    char *memory = aligned_alloc(64, budget);
    memset(memory, 1, budget);
    printf("read %.1f GB/s over %zu MiB\n", read_bandwidth(memory, budget) * 1e-9, budget >> 20);
    for (int isa = LMI_ISA_AVX512; isa >= LMI_ISA_REF; isa--) {
        const kernels *k;
        if (kernels_get((lmi_isa)isa, &k, NULL) != LMI_OK) {
            continue;
        }
        const double peak = fma_peak((lmi_isa)isa);
        printf("%s: f32 FMA peak %.1f G/s\n", cpu_isa_name((lmi_isa)isa), peak * 1e-9);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const int32_t d = shapes[i].d;
            const size_t rows = (size_t)(TOKENS * shapes[i].group);
            for (size_t t = 0; t < 3; t++) {
                setup s = {.k = k, .type = types[t], .d = d, .group = shapes[i].group, .memory = memory};
                s.stride = (kv_bank_bytes(s.type, d, SLOTS) + 4095) / 4096 * 4096;
                s.n_banks = (int64_t)((isa == LMI_ISA_REF ? least : budget) / s.stride);
                s.q = malloc(rows * (size_t)d * sizeof(float));
                s.o = malloc(rows * (size_t)d * sizeof(float));
                s.m = malloc(rows * sizeof(float));
                s.z = malloc(rows * sizeof(float));
                s.scratch = aligned_alloc(64, (k->attend_scratch((int64_t)rows, d) + 63) / 64 * 64);
                for (size_t j = 0; j < rows * (size_t)d; j++) {
                    s.q[j] = random_normal(&seed) / sqrtf((float)d);
                }
                const kv_bank first = kv_bank_at(memory, s.type, d, SLOTS);
                fill_bank(k, &first, &seed);
                for (int64_t b = 1; b < s.n_banks; b++) {
                    memcpy(memory + (size_t)b * s.stride, memory, kv_bank_bytes(s.type, d, SLOTS));
                }
                const double bytes = decode(&s), macs = prefill(&s);
                printf("  %-4s d %3d, %d queries per kv head: decode %5.1f GB/s (%4.0f us per layer of 8 kv heads), prefill "
                       "%5.1f G/s",
                       names[t], (int)d, (int)s.group, bytes * 1e-9, 8e6 * (double)kv_bank_bytes(s.type, d, WINDOW) / bytes,
                       macs * 1e-9);
                if (peak > 0) {
                    printf(" = %.0f %% of the FMA peak", 100 * macs / peak);
                }
                printf("\n");
                fflush(stdout);
                free(s.q);
                free(s.o);
                free(s.m);
                free(s.z);
                free(s.scratch);
            }
        }
    }
    free(memory);
    return sink == 12345.0f;
}
