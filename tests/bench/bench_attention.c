/* Attention by instruction set and kind of bank: decode in GB/s of keys and values, prefill in G multiply-adds per second, beside
 * the machine's read bandwidth and FMA peak measured in the same process.
 *
 *   bench_attention [MiB of banks to walk through, default 600]
 *
 * Decode walks through many layers' banks, so that nothing but the last-level cache can help; prefill attends one block of 64
 * tokens to a full window again and again. One thread, by its own time; best of several rounds. */
#include "bench.h"

#include "base/cpu.h"

enum { SLOTS = 4160, WINDOW = 4096, SEGMENT = 512, TOKENS = 64 };

static float random_normal(uint32_t *seed) {
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += random_unit(seed) - 0.5;
    }
    return (float)(sum * 1.7320508);
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

static void decode(void *context) {
    const setup *s = context;
    for (int64_t b = 0; b < s->n_banks; b++) {
        const kv_bank bank = kv_bank_at(s->memory + (size_t)b * s->stride, s->type, s->d, SLOTS);
        attend_args a = args_of(s, &bank, 1, 10 * SLOTS + 1234);
        for (a.slot0 = 0; a.slot0 < SLOTS; a.slot0 += SEGMENT) {
            a.slot1 = a.slot0 + SEGMENT < SLOTS ? a.slot0 + SEGMENT : SLOTS;
            clear_state(s, s->group);
            s->k->attend_ring[s->type](&a);
        }
    }
}

static void prefill(void *context) {
    const setup *s = context;
    const kv_bank bank = kv_bank_at(s->memory, s->type, s->d, SLOTS);
    const attend_args a = args_of(s, &bank, TOKENS, 10 * SLOTS + 1234);
    clear_state(s, TOKENS * s->group);
    s->k->attend_ring[s->type](&a);
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

    char *memory = allocate(budget);
    printf("read %.1f GB/s over %zu MiB\n", read_peak(memory, budget), budget >> 20);
    for (int isa = LMI_ISA_AVX512; isa >= LMI_ISA_REF; isa--) {
        const kernels *k;
        if (kernels_get((lmi_isa)isa, &k, NULL) != LMI_OK) {
            continue;
        }
        const double peak = fma_peak((lmi_isa)isa);
        printf("%s: f32 FMA peak %.1f G/s\n", cpu_isa_name((lmi_isa)isa), peak);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const int32_t d = shapes[i].d;
            const size_t rows = (size_t)(TOKENS * shapes[i].group);
            for (size_t t = 0; t < 3; t++) {
                setup s = {.k = k, .type = types[t], .d = d, .group = shapes[i].group, .memory = memory};
                s.stride = (kv_bank_bytes(s.type, d, SLOTS) + 4095) / 4096 * 4096;
                s.n_banks = (int64_t)((isa == LMI_ISA_REF ? least : budget) / s.stride);
                s.q = allocate(rows * (size_t)d * sizeof(float));
                s.o = allocate(rows * (size_t)d * sizeof(float));
                s.m = allocate(rows * sizeof(float));
                s.z = allocate(rows * sizeof(float));
                s.scratch = allocate(k->attend_scratch((int64_t)rows, d) + 1);
                for (size_t j = 0; j < rows * (size_t)d; j++) {
                    s.q[j] = random_normal(&seed) / sqrtf((float)d);
                }
                const kv_bank first = kv_bank_at(memory, s.type, d, SLOTS);
                fill_bank(k, &first, &seed);
                for (int64_t b = 1; b < s.n_banks; b++) {
                    memcpy(memory + (size_t)b * s.stride, memory, kv_bank_bytes(s.type, d, SLOTS));
                }
                /* keys and values that a token sees; multiply-adds over pairs (query, key) that are seen */
                const double seen = (double)kv_bank_bytes(s.type, d, WINDOW);
                const double gigabytes = 1e-9 * (double)s.n_banks * seen / fastest(decode, &s);
                const double macs = 1e-9 * (double)rows * WINDOW * 2.0 * d / fastest(prefill, &s);
                printf("  %-4s d %3d, %d queries per kv head: decode %5.1f GB/s (%4.0f us per layer of 8 kv heads), prefill "
                       "%5.1f G/s = %.0f %% of the FMA peak\n",
                       names[t], (int)d, (int)s.group, gigabytes, 8e-3 * seen / gigabytes, macs, 100 * macs / peak);
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
    return 0;
}
