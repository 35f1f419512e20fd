/* The tile registers of AMX: eight, of up to 16 rows of 64 bytes. */
#ifndef LMI_KERNELS_MATMUL_AMX_H
#define LMI_KERNELS_MATMUL_AMX_H

#include "kernels/kernels.h"
#include "kernels/matmul_parts.h"

void matmul_f16_amx(const matmul_args *a);
void matmul_bf16_amx(const matmul_args *a);
size_t matmul_float_scratch_amx(void);

/* As Intel's SDM has it, volume 1, chapter 18; palette 1. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

_Static_assert(sizeof(tile_config) == 64, "as ldtilecfg reads it");

INLINE int smaller(int64_t a, int b) { return a < b ? (int)a : b; }

INLINE void tiles_begin(const tile_config *config) { __asm__ volatile("ldtilecfg %0" : : "m"(*config)); }
/* Their state need not be saved then when threads change. */
INLINE void tiles_end(void) { __asm__ volatile("tilerelease" : : : "memory"); }

/* As assembly, because gcc's own functions for these do not tell the compiler which memory they read. */
#define TILE_LOAD(TMM, FROM, STRIDE)                                                                                           \
    __asm__ volatile("tileloadd (%0,%1,1), %%" TMM : : "r"(FROM), "r"((int64_t)(STRIDE)) : "memory")
#define TILE_STORE(TMM, TO, STRIDE)                                                                                            \
    __asm__ volatile("tilestored %%" TMM ", (%0,%1,1)" : : "r"(TO), "r"((int64_t)(STRIDE)) : "memory")
#define TILE_ZERO(TMM) __asm__ volatile("tilezero %%" TMM : :)

#endif
