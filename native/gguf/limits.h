/* What a file may claim. Real files stay far below; a file beyond is damaged or hostile. */
#ifndef LMI_GGUF_LIMITS_H
#define LMI_GGUF_LIMITS_H

#include <stdint.h>

#define MAX_KEYS UINT64_C(65536)
#define MAX_TENSORS UINT64_C(65536)
#define MAX_KEY_LENGTH UINT64_C(65535)
#define MAX_TENSOR_NAME UINT64_C(64)
#define MAX_STRING (UINT64_C(16) << 20)
#define MAX_ELEMENTS UINT64_C(16777216)
#define MAX_METADATA (UINT64_C(256) << 20)
#define MAX_DIM (UINT64_C(1) << 40)
#define MIN_ALIGNMENT UINT64_C(8)
#define MAX_ALIGNMENT UINT64_C(65536)
#define DEFAULT_ALIGNMENT UINT64_C(32)

/* The fewest bytes that a key (name of one byte, u8) and a tensor (name of one byte, one dimension) can take. */
#define MIN_KEY_BYTES UINT64_C(14)
#define MIN_TENSOR_BYTES UINT64_C(33)
#define HEADER_BYTES UINT64_C(24)

#endif
