/* The tiled product of types without super-blocks. */
#include "cuda/gemm.cuh"

void launch_tiles_32(const tile_args *args, tile_size size, unsigned n_blocks, device_stream *stream) {
    switch (args->w[0].type) {
#define TYPE_CASE(TYPE)                                                                                                        \
    case TYPE:                                                                                                                 \
        launch_tiles_of<TYPE>(args, size, n_blocks, stream);                                                                   \
        break
        TYPE_CASE(QUANT_F32);
        TYPE_CASE(QUANT_F16);
        TYPE_CASE(QUANT_BF16);
        TYPE_CASE(QUANT_Q4_0);
        TYPE_CASE(QUANT_Q4_1);
        TYPE_CASE(QUANT_Q5_0);
        TYPE_CASE(QUANT_Q5_1);
        TYPE_CASE(QUANT_Q8_0);
        TYPE_CASE(QUANT_IQ4_NL);
        TYPE_CASE(QUANT_MXFP4);
#undef TYPE_CASE
    default:
        break;
    }
}
