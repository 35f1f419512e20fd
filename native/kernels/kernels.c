#define _GNU_SOURCE
#include "kernels/kernels.h"

#include <pthread.h>

#include "base/cpu.h"
#include "kernels/fill.h"

/* Filled once per process, before anyone can have a pointer to it, and constant from then on. */
static kernels columns[LMI_ISA_NEON + 1]; /* [0] stays empty; a column that is not filled has isa 0 */
static pthread_once_t columns_once = PTHREAD_ONCE_INIT;

static kernels *begin_column(lmi_isa isa) {
    kernels *table = &columns[isa];
    table->isa = isa;
    matmul_fill_ref(table);
    attention_fill_ref(table);
    vector_fill_ref(table);
    return table;
}

/* Only columns that this CPU runs: the functions that fill them are compiled for their instruction set, too. */
static void fill_columns(void) {
    begin_column(LMI_ISA_REF);
#if defined(__x86_64__)
    if (cpu_has(LMI_ISA_AVX2)) {
        kernels *avx2 = begin_column(LMI_ISA_AVX2);
        matmul_fill_avx2(avx2);
        attention_fill_avx2(avx2);
        vector_fill_avx2(avx2);
    }
#if defined(LMI_HAS_AVXVNNI)
    if (cpu_has(LMI_ISA_AVXVNNI)) {
        kernels *avxvnni = begin_column(LMI_ISA_AVXVNNI);
        matmul_fill_avxvnni(avxvnni);
        attention_fill_avx2(avxvnni); /* vpdpwssd and vpdpbusd have lost there: tests/bench/LOG.md */
        vector_fill_avx2(avxvnni);
    }
#endif
    if (cpu_has(LMI_ISA_AVX512)) {
        kernels *avx512 = begin_column(LMI_ISA_AVX512);
        matmul_fill_avx512(avx512);
        attention_fill_avx512(avx512);
        vector_fill_avx512(avx512);
    }
#if defined(LMI_HAS_AMX)
    if (cpu_has(LMI_ISA_AMX)) {
        kernels *amx = begin_column(LMI_ISA_AMX);
        matmul_fill_amx(amx);
        attention_fill_avx512(amx);
        vector_fill_avx512(amx);
    }
#endif
#elif defined(__aarch64__)
    if (cpu_has(LMI_ISA_NEON)) {
        kernels *neon = begin_column(LMI_ISA_NEON);
        matmul_fill_neon(neon);
        attention_fill_neon(neon);
    }
#endif
}

/* Built, and this CPU has it. */
static bool is_filled(lmi_isa isa) { return columns[isa].isa == isa; }

lmi_status kernels_get(lmi_isa isa, const kernels **out, lmi_error *error) {
    static const lmi_isa best_first[] = {LMI_ISA_AMX, LMI_ISA_AVX512, LMI_ISA_AVXVNNI, LMI_ISA_AVX2, LMI_ISA_NEON, LMI_ISA_REF};

    *out = NULL;
    if ((int)isa < LMI_ISA_AUTO || (int)isa > LMI_ISA_NEON) {
        return fail(error, LMI_INVALID_ARGUMENT, "%d is no instruction set", (int)isa);
    }
    pthread_once(&columns_once, fill_columns);
    if (isa == LMI_ISA_AUTO) {
        for (size_t i = 0; i < sizeof best_first / sizeof *best_first && isa == LMI_ISA_AUTO; i++) {
            if (is_filled(best_first[i])) {
                isa = best_first[i];
            }
        }
    }
    if (!cpu_has(isa)) {
        fail(error, LMI_UNSUPPORTED, "this CPU or its operating system does not run %s", cpu_isa_name(isa));
        remedy(error, "Choose auto.");
        return LMI_UNSUPPORTED;
    }
    if (!is_filled(isa)) {
        fail(error, LMI_UNSUPPORTED, "this library has no kernels for %s", cpu_isa_name(isa));
        remedy(error, "Choose auto or ref.");
        return LMI_UNSUPPORTED;
    }
    *out = &columns[isa];
    return LMI_OK;
}
