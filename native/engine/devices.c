#include "engine/devices.h"

#include "base/library.h"

static const char USE_CPU[] = "Use --device cpu.";

/* The function that the library exports: its table, or NULL if it was built for another version of lmi. */
typedef const backend *cuda_entry(const char *version);

static lmi_status open_library(const char *path, device_library *out, lmi_error *error) {
    char why[400];
    cuda_entry *entry;
    out->handle = library_open(path, why, sizeof why);
    if (out->handle == NULL) {
        fail(error, LMI_DEVICE, "no usable CUDA device: cannot open the library for it: %.300s", why);
        remedy(error, "%s Or install lmi with CUDA: see its README.", USE_CPU);
        return LMI_DEVICE;
    }
    if (!library_find(out->handle, "lmi_cuda_backend", &entry)) {
        fail(error, LMI_DEVICE, "no usable CUDA device: %.300s is not lmi's library for it", path);
        remedy(error, "%s", USE_CPU);
        return LMI_DEVICE;
    }
    out->table = entry(LMI_VERSION);
    if (out->table == NULL) {
        fail(error, LMI_DEVICE, "no usable CUDA device: %.300s is not of version %s", path, LMI_VERSION);
        remedy(error, "Install lmi again, or use --device cpu.");
        return LMI_DEVICE;
    }
    return LMI_OK;
}

lmi_status devices_open(const char *path, device_library *out, bool *has_driver, lmi_error *error) {
    char beside[4096];
    *out = (device_library){0};
    *has_driver = true;
    if (path == NULL) {
        out->driver = library_open("libcuda.so.1", NULL, 0);
        *has_driver = out->driver != NULL;
        if (!*has_driver) {
            fail(error, LMI_DEVICE, "no usable CUDA device: driver library libcuda.so.1 not found");
            remedy(error, "%s", USE_CPU);
            return LMI_DEVICE;
        }
        path = library_beside("liblmi_cuda.so", beside, sizeof beside) ? beside : "liblmi_cuda.so";
    }
    lmi_status status = open_library(path, out, error);
    if (status != LMI_OK) {
        devices_close(out);
    }
    return status;
}

void devices_close(device_library *library) {
    library_close(library->handle);
    library_close(library->driver);
    *library = (device_library){0};
}

lmi_status lmi_device_find(int32_t index, const char *library, lmi_device_info *info, lmi_error *error) {
    if (info == NULL) {
        return fail(error, LMI_INVALID_ARGUMENT, "lmi_device_find needs a place for what it finds");
    }
    device_library opened;
    bool has_driver;
    lmi_status status = devices_open(library, &opened, &has_driver, error);
    if (status == LMI_OK) {
        status = opened.table->probe(index, info, error);
        devices_close(&opened);
    }
    return status;
}
