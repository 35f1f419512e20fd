#include "kernels/fill.h"
#include "kernels/vector.h"

static void silu_mul_avx512(const float *gate, const float *up, int64_t n, float *h) { silu_mul_body(gate, up, n, h); }

static void rms_norm_avx512(const float *x, const float *w, int64_t n, float eps, float *y) { rms_norm_body(x, w, n, eps, y); }

static void rope_avx512(float *x, int64_t n_heads, int64_t head_dim, int64_t n_rot, const float *cos_sin,
                        rope_pairing pairing) {
    rope_body(x, n_heads, head_dim, n_rot, cos_sin, pairing);
}

static void add_avx512(float *x, const float *y, int64_t n) { add_body(x, y, n); }

static void scale_avx512(float *x, float factor, int64_t n) { scale_body(x, factor, n); }

void vector_fill_avx512(kernels *table) {
    table->rms_norm = rms_norm_avx512;
    table->rope = rope_avx512;
    table->silu_mul = silu_mul_avx512;
    table->add = add_avx512;
    table->scale = scale_avx512;
}
