#include "quant/quant.h"

#include <stddef.h>

#include "quant/blocks.h"
#include "quant/dequant.h"

/* Blocks are used as they lie in the file. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF blocks are little-endian, and so must the machine be"
#endif

#define ROW(TYPE, VALUES, BYTES, DECODER) [QUANT_##TYPE] = {QUANT_##TYPE, #TYPE, VALUES, BYTES, DECODER}

static const quant_info rows[QUANT_TYPE_END] = {
    ROW(F32, 1, 4, dequant_f32),
    ROW(F16, 1, 2, dequant_f16),
    ROW(BF16, 1, 2, dequant_bf16),
    ROW(Q4_0, QK, sizeof(block_q4_0), dequant_q4_0),
    ROW(Q4_1, QK, sizeof(block_q4_1), dequant_q4_1),
    ROW(Q5_0, QK, sizeof(block_q5_0), dequant_q5_0),
    ROW(Q5_1, QK, sizeof(block_q5_1), dequant_q5_1),
    ROW(Q8_0, QK, sizeof(block_q8_0), dequant_q8_0),
    ROW(Q2_K, QK_K, sizeof(block_q2_K), dequant_q2_K),
    ROW(Q3_K, QK_K, sizeof(block_q3_K), dequant_q3_K),
    ROW(Q4_K, QK_K, sizeof(block_q4_K), dequant_q4_K),
    ROW(Q5_K, QK_K, sizeof(block_q5_K), dequant_q5_K),
    ROW(Q6_K, QK_K, sizeof(block_q6_K), dequant_q6_K),
    ROW(IQ4_NL, QK, sizeof(block_iq4_nl), dequant_iq4_nl),
    ROW(IQ4_XS, QK_K, sizeof(block_iq4_xs), dequant_iq4_xs),
    ROW(MXFP4, QK, sizeof(block_mxfp4), dequant_mxfp4),
};

/* Every number that a version of the format has given out, the withdrawn ones (4, 5, 31-33, 36-38) included. */
static const char *const names[] = {
    [0] = "F32",         [1] = "F16",         [2] = "Q4_0",        [3] = "Q4_1",      [4] = "Q4_2",     [5] = "Q4_3",
    [6] = "Q5_0",        [7] = "Q5_1",        [8] = "Q8_0",        [9] = "Q8_1",      [10] = "Q2_K",    [11] = "Q3_K",
    [12] = "Q4_K",       [13] = "Q5_K",       [14] = "Q6_K",       [15] = "Q8_K",     [16] = "IQ2_XXS", [17] = "IQ2_XS",
    [18] = "IQ3_XXS",    [19] = "IQ1_S",      [20] = "IQ4_NL",     [21] = "IQ3_S",    [22] = "IQ2_S",   [23] = "IQ4_XS",
    [24] = "I8",         [25] = "I16",        [26] = "I32",        [27] = "I64",      [28] = "F64",     [29] = "IQ1_M",
    [30] = "BF16",       [31] = "Q4_0_4_4",   [32] = "Q4_0_4_8",   [33] = "Q4_0_8_8", [34] = "TQ1_0",   [35] = "TQ2_0",
    [36] = "IQ4_NL_4_4", [37] = "IQ4_NL_4_8", [38] = "IQ4_NL_8_8", [39] = "MXFP4",    [40] = "NVFP4",   [41] = "Q1_0",
    [42] = "Q2_0",
};

const quant_info *quant_find(uint32_t type) { return type < QUANT_TYPE_END && rows[type].to_f32 != NULL ? &rows[type] : NULL; }

const quant_info *quant_find_name(text_view name) {
    for (uint32_t type = 0; type < QUANT_TYPE_END; type++) {
        if (rows[type].to_f32 != NULL && text_is(name, rows[type].name)) {
            return &rows[type];
        }
    }
    return NULL;
}

const char *quant_name(uint32_t type) { return type < sizeof names / sizeof *names ? names[type] : NULL; }
