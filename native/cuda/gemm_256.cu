/* The tiled product of types with super-blocks. */
#include "cuda/gemm.cuh"

void launch_tiles_256(const tile_args *args, tile_size size, unsigned n_blocks, device_stream *stream) {
    switch (args->w[0].type) {
#define TYPE_CASE(TYPE)                                                                                                        \
    case TYPE:                                                                                                                 \
        launch_tiles_of<TYPE>(args, size, n_blocks, stream);                                                                   \
        break
        TYPE_CASE(QUANT_Q2_K);
        TYPE_CASE(QUANT_Q3_K);
        TYPE_CASE(QUANT_Q4_K);
        TYPE_CASE(QUANT_Q5_K);
        TYPE_CASE(QUANT_Q6_K);
        TYPE_CASE(QUANT_IQ4_XS);
#undef TYPE_CASE
    default:
        break;
    }
}
