/* Weights as the device keeps them: the fields of a block apart, each kind in a plane of its own, so that quants can be read
 * 16 bytes at a time. The same bytes in another order: splitting is exact and can be undone.
 *
 * Plane p of a tensor is [n_blocks of the whole tensor][plane bytes], rows one after the other; planes begin at multiples of
 * PLANE_ALIGN. Types without blocks (F32, F16, BF16) are one plane, as in the file. Of the others, the fields of a block and
 * their bytes, plane by plane:
 *
 *   Q4_0, IQ4_NL   qs 16           d 2             Q2_K    qs 64              scales 16        d, dmin 4
 *   Q4_1           qs 16           d, m 4          Q3_K    hmask 32, qs 64    scales 12        d 2
 *   Q5_0           qs 16   qh 4    d 2             Q4_K    qs 128             d, dmin, scales 16
 *   Q5_1           qs 16           d, m, qh 8      Q5_K    qs 128             qh 32            d, dmin, scales 16
 *   Q8_0           qs 32           d 2             Q6_K    ql 128, qh 64      scales 16        d 2
 *   MXFP4          qs 16           e 1             IQ4_XS  qs 128             d, scales_h, scales_l 8 */
#ifndef LMI_CUDA_PLANES_H
#define LMI_CUDA_PLANES_H

#include <stddef.h>
#include <stdint.h>

#include "quant/quant.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MAX_PLANES = 3, PLANE_ALIGN = 256 };

typedef struct plane_layout {
    int n;
    struct {
        uint16_t offset, bytes; /* the field's place in a block of the file */
    } plane[MAX_PLANES];        /* between them they cover the block */
} plane_layout;

const plane_layout *plane_layout_of(quant_type type); /* NULL if the type cannot be run */

/* Where plane p of a tensor of n_blocks begins, counted from its first byte; p == n: the size of the whole, a
 * multiple of PLANE_ALIGN. */
uint64_t plane_offset(const plane_layout *layout, uint64_t n_blocks, int p);

/* Splits n blocks into `part`, a buffer of the same size whose plane p begins at n * (bytes of the planes before p): pieces of a
 * tensor are staged so and copied plane by plane. */
void planes_split(const plane_layout *layout, const void *blocks, uint64_t n, void *part);

#ifdef __cplusplus
}
#endif
#endif
