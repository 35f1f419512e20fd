#include "kernels/fill.h"
#include "kernels/vector.h"

float exp_f32(float x) {
    int32_t n;
    const float m = exp_split(x < EXP_LOW ? EXP_LOW : x > EXP_HIGH ? EXP_HIGH : x, &n);
    return times_power(m, n);
}

static void silu_mul_ref(const float *gate, const float *up, int64_t n, float *h) { silu_mul_body(gate, up, n, h); }

static void rms_norm_ref(const float *x, const float *w, int64_t n, float eps, float *y) { rms_norm_body(x, w, n, eps, y); }

static void rope_ref(float *x, int64_t n_heads, int64_t head_dim, int64_t n_rot, const float *cos_sin, rope_pairing pairing) {
    rope_body(x, n_heads, head_dim, n_rot, cos_sin, pairing);
}

static void add_ref(float *x, const float *y, int64_t n) { add_body(x, y, n); }

static void scale_ref(float *x, float factor, int64_t n) { scale_body(x, factor, n); }

void vector_fill_ref(kernels *table) {
    table->rms_norm = rms_norm_ref;
    table->rope = rope_ref;
    table->silu_mul = silu_mul_ref;
    table->add = add_ref;
    table->scale = scale_ref;
}
