/* Where a block of each type keeps its half-float scales and its quantised values: what a test may set without knowing the rest. */
#ifndef LMI_TESTS_BLOCK_LAYOUTS_H
#define LMI_TESTS_BLOCK_LAYOUTS_H

#include "quant/quant.h"

typedef struct layout {
    quant_type type;
    int d, m;   /* offsets of the scale and of the scale of minima (or the minimum); -1: none */
    int q0, q1; /* bytes q0..q1-1 are quantised values, and */
    int h0, h1; /* h0..h1-1 their high bits */
} layout;

static const layout layouts[] = {
    {QUANT_F32, -1, -1, 0, 0, 0, 0},     {QUANT_F16, -1, -1, 0, 0, 0, 0},     {QUANT_BF16, -1, -1, 0, 0, 0, 0},
    {QUANT_Q4_0, 0, -1, 2, 18, 0, 0},    {QUANT_Q4_1, 0, 2, 4, 20, 0, 0},     {QUANT_Q5_0, 0, -1, 6, 22, 2, 6},
    {QUANT_Q5_1, 0, 2, 8, 24, 4, 8},     {QUANT_Q8_0, 0, -1, 2, 34, 0, 0},    {QUANT_IQ4_NL, 0, -1, 2, 18, 0, 0},
    {QUANT_MXFP4, -1, -1, 1, 17, 0, 0},  {QUANT_Q2_K, 80, 82, 16, 80, 0, 0},  {QUANT_Q3_K, 108, -1, 32, 96, 0, 32},
    {QUANT_Q4_K, 0, 2, 16, 144, 0, 0},   {QUANT_Q5_K, 0, 2, 48, 176, 16, 48}, {QUANT_Q6_K, 208, -1, 0, 128, 128, 192},
    {QUANT_IQ4_XS, 0, -1, 8, 136, 0, 0},
};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts };

#endif
