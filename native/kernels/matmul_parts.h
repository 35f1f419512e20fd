/* What the files of the matmul family share, whatever the instruction set. */
#ifndef LMI_KERNELS_MATMUL_PARTS_H
#define LMI_KERNELS_MATMUL_PARTS_H

#include <string.h>

#include "kernels/activation.h"
#include "kernels/kernels.h"

/* Kernels are written once for all types, as functions of a constant description of the type; inlined and unrolled, the
 * description disappears. Under sanitizers that would only take minutes to compile. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define INLINE static __attribute__((noinline, unused))
#define UNROLL
#elif defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* For the row-wise kernels, which read weights from start to end. Those that take one row after the other ask for the `bytes`
 * that lie 4 KiB ahead (to the L2 cache) and 1 KiB ahead (to the L1 cache); those that take two rows far apart, so that the CPU's
 * own prefetcher follows both, for what lies 2 KiB ahead. At the end of the tensor this names addresses behind it, which is
 * harmless.
 *
 * Without, arithmetic and memory take turns. One core of a shared Sapphire Rapids server, Q4_K, per cent of the bandwidth of
 * reading with such prefetches and no arithmetic: 54 without, 75 with one distance, 86 with two, 95 with two rows. */
INLINE void fetch_rows_ahead(const void *weights, int bytes, int rows) {
    UNROLL for (int i = 0; i < bytes; i += 64) {
        const uintptr_t line = (uintptr_t)weights + (uintptr_t)i;
        if (rows == 1) {
            __builtin_prefetch((const void *)(line + 4096), 0, 2);
        }
        __builtin_prefetch((const void *)(line + (rows == 1 ? 1024 : 2048)), 0, 3);
    }
}

/* One token: rows r and r + apart, half of the rows apart, then an odd one by itself; more tokens: row after row.
 * CALL(..., r, apart, rows) does one or two. */
enum { MOST_ROWS = 2 };
#define FOR_ROWS_APART(A, ONE_TOKEN, CALL, ...)                                                                                \
    {                                                                                                                          \
        const int64_t apart = (ONE_TOKEN) ? ((A)->row1 - (A)->row0) / MOST_ROWS : 0;                                           \
        for (int64_t r = (A)->row0; r < (A)->row0 + apart; r++) {                                                              \
            CALL(__VA_ARGS__, r, apart, MOST_ROWS);                                                                            \
        }                                                                                                                      \
        for (int64_t r = (A)->row0 + MOST_ROWS * apart; r < (A)->row1; r++) {                                                  \
            CALL(__VA_ARGS__, r, 0, 1);                                                                                        \
        }                                                                                                                      \
    }

/* The types whose blocks hold whole numbers: X(type, its name in identifiers). */
#define MATMUL_INTEGER_TYPES(X)                                                                                                \
    X(Q4_0, q4_0)                                                                                                              \
    X(Q4_1, q4_1)                                                                                                              \
    X(Q5_0, q5_0)                                                                                                              \
    X(Q5_1, q5_1)                                                                                                              \
    X(Q8_0, q8_0)                                                                                                              \
    X(IQ4_NL, iq4_nl)                                                                                                          \
    X(MXFP4, mxfp4)                                                                                                            \
    X(Q2_K, q2_K)                                                                                                              \
    X(Q3_K, q3_K)                                                                                                              \
    X(Q4_K, q4_K)                                                                                                              \
    X(Q5_K, q5_K)                                                                                                              \
    X(Q6_K, q6_K)                                                                                                              \
    X(IQ4_XS, iq4_xs)

/* Few tokens go row by row, more through tiles: matmul_NAME of a column, for MATMUL_INTEGER_TYPES. */
#define MATMUL_CHOOSE(NAME, ROWS_ISA, TILES_ISA)                                                                               \
    static void matmul_##NAME##_with_##TILES_ISA(const matmul_args *a) {                                                       \
        if (a->n_tokens <= MATMUL_ROWWISE_TOKENS) {                                                                            \
            matmul_rows_##NAME##_##ROWS_ISA(a);                                                                                \
        } else {                                                                                                               \
            matmul_tiles_##NAME##_##TILES_ISA(a);                                                                              \
        }                                                                                                                      \
    }

/* ---- packed rows, for their writers -------------------------------------------------------------------------------- */

#define PACK_NAN_BITS 0x7fc00000u
#define PACK_ROUNDER 12582912.0f /* 1.5 * 2^23 */
#define PACK_ROUNDER_BITS 0x4b400000

typedef struct packed_row {
    int8_t *q;
    float *d;
    int32_t *sum_32; /* ACT_Q8_32 */
    int16_t *sum_16; /* ACT_Q8_256 */
} packed_row;

static inline packed_row packed_row_at(act_kind kind, void *row, int64_t k) {
    char *base = row;
    void *sums = base + act_sum_offset(kind, k);
    packed_row p = {row, (float *)(void *)(base + act_scale_offset(k)), sums, sums};
    return p;
}

/* Zeroes the bytes between `used` and the next multiple of 64: kernels may read whole vectors there. */
static inline void pack_clear_tail(void *part, size_t used) { memset((char *)part + used, 0, act_round(used) - used); }

static inline void pack_clear_tails(act_kind kind, void *row, int64_t k) {
    char *base = row;
    size_t n_scales = (size_t)k / (kind == ACT_Q8_32 ? 32 : 256);
    size_t sum_bytes = kind == ACT_Q8_32 ? (size_t)k / 32 * sizeof(int32_t) : (size_t)k / 16 * sizeof(int16_t);
    pack_clear_tail(base, (size_t)k);
    pack_clear_tail(base + act_scale_offset(k), n_scales * sizeof(float));
    pack_clear_tail(base + act_sum_offset(kind, k), sum_bytes);
}

void pack_fill_ref(kernels *table);
void pack_fill_avx2(kernels *table);
void pack_fill_avx512(kernels *table);
void pack_fill_neon(kernels *table);

/* The row-wise kernels of all packed types, over pass_32, pass_256 and KIND_NAME of the file that names its instruction set;
 * WHAT is how that file calls its descriptions. */
#define ROW_WISE(KIND, NAME, WHAT, ISA)                                                                                        \
    static __attribute__((noinline)) void NAME##_by_4(const matmul_args *a, int64_t t) {                                       \
        pass_##KIND(a, &WHAT##_##NAME, t, 4);                                                                                  \
    }                                                                                                                          \
    static __attribute__((noinline)) void NAME##_by_1(const matmul_args *a, int64_t t) {                                       \
        pass_##KIND(a, &WHAT##_##NAME, t, 1);                                                                                  \
    }                                                                                                                          \
    void matmul_rows_##NAME##_##ISA(const matmul_args *a) {                                                                    \
        int64_t t = 0;                                                                                                         \
        for (; t + 4 <= a->n_tokens; t += 4) {                                                                                 \
            NAME##_by_4(a, t);                                                                                                 \
        }                                                                                                                      \
        for (; t < a->n_tokens; t++) {                                                                                         \
            NAME##_by_1(a, t);                                                                                                 \
        }                                                                                                                      \
    }
#define ROW_WISE_KERNELS(WHAT, ISA)                                                                                            \
    ROW_WISE(32, q4_0, WHAT, ISA)                                                                                              \
    ROW_WISE(32, q4_1, WHAT, ISA)                                                                                              \
    ROW_WISE(32, q5_0, WHAT, ISA)                                                                                              \
    ROW_WISE(32, q5_1, WHAT, ISA)                                                                                              \
    ROW_WISE(32, q8_0, WHAT, ISA)                                                                                              \
    ROW_WISE(32, iq4_nl, WHAT, ISA)                                                                                            \
    ROW_WISE(32, mxfp4, WHAT, ISA)                                                                                             \
    ROW_WISE(256, q2_K, WHAT, ISA)                                                                                             \
    ROW_WISE(256, q3_K, WHAT, ISA)                                                                                             \
    ROW_WISE(256, q4_K, WHAT, ISA)                                                                                             \
    ROW_WISE(256, q5_K, WHAT, ISA)                                                                                             \
    ROW_WISE(256, q6_K, WHAT, ISA)                                                                                             \
    ROW_WISE(256, iq4_xs, WHAT, ISA)

#endif
