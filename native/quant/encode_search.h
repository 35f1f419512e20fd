/* Searches for scales, shared by the encoders of all types; compiled once per instruction set over `lanes` of sixteen floats.
 *
 * For given codes the best scale (or scale and offset) is a least squares solution, and for a given scale the best codes are the
 * nearest ones. Alternating the two never raises the error, but stops at the nearest of many local minima. So it is started from
 * many scales: each lane of a vector is one start, and a group of values is read once for sixteen of them. */
#ifndef LMI_QUANT_ENCODE_SEARCH_H
#define LMI_QUANT_ENCODE_SEARCH_H

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/half.h"
#include "quant/blocks.h"
#include "quant/encode.h"

/* Below this magnitude nothing is left of a value in any type with a binary16 scale (its least is 2^-24), and inverses of
 * scales would come near the end of float32. */
#define ENCODE_LEAST 0x1p-34f

/* What codes stand for: the integers of [low, high], or the entries of an ascending table and what lies midway between them. */
typedef struct code_set {
    float low, high;
    const float *values, *middles;
} code_set;

/* The nearest value that a code can stand for. `set` is constant wherever this is used, and the branch goes away. */
LANES_INLINE lanes nearest(lanes v, code_set set) {
    if (set.values != NULL) {
        return lanes_look_up(set.values, lanes_find(set.middles, v));
    }
    return lanes_min(lanes_max(lanes_round(v), lanes_set(set.low)), lanes_set(set.high));
}

/* Sums in a fixed order, the same on every machine. */
LANES_INLINE float lanes_sum(lanes a) {
    float v[16];
    lanes_store(v, a);
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; i++) {
            v[i] += v[i + width];
        }
    }
    return v[0];
}

/* The first lane with the least value. */
LANES_INLINE int lanes_least(lanes a, float *least) {
    float v[16];
    lanes_store(v, a);
    int best = 0;
    for (int i = 1; i < 16; i++) {
        best = v[i] < v[best] ? i : best;
    }
    *least = v[best];
    return best;
}

LANES_INLINE float lanes_get(lanes a, int lane) {
    float v[16];
    lanes_store(v, a);
    return v[lane];
}

/* As f16_to_f32(f32_to_f16(x)), and never infinite. */
static inline float round_f16(float x) {
    x = x > ENCODE_MOST ? ENCODE_MOST : x < -ENCODE_MOST ? -ENCODE_MOST : x;
    return f16_to_f32(f32_to_f16(x));
}

/* 1 / scale, and 0 for 0: then every code is the one nearest to 0. */
LANES_INLINE lanes invert(lanes scale) {
    const lanes zero = lanes_set(0), square = lanes_mul(scale, scale);
    const lanes_mask some = lanes_greater(square, zero);
    return lanes_select(some, lanes_div(lanes_set(1), lanes_select(some, scale, lanes_set(1))), zero);
}

static inline float invert_one(float scale) { return scale * scale > 0 ? 1 / scale : 0; }

/* The value of largest magnitude, with its sign. */
static inline float extreme(const float *x, int n) {
    float most = 0;
    for (int i = 0; i < n; i++) {
        most = fabsf(x[i]) > fabsf(most) ? x[i] : most;
    }
    return most;
}

/* ---- one group of values, scale only: x = scale * code ------------------------------------------------------------ */

/* One step from the scales of 16 lanes: the error with the nearest codes, and the best scale for those codes. Residuals are kept
 * in units of the scale, where nothing cancels. */
LANES_INLINE void scale_step(const float *x, const float *w, int n, code_set set, lanes scale, lanes *error, lanes *next) {
    const lanes inverse = invert(scale);
    lanes rr = lanes_set(0), rq = rr, qq = rr;
    for (int i = 0; i < n; i++) {
        const lanes v = lanes_mul(lanes_set(x[i]), inverse), weight = lanes_set(w[i]);
        const lanes q = nearest(v, set), r = lanes_sub(v, q);
        const lanes wr = lanes_mul(weight, r), wq = lanes_mul(weight, q);
        rr = lanes_add(rr, lanes_mul(wr, r));
        rq = lanes_add(rq, lanes_mul(wr, q));
        qq = lanes_add(qq, lanes_mul(wq, q));
    }
    const lanes zero = lanes_set(0), one = lanes_set(1);
    const lanes_mask some = lanes_greater(qq, zero);
    const lanes move = lanes_select(some, lanes_div(rq, lanes_select(some, qq, one)), zero);
    *error = lanes_mul(lanes_mul(scale, scale), lanes_sub(rr, lanes_mul(move, rq)));
    *next = lanes_mul(scale, lanes_add(one, move));
}

/* The best scale found from the starts, which say what code the extreme value gets: n_starts is a multiple of 16. The error with
 * it is added to sum_error. */
LANES_INLINE float scale_fit(const float *x, const float *w, int n, code_set set, const float *starts, int n_starts,
                             int n_steps, float *sum_error) {
    const float most = extreme(x, n);
    if (fabsf(most) < ENCODE_LEAST) {
        return 0;
    }
    float best = 0, least = INFINITY;
    for (int s = 0; s < n_starts; s += 16) {
        lanes scale = lanes_div(lanes_set(most), lanes_load(starts + s)), error = scale, next = scale;
        for (int step = 0; step < n_steps; step++) {
            scale = next;
            scale_step(x, w, n, set, scale, &error, &next);
        }
        float e;
        const int lane = lanes_least(error, &e);
        if (e < least) {
            least = e;
            best = lanes_get(next, lane);
        }
    }
    *sum_error += least;
    return best;
}

/* Weighted squared error of 16 scales, with the nearest codes. */
LANES_INLINE lanes scale_error(const float *x, const float *w, int n, code_set set, lanes scale) {
    const lanes inverse = invert(scale);
    lanes sum = lanes_set(0);
    for (int i = 0; i < n; i++) {
        const lanes value = lanes_set(x[i]);
        const lanes q = nearest(lanes_mul(value, inverse), set);
        const lanes e = lanes_sub(value, lanes_mul(scale, q));
        sum = lanes_add(sum, lanes_mul(lanes_mul(lanes_set(w[i]), e), e));
    }
    return sum;
}

/* The codes for a scale that is fixed: integers, or places in the table. n is a multiple of 16. */
LANES_INLINE void scale_codes(const float *x, int n, code_set set, float scale, int8_t *codes) {
    const lanes inverse = lanes_set(invert_one(scale));
    for (int i = 0; i < n; i += 16) {
        const lanes v = lanes_mul(lanes_load(x + i), inverse);
        if (set.values != NULL) {
            lanes_store_codes(codes + i, lanes_find(set.middles, v));
        } else {
            lanes_store_i8(codes + i, nearest(v, set));
        }
    }
}

/* ---- one group of values, scale and offset: x = low + scale * code ------------------------------------------------ */

typedef struct affine {
    float scale, low;
} affine;

/* As scale_step. `below_zero`: the offset may not be positive (the K types store its negative without a sign). */
LANES_INLINE void affine_step(const float *x, const float *w, int n, float sum_w, float high, bool below_zero, lanes scale,
                              lanes low, lanes *error, lanes *next_scale, lanes *next_low) {
    const code_set set = {0, high, NULL, NULL};
    const lanes inverse = invert(scale), zero = lanes_set(0), one = lanes_set(1), total = lanes_set(sum_w);
    lanes rr = zero, rq = zero, qq = zero, r1 = zero, q1 = zero;
    for (int i = 0; i < n; i++) {
        const lanes v = lanes_mul(lanes_sub(lanes_set(x[i]), low), inverse), weight = lanes_set(w[i]);
        const lanes q = nearest(v, set), r = lanes_sub(v, q);
        const lanes wr = lanes_mul(weight, r), wq = lanes_mul(weight, q);
        r1 = lanes_add(r1, wr);
        q1 = lanes_add(q1, wq);
        rr = lanes_add(rr, lanes_mul(wr, r));
        rq = lanes_add(rq, lanes_mul(wr, q));
        qq = lanes_add(qq, lanes_mul(wq, q));
    }
    /* Residuals r are fitted by a + b q: the determinant is 0 where all codes are equal. */
    const lanes spread = lanes_mul(total, qq), determinant = lanes_sub(spread, lanes_mul(q1, q1));
    const lanes_mask sound = lanes_greater(determinant, lanes_mul(spread, lanes_set(1e-5f)));
    const lanes slope = lanes_div(lanes_sub(lanes_mul(total, rq), lanes_mul(r1, q1)), lanes_select(sound, determinant, one));
    const lanes b = lanes_select(sound, slope, zero);
    const lanes a = lanes_div(lanes_sub(r1, lanes_mul(b, q1)), total);
    *error = lanes_mul(lanes_mul(scale, scale), lanes_sub(rr, lanes_add(lanes_mul(a, r1), lanes_mul(b, rq))));
    *next_scale = lanes_mul(scale, lanes_add(one, b));
    *next_low = lanes_add(low, lanes_mul(scale, a));
    if (below_zero) { /* where the best offset is positive: offset 0 and the best scale with it */
        const lanes_mask positive = lanes_greater(*next_low, zero), some = lanes_greater(qq, zero);
        const lanes xq = lanes_add(lanes_mul(low, q1), lanes_mul(scale, lanes_add(qq, rq)));
        const lanes alone = lanes_select(some, lanes_div(xq, lanes_select(some, qq, one)), scale);
        *error = lanes_select(positive, lanes_mul(lanes_mul(scale, scale), rr), *error);
        *next_scale = lanes_select(positive, alone, *next_scale);
        *next_low = lanes_select(positive, zero, *next_low);
    }
}

/* Starts say how far inside the codes [0, high] the least and the largest value lie: below[i] for the least, above[i] for the
 * largest, in codes; negative ones are cut off. n_starts is a multiple of 16. The error is added to sum_error. */
LANES_INLINE affine affine_fit(const float *x, const float *w, int n, float high, bool below_zero, const float *below,
                               const float *above, int n_starts, int n_steps, float *sum_error) {
    float least = x[0], most = x[0], sum_w = 0;
    for (int i = 0; i < n; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
        sum_w += w[i];
    }
    least = below_zero && least > 0 ? 0 : least;
    const float range = most - least;
    if (!(range >= ENCODE_LEAST)) {
        return (affine){0, least};
    }
    affine best = {range / high, least};
    float lowest = INFINITY;
    for (int s = 0; s < n_starts; s += 16) {
        const lanes inside = lanes_load(below + s);
        const lanes codes = lanes_sub(lanes_sub(lanes_set(high), inside), lanes_load(above + s));
        lanes scale = lanes_div(lanes_set(range), codes), low = lanes_sub(lanes_set(least), lanes_mul(inside, scale));
        low = below_zero ? lanes_min(low, lanes_set(0)) : low;
        lanes error = scale, next_scale = scale, next_low = low;
        for (int step = 0; step < n_steps; step++) {
            scale = next_scale;
            low = next_low;
            affine_step(x, w, n, sum_w, high, below_zero, scale, low, &error, &next_scale, &next_low);
        }
        float e;
        const int lane = lanes_least(error, &e);
        if (e < lowest) {
            lowest = e;
            best = (affine){lanes_get(next_scale, lane), lanes_get(next_low, lane)};
        }
    }
    *sum_error += lowest;
    return best;
}

/* `starts`: tables of sixteen pairs, first what goes to affine_fit as below, then what goes as above. */
LANES_INLINE affine fit_pairs(const float *x, const float *w, int n, float high, bool below_zero, const float (*starts)[32],
                              int n_tables, int n_steps, float *sum_error) {
    float below[48], above[48];
    for (int t = 0; t < n_tables; t++) {
        memcpy(below + 16 * t, starts[t], 16 * sizeof *below);
        memcpy(above + 16 * t, starts[t] + 16, 16 * sizeof *above);
    }
    return affine_fit(x, w, n, high, below_zero, below, above, 16 * n_tables, n_steps, sum_error);
}

LANES_INLINE lanes affine_error(const float *x, const float *w, int n, float high, lanes scale, lanes low) {
    const code_set set = {0, high, NULL, NULL};
    const lanes inverse = invert(scale);
    lanes sum = lanes_set(0);
    for (int i = 0; i < n; i++) {
        const lanes above = lanes_sub(lanes_set(x[i]), low);
        const lanes q = nearest(lanes_mul(above, inverse), set);
        const lanes e = lanes_sub(above, lanes_mul(scale, q));
        sum = lanes_add(sum, lanes_mul(lanes_mul(lanes_set(w[i]), e), e));
    }
    return sum;
}

/* `steps` binary16 numbers away from x, of its sign. */
static inline float step_f16(float x, int steps) {
    const int half = f32_to_f16(round_f16(x)), size = (half & 0x7fff) + steps;
    return f16_to_f32((uint16_t)((half & 0x8000) | (size < 0 ? 0 : size > 0x7bff ? 0x7bff : size)));
}

/* The best of the binary16 numbers around a scale and an offset: a large offset is rounded coarsely, and another scale goes with it. */
LANES_INLINE affine affine_stored(const float *x, const float *w, int n, float high, affine fit) {
    float scales[16], lows[16], least;
    for (int i = 0; i < 16; i++) {
        scales[i] = step_f16(fit.scale, i / 4 - 1);
        lows[i] = step_f16(fit.low, i % 4 - 1);
    }
    const int lane = lanes_least(affine_error(x, w, n, high, lanes_load(scales), lanes_load(lows)), &least);
    return (affine){scales[lane], lows[lane]};
}

LANES_INLINE void affine_codes(const float *x, int n, float high, float scale, float low, int8_t *codes) {
    const code_set set = {0, high, NULL, NULL};
    const lanes inverse = lanes_set(invert_one(scale)), offset = lanes_set(low);
    for (int i = 0; i < n; i += 16) {
        lanes_store_i8(codes + i, nearest(lanes_mul(lanes_sub(lanes_load(x + i), offset), inverse), set));
    }
}

#endif
