/* A device and a queue of work on it, as the host side sees them: memory, copies, graphs. Plain C.
 *
 * Two implementations: device.cu over the CUDA runtime, tests/native/simt/device_simt.cpp over the emulator (memory is host memory, a
 * launch runs at once). A failed call is remembered by the stream and comes out of the next device_check: launches return nothing. */
#ifndef LMI_CUDA_DEVICE_H
#define LMI_CUDA_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct device_info {
    char name[128];
    int32_t index;
    int32_t major, minor; /* compute capability */
    int32_t n_multiprocessors;
    int32_t driver, runtime; /* 13000 is 13.0 */
    uint64_t total_bytes, free_bytes;
    uint64_t shared_bytes; /* most shared memory of a block, opted in */
} device_info;

/* LMI_DEVICE with the cause and the remedy where there is none that can be used: no driver, a driver too old, no device, compute capability below
 * 7.5, a device that others hold exclusively. */
lmi_status device_probe(int32_t index, device_info *info, lmi_error *error);

typedef struct device_stream device_stream;
typedef struct device_graph device_graph;

lmi_status device_stream_open(int32_t index, device_stream **stream, lmi_error *error);
void device_stream_close(device_stream *stream); /* NULL is allowed */
const device_info *device_stream_info(const device_stream *stream);

/* Device memory, zeroed; LMI_OUT_OF_MEMORY says how much was asked for and how much is free. Freed with NULL allowed. */
lmi_status device_alloc(device_stream *stream, uint64_t bytes, void **memory, lmi_error *error);
void device_free(device_stream *stream, void *memory);
/* Host memory that copies run fast from and that kernels can read and write at the same address. */
lmi_status device_alloc_pinned(device_stream *stream, uint64_t bytes, void **memory, lmi_error *error);
void device_free_pinned(device_stream *stream, void *memory);

/* Queued in order. Host memory of an asynchronous copy must be pinned and stay as it is until the stream has come that far. */
void device_upload(device_stream *stream, void *device, const void *host, uint64_t bytes);
void device_download(device_stream *stream, void *host, const void *device, uint64_t bytes);
void device_clear(device_stream *stream, void *device, uint64_t bytes);

/* Waits for everything queued; the first failure since the last check, if there was one: LMI_DEVICE, after which the stream is of no use. */
lmi_status device_check(device_stream *stream, lmi_error *error);
/* The same without waiting: only what is known by now. */
lmi_status device_peek(device_stream *stream, lmi_error *error);

/* Launches between begin and end are recorded, not run. The graph is launched with device_graph_launch any number of times. */
void device_graph_begin(device_stream *stream);
lmi_status device_graph_end(device_stream *stream, device_graph **graph, lmi_error *error);
void device_graph_launch(device_stream *stream, device_graph *graph);
void device_graph_free(device_graph *graph);

/* A mark in the queue; waiting for it is waiting for all before it. For staging buffers that are used in turn. */
typedef struct device_mark device_mark;
lmi_status device_mark_open(device_stream *stream, device_mark **mark, lmi_error *error);
void device_mark_close(device_mark *mark);
void device_mark_set(device_stream *stream, device_mark *mark);
void device_mark_wait(device_mark *mark);

#ifdef __cplusplus
}
#endif
#endif
