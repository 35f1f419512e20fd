/* What a file that is not GGUF seems to be: most "bad models" are failed downloads and checkpoints of other programs. */
#ifndef LMI_GGUF_FOREIGN_H
#define LMI_GGUF_FOREIGN_H

#include "base/status.h"

/* Checks magic and version. LMI_OK if the file claims to be GGUF 2 or 3 in little-endian order. */
lmi_status foreign_check(const uint8_t *bytes, uint64_t size, lmi_error *error);

#endif
