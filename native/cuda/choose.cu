/* The largest of many logits, in order, the sum of their exponentials, and a token drawn from them: backend/candidates.h.
 *
 * Slices of the vocabulary first, a block each: sorted in runs of 256, which are merged two by two, the smaller half of a
 * merge being dropped; and each slice's sum, relative to its own largest. Then blocks that merge MERGED such lists, until one
 * is left. All networks are bitonic (Batcher 1968): what happens does not depend on the numbers, and sums are in a fixed
 * order. */
#include <math.h>

#include "cuda/launch.h"
#include "cuda/primitives.cuh"
#include "cuda/sort.cuh"

enum { RUN = LOGIT_CANDIDATES, RUNS = 8, SLICE = RUN * RUNS, MERGED = 16, CHOOSE_THREADS = 512 };

/* What is left of a slice, or of several. A key is a logit above an id: larger keys go first. 0 is none. */
typedef struct choice {
    uint64_t key[RUN];
    double sum; /* of exp(logit - the largest of these); 0 if that is -infinity */
    uint32_t has_nan, unused;
} choice;

/* Lists of RUN keys that begin at multiples of `stride` lists. In each, every run of `length` is put in order, out of two
 * halves that are sorted one way and the other: runs descend and ascend in turn, a whole list descends. */
static __device__ __forceinline__ void merge_halves(uint64_t *keys, int n_lists, int stride, int length) {
    for (int distance = length / 2; distance > 0; distance /= 2) {
        for (int i = (int)threadIdx.x; i < n_lists * (RUN / 2); i += CHOOSE_THREADS) {
            const int list = i / (RUN / 2), pair = i % (RUN / 2);
            const int at = 2 * pair - (pair & (distance - 1)); /* of the half that comes first */
            uint64_t *a = keys + list * stride * RUN + at;
            put_in_order(a, a + distance, (at & length) == 0);
        }
        __syncthreads();
    }
}

/* Lists, each descending, to the largest RUN keys of all in the first. */
static __device__ __forceinline__ void merge_lists(uint64_t *keys, int n_lists) {
    for (int step = 1; step < n_lists; step *= 2) {
        const int n_pairs = (n_lists + step - 1) / (2 * step); /* of lists 2 p step and (2 p + 1) step; one may be left over */
        for (int i = (int)threadIdx.x; i < n_pairs * RUN; i += CHOOSE_THREADS) {
            uint64_t *a = keys + i / RUN * 2 * step * RUN + i % RUN;
            const uint64_t b = keys[(i / RUN * 2 + 1) * step * RUN + RUN - 1 - i % RUN];
            *a = b > *a ? b : *a; /* the larger half, first falling, then rising */
        }
        __syncthreads();
        merge_halves(keys, n_pairs, 2 * step, RUN);
    }
}

static __global__ void __launch_bounds__(CHOOSE_THREADS) choose_in_slice(const float *logits, int64_t n_vocab, choice *out) {
    SHARED uint64_t keys[SLICE];
    let_next_start();
    wait_for_previous();
    const int64_t begin = (int64_t)blockIdx.x * SLICE;
    float z[SLICE / CHOOSE_THREADS];
    bool has_nan = false;
#pragma unroll
    for (int i = 0; i < SLICE / CHOOSE_THREADS; i++) {
        const int at = (int)threadIdx.x + i * CHOOSE_THREADS;
        const bool exists = begin + at < n_vocab;
        z[i] = exists ? logits[begin + at] : -INFINITY;
        has_nan = has_nan || z[i] != z[i];
        keys[at] = exists ? key_of_number(z[i], begin + at) : 0;
    }
    __syncthreads();
    for (int length = 2; length <= RUN; length *= 2) {
        merge_halves(keys, RUNS, 1, length);
    }
    merge_lists(keys, RUNS);

    choice *own = out + blockIdx.x;
    const float largest = number_of_key(keys[0]);
    /* Rounded differences are off by up to 4.8e-7 below 16, where nearly all of a sum comes from, of millions of terms, too. */
    float part = 0.0f;
#pragma unroll
    for (int i = 0; i < SLICE / CHOOSE_THREADS; i++) {
        part += z[i] > -INFINITY ? expf(z[i] - largest) : 0.0f;
    }
    const double sum = block_sum<CHOOSE_THREADS>((double)part);
    const int n_nan = block_sum<CHOOSE_THREADS>((int)has_nan);
    if (threadIdx.x < RUN) {
        own->key[threadIdx.x] = keys[threadIdx.x];
    }
    if (threadIdx.x == 0) {
        own->sum = sum;
        own->has_nan = n_nan > 0;
    }
}

/* Each thread below RUN brings a weight; mass[i] becomes the sum of the first i + 1. */
static __device__ __forceinline__ void sum_up(double *mass, double weight) {
    const int i = (int)threadIdx.x;
    __syncthreads(); /* the last sums have been read */
    if (i < RUN) {
        mass[i] = weight;
    }
    __syncthreads();
    for (int distance = 1; distance < RUN; distance *= 2) {
        const double before = i >= distance && i < RUN ? mass[i - distance] : 0.0;
        __syncthreads();
        if (i < RUN) {
            mass[i] += before;
        }
        __syncthreads();
    }
}

/* What engine/sampler.c makes of candidates (its cut, find_end, draw_among_all and draw_one): which of them is drawn. Every link keeps a
 * front of the order, so each candidate tells for itself whether it is kept. */
static __device__ __forceinline__ int draw_place(const uint64_t *keys, bool all, double sum, const draw_order &order,
                                                 double *mass) {
    const int i = (int)threadIdx.x;
    const double apart = i < RUN && keys[i] != 0 ? (double)number_of_key(keys[i]) - (double)number_of_key(keys[0]) : -INFINITY;
    bool kept = i < RUN && apart > -INFINITY && (order.top_k == 0 || i < order.top_k);
    if (order.top_p < 1.0f || order.min_p > 0.0f) {
        const double weight = kept ? exp(apart) : 0.0;
        sum_up(mass, weight);
        const double before = i > 0 && i < RUN ? mass[i - 1] : 0.0, whole = all || order.top_k > 0 ? mass[RUN - 1] : sum;
        kept = kept && (order.top_p >= 1.0f || before < (double)order.top_p * whole) && weight >= (double)order.min_p;
    }
    sum_up(mass, kept ? exp(apart / (double)order.temperature) : 0.0);
    const bool uncut = !all && order.top_k == 0 && order.top_p >= 1.0f && order.min_p <= 0.0f;
    const double whole = uncut && order.temperature == 1.0f ? sum : mass[RUN - 1];
    const int place = block_sum<CHOOSE_THREADS>(i < RUN && mass[i] <= order.uniform * whole ? 1 : 0);
    return place < RUN && keys[place] != 0 ? place : 0;
}

/* Block b merges lists MERGED b and on; into `out`, or, the last that there is, into what the host reads. */
static __global__ void __launch_bounds__(CHOOSE_THREADS)
    merge_choices(const choice *in, int64_t n, choice *out, logit_candidates *result, cuda_draw draw, int64_t n_vocab) {
    SHARED uint64_t keys[MERGED * RUN];
    SHARED float largest[MERGED];
    SHARED double mass[RUN], all_sum;
    SHARED draw_order order;
    let_next_start();
    wait_for_previous();
    if (draw.order != NULL && threadIdx.x == 0) {
        order = *draw.order;
    }
    in += (int64_t)blockIdx.x * MERGED;
    const int64_t left = n - (int64_t)blockIdx.x * MERGED;
    const int n_lists = left < MERGED ? (int)left : MERGED;
    for (int i = (int)threadIdx.x; i < n_lists * RUN; i += CHOOSE_THREADS) {
        keys[i] = in[i / RUN].key[i % RUN];
    }
    if ((int)threadIdx.x < n_lists) {
        largest[threadIdx.x] = number_of_key(in[threadIdx.x].key[0]);
    }
    __syncthreads();
    merge_lists(keys, n_lists);
    const uint64_t first = keys[0];
    double sum = 0.0;
    int has_nan = 0;
    if ((int)threadIdx.x < n_lists) {
        sum = in[threadIdx.x].sum;
        sum = sum > 0.0 ? sum * exp((double)largest[threadIdx.x] - (double)number_of_key(first)) : 0.0;
        has_nan = in[threadIdx.x].has_nan != 0;
    }
    if (threadIdx.x < 32) { /* MERGED is at most that many */
        sum = warp_sum(sum);
        has_nan = warp_sum(has_nan);
    }
    if (result == NULL) {
        if (threadIdx.x < RUN) {
            out[blockIdx.x].key[threadIdx.x] = keys[threadIdx.x];
        }
        if (threadIdx.x == 0) {
            out[blockIdx.x].sum = sum;
            out[blockIdx.x].has_nan = has_nan > 0;
        }
        return;
    }
    if (threadIdx.x < RUN) {
        const uint64_t key = keys[threadIdx.x];
        result->id[threadIdx.x] = key != 0 ? (int32_t)(0xffffffffu - (uint32_t)key) : 0;
        result->logit[threadIdx.x] = key != 0 ? number_of_key(key) : -INFINITY;
    }
    if (threadIdx.x == 0) {
        result->n = n_vocab < RUN ? (int32_t)n_vocab : RUN;
        result->has_nan = has_nan > 0;
        result->sum = sum;
        all_sum = sum;
    }
    if (draw.order != NULL) {
        __syncthreads();
        const bool all = n_vocab <= RUN || !(number_of_key(keys[RUN - 1]) > -INFINITY);
        const int place = order.top_k == 1 ? 0 : draw_place(keys, all, all_sum, order, mass);
        if (threadIdx.x == 0) {
            const int32_t token = (int32_t)(0xffffffffu - (uint32_t)keys[place]);
            draw.control->drawn = token;
            *draw.told = token;
        }
    }
}

static int64_t n_slices(int64_t n_vocab) { return (n_vocab + SLICE - 1) / SLICE; }
static int64_t n_merged(int64_t n) { return (n + MERGED - 1) / MERGED; }

/* All lists of all rounds but the last lie one after the other. */
uint64_t cuda_candidates_bytes(int64_t n_vocab) {
    int64_t n = n_slices(n_vocab), all = n;
    while (n > MERGED) {
        n = n_merged(n);
        all += n;
    }
    return (uint64_t)all * sizeof(choice);
}

void cuda_launch_candidates(const float *logits, int64_t n_vocab, logit_candidates *out, cuda_draw draw, void *work,
                            device_stream *stream) {
    choice *lists = (choice *)work;
    int64_t n = n_slices(n_vocab);
    LAUNCH(stream, choose_in_slice, dim3((unsigned)n), dim3(CHOOSE_THREADS), 0, logits, n_vocab, lists);
    while (n > MERGED) {
        LAUNCH(stream, merge_choices, dim3((unsigned)n_merged(n)), dim3(CHOOSE_THREADS), 0, lists, n, lists + n,
               (logit_candidates *)NULL, cuda_draw{NULL, NULL, NULL}, n_vocab);
        lists += n;
        n = n_merged(n);
    }
    LAUNCH(stream, merge_choices, dim3(1), dim3(CHOOSE_THREADS), 0, lists, n, (choice *)NULL, out, draw, n_vocab);
}
