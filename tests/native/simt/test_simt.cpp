/* The emulator itself: what it computes, what it stops at, which races ThreadSanitizer sees through it. Layouts of fragments are written here
 * as the PTX ISA manual gives them, element by element. */
#include "check.h"
#include "cuda/primitives.cuh"
#include "simt/device_simt.h"

#include <initializer_list>
#include <sys/wait.h>
#include <unistd.h>

static device_stream *stream;

/* Device memory of n values. */
template <typename T> static T *take(size_t n) {
    void *memory;
    CHECK(device_alloc(stream, n * sizeof(T), &memory, nullptr) == LMI_OK);
    return (T *)memory;
}

static void wait() { CHECK(device_check(stream, nullptr) == LMI_OK); }

/* ---- numbers of threads, calls of a warp and of a block --------------------------------------------------------------- */

static __global__ void count_threads(int *counts) {
    wait_for_previous();
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    atomicAdd(&counts[block * (blockDim.x * blockDim.y * blockDim.z) + thread], 1);
}

static void check_indices() {
    int *counts = take<int>(24 * 60);
    LAUNCH(stream, count_threads, dim3(2, 3, 4), dim3(5, 4, 3), 0, counts);
    wait();
    for (int i = 0; i < 24 * 60; i++) {
        CHECK(counts[i] == 1, "thread %d ran %d times", i, counts[i]);
    }
    device_free(stream, counts);
}

static __global__ void shuffle_all(const int *values, int *results, int width, int by) {
    wait_for_previous();
    const int lane = (int)threadIdx.x % 32, value = values[threadIdx.x];
    int *own = results + 4 * threadIdx.x;
    own[0] = __shfl_sync(0xffffffffu, value, by, width);
    own[1] = __shfl_xor_sync(0xffffffffu, value, by, width);
    own[2] = __shfl_down_sync(0xffffffffu, value, (unsigned)by, width);
    own[3] = __shfl_up_sync(0xffffffffu, value, (unsigned)by, width);
    const uint64_t wide = __shfl_xor_sync(0xffffffffu, (uint64_t)lane << 40, 1);
    const float real = __shfl_sync(0xffffffffu, (float)lane, 7);
    if (wide != (uint64_t)(lane ^ 1) << 40 || real != 7.0f) {
        own[0] = -1;
    }
}

static void check_shuffles() {
    int *values = take<int>(64), *results = take<int>(256);
    for (int i = 0; i < 64; i++) {
        values[i] = 1000 + i * i;
    }
    for (int width = 1; width <= 32; width *= 2) {
        for (int by = 0; by < 32; by++) {
            LAUNCH(stream, shuffle_all, dim3(1), dim3(64), 0, values, results, width, by);
            wait();
            for (int i = 0; i < 64; i++) {
                const int lane = i % 32, segment = lane / width * width, in = lane % width, base = i - lane;
                const int x = lane ^ by;
                const int expected[4] = {segment + by % width, x < segment + width ? x : lane,
                                         in + by < width ? lane + by : lane, in >= by ? lane - by : lane};
                for (int kind = 0; kind < 4; kind++) {
                    CHECK(results[4 * i + kind] == values[base + expected[kind]], "kind %d, width %d, by %d, lane %d", kind,
                          width, by, i);
                }
            }
        }
    }
    device_free(stream, values);
    device_free(stream, results);
}

static __global__ void sums(const float *x, float *results, unsigned *votes) {
    wait_for_previous();
    const float value = x[threadIdx.x];
    results[5 * threadIdx.x] = warp_sum(value);
    results[5 * threadIdx.x + 1] = warp_max(value);
    results[5 * threadIdx.x + 2] = block_sum<96>(value);
    results[5 * threadIdx.x + 3] = block_max<96>(value);
    results[5 * threadIdx.x + 4] = (float)block_sum<96>((uint64_t)threadIdx.x << 32) * 0x1p-32f;
    votes[threadIdx.x] = __ballot_sync(0xffffffffu, value > 0);
    const int any = __any_sync(0xffffffffu, threadIdx.x == 40), all = __all_sync(0xffffffffu, threadIdx.x >= 32);
    if (any != (threadIdx.x / 32 == 1) || all != (threadIdx.x >= 32)) {
        votes[threadIdx.x] = 0xdeadbeef;
    }
}

static void check_sums() {
    float *x = take<float>(96), *results = take<float>(480);
    unsigned *votes = take<unsigned>(96);
    uint64_t seed = 1;
    for (int i = 0; i < 96; i++) {
        x[i] = (float)check_normal(&seed);
    }
    for (int turn = 0; turn < 2; turn++) { /* then with a NaN in the last warp */
        LAUNCH(stream, sums, dim3(1), dim3(96), 0, x, results, votes);
        wait();
        double all = 0;
        float largest = -INFINITY;
        for (int i = 0; i < 96; i++) {
            all += (double)x[i];
            largest = fmaxf(largest, x[i]);
        }
        for (int w = 0; w < 3; w++) {
            double sum = 0;
            float max = -INFINITY;
            unsigned positive = 0;
            for (int i = 32 * w; i < 32 * w + 32; i++) {
                sum += (double)x[i];
                max = fmaxf(max, x[i]);
                positive |= (unsigned)(x[i] > 0) << (i % 32);
            }
            for (int i = 32 * w; i < 32 * w + 32; i++) {
                const float *own = results + 5 * i;
                if (turn == 0 || w < 2) {
                    CHECK(fabs((double)own[0] - sum) < 1e-5 && own[1] == max && votes[i] == positive, "warp %d", w);
                } else {
                    CHECK(own[0] != own[0] && own[1] != own[1], "NaN in warp %d", w);
                }
                CHECK(turn == 0 ? fabs((double)own[2] - all) < 1e-5 && own[3] == largest : own[2] != own[2] && own[3] != own[3],
                      "block");
                CHECK(own[4] == 95 * 96 / 2, "64 bits");
            }
        }
        x[70] = NAN;
    }
    device_free(stream, x);
    device_free(stream, results);
    device_free(stream, votes);
}

/* ---- matrices ---------------------------------------------------------------------------------------------------------- */

static __global__ void multiply_f16(const uint16_t *a, const uint16_t *b, float *d) {
    wait_for_previous();
    const int group = (int)threadIdx.x >> 2, in = (int)threadIdx.x % 4;
    uint16_t left[8], right[4];
    for (int i = 0; i < 8; i++) {
        const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        left[i] = a[row * 16 + in * 2 + (i & 1) + (i >= 4 ? 8 : 0)];
    }
    for (int i = 0; i < 4; i++) {
        right[i] = b[(in * 2 + (i & 1) + (i >= 2 ? 8 : 0)) * 8 + group];
    }
    uint32_t fa[4], fb[2];
    memcpy(fa, left, sizeof fa);
    memcpy(fb, right, sizeof fb);
    float acc[4];
    for (int i = 0; i < 4; i++) {
        acc[i] = d[(i < 2 ? group : group + 8) * 8 + in * 2 + (i & 1)];
    }
    mma_f16(acc, fa, fb);
    for (int i = 0; i < 4; i++) {
        d[(i < 2 ? group : group + 8) * 8 + in * 2 + (i & 1)] = acc[i];
    }
}

/* The same product with fragments from load_matrices: A [16][16] as it lies, B [16][8] transposed on the way. */
static __global__ void multiply_loaded(const uint16_t *a, const uint16_t *b, float *d) {
    SHARED uint16_t left[256];
    SHARED uint16_t right[256]; /* 16 rows of 16, of which 8 are used: load_matrices loads four matrices */
    wait_for_previous();
    const int lane = (int)threadIdx.x;
    for (int i = lane; i < 256; i += 32) {
        left[i] = a[i];
        right[i] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : 0;
    }
    __syncwarp();
    uint32_t fa[4], fb[4];
    load_matrices(fa, &left[lane % 16 * 16 + lane / 16 * 8]);
    load_matrices_transposed(fb, &right[lane % 16 * 16 + lane / 16 * 8]);
    float acc[4] = {0, 0, 0, 0};
    mma_f16(acc, fa, fb);
    for (int i = 0; i < 4; i++) {
        d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = acc[i];
    }
}

static void check_matrices() {
    uint16_t *a = take<uint16_t>(256), *b = take<uint16_t>(128);
    float *d = take<float>(128), *loaded = take<float>(128);
    uint64_t seed = 2;
    for (int i = 0; i < 512; i++) {
        a[i % 256] = f32_to_f16((float)check_normal(&seed));
        b[i % 128] = f32_to_f16((float)check_normal(&seed));
    }
    for (int i = 0; i < 128; i++) {
        d[i] = (float)i;
    }
    LAUNCH(stream, multiply_f16, dim3(1), dim3(32), 0, a, b, d);
    LAUNCH(stream, multiply_loaded, dim3(1), dim3(32), 0, a, b, loaded);
    wait();
    for (int r = 0; r < 16; r++) {
        for (int c = 0; c < 8; c++) {
            double sum = 0;
            for (int k = 0; k < 16; k++) {
                sum += (double)f16_to_f32(a[r * 16 + k]) * (double)f16_to_f32(b[k * 8 + c]);
            }
            CHECK(fabs((double)d[r * 8 + c] - (r * 8 + c) - sum) < 1e-5, "f16 [%d][%d]", r, c);
            CHECK(fabs((double)loaded[r * 8 + c] - sum) < 1e-5, "loaded [%d][%d]", r, c);
        }
    }
    for (void *each : {(void *)a, (void *)b, (void *)d, (void *)loaded}) {
        device_free(stream, each);
    }
}

/* ---- numbers ----------------------------------------------------------------------------------------------------------- */

static void check_numbers() {
    uint64_t seed = 3;
    for (int i = 0; i < 300000; i++) {
        const uint32_t a = (uint32_t)check_random(&seed), b = (uint32_t)check_random(&seed);
        int dots = 5;
        for (int j = 0; j < 4; j++) {
            dots += (int8_t)(a >> 8 * j) * (int8_t)(b >> 8 * j);
        }
        CHECK(dot4((int)a, (int)b, 5) == dots, "dots of %08x, %08x", a, b);
    }
    CHECK(__byte_perm(0x33221100, 0x77665544, 0x7150) == 0x77115500, "%08x", __byte_perm(0x33221100, 0x77665544, 0x7150));
    float sine, cosine;
    sincospif(1e6f + 0.5f, &sine, &cosine);
    CHECK(sine == 1 && fabsf(cosine) < 1e-7f, "%g %g", (double)sine, (double)cosine);
}

/* ---- memory, order ------------------------------------------------------------------------------------------------------- */

/* Sums of blocks, merged by the block that comes last. */
static __global__ void merge(const float *x, float *parts, unsigned *arrived, float *result, int fence) {
    SHARED unsigned last;
    wait_for_previous();
    const float sum = block_sum<64>(x[blockIdx.x * 64 + threadIdx.x]);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
        if (fence) {
            __threadfence();
        }
        last = atomicAdd(arrived, 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float all = 0;
        for (unsigned i = 0; i < gridDim.x; i++) {
            all += parts[i];
        }
        *result = all;
        *arrived = 0;
    }
}

static __global__ void look_at_fresh(float *results) {
    SHARED float fresh[32];
    wait_for_previous();
    float *dynamic = (float *)dynamic_shared();
    results[blockIdx.x * 32 + threadIdx.x] =
        fresh[threadIdx.x] != fresh[threadIdx.x] && dynamic[threadIdx.x] != dynamic[threadIdx.x];
    fresh[threadIdx.x] = dynamic[threadIdx.x] = 0;
}

static __global__ void copy_late(const uint4 *from, unsigned *results) {
    uint4 *to = (uint4 *)dynamic_shared() + 3 * threadIdx.x;
    wait_for_previous();
    for (int i = 0; i < 3; i++) {
        copy_16(to + i, from + i);
        copy_commit();
    }
    unsigned seen = to[0].x == from[0].x;
    copy_wait<2>();
    seen |= (unsigned)(to[0].w == from[0].w) << 1 | (unsigned)(to[1].x == from[1].x) << 2;
    copy_wait<0>();
    seen |= (unsigned)(to[1].y == from[1].y && to[2].z == from[2].z) << 3;
    results[threadIdx.x] = seen;
}

static void check_memory() {
    float *x = take<float>(64 * 50), *parts = take<float>(50), *result = take<float>(1);
    unsigned *arrived = take<unsigned>(1);
    for (int i = 0; i < 64 * 50; i++) {
        x[i] = (float)(i % 7);
    }
    for (int turn = 0; turn < 3; turn++) {
        *result = 0;
        LAUNCH(stream, merge, dim3(50), dim3(64), 0, x, parts, arrived, result, 1);
        wait();
        CHECK(*result == 9597 && *arrived == 0, "%g", (double)*result);
    }
    LAUNCH(stream, look_at_fresh, dim3(6), dim3(32), 128, x);
    wait();
    for (int i = 0; i < 6 * 32; i++) {
        CHECK(x[i] == 1, "shared memory of a new block is not NaN");
    }
    const uint4 from[3] = {{1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10, 11, 12}};
    uint4 *on_device = take<uint4>(3);
    memcpy(on_device, from, sizeof from);
    unsigned *seen = take<unsigned>(32);
    LAUNCH(stream, copy_late, dim3(1), dim3(32), 32 * 48, on_device, seen);
    wait();
    CHECK(seen[0] == 10 && seen[31] == 10, "copies came as %x", seen[0]);
    for (void *each : {(void *)x, (void *)parts, (void *)result, (void *)arrived, (void *)on_device, (void *)seen}) {
        device_free(stream, each);
    }
}

/* ---- the device ---------------------------------------------------------------------------------------------------------- */

static __global__ void increase(int *value) {
    wait_for_previous();
    *value += 1;
}

static void check_device() {
    lmi_error error;
    void *memory, *more;
    simt_device *device = simt_device_now();
    const simt_device before = *device;
    device->free_bytes = simt_allocated() + 1000;
    CHECK(device_alloc(stream, 600, &memory, &error) == LMI_OK);
    CHECK(device_alloc(stream, 600, &more, &error) == LMI_OUT_OF_MEMORY && more == nullptr);
    CHECK(strstr(error.message, "600 B") != nullptr && strstr(error.message, "400 B") != nullptr, "%s", error.message);
    CHECK(device_alloc_pinned(stream, 5000, &more, &error) == LMI_OK);
    device_info info;
    CHECK(device_probe(0, &info, &error) == LMI_OK && info.free_bytes == 400 && info.major == 8);
    device_free_pinned(stream, more);

    int *value = (int *)memory;
    device_graph *graph;
    device_graph_begin(stream);
    LAUNCH(stream, increase, dim3(1), dim3(1), 0, value);
    LAUNCH(stream, increase, dim3(1), dim3(1), 0, value);
    CHECK(device_graph_end(stream, &graph, &error) == LMI_OK && *value == 0, "recorded, not run");
    device_graph_launch(stream, graph);
    device_graph_launch(stream, graph);
    int on_host = 0;
    device_download(stream, &on_host, value, sizeof on_host);
    CHECK(device_check(stream, &error) == LMI_OK && on_host == 4, "%d", on_host);
    device_graph_free(graph);

    LAUNCH(stream, increase, dim3(1), dim3(1), device->shared_bytes + 1, value);
    LAUNCH(stream, increase, dim3(1), dim3(1), 0, value);
    CHECK(device_check(stream, &error) == LMI_DEVICE && strstr(error.message, "shared memory") != nullptr && *value == 4);
    device_free(stream, memory);
    device_stream_close(stream);
    CHECK(device_stream_open(0, &stream, &error) == LMI_OK);
    device->lost = true;
    CHECK(device_check(stream, &error) == LMI_DEVICE && device_probe(0, &info, &error) == LMI_DEVICE);
    *device = before;
    CHECK(device_check(stream, &error) == LMI_DEVICE, "what was lost stays lost");
    device_stream_close(stream);
    CHECK(device_stream_open(1, &stream, &error) == LMI_DEVICE && stream == nullptr);
    CHECK(device_stream_open(0, &stream, &error) == LMI_OK);
}

/* ---- what ends the process ------------------------------------------------------------------------------------------------- */

enum fault {
    NO_FAULT,
    LANE_MISSING,
    LANE_ENDED,
    MIXED,
    PARTIAL_MASK,
    SMALL_WARP,
    BARRIER_ENDED,
    NOT_ALIGNED,
    COPY_NOT_ALIGNED,
    NOT_SHARED,
    BEYOND_SHARED,
    BELOW_SHARED,
    NO_WAIT,
    RACES, /* those from here on are for ThreadSanitizer */
    RACE_BLOCK = RACES,
    RACE_WARP,
    RACE_COPY,
    RACE_DYNAMIC
};

static __global__ void faulty(fault what, unsigned *memory) {
    SHARED unsigned shared[256];
    if (what == NO_WAIT) {
        return;
    }
    wait_for_previous();
    const unsigned i = threadIdx.x;
    unsigned *dynamic = (unsigned *)dynamic_shared();
    uint32_t r[4] = {0, 0, 0, 0};
    shared[i] = i;
    __syncthreads();
    switch (what) {
    case LANE_MISSING:
        if (i != 5) {
            r[0] = __shfl_xor_sync(0xffffffffu, i, 1);
        }
        __syncthreads();
        break;
    case LANE_ENDED:
        if (i == 5) {
            return;
        }
        r[0] = __shfl_xor_sync(0xffffffffu, i, 1);
        break;
    case MIXED:
        r[0] = i % 2 ? __shfl_xor_sync(0xffffffffu, i, 1) : __ballot_sync(0xffffffffu, 1);
        break;
    case PARTIAL_MASK:
        r[0] = __ballot_sync(0xffffu, 1);
        break;
    case SMALL_WARP:
        r[0] = __ballot_sync(0xffffffffu, 1);
        break;
    case BARRIER_ENDED:
        if (i >= 32) {
            return;
        }
        __syncthreads();
        break;
    case NOT_ALIGNED:
        r[0] = load_16(memory + 1).x;
        break;
    case COPY_NOT_ALIGNED:
        copy_16(dynamic, memory + 2);
        break;
    case NOT_SHARED:
        load_matrices(r, memory);
        break;
    case BEYOND_SHARED:
        dynamic[256 + i] = 1;
        break;
    case BELOW_SHARED:
        if (i == 0) {
            dynamic[-1] = 1;
        }
        break;
    case RACE_BLOCK: /* a neighbour's in another warp */
        r[0] = shared[i];
        shared[(i + 32) % 64] = 1;
        break;
    case RACE_WARP: /* a shuffle is not a barrier for memory */
        shared[i] = 1;
        r[0] = __shfl_xor_sync(0xffffffffu, i, 1);
        r[1] = shared[i ^ 1];
        break;
    case RACE_COPY: /* copied by this thread, read by another without a barrier */
        copy_16(dynamic + 4 * i, memory);
        copy_commit();
        copy_wait<0>();
        load_matrices(r, dynamic + 4 * (i ^ 1));
        break;
    case RACE_DYNAMIC:
        dynamic[i] = i;
        __syncwarp();
        r[0] = dynamic[63 - i];
        break;
    default:
        shared[i] = __shfl_xor_sync(0xffffffffu, i, 1);
        dynamic[i] = 1;
        __syncthreads();
        r[0] = shared[63 - i] + dynamic[63 - i];
        break;
    }
    memory[64 + i] = r[0] + r[1];
}

static __global__ void write_same(unsigned *memory) { /* from several blocks */
    wait_for_previous();
    if (threadIdx.x == 0) {
        *memory = blockIdx.x;
    }
}

static __global__ void read_early(unsigned *memory, bool early) {
    const unsigned value = early ? memory[0] : 0;
    wait_for_previous();
    memory[1] = early ? value : memory[0];
}

/* Runs `body` in a child; true if it ended otherwise than well and wrote `expected`. */
template <typename F> static bool dies(const char *expected, F body) {
    int ends[2];
    if (pipe(ends) != 0) {
        return false;
    }
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        CHECK(device_stream_open(0, &stream, nullptr) == LMI_OK);
        body(take<unsigned>(1024));
        exit(0);
    }
    close(ends[1]);
    static char text[1 << 16];
    size_t n = 0;
    for (ssize_t got; (got = read(ends[0], text + n, sizeof text - 1 - n)) > 0;) {
        n += (size_t)got;
    }
    text[n] = '\0';
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    const bool as_expected = status != 0 && strstr(text, expected) != nullptr;
    if (!as_expected) {
        fprintf(stderr, "status %x, not '%s' but: %.2000s\n", (unsigned)status, expected, text);
    }
    return as_expected;
}

static void check_faults() {
    const struct {
        fault what;
        const char *expected;
    } faults[] = {{LANE_MISSING, "a shuffle: only 31 lanes come; lane 5 waits at __syncthreads"},
                  {LANE_ENDED, "a shuffle: only 31 lanes come; lane 5 has ended"},
                  {MIXED, "while other lanes wait at"},
                  {PARTIAL_MASK, "a vote of the lanes 0000ffff only"},
                  {SMALL_WARP, "a vote in a warp of 20 threads"},
                  {BARRIER_ENDED, "__syncthreads: only 32 of 64 threads come"},
                  {NOT_ALIGNED, "is not a multiple of 16"},
                  {COPY_NOT_ALIGNED, "copy_16 from: address"},
                  {NOT_SHARED, "is not in shared memory"},
                  {BEYOND_SHARED, ""},
                  {BELOW_SHARED, "written below dynamic shared memory"},
                  {NO_WAIT, "no thread called wait_for_previous"}};
    for (const auto &each : faults) {
        CHECK(dies(each.expected,
                   [&](unsigned *memory) {
                       LAUNCH(stream, faulty, dim3(2), dim3(each.what == SMALL_WARP ? 20 : 64), 1024, each.what, memory);
                   }),
              "fault %d", each.what);
    }
}

#ifdef __SANITIZE_THREAD__
static void check_races() {
    for (const fault what : {RACE_BLOCK, RACE_WARP, RACE_COPY, RACE_DYNAMIC}) {
        CHECK(dies("data race", [&](unsigned *memory) { LAUNCH(stream, faulty, dim3(1), dim3(64), 1024, what, memory); }),
              "race %d", what);
    }
    CHECK(dies("data race", [](unsigned *memory) { LAUNCH(stream, write_same, dim3(8), dim3(32), 0, memory); }));
    CHECK(dies("data race", [](unsigned *memory) {
        LAUNCH(stream, merge, dim3(8), dim3(64), 0, (float *)memory, (float *)memory + 600, memory + 700, (float *)memory + 701,
               0);
    }));
    CHECK(dies("data race", [](unsigned *memory) {
        LAUNCH(stream, write_same, dim3(1), dim3(32), 0, memory);
        LAUNCH(stream, read_early, dim3(1), dim3(1), 0, memory, true);
    }));
}
#endif

/* The same kernels without their faults: nothing is seen. */
static void check_sound() {
    unsigned *memory = take<unsigned>(1024);
    for (int turn = 0; turn < 8; turn++) {
        LAUNCH(stream, faulty, dim3(1), dim3(64), 1024, NO_FAULT, memory);
        LAUNCH(stream, write_same, dim3(1), dim3(32), 0, memory);
        LAUNCH(stream, read_early, dim3(1), dim3(1), 0, memory, false);
        const unsigned zero = 0;
        device_upload(stream, memory, &zero, sizeof zero);
    }
    CHECK(device_check(stream, nullptr) == LMI_OK && memory[0] == 0);
    device_free(stream, memory);
}

int main() {
    check_faults(); /* children first: ThreadSanitizer does not like a fork among fibers */
#ifdef __SANITIZE_THREAD__
    check_races();
#endif
    CHECK(device_stream_open(0, &stream, nullptr) == LMI_OK);
    check_sound();
    check_indices();
    check_shuffles();
    check_sums();
    check_matrices();
    check_numbers();
    check_memory();
    check_device();
    CHECK(simt_allocated() == 0);
    device_stream_close(stream);
    return check_report();
}
