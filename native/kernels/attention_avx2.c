/* Attention with vpmaddwd. */
#include "kernels/attention_avx2.h"

void attention_fill_avx2(kernels *table) { fill(table); }
