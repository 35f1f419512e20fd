/* cuda/device.h on the emulator: memory is host memory, a launch runs at once, or as late as it may, unless a graph is being recorded. */
#include "simt/device_simt.h"

#include <stdlib.h>
#include <string.h>

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "simt/simt.h"

typedef std::function<void()> operation;

struct device_graph {
    std::vector<operation> operations;
};

struct device_stream {
    device_info info;
    std::string failure; /* of the first failed call; empty: none */
    device_graph *recording;
    std::deque<operation> queued; /* where the device is lazy */
};

struct device_mark {
    device_stream *stream;
    int64_t n_set, n_reached; /* how often it was queued, and passed */
};

namespace {

simt_device device = {8, 0, (uint64_t)24 << 30, (uint64_t)24 << 30, 99 * 1024, false, false, 0, 0, 0};
std::map<void *, uint64_t> blocks; /* sizes of what is allocated */
uint64_t n_bytes;

uint64_t free_bytes() { return device.free_bytes > n_bytes ? device.free_bytes - n_bytes : 0; }

void note(device_stream *stream, const std::string &failure) {
    if (stream->failure.empty()) {
        stream->failure = failure;
    }
}

void run_now(device_stream *stream, const operation &work) {
    if (device.lost) {
        note(stream, "the device is lost");
    } else if (stream->failure.empty()) {
        work();
    }
}

/* Runs what was queued, or keeps it: for the graph, or until somebody waits. */
void queue(device_stream *stream, operation work) {
    if (stream->recording != nullptr) {
        stream->recording->operations.push_back(std::move(work));
    } else if (device.lazy) {
        stream->queued.push_back(std::move(work));
    } else {
        run_now(stream, work);
    }
}

void run_next(device_stream *stream) {
    const operation work = std::move(stream->queued.front());
    stream->queued.pop_front();
    run_now(stream, work);
}

void check_idle(const device_stream *stream) {
    if (!stream->queued.empty()) {
        simt::stop("memory or a stream is given back while %d operations are queued", (int)stream->queued.size());
    }
}

lmi_status take(device_stream *stream, uint64_t bytes, bool counted, void **memory, lmi_error *error) {
    *memory = nullptr;
    if (device.lost) {
        return fail(error, LMI_DEVICE, "cannot allocate memory: the device is lost");
    }
    char asked[32], available[32];
    void *block = nullptr;
    if ((counted && bytes > free_bytes()) || posix_memalign(&block, 256, bytes + (bytes == 0)) != 0) {
        fail(error, LMI_OUT_OF_MEMORY, "%s of memory asked for on %s, %s are free", human_bytes(bytes, asked),
             stream->info.name, human_bytes(free_bytes(), available));
        return LMI_OUT_OF_MEMORY;
    }
    memset(block, 0, bytes);
    blocks[block] = counted ? bytes : 0;
    n_bytes += counted ? bytes : 0;
    *memory = block;
    return LMI_OK;
}

void give(void *memory) {
    if (memory != nullptr) {
        const auto found = blocks.find(memory);
        if (found == blocks.end()) {
            simt::stop("memory %p is freed that was not allocated", memory);
        }
        simt::host_waits();
        n_bytes -= found->second;
        blocks.erase(found);
        free(memory);
    }
}

} // namespace

simt_device *simt_device_now(void) { return &device; }
uint64_t simt_allocated(void) { return n_bytes; }

void simt::launch(device_stream *stream, const char *name, dim3 grid, dim3 block, size_t shared_bytes, operation kernel) {
    if (shared_bytes > stream->info.shared_bytes) {
        note(stream, std::string(name) + ": more shared memory than a block can have");
        return;
    }
    queue(stream, [=] { run(name, grid, block, shared_bytes, kernel); });
}

lmi_status device_probe(int32_t index, device_info *info, lmi_error *error) {
    if (index != 0 || device.lost) {
        fail(error, LMI_DEVICE, device.lost ? "the device is lost" : "there is no device %d: this machine has one", (int)index);
        remedy(error, "choose device 0");
        return LMI_DEVICE;
    }
    *info = {};
    strcpy(info->name, "SIMT emulator");
    info->major = device.major;
    info->minor = device.minor;
    info->n_multiprocessors = 4;
    info->driver = info->runtime = 13000;
    info->total_bytes = device.total_bytes;
    info->free_bytes = free_bytes();
    info->shared_bytes = device.shared_bytes;
    return LMI_OK;
}

lmi_status device_stream_open(int32_t index, device_stream **stream, lmi_error *error) {
    device_info info;
    *stream = nullptr;
    const lmi_status status = device_probe(index, &info, error);
    if (status == LMI_OK) {
        *stream = new device_stream{info, "", nullptr, {}};
    }
    return status;
}

void device_stream_close(device_stream *stream) {
    if (stream != nullptr) {
        check_idle(stream);
        delete stream;
    }
}
const device_info *device_stream_info(const device_stream *stream) { return &stream->info; }

lmi_status device_alloc(device_stream *stream, uint64_t bytes, void **memory, lmi_error *error) {
    return take(stream, bytes, true, memory, error);
}
static void give_back(device_stream *stream, void *memory) {
    if (memory != nullptr) {
        check_idle(stream);
    }
    give(memory);
}
void device_free(device_stream *stream, void *memory) { give_back(stream, memory); }
lmi_status device_alloc_pinned(device_stream *stream, uint64_t bytes, void **memory, lmi_error *error) {
    return take(stream, bytes, false, memory, error);
}
void device_free_pinned(device_stream *stream, void *memory) { give_back(stream, memory); }

static void copy(device_stream *stream, void *to, const void *from, uint64_t bytes) {
    queue(stream, [=] {
        simt::host_waits();
        device.n_copies++;
        if (bytes > 0) { /* else either may be NULL */
            memcpy(to, from, bytes);
        }
    });
}
void device_upload(device_stream *stream, void *to, const void *host, uint64_t bytes) { copy(stream, to, host, bytes); }
void device_download(device_stream *stream, void *host, const void *from, uint64_t bytes) { copy(stream, host, from, bytes); }
void device_clear(device_stream *stream, void *memory, uint64_t bytes) {
    queue(stream, [=] {
        simt::host_waits();
        memset(memory, 0, bytes);
    });
}

lmi_status device_peek(device_stream *stream, lmi_error *error) {
    if (device.lost) {
        note(stream, "the device is lost");
    }
    return stream->failure.empty() ? LMI_OK : fail(error, LMI_DEVICE, "%s: %s", stream->info.name, stream->failure.c_str());
}
lmi_status device_check(device_stream *stream, lmi_error *error) {
    while (!stream->queued.empty()) {
        run_next(stream);
    }
    simt::host_waits();
    device.n_waits++;
    return device_peek(stream, error);
}

void device_graph_begin(device_stream *stream) { stream->recording = new device_graph; }
lmi_status device_graph_end(device_stream *stream, device_graph **graph, lmi_error *error) {
    device_graph *recorded = stream->recording;
    stream->recording = nullptr;
    *graph = nullptr;
    const lmi_status status = device_peek(stream, error);
    if (status != LMI_OK) {
        delete recorded;
        return status;
    }
    *graph = recorded;
    return LMI_OK;
}
void device_graph_launch(device_stream *stream, device_graph *graph) {
    device.n_graphs++;
    for (const operation &work : graph->operations) {
        queue(stream, work);
    }
}
void device_graph_free(device_graph *graph) { delete graph; }

lmi_status device_mark_open(device_stream *stream, device_mark **mark, lmi_error *) {
    *mark = new device_mark{stream, 0, 0};
    return LMI_OK;
}
void device_mark_close(device_mark *mark) { delete mark; }
void device_mark_set(device_stream *stream, device_mark *mark) {
    mark->n_set++;
    queue(stream, [=] { mark->n_reached++; });
}
void device_mark_wait(device_mark *mark) {
    while (mark->n_reached < mark->n_set && !mark->stream->queued.empty()) {
        run_next(mark->stream);
    }
    if (mark->n_set > 0) {
        simt::host_waits();
    }
}
