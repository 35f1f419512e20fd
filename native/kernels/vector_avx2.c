#include "kernels/fill.h"
#include "kernels/vector.h"

static void silu_avx2(const float *gate, const float *up, int64_t n, float *h) {
    activate_body(ACTIVATION_SILU, gate, up, n, h);
}

static void gelu_tanh_avx2(const float *gate, const float *up, int64_t n, float *h) {
    activate_body(ACTIVATION_GELU_TANH, gate, up, n, h);
}

static void gelu_erf_avx2(const float *gate, const float *up, int64_t n, float *h) {
    activate_body(ACTIVATION_GELU_ERF, gate, up, n, h);
}

static void swiglu_oai_avx2(const float *gate, const float *up, int64_t n, float *h) {
    activate_body(ACTIVATION_SWIGLU_OAI, gate, up, n, h);
}

static void rms_norm_avx2(const float *x, const float *w, int64_t n, float eps, float *y) { rms_norm_body(x, w, n, eps, y); }

static void layer_norm_avx2(const float *x, const float *w, const float *b, int64_t n, float eps, float *y) {
    layer_norm_body(x, w, b, n, eps, y);
}

static void rope_avx2(float *x, int64_t n_heads, int64_t head_dim, int64_t n_rot, const float *cos_sin, rope_pairing pairing) {
    rope_body(x, n_heads, head_dim, n_rot, cos_sin, pairing);
}

static void softcap_avx2(float *x, float cap, int64_t n) { softcap_body(x, cap, n); }

static void clamp_avx2(float *x, float limit, int64_t n) { clamp_body(x, limit, n); }

static void add_avx2(float *x, const float *y, int64_t n) { add_body(x, y, n); }

static void box_bounds_avx2(const float *q, const uint16_t *tile, const uint16_t *next, int64_t d, float *bounds) {
    box_bounds_body(q, tile, next, d, 16, bounds);
}

static void scale_avx2(float *x, float factor, int64_t n) { scale_body(x, factor, n); }

void vector_fill_avx2(kernels *table) {
    table->rms_norm = rms_norm_avx2;
    table->layer_norm = layer_norm_avx2;
    table->rope = rope_avx2;
    table->activate[ACTIVATION_SILU] = silu_avx2;
    table->activate[ACTIVATION_GELU_TANH] = gelu_tanh_avx2;
    table->activate[ACTIVATION_GELU_ERF] = gelu_erf_avx2;
    table->activate[ACTIVATION_SWIGLU_OAI] = swiglu_oai_avx2;
    table->softcap = softcap_avx2;
    table->clamp = clamp_avx2;
    table->add = add_avx2;
    table->scale = scale_avx2;
    table->box_bounds = box_bounds_avx2;
}
