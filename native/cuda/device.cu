/* device.h over the CUDA runtime, which is linked statically: the driver's library is looked for when the first call is made, and a machine without it
 * gets a message, not a loader's error. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/primitives.cuh"

struct device_stream {
    device_info info;
    cudaStream_t queue;
    bool recording;
    cudaError_t failure; /* of the first failed call */
    char what[96];       /* which that was */
};

struct device_graph {
    cudaGraphExec_t graph;
};

struct device_mark {
    device_stream *stream;
    cudaEvent_t event;
};

/* ---- failures ------------------------------------------------------------------------------------------------------ */

static const char *remedy_of(cudaError_t result) {
    switch (result) {
    case cudaErrorNoDevice:
        return "Check that nvidia-smi lists a GPU and that CUDA_VISIBLE_DEVICES does not hide it, or use --device cpu.";
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorCallRequiresNewerDriver:
    case cudaErrorUnsupportedPtxVersion:
        return "Update the NVIDIA driver (restart if it was updated just now), or use --device cpu.";
    case cudaErrorDevicesUnavailable:
        return "Another program holds this GPU exclusively: end it, choose another GPU, or use --device cpu.";
    case cudaErrorNoKernelImageForDevice:
        return "Install a build of lmi for this GPU, or use --device cpu.";
    case cudaErrorMemoryAllocation:
        return "Close other programs that use the GPU, put fewer layers on it, or use --device cpu.";
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
        return "The GPU found an error in its memory: restart the machine. If the error comes back, the GPU is faulty.";
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
        return "This is a bug of lmi: please report it. Until then, use --device cpu.";
    default:
        return "See nvidia-smi and the system's log for the GPU's state, restart lmi, or use --device cpu.";
    }
}

extern "C" void device_stream_note(device_stream *stream, cudaError_t result, const char *what) {
    if (result != cudaSuccess) {
        cudaGetLastError(); /* the next call is not to be blamed */
        if (stream->failure == cudaSuccess) {
            stream->failure = result;
            snprintf(stream->what, sizeof stream->what, "%s", what);
        }
    }
}

/* Also makes the stream's device the one of the calling thread: whoever launches asks for this. */
extern "C" cudaStream_t device_stream_queue(const device_stream *stream) {
    cudaSetDevice(stream->info.index);
    return stream->queue;
}

static lmi_status failure_of(const device_stream *stream, lmi_error *error) {
    if (stream->failure == cudaSuccess) {
        return LMI_OK;
    }
    fail(error, LMI_DEVICE, "%s (CUDA device %d) failed at %s: %s", stream->info.name, (int)stream->info.index, stream->what,
         cudaGetErrorString(stream->failure));
    remedy(error, "%s", remedy_of(stream->failure));
    return LMI_DEVICE;
}

/* ---- devices ------------------------------------------------------------------------------------------------------- */

static lmi_status unusable(lmi_error *error, cudaError_t result, const char *what) {
    cudaGetLastError();
    fail(error, LMI_DEVICE, "no usable CUDA device: %s: %s", what, cudaGetErrorString(result));
    remedy(error, "%s", remedy_of(result));
    return LMI_DEVICE;
}

/* How many devices the driver shows; what keeps it from showing any. */
static lmi_status count_devices(int *count, int *driver, int *runtime, lmi_error *error) {
    *count = *driver = *runtime = 0;
    cudaRuntimeGetVersion(runtime);
    if (cudaDriverGetVersion(driver) != cudaSuccess || *driver == 0) {
        cudaGetLastError();
        fail(error, LMI_DEVICE, "no usable CUDA device: no NVIDIA driver is installed");
        remedy(error, "Install the NVIDIA driver for CUDA %d or later, or use --device cpu.", *runtime / 1000);
        return LMI_DEVICE;
    }
    const cudaError_t result = cudaGetDeviceCount(count);
    if (result == cudaErrorInsufficientDriver) {
        cudaGetLastError();
        fail(error, LMI_DEVICE,
             "no usable CUDA device: the NVIDIA driver is for CUDA up to %d.%d, and this build of lmi needs %d.%d",
             *driver / 1000, *driver % 1000 / 10, *runtime / 1000, *runtime % 1000 / 10);
        remedy(error, "%s", remedy_of(result));
        return LMI_DEVICE;
    }
    if (result != cudaSuccess || *count == 0) {
        return unusable(error, result == cudaSuccess ? cudaErrorNoDevice : result, "the driver");
    }
    return LMI_OK;
}

lmi_status device_probe(int32_t index, device_info *info, lmi_error *error) {
    memset(info, 0, sizeof *info);
    int count, driver, runtime;
    const lmi_status status = count_devices(&count, &driver, &runtime, error);
    if (status != LMI_OK) {
        return status;
    }
    if (index < 0 || index >= count) {
        fail(error, LMI_DEVICE, "there is no CUDA device %d: this machine has %d", (int)index, count);
        remedy(error, "Choose a device from 0 to %d.", count - 1);
        return LMI_DEVICE;
    }
    cudaDeviceProp properties;
    cudaError_t result = cudaGetDeviceProperties(&properties, index);
    if (result != cudaSuccess) {
        return unusable(error, result, "its properties");
    }
    snprintf(info->name, sizeof info->name, "%.127s", properties.name);
    info->index = index;
    info->major = properties.major;
    info->minor = properties.minor;
    info->n_multiprocessors = properties.multiProcessorCount;
    info->driver = driver;
    info->runtime = runtime;
    info->total_bytes = properties.totalGlobalMem;
    info->shared_bytes = properties.sharedMemPerBlockOptin;
    if (info->major * 10 + info->minor < 75) {
        fail(error, LMI_DEVICE, "%s has compute capability %d.%d, and lmi needs 7.5 (Turing, 2018) or later", info->name,
             (int)info->major, (int)info->minor);
        remedy(error, "Choose another GPU, or use --device cpu.");
        return LMI_DEVICE;
    }
    int mode = cudaComputeModeDefault;
    if (cudaDeviceGetAttribute(&mode, cudaDevAttrComputeMode, index) == cudaSuccess && mode == cudaComputeModeProhibited) {
        fail(error, LMI_DEVICE, "%s is closed to computing: its compute mode is 'prohibited'", info->name);
        remedy(error, "Open it with: nvidia-smi -i %d -c DEFAULT", (int)index);
        return LMI_DEVICE;
    }
    size_t free_bytes, total_bytes;
    result = cudaSetDevice(index);
    if (result == cudaSuccess) {
        result = cudaMemGetInfo(&free_bytes, &total_bytes);
    }
    if (result != cudaSuccess) {
        return unusable(error, result, info->name);
    }
    info->free_bytes = free_bytes;
    return LMI_OK;
}

lmi_status device_stream_open(int32_t index, device_stream **stream, lmi_error *error) {
    *stream = NULL;
    device_info info;
    const lmi_status status = device_probe(index, &info, error);
    if (status != LMI_OK) {
        return status;
    }
    device_stream *opened = (device_stream *)calloc(1, sizeof *opened);
    if (opened == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "out of memory");
    }
    opened->info = info;
    const cudaError_t result = cudaStreamCreateWithFlags(&opened->queue, cudaStreamNonBlocking);
    if (result != cudaSuccess) {
        free(opened);
        return unusable(error, result, info.name);
    }
    *stream = opened;
    return LMI_OK;
}

void device_stream_close(device_stream *stream) {
    if (stream != NULL) {
        cudaStreamDestroy(device_stream_queue(stream));
        cudaGetLastError();
        free(stream);
    }
}

const device_info *device_stream_info(const device_stream *stream) { return &stream->info; }

/* ---- memory -------------------------------------------------------------------------------------------------------- */

static lmi_status no_memory(device_stream *stream, cudaError_t result, uint64_t bytes, const char *kind, lmi_error *error) {
    cudaGetLastError();
    if (result != cudaErrorMemoryAllocation) {
        device_stream_note(stream, result, "allocating memory");
        return failure_of(stream, error);
    }
    char asked[32], available[32];
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    fail(error, LMI_OUT_OF_MEMORY, "cannot allocate %s of %s for %s (CUDA device %d), where %s are free",
         human_bytes(bytes, asked), kind, stream->info.name, (int)stream->info.index, human_bytes(free_bytes, available));
    remedy(error, "%s", remedy_of(result));
    return LMI_OUT_OF_MEMORY;
}

lmi_status device_alloc(device_stream *stream, uint64_t bytes, void **memory, lmi_error *error) {
    *memory = NULL;
    cudaStream_t queue = device_stream_queue(stream);
    cudaError_t result = cudaMalloc(memory, bytes + (bytes == 0));
    if (result != cudaSuccess) {
        return no_memory(stream, result, bytes, "memory", error);
    }
    result = cudaMemsetAsync(*memory, 0, bytes, queue);
    if (result == cudaSuccess) {
        result = cudaStreamSynchronize(queue); /* other streams may use it now */
    }
    if (result != cudaSuccess) {
        cudaFree(*memory);
        *memory = NULL;
        return no_memory(stream, result, bytes, "memory", error);
    }
    return LMI_OK;
}

void device_free(device_stream *stream, void *memory) {
    if (memory != NULL) {
        device_stream_queue(stream);
        device_stream_note(stream, cudaFree(memory), "freeing memory");
    }
}

lmi_status device_alloc_pinned(device_stream *stream, uint64_t bytes, void **memory, lmi_error *error) {
    *memory = NULL;
    device_stream_queue(stream);
    const cudaError_t result = cudaHostAlloc(memory, bytes + (bytes == 0), cudaHostAllocPortable | cudaHostAllocMapped);
    if (result != cudaSuccess) {
        *memory = NULL;
        return no_memory(stream, result, bytes, "the machine's own memory", error);
    }
    memset(*memory, 0, bytes);
    return LMI_OK;
}

void device_free_pinned(device_stream *stream, void *memory) {
    if (memory != NULL) {
        device_stream_queue(stream);
        device_stream_note(stream, cudaFreeHost(memory), "freeing memory");
    }
}

void device_upload(device_stream *stream, void *device, const void *host, uint64_t bytes) {
    device_stream_note(stream, cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, device_stream_queue(stream)),
                       "upload");
}

void device_download(device_stream *stream, void *host, const void *device, uint64_t bytes) {
    device_stream_note(stream, cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, device_stream_queue(stream)),
                       "download");
}

void device_clear(device_stream *stream, void *device, uint64_t bytes) {
    device_stream_note(stream, cudaMemsetAsync(device, 0, bytes, device_stream_queue(stream)), "clearing memory");
}

/* ---- waiting ------------------------------------------------------------------------------------------------------- */

lmi_status device_check(device_stream *stream, lmi_error *error) {
    device_stream_note(stream, cudaStreamSynchronize(device_stream_queue(stream)), "a kernel");
    return failure_of(stream, error);
}

lmi_status device_peek(device_stream *stream, lmi_error *error) {
    if (!stream->recording) { /* a question would end the recording */
        const cudaError_t result = cudaStreamQuery(device_stream_queue(stream));
        if (result == cudaErrorNotReady) {
            cudaGetLastError();
        } else {
            device_stream_note(stream, result, "a kernel");
        }
    }
    return failure_of(stream, error);
}

lmi_status device_mark_open(device_stream *stream, device_mark **mark, lmi_error *error) {
    *mark = (device_mark *)calloc(1, sizeof **mark);
    if (*mark == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "out of memory");
    }
    (*mark)->stream = stream;
    device_stream_queue(stream);
    const cudaError_t result = cudaEventCreateWithFlags(&(*mark)->event, cudaEventDisableTiming);
    if (result != cudaSuccess) {
        free(*mark);
        *mark = NULL;
        return no_memory(stream, result, 0, "events", error);
    }
    return LMI_OK;
}

void device_mark_close(device_mark *mark) {
    if (mark != NULL) {
        cudaEventDestroy(mark->event);
        cudaGetLastError();
        free(mark);
    }
}

void device_mark_set(device_stream *stream, device_mark *mark) {
    device_stream_note(stream, cudaEventRecord(mark->event, device_stream_queue(stream)), "a mark");
}

void device_mark_wait(device_mark *mark) {
    device_stream_queue(mark->stream);
    device_stream_note(mark->stream, cudaEventSynchronize(mark->event), "a kernel");
}

/* ---- graphs -------------------------------------------------------------------------------------------------------- */

void device_graph_begin(device_stream *stream) {
    const cudaError_t result = cudaStreamBeginCapture(device_stream_queue(stream), cudaStreamCaptureModeThreadLocal);
    device_stream_note(stream, result, "recording a graph");
    stream->recording = result == cudaSuccess;
}

lmi_status device_graph_end(device_stream *stream, device_graph **graph, lmi_error *error) {
    *graph = NULL;
    cudaStream_t queue = device_stream_queue(stream);
    cudaGraph_t recorded = NULL;
    if (stream->recording) {
        device_stream_note(stream, cudaStreamEndCapture(queue, &recorded), "recording a graph");
        stream->recording = false;
    }
    device_graph *made = (device_graph *)calloc(1, sizeof *made);
    if (made != NULL && stream->failure == cudaSuccess) {
        device_stream_note(stream, cudaGraphInstantiate(&made->graph, recorded, 0), "preparing a graph");
    }
    if (recorded != NULL) {
        cudaGraphDestroy(recorded);
    }
    if (made == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "out of memory");
    }
    if (stream->failure != cudaSuccess) {
        free(made);
        return failure_of(stream, error);
    }
    device_stream_note(stream, cudaGraphUpload(made->graph, queue), "preparing a graph");
    *graph = made;
    return LMI_OK;
}

void device_graph_launch(device_stream *stream, device_graph *graph) {
    device_stream_note(stream, cudaGraphLaunch(graph->graph, device_stream_queue(stream)), "launching a graph");
}

void device_graph_free(device_graph *graph) {
    if (graph != NULL) {
        cudaGraphExecDestroy(graph->graph);
        cudaGetLastError();
        free(graph);
    }
}
