#include "quant/lanes_avx2.h"
#define ENCODERS encoders_avx2
#include "quant/encode_types.h"
