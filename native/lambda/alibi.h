/* Attention with linear biases (arXiv 2108.12409): how fast a head's interest falls with distance. */
#ifndef LMI_LAMBDA_ALIBI_H
#define LMI_LAMBDA_ALIBI_H

#include <stdint.h>

/* slopes[n_heads]; of n heads, a power of two: 2^(-max_bias/n), 2^(-2 max_bias/n), ...; of others, then, every second one of the next
 * power of two (section 3). */
void alibi_slopes(int64_t n_heads, float max_bias, float *slopes);

#endif
