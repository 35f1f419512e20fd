#include "quant/lanes_avx512.h"
#define ENCODERS encoders_avx512
#include "quant/encode_types.h"
