/* Rows after a norm, for what needs them as they are: the row-wise product has its norm within itself. */
#include "cuda/gemv_input.cuh"

/* A block a row. */
static __global__ void __launch_bounds__(32 * WARPS)
    norm_rows(const float *x, float *y, cuda_norm norm, int64_t width, double one_of_width) {
    SHARED row_norm found[1];
    let_next_start();
    wait_for_previous();
    x += (int64_t)blockIdx.x * width;
    y += (int64_t)blockIdx.x * width;
    if (norm.kind != CUDA_NORM_NONE) {
        find_norms(norm, x, width, one_of_width, 1, found);
    }
    for (int64_t column = (int64_t)threadIdx.x * 8; column < width; column += 32 * WARPS * 8) {
        float v[8];
        load_normed(norm, found[0], x, width, column, width, v);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (column + i < width) {
                y[column + i] = v[i];
            }
        }
    }
}

void cuda_launch_norm(const float *x, float *y, cuda_norm norm, int64_t width, int32_t n_rows, device_stream *stream) {
    LAUNCH(stream, norm_rows, dim3((unsigned)n_rows), dim3(32 * WARPS), 0, x, y, norm, width, 1.0 / (double)width);
}
