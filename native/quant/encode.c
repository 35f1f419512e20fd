#include "quant/encode.h"

#include "base/cpu.h"

const encoders *encoders_best(void) {
#if defined(__x86_64__)
    if (cpu_has(LMI_ISA_AVX512)) {
        return &encoders_avx512;
    }
    if (cpu_has(LMI_ISA_AVX2)) {
        return &encoders_avx2;
    }
#endif
    return &encoders_ref;
}
