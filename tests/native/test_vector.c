/* exp_f32, silu, rms_norm, rope, add, scale against float64; every column gives the same bits as the portable one. */
#include "check.h"

#include "base/cpu.h"
#include "base/half.h"
#include "kernels/kernels.h"

/* In units of the last place of the float nearest to the exact value. */
static double ulps(float got, double exact) {
    const float nearest = (float)exact;
    int exponent;
    frexp((double)nearest, &exponent);
    const double unit = ldexp(1.0, exponent - 24 < -149 ? -149 : exponent - 24);
    return fabs((double)got - exact) / unit;
}

static void check_exp(void) {
    double worst = 0, worst_small = 0;
    for (int i = -110000; i <= 89000; i++) {
        const float x = (float)i * 1e-3f + 1e-4f * (float)(i % 7);
        const double exact = exp((double)x);
        if (exact >= 0x1p-126 && exact < 3.4e38) {
            worst = fmax(worst, fabs((double)exp_f32(x) / exact - 1));
        } else if (exact < 0x1p-126) {
            worst_small = fmax(worst_small, ulps(exp_f32(x), exact));
        }
    }
    for (int i = -2000000; i <= 2000000; i += 3) {
        const float x = (float)i * 1e-6f;
        worst = fmax(worst, fabs((double)exp_f32(x) / exp((double)x) - 1));
    }
    CHECK(worst <= 1.2e-7, "relative error %g", worst);
    CHECK(worst_small <= 1.0, "subnormal results are off by %g units", worst_small);
    CHECK(exp_f32(0.0f) == 1.0f && exp_f32(-0.0f) == 1.0f, "exp(0)");
    CHECK(exp_f32(-INFINITY) == 0.0f && exp_f32(-1e30f) == 0.0f && exp_f32(-104.0f) == 0.0f, "underflow");
    CHECK(exp_f32(INFINITY) == INFINITY && exp_f32(1e30f) == INFINITY && exp_f32(88.8f) == INFINITY, "overflow");
    CHECK(exp_f32(88.7f) < INFINITY, "88.7 does not overflow");
    CHECK(isnan(exp_f32(NAN)) && isnan(exp_f32(-NAN)), "NaN");
}

static void check_silu(const kernels *k) {
    double worst = 0;
    float one = 1.0f, got;
    for (int i = -130000; i <= 130000; i++) {
        const float x = (float)i * 1e-3f + 3e-5f * (float)(i % 11);
        const double exact = (double)x / (1.0 + exp(-(double)x));
        k->silu_mul(&x, &one, 1, &got);
        worst = fmax(worst, ulps(got, exact));
    }
    CHECK(worst <= 4.0, "%s: silu is off by %g units", cpu_isa_name(k->isa), worst);
    const float tiny = 1e-30f, many[] = {NAN, INFINITY, 1e30f, -1e30f};
    k->silu_mul(&tiny, &one, 1, &got);
    CHECK(got == 5e-31f, "silu(1e-30) = %g", (double)got);
    float out[4], ones[4] = {1, 1, 1, 1};
    k->silu_mul(many, ones, 4, out);
    CHECK(isnan(out[0]) && out[1] == INFINITY && out[2] == 1e30f && out[3] == 0, "%g %g %g %g", (double)out[0], (double)out[1],
          (double)out[2], (double)out[3]);
}

/* n values in a block that ends where it ends: reading on is seen by the sanitizer. */
static float *values_of(int64_t n, uint64_t *seed, double size) {
    float *x = malloc((size_t)(n > 0 ? n : 1) * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)(check_normal(seed) * size);
    }
    return x;
}

static bool same(const float *a, const float *b, int64_t n) { return n == 0 || memcmp(a, b, (size_t)n * sizeof *a) == 0; }

static float *copy_of(const float *x, int64_t n) {
    float *copy = malloc((size_t)(n > 0 ? n : 1) * sizeof *copy);
    memcpy(copy, x, (size_t)n * sizeof *copy);
    return copy;
}

static void check_rows(const kernels *k, const kernels *ref, int64_t n, uint64_t *seed) {
    float *x = values_of(n, seed, 3), *w = values_of(n, seed, 1), *y = values_of(n, seed, 1), *z = values_of(n, seed, 1),
          *in_place;

    if (n > 0) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) {
            sum += (double)x[i] * (double)x[i];
        }
        k->rms_norm(x, w, n, 1e-5f, y);
        for (int64_t i = 0; i < n; i++) {
            const double exact = (double)x[i] / sqrt(sum / (double)n + (double)1e-5f) * (double)w[i];
            CHECK(fabs((double)y[i] - exact) <= 2.0e-7 * fabs(exact), "rms_norm %d of %d: %g, not %g", (int)i, (int)n,
                  (double)y[i], exact);
        }
        in_place = copy_of(x, n);
        k->rms_norm(in_place, w, n, 1e-5f, in_place);
        ref->rms_norm(x, w, n, 1e-5f, z);
        CHECK(same(y, in_place, n) && same(y, z, n), "rms_norm of %d", (int)n);
        free(in_place);
    }

    k->silu_mul(x, w, n, y);
    for (int64_t i = 0; i < n; i++) {
        const double exact = (double)x[i] / (1 + exp(-(double)x[i])) * (double)w[i];
        CHECK(ulps(y[i], exact) <= 5, "silu_mul");
    }
    in_place = copy_of(x, n);
    k->silu_mul(in_place, w, n, in_place);
    ref->silu_mul(x, w, n, z);
    CHECK(same(y, in_place, n) && same(y, z, n), "silu_mul of %d", (int)n);
    free(in_place);

    in_place = copy_of(x, n);
    k->add(in_place, w, n);
    for (int64_t i = 0; i < n; i++) {
        CHECK(in_place[i] == x[i] + w[i], "add %d of %d", (int)i, (int)n);
    }
    k->scale(in_place, 0.37f, n);
    for (int64_t i = 0; i < n; i++) {
        CHECK(in_place[i] == (x[i] + w[i]) * 0.37f, "scale %d of %d", (int)i, (int)n);
    }
    free(in_place);
    free(x);
    free(w);
    free(y);
    free(z);
}

static void check_rope(const kernels *k, const kernels *ref, int64_t heads, int64_t d, int64_t n_rot, rope_pairing pairing,
                       uint64_t *seed) {
    float *x = values_of(heads * d, seed, 1), *turn = values_of(n_rot, seed, 1);
    float *y = copy_of(x, heads * d), *z = copy_of(x, heads * d);
    k->rope(y, heads, d, n_rot, turn, pairing);
    ref->rope(z, heads, d, n_rot, turn, pairing);
    CHECK(same(y, z, heads * d), "rope: %s differs from ref", cpu_isa_name(k->isa));
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t i = 0; i < d; i++) {
            double exact = (double)x[h * d + i];
            if (i < n_rot) {
                /* Written out from the definition: which pair, and which of the two. */
                const int64_t pair = pairing == ROPE_ADJACENT ? i / 2 : i % (n_rot / 2);
                const bool second = pairing == ROPE_ADJACENT ? i % 2 == 1 : i >= n_rot / 2;
                const int64_t a = pairing == ROPE_ADJACENT ? 2 * pair : pair,
                              b = pairing == ROPE_ADJACENT ? 2 * pair + 1 : pair + n_rot / 2;
                const double c = (double)turn[2 * pair], s = (double)turn[2 * pair + 1];
                const double xa = (double)x[h * d + a], xb = (double)x[h * d + b];
                exact = second ? xa * s + xb * c : xa * c - xb * s;
            }
            CHECK(fabs((double)y[h * d + i] - exact) <= 1e-6, "rope head %d value %d of %d, n_rot %d", (int)h, (int)i, (int)d,
                  (int)n_rot);
        }
    }
    free(x);
    free(y);
    free(z);
    free(turn);
}

int main(void) {
    const kernels *ref;
    uint64_t seed = 5;
    CHECK(kernels_get(LMI_ISA_REF, &ref, NULL) == LMI_OK, "ref");
    check_exp();
    for (int isa = LMI_ISA_REF; isa <= LMI_ISA_NEON; isa++) {
        const kernels *k;
        if (kernels_get((lmi_isa)isa, &k, NULL) != LMI_OK) {
            continue;
        }
        check_silu(k);
        for (int64_t n = 0; n <= 67; n++) {
            check_rows(k, ref, n, &seed);
        }
        check_rows(k, ref, 4096, &seed);
        check_rows(k, ref, 4111, &seed);
        for (int64_t d = 2; d <= 130; d += d < 70 ? 2 : 20) {
            for (int64_t n_rot = 2; n_rot <= d; n_rot += 2) {
                check_rope(k, ref, 3, d, n_rot, ROPE_ADJACENT, &seed);
                check_rope(k, ref, 3, d, n_rot, ROPE_HALVES, &seed);
            }
        }
        float zeros[40] = {0}, ones[40], out[40];
        for (int i = 0; i < 40; i++) {
            ones[i] = 1;
        }
        k->rms_norm(zeros, ones, 40, 1e-5f, out);
        CHECK(out[0] == 0 && out[39] == 0, "rms_norm of zeros");
        zeros[20] = NAN;
        k->rms_norm(zeros, ones, 40, 1e-5f, out);
        CHECK(isnan(out[0]) && isnan(out[39]), "rms_norm shows a NaN");
        float large[40];
        for (int i = 0; i < 40; i++) {
            large[i] = 1e30f;
        }
        k->rms_norm(large, ones, 40, 1e-5f, out);
        CHECK(fabsf(out[7] - 1.0f) <= 2e-7f, "squares beyond float: %g", (double)out[7]);
    }
    return check_report();
}
