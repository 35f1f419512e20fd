/* The table of tensor types, and each decoder against the format's formula written out slowly in float64.
 *
 * Products of a 11-bit scale, a 6-bit group scale and a quant are exact in float32, so the decoders may differ from the
 * formula by the rounding of one subtraction or addition: half a unit in the last place. */
#include "base/half.h"
#include "check.h"
#include "quant/blocks.h"
#include "quant/quant.h"

/* ---- the formats, one value at a time ---------------------------------------------------------------------------- */

/* `count` bits from bit `at` of a field, counted from the lowest bit of its first byte. */
static int bits(const uint8_t *field, int at, int count) {
    int value = 0;
    for (int i = 0; i < count; i++) {
        value |= (field[(at + i) / 8] >> (at + i) % 8 & 1) << i;
    }
    return value;
}

static double half_at(const uint8_t *at) {
    int sign = at[1] >> 7, exponent = at[1] >> 2 & 31, mantissa = (at[1] & 3) << 8 | at[0];
    double magnitude = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                       : exponent == 0 ? ldexp(mantissa, -24)
                                       : ldexp(1024 + mantissa, exponent - 25);
    return sign ? -magnitude : magnitude;
}

/* Quant i of a block of 32 with 4-bit quants: the low halves are the first 16. */
static int nibble32(const uint8_t *qs, int i) { return bits(qs, 8 * (i % 16) + 4 * (i / 16), 4); }

/* Quant i of 256 in parts of 2 bits: byte i mod 32 of each half, pair (i / 32) mod 4. */
static int pair256(const uint8_t *qs, int i) { return bits(qs, 8 * (32 * (i / 128) + i % 32) + 2 * (i / 32 % 4), 2); }

static int k_scale(const uint8_t *s, int g) {
    return g < 4 ? bits(s, 8 * g, 6) : bits(s, 8 * (g + 4), 4) + 16 * bits(s, 8 * (g - 4) + 6, 2);
}
static int k_min(const uint8_t *s, int g) {
    return g < 4 ? bits(s, 8 * (g + 4), 6) : bits(s, 8 * (g + 4) + 4, 4) + 16 * bits(s, 8 * g + 6, 2);
}

static const int iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const double e2m1[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

static double slow_value(quant_type type, const uint8_t *b, int i) {
    switch (type) {
    case QUANT_F32: {
        float value;
        memcpy(&value, b, 4);
        return (double)value;
    }
    case QUANT_F16:
        return half_at(b);
    case QUANT_BF16: {
        uint8_t wide[4] = {0, 0, b[0], b[1]};
        float value;
        memcpy(&value, wide, 4);
        return (double)value;
    }
    case QUANT_Q4_0:
        return half_at(b) * (nibble32(b + 2, i) - 8);
    case QUANT_Q4_1:
        return half_at(b) * nibble32(b + 4, i) + half_at(b + 2);
    case QUANT_Q5_0:
        return half_at(b) * (nibble32(b + 6, i) + 16 * bits(b + 2, i, 1) - 16);
    case QUANT_Q5_1:
        return half_at(b) * (nibble32(b + 8, i) + 16 * bits(b + 4, i, 1)) + half_at(b + 2);
    case QUANT_Q8_0:
        return half_at(b) * (b[2 + i] < 128 ? b[2 + i] : b[2 + i] - 256);
    case QUANT_Q2_K:
        return half_at(b + 80) * bits(b, 8 * (i / 16), 4) * pair256(b + 16, i) - half_at(b + 82) * bits(b, 8 * (i / 16) + 4, 4);
    case QUANT_Q3_K: {
        int g = i / 16; /* group: 0-7 in low halves, 8-15 in high halves of the first eight bytes; two more bits behind */
        int scale = bits(b + 96, 8 * (g % 8) + 4 * (g / 8), 4) + 16 * bits(b + 104, 8 * (g % 4) + 2 * (g / 4), 2) - 32;
        int high = bits(b, 8 * (i % 32) + i / 32, 1);
        return half_at(b + 108) * scale * (pair256(b + 32, i) + 4 * high - 4);
    }
    case QUANT_Q4_K: {
        int q = bits(b + 16, 8 * (32 * (i / 64) + i % 32) + 4 * (i / 32 % 2), 4);
        return half_at(b) * k_scale(b + 4, i / 32) * q - half_at(b + 2) * k_min(b + 4, i / 32);
    }
    case QUANT_Q5_K: {
        int q = bits(b + 48, 8 * (32 * (i / 64) + i % 32) + 4 * (i / 32 % 2), 4) + 16 * bits(b + 16, 8 * (i % 32) + i / 32, 1);
        return half_at(b) * k_scale(b + 4, i / 32) * q - half_at(b + 2) * k_min(b + 4, i / 32);
    }
    case QUANT_Q6_K: {
        int low = bits(b, 8 * (64 * (i / 128) + i % 64) + 4 * (i / 64 % 2), 4), high = pair256(b + 128, i);
        int scale = b[192 + i / 16] < 128 ? b[192 + i / 16] : b[192 + i / 16] - 256;
        return half_at(b + 208) * scale * (low + 16 * high - 32);
    }
    case QUANT_IQ4_NL:
        return half_at(b) * iq4[nibble32(b + 2, i)];
    case QUANT_IQ4_XS: {
        int g = i / 32, scale = bits(b + 4, 4 * g, 4) + 16 * bits(b + 2, 2 * g, 2) - 32;
        return half_at(b) * scale * iq4[nibble32(b + 8 + 16 * g, i % 32)];
    }
    case QUANT_MXFP4: {
        int q = nibble32(b + 1, i);
        return ldexp(q < 8 ? e2m1[q] : -e2m1[q - 8], b[0] - 127);
    }
    default:
        return NAN;
    }
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

static const struct {
    quant_type type;
    const char *name;
    uint32_t values, bytes;
} expected[] = {
    {QUANT_F32, "F32", 1, 4},       {QUANT_F16, "F16", 1, 2},         {QUANT_BF16, "BF16", 1, 2},
    {QUANT_Q4_0, "Q4_0", 32, 18},   {QUANT_Q4_1, "Q4_1", 32, 20},     {QUANT_Q5_0, "Q5_0", 32, 22},
    {QUANT_Q5_1, "Q5_1", 32, 24},   {QUANT_Q8_0, "Q8_0", 32, 34},     {QUANT_Q2_K, "Q2_K", 256, 84},
    {QUANT_Q3_K, "Q3_K", 256, 110}, {QUANT_Q4_K, "Q4_K", 256, 144},   {QUANT_Q5_K, "Q5_K", 256, 176},
    {QUANT_Q6_K, "Q6_K", 256, 210}, {QUANT_IQ4_NL, "IQ4_NL", 32, 18}, {QUANT_IQ4_XS, "IQ4_XS", 256, 136},
    {QUANT_MXFP4, "MXFP4", 32, 17},
};
enum { N_EXPECTED = sizeof expected / sizeof *expected };

static void test_table(void) {
    int n = 0;
    for (uint32_t type = 0; type < 1000; type++) {
        const quant_info *info = quant_find(type);
        n += info != NULL;
        CHECK(info == NULL || ((uint32_t)info->type == type && strcmp(info->name, quant_name(type)) == 0), "%u", type);
        CHECK(type < 43 ? quant_name(type) != NULL : quant_name(type) == NULL, "%u", type);
    }
    CHECK(n == N_EXPECTED, "%d types", n);
    for (int i = 0; i < N_EXPECTED; i++) {
        const quant_info *info = quant_find((uint32_t)expected[i].type);
        CHECK(info != NULL && info == quant_find_name(text_of(expected[i].name)), "%s", expected[i].name);
        CHECK(info->block_values == expected[i].values && info->block_bytes == expected[i].bytes, "%s", expected[i].name);
    }
    CHECK(quant_find(UINT32_MAX) == NULL && quant_find(QUANT_TYPE_END) == NULL && quant_name(UINT32_MAX) == NULL, " ");
    CHECK(quant_find_name(text_of("IQ2_XXS")) == NULL && quant_find_name(text_of("")) == NULL, " ");
    CHECK(quant_find_name(text_of("Q4_")) == NULL && quant_find_name(text_of("Q4_00")) == NULL, " ");
    CHECK(strcmp(quant_name(16), "IQ2_XXS") == 0 && strcmp(quant_name(34), "TQ1_0") == 0 &&
              strcmp(quant_name(40), "NVFP4") == 0,
          " ");
}

static void check_value(const char *name, float value, double exact, int block, int i) {
    if (isnan(exact)) {
        CHECK(isnan(value), "%s block %d value %d: %g, expected NaN", name, block, i, (double)value);
    } else if (fabs(exact) > 3.4028234663852886e38) {
        CHECK(isinf(value) && (value > 0) == (exact > 0), "%s block %d value %d: %g, expected %g", name, block, i,
              (double)value, exact);
    } else {
        CHECK(fabs((double)value - exact) <= 0x1p-24 * fabs(exact), "%s block %d value %d: %.9g, expected %.9g", name, block, i,
              (double)value, exact);
    }
}

/* Random bytes make random scales too, infinities and NaN among them; blocks lie at odd addresses; nothing else is written. */
static void test_decoders(void) {
    enum { BLOCKS = 300, MOST = 256 };
    static uint8_t blocks[BLOCKS * MOST + 1];
    static float values[BLOCKS * MOST + 2];
    uint64_t seed = 7;
    for (int t = 0; t < N_EXPECTED; t++) {
        const quant_info *info = quant_find((uint32_t)expected[t].type);
        const int n = BLOCKS * (int)info->block_values;
        for (size_t i = 0; i < sizeof blocks; i++) {
            blocks[i] = (uint8_t)check_random(&seed);
        }
        values[0] = values[n + 1] = 12345.0f;
        info->to_f32(blocks + 1, values + 1, n);
        CHECK(values[0] == 12345.0f && values[n + 1] == 12345.0f, "%s writes outside", info->name);
        for (int i = 0; i < n; i++) {
            int block = i / (int)info->block_values, lane = i % (int)info->block_values;
            check_value(info->name, values[i + 1], slow_value(info->type, blocks + 1 + block * (int)info->block_bytes, lane),
                        block, lane);
        }
        info->to_f32(blocks + 1, values, 0);
        CHECK(values[0] == 12345.0f, "%s writes without a block", info->name);
    }
}

/* All 65,536 half floats, and every scale of MXFP4: subnormal, huge. */
static void test_every_scale(void) {
    for (uint32_t bits16 = 0; bits16 < 65536; bits16++) {
        uint8_t b[2] = {(uint8_t)bits16, (uint8_t)(bits16 >> 8)};
        float value;
        quant_find(QUANT_F16)->to_f32(b, &value, 1);
        check_value("F16", value, half_at(b), (int)bits16, 0);
        CHECK((signbit(value) != 0) == (bits16 >= 0x8000), "sign of %04x", bits16);
        quant_find(QUANT_BF16)->to_f32(b, &value, 1);
        check_value("BF16", value, slow_value(QUANT_BF16, b, 0), (int)bits16, 0);
    }
    for (int e = 0; e < 256; e++) {
        uint8_t b[17] = {(uint8_t)e};
        float values[32];
        for (int i = 0; i < 16; i++) {
            b[1 + i] = (uint8_t)(i | (15 - i) << 4);
        }
        quant_find(QUANT_MXFP4)->to_f32(b, values, 32);
        for (int i = 0; i < 32; i++) {
            check_value("MXFP4", values[i], slow_value(QUANT_MXFP4, b, i), e, i);
        }
    }
}

int main(void) {
    test_table();
    test_decoders();
    test_every_scale();
    return check_report();
}
