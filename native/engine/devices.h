/* GPUs: finding and opening the library that runs them. Private to engine/. */
#ifndef LMI_ENGINE_DEVICES_H
#define LMI_ENGINE_DEVICES_H

#include <stdbool.h>

#include "backend/backend.h"

typedef struct device_library {
    void *handle, *driver; /* of the system's loader; NULL: not open */
    const backend *table;
} device_library;

/* `path` as for lmi_device_find. On failure, which is LMI_DEVICE, *has_driver says whether it was for another reason than that this system
 * has no CUDA driver. */
lmi_status devices_open(const char *path, device_library *out, bool *has_driver, lmi_error *error);
void devices_close(device_library *library);

/* What another status than LMI_OK that came from a device says of it: that it cannot be used for this, so that the CPU may be tried. */
static inline bool devices_refused(lmi_status status) { return status == LMI_DEVICE || status == LMI_UNSUPPORTED; }

#endif
