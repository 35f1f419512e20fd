#include "lambda/rope.h"

#include <math.h>
#include <stddef.h>

#include "base/half.h"

static const double TWO_PI = 6.283185307179586476925;

/* Frequencies beyond this turn by more than 2^31 per token: no model means that. */
static const float MAX_FREQUENCY = 4294967296.0f;

/* round(2^64 * w / 2 pi) mod 2^64, exact to the last unit: w = m * 2^e is an integer times a power of two, and 1 / 2 pi is
 * taken to 128 bits. A whole turn per token is no turn, hence mod. 0 < w <= 2^32. */
static uint64_t turns_of(float w) {
    const uint64_t inverse_high = 0x28be60db9391054au, inverse_low = 0x7f09d5f47d4d3770u; /* 2^128 / 2 pi */
    uint32_t bits = f32_to_bits(w);
    uint32_t exponent = bits >> 23; /* w > 0: no sign */
    uint64_t m = bits & 0x7fffffu;
    if (exponent == 0) {
        exponent = 1;
    } else {
        m |= 0x800000u;
    }
    /* m / 2 pi * 2^128 as limbs of 64 bits, least first; m < 2^24, so the halves of each product fit. */
    const uint64_t parts[4] = {inverse_low & 0xffffffffu, inverse_low >> 32, inverse_high & 0xffffffffu, inverse_high >> 32};
    uint64_t limbs[4] = {0, 0, 0, 0};
    uint64_t carry = 0;
    for (int i = 0; i < 4; i++) {
        carry += m * parts[i];
        limbs[i / 2] |= (carry & 0xffffffffu) << (32 * (i % 2));
        carry >>= 32;
    }
    limbs[2] = carry;
    /* w = m * 2^(exponent - 150), so the answer is the product shifted right by 64 + 150 - exponent (55 to 213) bits, rounded. */
    const uint32_t shift = 214 - exponent;
    const uint32_t last = shift - 1; /* the bit that decides the rounding */
    const uint64_t round = last < 192 ? limbs[last / 64] >> (last % 64) & 1 : 0;
    const uint32_t limb = shift / 64, bit = shift % 64;
    uint64_t f = limb < 3 ? limbs[limb] >> bit : 0;
    if (bit != 0 && limb < 2) {
        f |= limbs[limb + 1] << (64 - bit);
    }
    return f + round;
}

/* YaRN (arXiv 2309.00071, section 3.2): the pair that turns `rotations` times over the original context. */
static double yarn_pair(const rope_params *p, double rotations) {
    return p->n_rot * log(p->original_context / (rotations * TWO_PI)) / (2.0 * log(p->theta));
}

static double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

static lmi_status check_params(const rope_params *p, lmi_error *error) {
    lmi_status status = LMI_OK;
    if (p->n_rot < 2 || p->n_rot % 2 != 0 || p->n_rot > 2 * ROPE_MAX_PAIRS) {
        status = fail(error, LMI_UNSUPPORTED, "rotary size %d is not an even number from 2 to %d", (int)p->n_rot,
                      2 * ROPE_MAX_PAIRS);
    } else if (!(isfinite(p->theta) && p->theta > 0)) {
        status = fail(error, LMI_BAD_FORMAT, "rotary base %g is not a positive number", p->theta);
    } else if (!(isfinite(p->attention_factor) && p->attention_factor > 0)) {
        status = fail(error, LMI_BAD_FORMAT, "rotary attention factor %g is not a positive number", p->attention_factor);
    } else if (p->scaling != ROPE_SCALING_NONE && !(isfinite(p->factor) && p->factor > 0)) {
        status = fail(error, LMI_BAD_FORMAT, "rotary scaling factor %g is not a positive number", p->factor);
    } else if (p->scaling == ROPE_SCALING_YARN) {
        if (!(isfinite(p->original_context) && p->original_context > 0)) {
            status = fail(error, LMI_BAD_FORMAT, "YaRN original context %g is not a positive number", p->original_context);
        } else if (!(isfinite(p->beta_fast) && p->beta_fast > 0 && isfinite(p->beta_slow) && p->beta_slow > 0)) {
            status = fail(error, LMI_BAD_FORMAT, "YaRN ramp from %g to %g is not between positive numbers", p->beta_slow,
                          p->beta_fast);
        } else if (!(p->theta > 1)) {
            status = fail(error, LMI_BAD_FORMAT, "YaRN needs a rotary base above 1, not %g", p->theta);
        }
    }
    if (status != LMI_OK) {
        remedy(error, "the file's rope metadata is damaged or of a kind that this version cannot run; convert the model again");
    }
    return status;
}

lmi_status rope_table_init(rope_table *table, const rope_params *params, lmi_error *error) {
    const rope_params *p = params;
    lmi_status status = check_params(p, error);
    if (status != LMI_OK) {
        return status;
    }
    double low = 0, high = 0, magnitude = p->attention_factor;
    if (p->scaling == ROPE_SCALING_YARN) {
        low = yarn_pair(p, p->beta_fast);
        high = yarn_pair(p, p->beta_slow);
        low = clamp(p->untruncated ? low : floor(low), 0, p->n_rot - 1);
        high = clamp(p->untruncated ? high : ceil(high), 0, p->n_rot - 1);
        high = high == low ? low + 0.001 : high; /* a step, without a division by zero */
        magnitude = p->attention_factor * (0.1 * log(p->factor) + 1.0);
        if (!(magnitude > 0 && magnitude < 1e6)) {
            status = fail(error, LMI_BAD_FORMAT, "YaRN factor %g gives a magnitude of %g", p->factor, magnitude);
            remedy(error, "the file's rope metadata is damaged; convert the model again");
            return status;
        }
    }
    table->n_rot = p->n_rot;
    table->magnitude = (float)magnitude;
    for (int32_t i = 0; i < p->n_rot / 2; i++) {
        /* In the precision and order of the published models' own code, so that angles agree to the last bit. */
        const float exponent = (float)(2 * i) / (float)p->n_rot;
        const float inverse = (float)pow(p->theta, (double)exponent);
        float w = 1.0f / inverse;
        if (p->factors != NULL) {
            w /= p->factors[i];
        }
        if (p->scaling == ROPE_SCALING_LINEAR) {
            w /= (float)p->factor;
        } else if (p->scaling == ROPE_SCALING_YARN) {
            const float keep = 1.0f - (float)clamp((i - low) / (high - low), 0, 1); /* fast pairs stay as they are */
            w = w / (float)p->factor * (1.0f - keep) + w * keep;
        }
        if (!(w > 0 && w <= MAX_FREQUENCY)) {
            status = fail(error, LMI_BAD_FORMAT, "rotary pair %d has frequency %g, which is not a positive number", (int)i,
                          (double)w);
            remedy(error, "the file's rope metadata or rope_freqs.weight is damaged; convert the model again");
            return status;
        }
        table->turns[i] = turns_of(w);
    }
    return LMI_OK;
}

/* cos and sin of 2 pi * phase / 2^64. The nearest quarter turn is taken off in integers, exactly, which leaves at most 1/8 turn
 * for the Taylor series of cos(2 pi x), sin(2 pi x); they end where the next term is below 1e-11. */
static void turn(uint64_t phase, double *c, double *s) {
    const uint64_t quarter = (phase + ((uint64_t)1 << 61)) >> 62;
    const uint64_t rest = phase - (quarter << 62);
    const double x = (rest >> 63 ? -(double)(~rest + 1) : (double)rest) * 0x1p-64;
    const double xx = x * x;
    double cosine = 0x1.f9d38a3763cc3p+2;
    cosine = cosine * xx - 0x1.a6d1f2a204a8cp+4;
    cosine = cosine * xx + 0x1.e1f506891babbp+5;
    cosine = cosine * xx - 0x1.55d3c7e3cbffap+6;
    cosine = cosine * xx + 0x1.03c1f081b5ac4p+6;
    cosine = cosine * xx - 0x1.3bd3cc9be45dep+4;
    cosine = cosine * xx + 1.0;
    double sine = -0x1.e3074fde8871fp+3;
    sine = sine * xx + 0x1.50783487ee782p+5;
    sine = sine * xx - 0x1.32d2cce62bd86p+6;
    sine = sine * xx + 0x1.466bc6775aae2p+6;
    sine = sine * xx - 0x1.4abbce625be53p+5;
    sine = sine * xx + 0x1.921fb54442d18p+2;
    sine *= x;
    const double a = quarter & 1 ? sine : cosine, b = quarter & 1 ? cosine : sine;
    *c = quarter == 1 || quarter == 2 ? -a : a;
    *s = quarter >= 2 ? -b : b;
}

void rope_row(const rope_table *table, int64_t position, float *cos_sin) {
    for (int32_t i = 0; i < table->n_rot / 2; i++) {
        double c, s;
        turn((uint64_t)position * table->turns[i], &c, &s);
        cos_sin[2 * i] = (float)(c * (double)table->magnitude);
        cos_sin[2 * i + 1] = (float)(s * (double)table->magnitude);
    }
}
