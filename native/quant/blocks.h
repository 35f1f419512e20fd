/* The blocks as they lie in the file. All are little-endian and packed; d, m are binary16. */
#ifndef LMI_QUANT_BLOCKS_H
#define LMI_QUANT_BLOCKS_H

#include <assert.h> /* static_assert */
#include <stddef.h> /* offsetof, for those who read fields in place */
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { QK = 32, QK_K = 256 };

/* clang-format off */
typedef struct { uint16_t d; uint8_t qs[16]; } block_q4_0;                            /* w = d * (q - 8) */
typedef struct { uint16_t d, m; uint8_t qs[16]; } block_q4_1;                         /* w = d * q + m */
typedef struct { uint16_t d; uint8_t qh[4]; uint8_t qs[16]; } block_q5_0;             /* w = d * (q - 16) */
typedef struct { uint16_t d, m; uint8_t qh[4]; uint8_t qs[16]; } block_q5_1;          /* w = d * q + m */
typedef struct { uint16_t d; int8_t qs[32]; } block_q8_0;                             /* w = d * q */
typedef struct { uint8_t scales[16]; uint8_t qs[64]; uint16_t d, dmin; } block_q2_K;  /* 16 x 16: w = d * sc * q - dmin * m */
typedef struct { uint8_t hmask[32]; uint8_t qs[64]; uint8_t scales[12]; uint16_t d; } block_q3_K; /* 16 x 16: w = d * (sc - 32) * (q - 4) */
typedef struct { uint16_t d, dmin; uint8_t scales[12]; uint8_t qs[128]; } block_q4_K; /* 8 x 32: w = d * sc * q - dmin * m */
typedef struct { uint16_t d, dmin; uint8_t scales[12]; uint8_t qh[32]; uint8_t qs[128]; } block_q5_K;
typedef struct { uint8_t ql[128]; uint8_t qh[64]; int8_t scales[16]; uint16_t d; } block_q6_K; /* 16 x 16: w = d * sc * (q - 32) */
typedef struct { uint16_t d; uint8_t qs[16]; } block_iq4_nl;                          /* w = d * table[q] */
typedef struct { uint16_t d, scales_h; uint8_t scales_l[4]; uint8_t qs[128]; } block_iq4_xs; /* 8 x 32: w = d * (sc - 32) * table[q] */
typedef struct { uint8_t e; uint8_t qs[16]; } block_mxfp4;                            /* w = 2^(e - 127) * e2m1[q] */
/* clang-format on */

static_assert(sizeof(block_q4_0) == 18, "q4_0");
static_assert(sizeof(block_q4_1) == 20, "q4_1");
static_assert(sizeof(block_q5_0) == 22, "q5_0");
static_assert(sizeof(block_q5_1) == 24, "q5_1");
static_assert(sizeof(block_q8_0) == 34, "q8_0");
static_assert(sizeof(block_q2_K) == 84, "q2_K");
static_assert(sizeof(block_q3_K) == 110, "q3_K");
static_assert(sizeof(block_q4_K) == 144, "q4_K");
static_assert(sizeof(block_q5_K) == 176, "q5_K");
static_assert(sizeof(block_q6_K) == 210, "q6_K");
static_assert(sizeof(block_iq4_nl) == 18, "iq4_nl");
static_assert(sizeof(block_iq4_xs) == 136, "iq4_xs");
static_assert(sizeof(block_mxfp4) == 17, "mxfp4");

extern const int8_t quant_iq4_values[16];   /* IQ4_NL, IQ4_XS */
extern const int8_t quant_mxfp4_values[16]; /* twice the E2M1 values: 0 1 2 3 4 6 8 12 and their negatives */

#ifdef __cplusplus
}
#endif
#endif
