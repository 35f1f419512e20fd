/* Packing of activations: what activation.h says, computed in another way, and the same bits on every instruction set. */
#define _GNU_SOURCE
#include "base/cpu.h"
#include "check.h"
#include "fence.h"
#include "kernels/kernels.h"

enum { ISAS = LMI_ISA_NEON + 1 };

static const kernels *columns[ISAS]; /* [0] unused; NULL where this machine has none */

/* Bit for bit the same on every instruction set, and what activation.h says, computed in another way. */
static void check_packed_block(const float *x, int n, const int8_t *q, float d) {
    double largest = 0;
    bool finite = true;
    for (int i = 0; i < n; i++) {
        finite = finite && isfinite(x[i]);
        largest = fabs((double)x[i]) > largest ? fabs((double)x[i]) : largest;
    }
    CHECK(finite ? d == (float)(largest / 127) : isnan(d), "scale %g of largest %g", (double)d, largest);
    for (int i = 0; i < n; i++) {
        double want = d > 0 ? fmax(-127, fmin(127, nearbyint((double)(x[i] / d)))) : 0;
        CHECK(q[i] == want, "q %d of %g / %g", q[i], (double)x[i], (double)d);
    }
}

static void test_pack(act_kind kind, int64_t k, uint64_t seed) {
    size_t bytes = act_row_bytes(kind, k);
    fence x_fence = fence_new((size_t)k * sizeof(float)), row_fence = fence_new(bytes);
    float *x = fence_last(&x_fence, (size_t)k * sizeof(float));
    char *row = fence_last(&row_fence, bytes), *first = aligned_alloc(64, bytes);
    int group = kind == ACT_Q8_32 ? 32 : 256;
    for (int round = 0; round < 12; round++) {
        for (int64_t c = 0; c < k; c++) {
            float v = (float)check_normal(&seed);
            v = round == 1 ? 0.0f : round == 2 ? v * 1e-42f : round == 3 ? v * 1e36f : v;
            v = round == 4 ? (float)((int)(check_random(&seed) % 509) - 254) * 0.5f : v; /* ties */
            v = round == 5 && c % 77 == 3 ? INFINITY : round == 6 && c % 300 == 11 ? NAN : v;
            v = round == 7 ? v * powf(10.0f, (float)(c / group % 60 - 30)) : v;
            x[c] = round == 8 ? (c % 2 ? -0.0f : 1e-45f) : v;
        }
        for (int isa = LMI_ISA_REF; isa < ISAS; isa++) {
            if (columns[isa] == NULL) {
                continue;
            }
            memset(row, 0xa5, bytes);
            columns[isa]->pack[kind](x, k, row);
            if (isa == LMI_ISA_REF) {
                memcpy(first, row, bytes);
            }
            CHECK(memcmp(row, first, bytes) == 0, "kind %d k %lld round %d: %s packs differently", kind, (long long)k, round,
                  cpu_isa_name((lmi_isa)isa));
        }
        if (kind == ACT_F32) {
            CHECK(memcmp(first, x, (size_t)k * sizeof *x) == 0);
            continue;
        }
        for (int64_t b = 0; b < k / group; b++) {
            check_packed_block(x + group * b, group, act_q8(first) + group * b, act_scales(first, k)[b]);
        }
        int part = kind == ACT_Q8_32 ? 32 : 16;
        for (int64_t g = 0; g < k / part; g++) {
            int sum = 0;
            for (int i = 0; i < part; i++) {
                sum += act_q8(first)[part * g + i];
            }
            CHECK(sum == (kind == ACT_Q8_32 ? act_sums_32(first, k)[g] : act_sums_16(first, k)[g]));
        }
    }
    fence_free(&x_fence);
    fence_free(&row_fence);
    free(first);
}

/* The budget of quantising Gaussian activations: the squared error of the result relative to its square. */
static void test_quantization_budget(void) {
    static const struct {
        act_kind kind;
        double budget;
    } cases[] = {{ACT_Q8_32, 4e-5}, {ACT_Q8_256, 6e-5}};
    enum { K = 4096, ROUNDS = 64 };
    float *x = malloc(K * sizeof *x);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *row = aligned_alloc(64, act_row_bytes(cases[i].kind, K));
        uint64_t seed = 99;
        double error = 0, energy = 0;
        for (int round = 0; round < ROUNDS; round++) {
            for (int c = 0; c < K; c++) {
                x[c] = (float)check_normal(&seed);
            }
            columns[LMI_ISA_REF]->pack[cases[i].kind](x, K, row);
            for (int c = 0; c < K; c++) {
                double back = (double)act_q8(row)[c] * (double)act_scales(row, K)[c / (cases[i].kind == ACT_Q8_32 ? 32 : 256)];
                error += (back - (double)x[c]) * (back - (double)x[c]);
                energy += (double)x[c] * (double)x[c];
            }
        }
        CHECK(error / energy <= cases[i].budget && error / energy > 1e-6, "kind %d: NMSE %.3g", cases[i].kind, error / energy);
        free(row);
    }
    free(x);
}

int main(void) {
    static const int64_t long_k[] = {256, 512, 4096 + 256}, short_k[] = {32, 64, 96}, odd_k[] = {1, 7, 172};
    for (int isa = LMI_ISA_REF; isa < ISAS; isa++) {
        lmi_error error;
        if (kernels_get((lmi_isa)isa, &columns[isa], &error) != LMI_OK) {
            columns[isa] = NULL;
        }
    }
    for (size_t i = 0; i < 3; i++) {
        test_pack(ACT_Q8_32, long_k[i], i);
        test_pack(ACT_Q8_32, short_k[i], i);
        test_pack(ACT_Q8_256, long_k[i], i);
        test_pack(ACT_F32, odd_k[i], i);
    }
    test_quantization_budget();
    return check_report();
}
