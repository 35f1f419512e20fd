/* Super-blocks of 256 values: groups whose scales (and offsets) are small integers times one binary16 number.
 *
 * First every group gets the scale it would have by itself. Then the common factor is chosen among sixteen, tried at once; for it
 * each group takes the best integer, with codes chosen anew; then the factor is set by least squares for those integers and codes,
 * rounded to binary16, and the groups choose again. The best of all rounds is kept.
 *
 * A group by itself may have several equally good scales, and groups that choose differently cannot share a factor. Where the
 * common factor makes the error much larger, there are further attempts from groups that all begin alike. */
#ifndef LMI_QUANT_ENCODE_SUPER_H
#define LMI_QUANT_ENCODE_SUPER_H

#include "quant/encode_search.h"

enum { SUPER_MOST_GROUPS = 16, SUPER_ROUNDS = 3 };

/* The error of a block of zeros: no fit may be worse, and where binary16 has nothing near a small factor, one could be. */
LANES_INLINE float error_of_zeros(const float *x, const float *w) {
    lanes sum = lanes_set(0);
    for (int i = 0; i < QK_K; i += 16) {
        const lanes value = lanes_load(x + i);
        sum = lanes_add(sum, lanes_mul(lanes_mul(lanes_load(w + i), value), value));
    }
    return lanes_sum(sum);
}

static const float consecutive[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

/* ---- scales only: x = d * integer * code --------------------------------------------------------------------------- */

typedef struct super_scales {
    float d; /* as binary16 has it */
    int8_t integers[SUPER_MOST_GROUPS];
    int8_t codes[QK_K];
} super_scales;

typedef struct scale_kind {
    int group;
    code_set set;
    const float *starts; /* of a group by itself */
    int n_starts, n_steps;
    float low, high;   /* of the integers */
    const float *ends; /* sixteen: what the largest group scale is given at first */
    float loose; /* further attempts are made where the error is more than so many times that of the groups by themselves */
} scale_kind;

/* The sixteen factors of the first try: the largest group scale is given the integer ends[i]. */
LANES_INLINE float first_factor(const float *x, const float *w, int group, code_set set, const float *scales, float most_scale,
                                float low, float high, const float *ends) {
    const lanes d = lanes_div(lanes_set(most_scale), lanes_load(ends)), inverse = invert(d);
    lanes total = lanes_set(0);
    for (int g = 0; g < QK_K / group; g++) {
        const lanes integer =
            lanes_min(lanes_max(lanes_round(lanes_mul(lanes_set(scales[g]), inverse)), lanes_set(low)), lanes_set(high));
        total = lanes_add(total, scale_error(x + g * group, w + g * group, group, set, lanes_mul(d, integer)));
    }
    float least;
    return lanes_get(d, lanes_least(total, &least));
}

/* For factor d: the best integer of each group within 8 of its own scale's, and the sums for the best d with the codes that
 * follow. Returns the error. */
LANES_INLINE float choose_integers(const float *x, const float *w, int group, code_set set, const float *scales, float d,
                                   float low, float high, float *integers, float *best_d) {
    const float inverse_d = invert_one(d);
    float total = 0;
    lanes xt = lanes_set(0), tt = xt;
    for (int g = 0; g < QK_K / group; g++, x += group, w += group) {
        float centre = scales[g] * inverse_d;
        centre = centre < low ? low : centre > high ? high : centre;
        const lanes wanted = lanes_add(lanes_round(lanes_set(centre)), lanes_load(consecutive));
        const lanes integer = lanes_min(lanes_max(wanted, lanes_set(low)), lanes_set(high));
        float error;
        const int lane = lanes_least(scale_error(x, w, group, set, lanes_mul(lanes_set(d), integer)), &error);
        total += error;
        integers[g] = lanes_get(integer, lane);
        const lanes inverse = lanes_set(invert_one(d * integers[g]));
        for (int i = 0; i < group; i += 16) {
            const lanes value = lanes_load(x + i);
            const lanes t = lanes_mul(lanes_set(integers[g]), nearest(lanes_mul(value, inverse), set));
            const lanes wt = lanes_mul(lanes_load(w + i), t);
            xt = lanes_add(xt, lanes_mul(value, wt));
            tt = lanes_add(tt, lanes_mul(t, wt));
        }
    }
    const float squares = lanes_sum(tt);
    *best_d = squares > 0 ? lanes_sum(xt) / squares : d;
    return total;
}

/* From group scales to a factor and integers; `out` and `least` change where the error becomes smaller. */
LANES_INLINE void try_scales(const float *x, const float *w, const scale_kind *kind, const float *scales, float *least,
                             super_scales *out) {
    const int n_groups = QK_K / kind->group;
    const float most_scale = extreme(scales, n_groups);
    float d = 0, integers[SUPER_MOST_GROUPS];
    if (most_scale != 0) {
        d = round_f16(first_factor(x, w, kind->group, kind->set, scales, most_scale, kind->low, kind->high, kind->ends));
    }
    for (int round = 0; round < SUPER_ROUNDS && d != 0; round++) {
        float next;
        const float error = choose_integers(x, w, kind->group, kind->set, scales, d, kind->low, kind->high, integers, &next);
        if (error < *least) {
            *least = error;
            out->d = d;
            for (int g = 0; g < n_groups; g++) {
                out->integers[g] = (int8_t)integers[g];
            }
        }
        next = round_f16(next);
        if (next == d) {
            break;
        }
        d = next;
    }
}

LANES_INLINE void super_scale_fit(const float *x, const float *w, const scale_kind *kind, super_scales *out) {
    const int group = kind->group, n_groups = QK_K / group;
    float least = error_of_zeros(x, w), own = 0, unused = 0, scales[SUPER_MOST_GROUPS];
    memset(out, 0, sizeof *out);
    for (int g = 0; g < n_groups; g++) {
        scales[g] =
            scale_fit(x + g * group, w + g * group, group, kind->set, kind->starts, kind->n_starts, kind->n_steps, &own);
    }
    try_scales(x, w, kind, scales, &least, out);
    for (int attempt = 0; attempt < 2 && least > kind->loose * own; attempt++) {
        float starts[16];
        for (int i = 0; i < 16; i++) { /* the extreme value gets the lowest code, or the best of a few there */
            const float code = kind->set.low + (float)(attempt * i);
            starts[i] = code < kind->set.low / 2 ? code : kind->set.low;
        }
        for (int g = 0; g < n_groups; g++) {
            scales[g] = scale_fit(x + g * group, w + g * group, group, kind->set, starts, 16, 2, &unused);
        }
        try_scales(x, w, kind, scales, &least, out);
    }
    for (int g = 0; g < n_groups; g++) {
        scale_codes(x + g * group, group, kind->set, out->d * (float)out->integers[g], out->codes + g * group);
    }
}

/* ---- scales and offsets: x = d * integer * code - dmin * integer --------------------------------------------------- */

typedef struct super_affines {
    float d, dmin;
    uint8_t scales[SUPER_MOST_GROUPS], minima[SUPER_MOST_GROUPS];
    int8_t codes[QK_K];
} super_affines;

typedef struct affine_kind {
    int group;
    float high, most;          /* the largest code, the largest integer */
    const float (*starts)[32]; /* of a group by itself: two tables */
    const float *ends;         /* sixteen for the largest scale, sixteen for the largest offset */
    float loose;               /* as in scale_kind */
} affine_kind;

/* Sixteen pairs: the largest scale gets one of four integers, the largest offset one of four. */
LANES_INLINE void first_factors(const float *x, const float *w, int group, float high, const affine *fits, float most_scale,
                                float most_min, float most, const float *ends, float *d_out, float *dmin_out) {
    const lanes d = lanes_div(lanes_set(most_scale), lanes_load(ends)),
                dmin = lanes_div(lanes_set(most_min), lanes_load(ends + 16));
    const lanes inverse_d = invert(d), inverse_min = invert(dmin), top = lanes_set(most);
    lanes total = lanes_set(0);
    for (int g = 0; g < QK_K / group; g++) {
        const lanes scale = lanes_min(lanes_round(lanes_mul(lanes_set(fits[g].scale), inverse_d)), top);
        const lanes minimum = lanes_min(lanes_round(lanes_mul(lanes_set(-fits[g].low), inverse_min)), top);
        const lanes low = lanes_sub(lanes_set(0), lanes_mul(dmin, minimum));
        total = lanes_add(total, affine_error(x + g * group, w + g * group, group, high, lanes_mul(d, scale), low));
    }
    float least;
    const int lane = lanes_least(total, &least);
    *d_out = lanes_get(d, lane);
    *dmin_out = lanes_get(dmin, lane);
}

static const float near_scales[16] = {-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2};
static const float near_minima[16] = {-1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2};

typedef struct factor_sums { /* for the least squares of d and dmin over a super-block: t = integer * code */
    lanes tt, tm, mm, xt, xm;
} factor_sums;

/* The best d and dmin: minimises sum w (x - d t + dmin m)^2; `dmin` holds the one there is. False where no d is positive. */
LANES_INLINE bool solve_factors(const factor_sums *s, float *d, float *dmin) {
    const double tt = (double)lanes_sum(s->tt), tm = (double)lanes_sum(s->tm), mm = (double)lanes_sum(s->mm);
    const double xt = (double)lanes_sum(s->xt), xm = (double)lanes_sum(s->xm);
    const double determinant = tt * mm - tm * tm;
    if (determinant > 1e-6 * tt * mm) {
        *d = (float)((xt * mm - xm * tm) / determinant);
        *dmin = (float)((xt * tm - xm * tt) / determinant);
        if (*d > 0 && *dmin > 0) {
            return true;
        }
        *dmin = 0;
    }
    /* Not determined together (all t alike), or of a sign that cannot be stored: d alone, beside the dmin there is. */
    *d = tt > 0 ? (float)((xt + (double)*dmin * tm) / tt) : 0;
    return *d > 0;
}

/* For factors d and dmin: the best pair of integers of each group among the sixteen around its own; returns the error. */
LANES_INLINE float choose_pairs(const float *x, const float *w, int group, float high, const affine *fits, float d, float dmin,
                                float most, float *scales, float *minima, factor_sums *sums) {
    const code_set set = {0, high, NULL, NULL};
    const lanes zero = lanes_set(0), top = lanes_set(most);
    const float inverse_d = invert_one(d), inverse_min = invert_one(dmin);
    float total = 0;
    *sums = (factor_sums){zero, zero, zero, zero, zero};
    for (int g = 0; g < QK_K / group; g++, x += group, w += group) {
        float s = floorf(fits[g].scale * inverse_d), m = floorf(-fits[g].low * inverse_min);
        s = s > most ? most : s;
        m = m > most ? most : m;
        const lanes scale = lanes_min(lanes_max(lanes_add(lanes_set(s), lanes_load(near_scales)), zero), top);
        const lanes minimum = lanes_min(lanes_max(lanes_add(lanes_set(m), lanes_load(near_minima)), zero), top);
        const lanes low = lanes_sub(zero, lanes_mul(lanes_set(dmin), minimum));
        float error;
        const int lane = lanes_least(affine_error(x, w, group, high, lanes_mul(lanes_set(d), scale), low), &error);
        total += error;
        scales[g] = lanes_get(scale, lane);
        minima[g] = lanes_get(minimum, lane);
        const lanes inverse = lanes_set(invert_one(d * scales[g])), offset = lanes_set(dmin * minima[g]);
        const lanes integer = lanes_set(scales[g]), mi = lanes_set(minima[g]);
        for (int i = 0; i < group; i += 16) {
            const lanes value = lanes_load(x + i), weight = lanes_load(w + i);
            const lanes t = lanes_mul(integer, nearest(lanes_mul(lanes_add(value, offset), inverse), set));
            const lanes wt = lanes_mul(weight, t), wm = lanes_mul(weight, mi);
            sums->tt = lanes_add(sums->tt, lanes_mul(wt, t));
            sums->tm = lanes_add(sums->tm, lanes_mul(wt, mi));
            sums->mm = lanes_add(sums->mm, lanes_mul(wm, mi));
            sums->xt = lanes_add(sums->xt, lanes_mul(wt, value));
            sums->xm = lanes_add(sums->xm, lanes_mul(wm, value));
        }
    }
    return total;
}

/* As try_scales. Offsets of `fits` are not positive. */
LANES_INLINE void try_affines(const float *x, const float *w, const affine_kind *kind, const affine *fits, float *least,
                              super_affines *out) {
    const int group = kind->group, n_groups = QK_K / group;
    float most_scale = 0, most_min = 0, d = 0, dmin = 0;
    for (int g = 0; g < n_groups; g++) {
        most_scale = fits[g].scale > most_scale ? fits[g].scale : most_scale;
        most_min = -fits[g].low > most_min ? -fits[g].low : most_min;
    }
    if (most_scale > 0 || most_min > 0) {
        first_factors(x, w, group, kind->high, fits, most_scale, most_min, kind->most, kind->ends, &d, &dmin);
        d = round_f16(d);
        dmin = round_f16(dmin);
    }
    for (int round = 0; round < SUPER_ROUNDS && (d > 0 || dmin > 0); round++) {
        float scales[SUPER_MOST_GROUPS], minima[SUPER_MOST_GROUPS], next_d = d, next_min = dmin;
        factor_sums sums;
        const float error = choose_pairs(x, w, group, kind->high, fits, d, dmin, kind->most, scales, minima, &sums);
        if (error < *least) {
            *least = error;
            out->d = d;
            out->dmin = dmin;
            for (int g = 0; g < n_groups; g++) {
                out->scales[g] = (uint8_t)scales[g];
                out->minima[g] = (uint8_t)minima[g];
            }
        }
        if (!solve_factors(&sums, &next_d, &next_min)) {
            break;
        }
        next_d = round_f16(next_d);
        next_min = round_f16(next_min);
        if (next_d == d && next_min == dmin) {
            break;
        }
        d = next_d;
        dmin = next_min;
    }
}

LANES_INLINE void super_affine_fit(const float *x, const float *w, const affine_kind *kind, super_affines *out) {
    const int group = kind->group, n_groups = QK_K / group;
    float least = error_of_zeros(x, w), own = 0, unused = 0;
    affine fits[SUPER_MOST_GROUPS];
    memset(out, 0, sizeof *out);
    for (int g = 0; g < n_groups; g++) {
        fits[g] = fit_pairs(x + g * group, w + g * group, group, kind->high, true, kind->starts, 2, 3, &own);
    }
    try_affines(x, w, kind, fits, &least, out);
    for (int attempt = 0; attempt < 2 && least > kind->loose * own; attempt++) {
        static const float below[16];
        float above[16];
        for (int i = 0; i < 16; i++) { /* the least value gets code 0, the largest the last code, or the best of a few there */
            above[i] = (float)(attempt * i) < kind->high / 2 ? (float)(attempt * i) : 0;
        }
        for (int g = 0; g < n_groups; g++) {
            fits[g] = affine_fit(x + g * group, w + g * group, group, kind->high, true, below, above, 16, 2, &unused);
        }
        try_affines(x, w, kind, fits, &least, out);
    }
    for (int g = 0; g < n_groups; g++) {
        affine_codes(x + g * group, group, kind->high, out->d * (float)out->scales[g], -(out->dmin * (float)out->minima[g]),
                     out->codes + g * group);
    }
}

#endif
