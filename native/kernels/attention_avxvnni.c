/* Attention with vpdpwssd, for CPUs that have it without AVX-512 (AVX-VNNI). */
#include "kernels/attention_avx2.h"

void attention_fill_avxvnni(kernels *table) { fill(table); }
