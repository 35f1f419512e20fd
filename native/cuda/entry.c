/* The door of liblmi_cuda. */
#include <string.h>

#include "cuda/internal.h"

static lmi_status probe(int32_t index, lmi_device_info *info, lmi_error *error) {
    device_info found;
    lmi_status status = device_probe(index, &found, error);
    if (status == LMI_OK) {
        *info = (lmi_device_info){
            .index = found.index,
            .major = found.major,
            .minor = found.minor,
            .n_multiprocessors = found.n_multiprocessors,
            .driver = found.driver,
            .runtime = found.runtime,
            .total_bytes = found.total_bytes,
            .free_bytes = found.free_bytes,
        };
        memcpy(info->name, found.name, sizeof info->name);
    }
    return status;
}

static const backend backend_cuda = {
    .name = "cuda",
    .runs_ahead = true,
    .plan = cuda_plan,
    .open = cuda_open,
    .run = cuda_run,
    .context_bytes = cuda_context_bytes,
    .context_get = cuda_context_get,
    .context_put = cuda_context_put,
    .weight_bytes = cuda_weight_bytes,
    .close = cuda_close,
    .probe = probe,
    .upload = cuda_upload,
    .release = cuda_release,
    .read_speed = cuda_read_speed,
    .fetch_logits = cuda_fetch_logits,
    .candidates = cuda_candidates,
    .recall_counts = cuda_recall_counts,
    .recall_bytes = cuda_recall_bytes,
    .recall_most = cuda_recall_most,
    .recall_get = cuda_recall_get,
    .recall_put = cuda_recall_put,
    .recall_check = cuda_recall_check,
};

/* NULL if the library that asks is of another version: the two share structs. */
LMI_API const backend *lmi_cuda_backend(const char *version);
const backend *lmi_cuda_backend(const char *version) { return strcmp(version, LMI_VERSION) == 0 ? &backend_cuda : NULL; }
