/* Frequencies and rows of cos, sin against long double and known values. */
#include "check.h"

#include "lambda/rope.h"

static rope_params params_of(int32_t n_rot, double theta) {
    return (rope_params){.n_rot = n_rot,
                         .theta = theta,
                         .factor = 1,
                         .original_context = 4096,
                         .attention_factor = 1,
                         .beta_fast = 32,
                         .beta_slow = 1};
}

/* The frequency that a table holds, in radians per token. */
static double frequency(const rope_table *table, int32_t pair) {
    return (double)table->turns[pair] * 0x1p-64 * 6.283185307179586;
}

/* p * w is exact in long double for a 24-bit w and p < 2^40; fmodl is exact but for the digits of 2 pi. */
static void exact_turn(float w, int64_t p, double *c, double *s) {
    const long double two_pi = 6.28318530717958647692528676655900577L;
    const long double angle = fmodl((long double)p * (long double)w, two_pi);
    *c = (double)cosl(angle);
    *s = (double)sinl(angle);
}

static void check_rows(void) {
    const int64_t positions[] = {0,       1,        2,        5,         100,        4095,       131071,
                                 1000000, 16777213, 16777221, 200000000, 1000000007, 10000000000};
    const double bases[] = {10000, 500000, 1e6};
    for (size_t b = 0; b < 3; b++) {
        const rope_params params = params_of(128, bases[b]);
        rope_table table;
        CHECK(rope_table_init(&table, &params, NULL) == LMI_OK && table.n_rot == 128 && table.magnitude == 1.0f, "init");
        double worst = 0;
        for (size_t i = 0; i < sizeof positions / sizeof *positions; i++) {
            float row[128];
            rope_row(&table, positions[i], row);
            for (int pair = 0; pair < 64; pair++) {
                const float w = 1.0f / (float)pow(bases[b], (double)((float)(2 * pair) / 128.0f));
                double c, s;
                exact_turn(w, positions[i], &c, &s);
                worst = fmax(worst, fmax(fabs((double)row[2 * pair] - c), fabs((double)row[2 * pair + 1] - s)));
            }
        }
        CHECK(worst <= 1e-7, "base %g: off by %g", bases[b], worst);
    }
}

static void check_phases(void) {
    const rope_params params = params_of(64, 10000);
    rope_table table;
    CHECK(rope_table_init(&table, &params, NULL) == LMI_OK, "init");
    CHECK(table.turns[0] == 0x28be60db9391054au, "one radian is %llx",
          (unsigned long long)table.turns[0]); /* 2^64 / 2 pi = ...4a.7f09 */
    float zero[64];
    rope_row(&table, 0, zero);
    for (int i = 0; i < 32; i++) {
        CHECK(zero[2 * i] == 1.0f && zero[2 * i + 1] == 0.0f, "position 0");
    }
    /* Fast pairs: one turn per token is none, a quarter turn is exact. */
    rope_table quarter = {.n_rot = 2, .magnitude = 1.0f, .turns = {(uint64_t)1 << 62}};
    const float expected[8] = {1, 0, 0, 1, -1, 0, 0, -1};
    for (int64_t p = 0; p < 8; p++) {
        float row[2];
        rope_row(&quarter, p + 4000000000, row);
        CHECK(row[0] == expected[2 * (p % 4)] && row[1] == expected[2 * (p % 4) + 1], "%d quarters: %g %g", (int)p,
              (double)row[0], (double)row[1]);
    }
    /* Everywhere on the circle, the joints between quarters included. */
    uint64_t seed = 1;
    for (int i = 0; i < 200000; i++) {
        const uint64_t joint = (uint64_t)(i % 16) << 60;
        const uint64_t phase = i % 2 ? check_random(&seed) : joint + (check_random(&seed) >> (i % 62)) - 7;
        rope_table one = {.n_rot = 2, .magnitude = 1.0f, .turns = {phase}};
        float row[2];
        rope_row(&one, 1, row);
        const double angle = (double)phase * 0x1p-64 * 6.283185307179586476925;
        CHECK(fabs((double)row[0] - cos(angle)) <= 6.1e-8 && fabs((double)row[1] - sin(angle)) <= 6.1e-8, "phase %llx",
              (unsigned long long)phase);
    }
}

static void check_scaling(void) {
    rope_table plain, other;
    rope_params params = params_of(64, 10000);
    CHECK(rope_table_init(&plain, &params, NULL) == LMI_OK, "init");
    params.scaling = ROPE_SCALING_LINEAR;
    params.factor = 4;
    CHECK(rope_table_init(&other, &params, NULL) == LMI_OK, "init");
    for (int i = 0; i < 32; i++) {
        CHECK(llabs((long long)(other.turns[i] * 4 - plain.turns[i])) <= 4, "pair %d", i);
    }
    float factors[32];
    for (int i = 0; i < 32; i++) {
        factors[i] = 1.0f + (float)i;
    }
    params = params_of(64, 10000);
    params.factors = factors;
    CHECK(rope_table_init(&other, &params, NULL) == LMI_OK, "init");
    for (int i = 0; i < 32; i++) {
        CHECK(fabs(frequency(&other, i) * (i + 1) / frequency(&plain, i) - 1) <= 6e-8, "pair %d", i);
    }
    /* YaRN, 64 values, base 10000, 4096 tokens stretched 8 times: by the formulas of the paper the pair that turns 32 times over
     * 4096 tokens is 10.46 and that which turns once is 22.51, so pairs up to 10 stay and pairs from 23 are divided by 8. */
    params = params_of(64, 10000);
    params.scaling = ROPE_SCALING_YARN;
    params.factor = 8;
    CHECK(rope_table_init(&other, &params, NULL) == LMI_OK, "init");
    CHECK(fabs((double)other.magnitude - (0.1 * log(8.0) + 1.0)) <= 1e-7, "magnitude %g", (double)other.magnitude);
    for (int i = 0; i < 32; i++) {
        const double ramp = fmin(fmax((i - 10) / 13.0, 0), 1), w = pow(10000, -i / 32.0);
        const double expected = w / 8 * ramp + w * (1 - ramp);
        CHECK(fabs(frequency(&other, i) / expected - 1) <= 4e-7, "pair %d: %g, not %g", i, frequency(&other, i), expected);
    }
    params.attention_factor = 0.5;
    CHECK(rope_table_init(&other, &params, NULL) == LMI_OK, "init");
    float row[64];
    rope_row(&other, 0, row);
    for (int i = 0; i < 32; i++) {
        CHECK(row[2 * i] == other.magnitude && row[2 * i + 1] == 0, "position 0 carries the magnitude");
    }
    CHECK(fabs((double)other.magnitude - 0.5 * (0.1 * log(8.0) + 1.0)) <= 1e-7, "attention factor");
}

static void check_refused(rope_params params, const char *what) {
    rope_table table;
    lmi_error error = {0};
    CHECK(rope_table_init(&table, &params, &error) != LMI_OK, "%s was accepted", what);
    CHECK(error.message[0] != 0 && error.remedy[0] != 0, "%s: \"%s\" \"%s\"", what, error.message, error.remedy);
}

static void check_bad(void) {
    const double bad[] = {0, -1, NAN, INFINITY, -INFINITY};
    const int32_t sizes[] = {0, -2, 1, 63, 2 * ROPE_MAX_PAIRS + 2, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check_refused(params_of(sizes[i], 10000), "size");
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        check_refused(params_of(64, bad[i]), "base");
        rope_params params = params_of(64, 10000);
        params.scaling = ROPE_SCALING_LINEAR;
        params.factor = bad[i];
        check_refused(params, "factor");
        float factors[32];
        for (int j = 0; j < 32; j++) {
            factors[j] = 1;
        }
        factors[31] = (float)bad[i];
        params = params_of(64, 10000);
        params.factors = factors;
        check_refused(params, "factors");
        for (int field = 0; field < 5; field++) {
            params = params_of(64, 10000);
            params.scaling = ROPE_SCALING_YARN;
            params.factor = 4;
            *(field == 0   ? &params.factor
              : field == 1 ? &params.original_context
              : field == 2 ? &params.attention_factor
              : field == 3 ? &params.beta_fast
                           : &params.beta_slow) = bad[i];
            check_refused(params, "YaRN");
        }
    }
    check_refused(params_of(64, 1e300), "a base whose powers overflow");
    check_refused(params_of(64, 1e-30), "a base whose powers vanish");
    rope_params params = params_of(64, 1.0);
    params.scaling = ROPE_SCALING_YARN;
    params.factor = 4;
    check_refused(params, "YaRN with base 1");
    params = params_of(64, 10000);
    params.scaling = ROPE_SCALING_YARN;
    params.factor = 1e-300;
    check_refused(params, "YaRN with a negative magnitude");
    rope_table table;
    params = params_of(2 * ROPE_MAX_PAIRS, 10000);
    CHECK(rope_table_init(&table, &params, NULL) == LMI_OK && table.n_rot == 2 * ROPE_MAX_PAIRS, "the largest size");
    params = params_of(2, 10000);
    CHECK(rope_table_init(&table, &params, NULL) == LMI_OK && table.n_rot == 2, "the smallest size");
}

int main(void) {
    check_rows();
    check_phases();
    check_scaling();
    check_bad();
    return check_report();
}
