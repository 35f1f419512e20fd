#include "quant/lanes_ref.h"
#define ENCODERS encoders_ref
#include "quant/encode_types.h"
