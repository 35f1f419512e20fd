/* The matmul column for NEON. */
#include "kernels/matmul_neon.h"

#include "base/cpu.h"
#include "kernels/fill.h"

#define CHOICES(TYPE, NAME) MATMUL_CHOOSE(NAME, neon, neon) MATMUL_CHOOSE(NAME, neon, i8mm)
MATMUL_INTEGER_TYPES(CHOICES)
#undef CHOICES

static size_t scratch_bytes(int64_t k) {
    size_t integers = matmul_tiles_scratch_neon(), floats = matmul_float_scratch_neon();
    (void)k;
    return integers > floats ? integers : floats;
}

void matmul_fill_neon(kernels *table) {
    const bool i8mm = cpu_has_i8mm();
#define ROW(TYPE, NAME) table->matmul[QUANT_##TYPE] = i8mm ? matmul_##NAME##_with_i8mm : matmul_##NAME##_with_neon;
    MATMUL_INTEGER_TYPES(ROW)
#undef ROW
    table->matmul[QUANT_F32] = matmul_f32_neon;
    table->matmul[QUANT_F16] = matmul_f16_neon;
    table->matmul[QUANT_BF16] = matmul_bf16_neon;
    table->matmul_scratch = scratch_bytes;
    pack_fill_neon(table);
}
