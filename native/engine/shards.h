/* Models in several files: NAME-00001-of-00003.gguf and its companions, as GGUF's split.* keys describe them. */
#ifndef LMI_ENGINE_SHARDS_H
#define LMI_ENGINE_SHARDS_H

#include "base/file.h"
#include "gguf/gguf.h"

typedef struct model_shards {
    int64_t n; /* files beside the first */
    file_view *views;
    gguf **files;
} model_shards;

/* Opens what belongs to the file at `path` and adds its tensors to those of `first`. Nothing to do for a whole model. On
 * failure what was opened is still the caller's to close. */
lmi_status shards_open(const char *path, bool map, gguf *first, model_shards *shards, lmi_error *error);
/* Adds to an error about the joined file, where it has no remedy, that the files may not belong together. */
void shards_explain(const model_shards *shards, lmi_error *error);
/* LMI_IO if one of the files has become shorter since. */
lmi_status shards_check(const model_shards *shards, lmi_error *error);
void shards_close(model_shards *shards);

#endif
