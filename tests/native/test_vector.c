/* exp_f32, activations, norms, rope, softcap, clamp, add, scale against float64; every column gives the portable one's bits. */
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

/* ---- activations, as written in kernels.h ----------------------------------------------------------------------------- */

static double logistic(double x) { return 1 / (1 + exp(-x)); }

static double exact_activation(int kind, double x) {
    const double pi = 3.14159265358979323846;
    switch (kind) {
    case ACTIVATION_SILU:
        return x * logistic(x);
    case ACTIVATION_GELU_TANH: /* 1 + tanh(u), without losing what is left of it far below */
        return x * logistic(2 * sqrt(2 / pi) * (x + 0.044715 * x * x * x));
    case ACTIVATION_GELU_ERF:
        return x / 2 * erfc(-x / sqrt(2.0));
    default:
        return fmin(x, 7) * logistic(1.702 * fmin(x, 7));
    }
}

static double exact_factor(int kind, double up) { return kind == ACTIVATION_SWIGLU_OAI ? 1 + fmin(fmax(up, -7), 7) : up; }

static const char *const KIND_NAMES[] = {"silu", "gelu_tanh", "gelu_erf", "swiglu_oai"};

static void check_point(const kernels *k, int kind, float x, float got, double *worst_share, double *worst_ulps) {
    const double exact = exact_activation(kind, (double)x), far = fabs((double)got - exact);
    *worst_share = fmax(*worst_share, got == got ? far / fmax(4e-7 * fabs((double)x), 0x1p-149) : INFINITY);
    if (x >= 0 || kind == ACTIVATION_SILU) {
        *worst_ulps = fmax(*worst_ulps, ulps(got, exact));
    }
    (void)k;
}

/* Evenly over what matters, then every exponent from the smallest to the largest float. */
static void check_activation(const kernels *k, int kind) {
    enum { N = 4096 };
    static float x[N], got[N];
    double share = 0, units = 0;
    uint64_t seed = 17;
    for (int round = 0; round < 120; round++) {
        for (int i = 0; i < N; i++) {
            const float even = (float)((double)(round * N + i) / (120.0 * N) * 260 - 130);
            const float near = (float)(check_uniform(&seed) * 40 - 20);
            const float any = f32_from_bits((uint32_t)(check_random(&seed) >> 32));
            x[i] = round % 3 == 0 ? even : round % 3 == 1 ? near : isfinite(any) ? any : 0.0f;
        }
        k->activate[kind](x, NULL, N, got);
        for (int i = 0; i < N; i++) {
            check_point(k, kind, x[i], got[i], &share, &units);
        }
    }
    CHECK(share <= 1, "%s %s: off by %.2f of what is allowed", cpu_isa_name(k->isa), KIND_NAMES[kind], share);
    CHECK(units <= 8, "%s %s: off by %.1f units", cpu_isa_name(k->isa), KIND_NAMES[kind], units);
    if (k->isa == LMI_ISA_REF) {
        fprintf(stderr, "%s: %.2f of what is allowed, %.1f units of the last place\n", KIND_NAMES[kind], share, units);
    }

    const float odd[20] = {NAN,    -NAN,    INFINITY, -INFINITY, 3.4e38f, -3.4e38f, 0.0f, -0.0f, 1e-30f, -1e-30f,
                           1e-45f, -1e-45f, 20,       -20,       90,      -90,      200,  -200,  1e10f,  -1e10f};
    float out[20], ups[20], with_up[20], again[20];
    k->activate[kind](odd, NULL, 20, out);
    CHECK(isnan(out[0]) && isnan(out[1]), "%s of NaN", KIND_NAMES[kind]);
    const double top = exact_activation(kind, 1e38);
    CHECK((double)out[2] == (kind == ACTIVATION_SWIGLU_OAI ? (double)out[4] : INFINITY), "%s of inf: %g", KIND_NAMES[kind],
          (double)out[2]);
    CHECK(kind != ACTIVATION_SWIGLU_OAI || fabs((double)out[2] - top) < 4e-6, "the gate stops at 7: %g", (double)out[2]);
    CHECK(out[3] == 0 && out[5] == 0 && out[6] == 0 && out[7] == 0, "%s: %g %g %g %g", KIND_NAMES[kind], (double)out[3],
          (double)out[5], (double)out[6], (double)out[7]);
    for (int i = 4; i < 20; i++) {
        CHECK(isfinite(out[i]), "%s of %g: %g", KIND_NAMES[kind], (double)odd[i], (double)out[i]);
    }

    /* The second half: whole, in place over the gate and over itself. */
    const float factors[20] = {1, 1, 2, 2, 0.5f, 0.5f, 3, 3, -1, -9, 9, 7, -7, 6.5f, -6.5f, NAN, INFINITY, -INFINITY, 0, -0.5f};
    memcpy(ups, factors, sizeof ups);
    k->activate[kind](odd, ups, 20, with_up);
    for (int i = 0; i < 20; i++) {
        const float factor = (float)(isnan(ups[i]) ? (double)NAN : exact_factor(kind, (double)ups[i]));
        const float expected = out[i] * factor;
        CHECK(memcmp(&with_up[i], &expected, sizeof expected) == 0 || (isnan(with_up[i]) && isnan(expected)),
              "%s(%g) by %g: %g, not %g", KIND_NAMES[kind], (double)odd[i], (double)ups[i], (double)with_up[i],
              (double)expected);
    }
    memcpy(again, odd, sizeof again);
    k->activate[kind](again, ups, 20, again);
    CHECK(memcmp(again, with_up, sizeof again) == 0, "%s over its gate", KIND_NAMES[kind]);
    k->activate[kind](odd, ups, 20, ups);
    CHECK(memcmp(ups, with_up, sizeof ups) == 0, "%s over its factor", KIND_NAMES[kind]);
}

/* ---- softcap and clamp ------------------------------------------------------------------------------------------------- */

static void check_limits(const kernels *k, const kernels *ref) {
    enum { N = 4099 };
    static float x[N], y[N], z[N];
    const float caps[] = {50, 30, 1, 7.3f};
    uint64_t seed = 23;
    double worst = 0;
    for (size_t c = 0; c < sizeof caps / sizeof *caps; c++) {
        for (int round = 0; round < 20; round++) {
            for (int i = 0; i < N; i++) {
                const float any = f32_from_bits((uint32_t)(check_random(&seed) >> 32));
                x[i] = round % 2 ? (float)(check_normal(&seed) * (double)caps[c]) : isfinite(any) ? any : 1.0f;
            }
            memcpy(y, x, sizeof y);
            memcpy(z, x, sizeof z);
            k->softcap(y, caps[c], N);
            ref->softcap(z, caps[c], N);
            CHECK(memcmp(y, z, sizeof y) == 0, "softcap differs from ref");
            for (int i = 0; i < N; i++) {
                const double exact = (double)caps[c] * tanh((double)x[i] / (double)caps[c]);
                const double allowed = 4e-7 * fabs(exact) + (double)caps[c] * 0x1p-149;
                worst = fmax(worst, y[i] == y[i] ? fabs((double)y[i] - exact) / allowed : INFINITY);
            }
            memcpy(y, x, sizeof y);
            k->clamp(y, caps[c], N);
            for (int i = 0; i < N; i++) {
                CHECK(y[i] == fminf(fmaxf(x[i], -caps[c]), caps[c]), "clamp %g: %g", (double)x[i], (double)y[i]);
            }
        }
    }
    CHECK(worst <= 1, "softcap is off by %g of what is allowed", worst);
    if (k->isa == LMI_ISA_REF) {
        fprintf(stderr, "softcap: %.2f of what is allowed\n", worst);
    }
    for (int64_t n = 0; n <= 20; n++) { /* the last place stays */
        float odd[21] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e30f, -1e30f, 3, -3, 1e-45f}, capped[21];
        memcpy(capped, odd, sizeof odd);
        capped[n] = odd[n] = 77.0f;
        k->softcap(capped, 2.0f, n);
        k->clamp(odd, 2.0f, n);
        CHECK(capped[n] == 77.0f && odd[n] == 77.0f, "one too many");
        const float limits[] = {NAN, 2, -2, 0, 0, 2, -2};
        for (int64_t i = 0; i < n && i < 7; i++) {
            CHECK(i == 0 ? isnan(capped[i]) && isnan(odd[i]) : capped[i] == limits[i] && odd[i] == limits[i], "%d: %g %g",
                  (int)i, (double)capped[i], (double)odd[i]);
            CHECK(i != 4 || (signbit(capped[i]) && signbit(odd[i])), "the sign of zero");
        }
    }
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

/* Every combination of weight and bias, on values far from 0 as well: the mean must not eat the digits of what is left. */
static void check_layer_norm(const kernels *k, const kernels *ref, int64_t n, double shift, uint64_t *seed) {
    float *x = values_of(n, seed, 3), *w = values_of(n, seed, 1), *b = values_of(n, seed, 1), *y = values_of(n, seed, 1),
          *z = values_of(n, seed, 1);
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < n; i++) {
        x[i] += (float)shift;
        mean += (double)x[i] / (double)n;
    }
    for (int64_t i = 0; i < n; i++) {
        variance += ((double)x[i] - mean) * ((double)x[i] - mean) / (double)n;
    }
    for (int form = 0; form < 4; form++) {
        const float *weight = form & 1 ? w : NULL, *bias = form & 2 ? b : NULL;
        k->layer_norm(x, weight, bias, n, 1e-5f, y);
        for (int64_t i = 0; i < n; i++) {
            const double normal = ((double)x[i] - mean) / sqrt(variance + (double)1e-5f);
            const double scaled = normal * (weight != NULL ? (double)w[i] : 1),
                         exact = scaled + (bias != NULL ? (double)b[i] : 0);
            CHECK(fabs((double)y[i] - exact) <= 2e-7 * (fabs(scaled) + fabs(exact)) + 1e-12 * fabs(shift),
                  "layer_norm %d of %d, form %d: %g, not %g", (int)i, (int)n, form, (double)y[i], exact);
        }
        float *in_place = copy_of(x, n);
        k->layer_norm(in_place, weight, bias, n, 1e-5f, in_place);
        ref->layer_norm(x, weight, bias, n, 1e-5f, z);
        CHECK(same(y, in_place, n) && same(y, z, n), "layer_norm of %d, form %d", (int)n, form);
        free(in_place);
    }
    free(x);
    free(w);
    free(b);
    free(y);
    free(z);
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

    for (int kind = 0; kind < ACTIVATIONS; kind++) {
        k->activate[kind](x, w, n, y);
        for (int64_t i = 0; i < n; i++) {
            const double factor = exact_factor(kind, (double)w[i]);
            const double exact = exact_activation(kind, (double)x[i]) * factor;
            const double allowed = 4e-7 * fabs((double)x[i] * factor) + 2e-7 * fabs((double)x[i]); /* the second: 1 + up */
            CHECK(fabs((double)y[i] - exact) <= allowed, "%s: %g, not %g", KIND_NAMES[kind], (double)y[i], exact);
        }
        in_place = copy_of(x, n);
        k->activate[kind](in_place, w, n, in_place);
        ref->activate[kind](x, w, n, z);
        CHECK(same(y, in_place, n) && same(y, z, n), "%s of %d", KIND_NAMES[kind], (int)n);
        free(in_place);
        k->activate[kind](x, NULL, n, y);
        ref->activate[kind](x, NULL, n, z);
        CHECK(same(y, z, n), "%s of %d alone", KIND_NAMES[kind], (int)n);
    }

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
        for (int kind = 0; kind < ACTIVATIONS; kind++) {
            check_activation(k, kind);
        }
        check_limits(k, ref);
        for (int64_t n = 0; n <= 67; n++) {
            check_rows(k, ref, n, &seed);
            if (n > 0) {
                check_layer_norm(k, ref, n, 0, &seed);
                check_layer_norm(k, ref, n, 1000, &seed);
            }
        }
        check_layer_norm(k, ref, 4096, -30, &seed);
        check_rows(k, ref, 4096, &seed);
        check_rows(k, ref, 4111, &seed);
        for (int64_t d = 64; d <= 256; d += d < 128 ? 16 : 128) { /* the sizes that models turn: all, half, a quarter */
            for (int64_t part = 1; part <= 4; part *= 2) {
                check_rope(k, ref, 5, d, d / part, ROPE_ADJACENT, &seed);
                check_rope(k, ref, 5, d, d / part, ROPE_HALVES, &seed);
            }
        }
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
        k->layer_norm(zeros, NULL, NULL, 40, 1e-5f, out);
        CHECK(isnan(out[0]) && isnan(out[39]), "layer_norm shows a NaN");
        float large[40];
        for (int i = 0; i < 40; i++) {
            large[i] = i % 2 ? 1e30f : 3e30f;
        }
        k->layer_norm(large, NULL, NULL, 40, 1e-5f, out);
        CHECK(out[0] == 1 && out[39] == -1, "squares beyond float: %g %g", (double)out[0], (double)out[39]);
        for (int i = 0; i < 40; i++) {
            large[i] = 0.1f;
        }
        k->layer_norm(large, NULL, ones, 40, 1e-5f, out);
        CHECK(out[0] == 1 && out[39] == 1, "layer_norm of equal values is the bias");
        for (int i = 0; i < 40; i++) {
            large[i] = 1e30f;
        }
        k->rms_norm(large, ones, 40, 1e-5f, out);
        CHECK(fabsf(out[7] - 1.0f) <= 2e-7f, "squares beyond float: %g", (double)out[7]);
    }
    return check_report();
}
