/* Half floats against exact arithmetic in double: all 65,536 of them, and floats on and around every boundary between two. */
#include "check.h"

#include <stdbool.h>

#include "base/half.h"

/* The value of a binary16 by its definition (IEEE 754-2008, 3.4). */
static double value_of(uint16_t half) {
    int sign = half >> 15, exponent = half >> 10 & 31, mantissa = half & 1023;
    double magnitude = exponent == 31  ? (mantissa == 0 ? (double)INFINITY : (double)NAN)
                       : exponent == 0 ? ldexp(mantissa, -24)
                                       : ldexp(1024 + mantissa, exponent - 25);
    return sign ? -magnitude : magnitude;
}

/* The nearest binary16, ties to even, by looking at the two that enclose the value. 65,536 stands for infinity. */
static uint16_t nearest(float value) {
    double magnitude = fabs((double)value);
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    unsigned low = 0, high = 0x7c00; /* magnitudes of halves grow with their bits */
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (value_of((uint16_t)middle) <= magnitude) {
            low = middle;
        } else {
            high = middle;
        }
    }
    double below = value_of((uint16_t)low), above = high == 0x7c00 ? 65536.0 : value_of((uint16_t)high);
    double to_below = magnitude - below, to_above = above - magnitude;
    bool up = to_above < to_below || (to_above == to_below && (high & 1) == 0);
    return (uint16_t)(sign | (up ? high : low));
}

static void check_rounding(float value) {
    if (isnan(value)) {
        CHECK(isnan(f16_to_f32(f32_to_f16(value))));
    } else {
        CHECK(f32_to_f16(value) == nearest(value), "%a: %04x, not %04x", (double)value, f32_to_f16(value), nearest(value));
    }
}

static void test_widening(void) {
    for (unsigned i = 0; i < 65536; i++) {
        float value = f16_to_f32((uint16_t)i);
        double exact = value_of((uint16_t)i);
        CHECK(isnan(exact) ? isnan(value) : (double)value == exact, "%04x", i);
        CHECK(!signbit(value) == !(i >> 15), "%04x", i);
        float wide = bf16_to_f32((uint16_t)i);
        CHECK(f32_to_bits(wide) == i << 16, "%04x", i);
    }
}

static void test_round_trip(void) {
    for (unsigned i = 0; i < 65536; i++) {
        uint16_t back = f32_to_f16(f16_to_f32((uint16_t)i));
        CHECK(isnan(value_of((uint16_t)i)) ? (back & 0x7e00) == 0x7e00 && back >> 15 == i >> 15 : back == i, "%04x -> %04x", i,
              back);
    }
}

static void test_boundaries(void) {
    for (unsigned i = 0; i < 0x7c00; i++) { /* a half, the middle to the next one, and the floats beside them */
        double here = value_of((uint16_t)i), next = i == 0x7bff ? 65536.0 : value_of((uint16_t)(i + 1));
        const float points[2] = {(float)here, (float)((here + next) / 2)};
        for (int k = 0; k < 2; k++) {
            check_rounding(points[k]);
            check_rounding(-points[k]);
            check_rounding(nextafterf(points[k], INFINITY));
            check_rounding(nextafterf(points[k], -INFINITY));
            check_rounding(-nextafterf(points[k], INFINITY));
        }
    }
    const float others[] = {INFINITY, -INFINITY,     NAN,    65504.0f, 65519.996f,
                            65520.0f, 3.4028235e38f, 1e-45f, -1e-45f,  1.17549435e-38f};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        check_rounding(others[i]);
    }
    CHECK(f32_to_f16(65519.996f) == 0x7bff && f32_to_f16(65520.0f) == 0x7c00);
}

static void test_random(void) {
    uint64_t random = 7;
    for (int i = 0; i < 300000; i++) {
        check_rounding(f32_from_bits((uint32_t)check_random(&random)));                          /* any float */
        check_rounding((float)(check_normal(&random) * exp2(check_uniform(&random) * 42 - 26))); /* those that fit */
    }
}

int main(void) {
    test_widening();
    test_round_trip();
    test_boundaries();
    test_random();
    return check_report();
}
