#include "lambda/alibi.h"

#include <math.h>

void alibi_slopes(int64_t n_heads, float max_bias, float *slopes) {
    int64_t n = 1;
    while (2 * n <= n_heads) {
        n *= 2;
    }
    for (int64_t h = 0; h < n_heads; h++) {
        const double ratio = (double)max_bias / (double)n;
        slopes[h] = (float)exp2(h < n ? -ratio * (double)(h + 1) : -ratio / 2.0 * (double)(2 * (h - n) + 1));
    }
}
