/* An opened model: the file, what was read from it, and what all its sessions share. Private to engine/. */
#ifndef LMI_ENGINE_MODEL_H
#define LMI_ENGINE_MODEL_H

#include "backend/backend.h"
#include "base/file.h"
#include "engine/placement.h"
#include "engine/shards.h"
#include "gguf/gguf.h"
#include "tokenizer/tokenizer.h"

struct lmi_model {
    file_view view;
    gguf *file; /* with the tensors of all shards */
    model_shards shards;
    tokenizer *tokens; /* NULL if the file has no vocabulary */
    bool has_weights;  /* false: opened for its vocabulary only */
    arena memory;
    model_spec spec;
    model_weights weights;
    rope_table rope, rope_window, rope_long; /* the last two where the spec has them */
    pool *workers;
    const kernels *kernels;
    backend_model shared;  /* the whole model, as the CPU would run it */
    model_devices devices; /* and who does run it */
    lmi_model_info info;
    char *architecture; /* NUL-terminated, for info */
};

/* SHA-256 of the metadata and tensor table, the file's size and 64 samples of the data: a saved state's model. */
void model_fingerprint(const lmi_model *model, uint8_t digest[32]);

#endif
