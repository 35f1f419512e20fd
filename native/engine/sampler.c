/* What a draw does, exactly:
 *
 *  1. Penalties. A token that occurs c > 0 times among the last min(penalty_last, known) tokens gets, in double,
 *         z = z > 0 ? z / repeat_penalty : z * repeat_penalty;   z = z - (c * frequency_penalty + presence_penalty)
 *     rounded to float32. This is CTRL's penalty (Keskar et al. 2019) and OpenAI's two, in llama.cpp's order.
 *  2. Tokens whose logit is NaN or -infinity have no probability and take no part. If none is left, the draw fails. If there
 *     are logits of +infinity, these tokens share everything, equally.
 *  3. Candidates are ordered by logit, largest first; equal ones by id, lowest first (-0 equals 0).
 *     If temperature is 0 or top_k is 1, the first candidate is the result and no random number is used.
 *  4. The links cut the list, each computing probabilities anew (softmax over what is left, temperature 1, in double):
 *         top-k      keeps the first k                                        (Fan et al. 2018)
 *         typical    |-log p - entropy|, rounded to float32, ties by id: keeps the shortest run, most typical first, that
 *                    holds at least typical_p                                 (Meister et al. 2022)
 *         top-p      keeps the shortest run, most likely first, that holds at least top_p  (Holtzman et al. 2019)
 *         min-p      keeps p >= min_p * (largest p)                           (Nguyen et al. 2024)
 *  5. The weights of what is left are exp((z - largest z) / temperature). With u uniform in [0, 1), the result is the first
 *     candidate, in order, up to which the weights sum to more than u times their total.
 *
 * The log probability that comes with a token is the model's: log softmax of the logits as they came, at temperature 1, before
 * penalties and cuts. Its sum of exponentials is taken in float32, 16 at a time, and is good to about 1e-7.
 *
 * No link needs a full sort: each asks which candidates make up the front of the order, by number or by mass, and a
 * quickselect answers that in time proportional to their number. tests/oracle/sampler64.py sorts, and must agree. */
#include "engine/sampler.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/half.h"

/* Logits per entry of block_max: top-k looks only into blocks that can hold one of the k largest. */
enum { BLOCK = 64, LANES = 16 };

/* `key` sorts candidates: the smaller, the earlier. Its upper half is the order, its lower half the id. */
typedef struct candidate {
    uint64_t key;
    double weight;
} candidate;

/* What a saved state holds: no padding, no pointers. */
typedef struct saved {
    uint64_t state_high, state_low; /* of the generator */
    uint64_t stream_high, stream_low;
    uint64_t seed;
    float temperature, top_p, min_p, typical_p;
    float repeat_penalty, frequency_penalty, presence_penalty;
    int32_t top_k, penalty_last, unused;
} saved;

_Static_assert(sizeof(saved) == 80, "a saved sampler has no padding");

struct sampler {
    saved saved;
    int64_t n_vocab;
    candidate *candidates; /* [n_vocab] */
    float *adjusted;       /* [n_vocab]: logits after penalties */
    float *block_max;      /* [n_vocab / BLOCK, rounded up] */
    uint16_t *counts;      /* [n_vocab]: 0 between draws */
};

/* ---- options ----------------------------------------------------------------------------------------------------- */

static lmi_status check_between(const char *name, float value, float least, float most, bool least_allowed, lmi_error *error) {
    if (value >= least && value <= most && (least_allowed || value > least)) { /* false for NaN */
        return LMI_OK;
    }
    fail(error, LMI_INVALID_ARGUMENT, "%s must be %s %g and at most %g, not %g", name, least_allowed ? "at least" : "more than",
         (double)least, (double)most, (double)value);
    remedy(error, "Choose %s in that range.", name);
    return LMI_INVALID_ARGUMENT;
}

static lmi_status check_options(const saved *o, lmi_error *error) {
    lmi_status status;
    if ((status = check_between("temperature", o->temperature, 0.0f, 100.0f, true, error)) != LMI_OK ||
        (status = check_between("top_p", o->top_p, 0.0f, 1.0f, false, error)) != LMI_OK ||
        (status = check_between("min_p", o->min_p, 0.0f, 1.0f, true, error)) != LMI_OK ||
        (status = check_between("typical_p", o->typical_p, 0.0f, 1.0f, false, error)) != LMI_OK ||
        (status = check_between("repeat_penalty", o->repeat_penalty, 0.0f, 10.0f, false, error)) != LMI_OK ||
        (status = check_between("frequency_penalty", o->frequency_penalty, -10.0f, 10.0f, true, error)) != LMI_OK ||
        (status = check_between("presence_penalty", o->presence_penalty, -10.0f, 10.0f, true, error)) != LMI_OK) {
        return status;
    }
    if (o->top_k < 0) {
        fail(error, LMI_INVALID_ARGUMENT, "top_k must be at least 0, not %d", (int)o->top_k);
        remedy(error, "0 keeps all tokens.");
        return LMI_INVALID_ARGUMENT;
    }
    if (o->penalty_last < 0 || o->penalty_last > SAMPLER_HISTORY) {
        fail(error, LMI_INVALID_ARGUMENT, "penalty_last must be at least 0 and at most %d, not %d", SAMPLER_HISTORY,
             (int)o->penalty_last);
        remedy(error, "Choose penalty_last in that range.");
        return LMI_INVALID_ARGUMENT;
    }
    return LMI_OK;
}

/* ---- random numbers ---------------------------------------------------------------------------------------------- */

__extension__ typedef unsigned __int128 u128;

static uint64_t split_mix(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Four outputs of SplitMix64: state (upper half first), then stream, which has to be odd. */
static void seed_generator(saved *g, uint64_t seed) {
    g->seed = seed;
    g->state_high = split_mix(&seed);
    g->state_low = split_mix(&seed);
    g->stream_high = split_mix(&seed);
    g->stream_low = split_mix(&seed) | 1;
}

/* PCG64: a step of the 128-bit congruential generator, then xor of the halves, rotated by the top six bits. */
static double next_uniform(saved *g) {
    const u128 multiplier = (u128)0x2360ed051fc65da4u << 64 | 0x4385df649fccf645u;
    u128 stream = (u128)g->stream_high << 64 | g->stream_low;
    u128 state = ((u128)g->state_high << 64 | g->state_low) * multiplier + stream;
    g->state_high = (uint64_t)(state >> 64);
    g->state_low = (uint64_t)state;
    uint64_t folded = g->state_high ^ g->state_low;
    unsigned turn = (unsigned)(g->state_high >> 58);
    uint64_t output = folded >> turn | folded << (-turn & 63);
    return (double)(output >> 11) * 0x1p-53;
}

/* ---- passes over all logits -------------------------------------------------------------------------------------- */

/* Inner loops run over a fixed number of lanes, which the compiler turns into vector code of any width. */

/* The largest of each block and of all; NaN is never larger. -infinity if there is nothing else. */
static float find_max(const float *z, int64_t n, float *block_max) {
    float largest = -INFINITY;
    for (int64_t begin = 0; begin < n; begin += BLOCK) {
        int64_t end = n - begin < BLOCK ? n : begin + BLOCK;
        float lane[LANES];
        for (int j = 0; j < LANES; j++) {
            lane[j] = -INFINITY;
        }
        int64_t i = begin;
        for (; i + LANES <= end; i += LANES) {
            for (int j = 0; j < LANES; j++) {
                lane[j] = z[i + j] > lane[j] ? z[i + j] : lane[j];
            }
        }
        for (; i < end; i++) {
            lane[0] = z[i] > lane[0] ? z[i] : lane[0];
        }
        for (int j = 1; j < LANES; j++) {
            lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
        }
        block_max[begin / BLOCK] = lane[0];
        largest = lane[0] > largest ? lane[0] : largest;
    }
    return largest;
}

/* exp(x) for x <= 0, to about 1e-7 of itself; what is below -87, and NaN, counts as -87 (1.6e-38). That limit is put on the
 * bits, as integers, because the compiler turns a comparison of floats into a jump.
 * x = n log 2 + r, |r| <= log(2) / 2; log 2 in two pieces of which the first times n is exact; Taylor's series to r^7. */
static inline float exp_lane(float x) {
    const int32_t most = 0x42ae0000; /* 87 */
    int32_t magnitude = (int32_t)(f32_to_bits(x) & 0x7fffffffu);
    x = -f32_from_bits((uint32_t)(magnitude < most ? magnitude : most));
    float shifted = x * 1.44269504f + 0x1.8p23f; /* the low bits are now n, rounded to nearest */
    float n = shifted - 0x1.8p23f;
    float r = (x - n * 0x1.63p-1f) - n * -0x1.bd0106p-13f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * f32_from_bits((f32_to_bits(shifted) + 127) << 23);
}

/* The sum of exp(z - largest), for a finite largest. Lanes are added up in double before rounding can gather in them. */
static double sum_exp(const float *z, int64_t n, float largest) {
    double total = 0;
    for (int64_t begin = 0; begin < n; begin += LANES * LANES) {
        int64_t size = n - begin < LANES * LANES ? n - begin : LANES * LANES;
        float power[LANES * LANES], lane[LANES] = {0};
        for (int64_t i = 0; i < size; i++) {
            power[i] = exp_lane(z[begin + i] - largest);
        }
        for (int64_t i = size; i < LANES * LANES; i++) {
            power[i] = 0.0f;
        }
        for (int i = 0; i < LANES * LANES; i += LANES) {
            for (int j = 0; j < LANES; j++) {
                lane[j] += power[i + j];
            }
        }
        for (int j = 0; j < LANES; j++) {
            total += (double)lane[j];
        }
    }
    return total;
}

/* How far a logit is below another: 0 if they are equal, infinite ones too. */
static inline double gap(float z, float largest) { return z == largest ? 0.0 : (double)z - (double)largest; }

static double log_probability(const float *logits, int64_t n, int32_t token, float largest) {
    if (largest == INFINITY) {
        int64_t n_infinite = 0;
        for (int64_t i = 0; i < n; i++) {
            n_infinite += logits[i] == INFINITY;
        }
        return logits[token] == INFINITY ? -log((double)n_infinite) : -INFINITY;
    }
    return gap(logits[token], largest) - log(sum_exp(logits, n, largest));
}

double logits_nll(const float *logits, int64_t n_vocab, int32_t token) {
    if (token < 0 || token >= n_vocab) {
        return INFINITY;
    }
    float largest = -INFINITY;
    for (int64_t i = 0; i < n_vocab; i++) {
        largest = logits[i] > largest ? logits[i] : largest;
    }
    if (largest == INFINITY || largest == -INFINITY) {
        return largest == INFINITY ? -log_probability(logits, n_vocab, token, largest) : NAN;
    }
    double total = 0; /* a NaN among the logits gives NaN: a measurement must not hide it */
    for (int64_t i = 0; i < n_vocab; i++) {
        total += exp((double)logits[i] - (double)largest);
    }
    return log(total) - ((double)logits[token] - (double)largest);
}

/* ---- the front of an order --------------------------------------------------------------------------------------- */

/* The bits of a float, negative ones turned over, sort like the floats; turned over once more they put the largest first. */
static uint64_t key_of(float z, int64_t id) {
    uint32_t bits = f32_to_bits(z + 0.0f); /* -0 becomes 0 */
    uint32_t ascending = bits ^ ((0u - (bits >> 31)) | 0x80000000u);
    return (uint64_t)~ascending << 32 | (uint64_t)id;
}

static int32_t id_of(candidate c) { return (int32_t)(c.key & 0x7fffffff); }

static float logit_of(candidate c) {
    uint32_t ascending = ~(uint32_t)(c.key >> 32);
    return f32_from_bits(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
}

static inline void swap(candidate *a, candidate *b) {
    candidate held = *a;
    *a = *b;
    *b = held;
}

static void sift_down(candidate *c, int64_t root, int64_t n) {
    for (int64_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && c[child + 1].key > c[child].key) {
            child++;
        }
        if (c[root].key >= c[child].key) {
            return;
        }
        swap(&c[root], &c[child]);
    }
}

static void heap_sort(candidate *c, int64_t n) {
    for (int64_t root = n / 2; root-- > 0;) {
        sift_down(c, root, n);
    }
    for (int64_t last = n - 1; last > 0; last--) {
        swap(&c[0], &c[last]);
        sift_down(c, 0, last);
    }
}

static void insertion_sort(candidate *c, int64_t n) {
    for (int64_t i = 1; i < n; i++) {
        candidate held = c[i];
        int64_t j = i;
        for (; j > 0 && c[j - 1].key > held.key; j--) {
            c[j] = c[j - 1];
        }
        c[j] = held;
    }
}

static uint64_t middle(uint64_t a, uint64_t b, uint64_t c) {
    return a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
}

/* Splits [0, n), n >= 3, at a pivot out of its middle: keys up to it come first. Both sides get at least one (keys differ).
 * Every element is exchanged, wanted or not: a jump would be guessed wrong for half of them, which costs twice as much. */
static int64_t partition(candidate *c, int64_t n) {
    uint64_t pivot = middle(c[0].key, c[n / 2].key, c[n - 1].key);
    int64_t cut = 0;
    for (int64_t i = 0; i < n; i++) {
        candidate next = c[i];
        c[i] = c[cut];
        c[cut] = next;
        cut += next.key <= pivot;
    }
    return cut;
}

typedef enum front { COUNT, MASS_AT_LEAST, MASS_ABOVE } front;

static inline double measure(candidate c, front by) { return by == COUNT ? 1.0 : c.weight; }
static inline bool reached(double sum, double target, front by) { return by == MASS_ABOVE ? sum > target : sum >= target; }

/* Brings to the front the shortest run of the order whose number or mass reaches the target, all if none does; returns its
 * length, n >= 1. The last of the run is at its end; the rest of it is in any order. */
static int64_t find_front(candidate *c, int64_t n, front by, double target) {
    int64_t begin = 0, end = n; /* the run ends in here; `sum` is what lies before */
    double sum = 0;
    int budget = 0; /* halvings, with a reserve: bad pivots must not cost quadratic time */
    for (int64_t i = n; i > 0; i >>= 1) {
        budget += 3;
    }
    while (end - begin > 16 && budget-- > 0) {
        int64_t cut = begin + partition(c + begin, end - begin);
        double part = 0;
        for (int64_t i = begin; i < cut; i++) {
            part += measure(c[i], by);
        }
        if (reached(sum + part, target, by)) {
            end = cut;
        } else {
            sum += part;
            begin = cut;
        }
    }
    if (end - begin > 16) {
        heap_sort(c + begin, end - begin);
    } else {
        insertion_sort(c + begin, end - begin);
    }
    for (int64_t i = begin; i < end; i++) {
        sum += measure(c[i], by);
        if (reached(sum, target, by)) {
            return i + 1;
        }
    }
    return end; /* where the sum in another order reached it, or all */
}

/* ---- the chain --------------------------------------------------------------------------------------------------- */

static int64_t n_blocks_of(int64_t n_vocab) { return (n_vocab + BLOCK - 1) / BLOCK; }

/* Returns the logits to choose from: the model's, or a copy with penalties. */
static const float *apply_penalties(sampler *s, const float *logits, const int32_t *history, int64_t position,
                                    int64_t n_known) {
    const saved *o = &s->saved;
    int64_t n = o->penalty_last < SAMPLER_HISTORY ? o->penalty_last : SAMPLER_HISTORY;
    n = n < n_known ? n : n_known;
    n = n < position ? n : position;
    if (n <= 0 || (o->repeat_penalty == 1.0f && o->frequency_penalty == 0.0f && o->presence_penalty == 0.0f)) {
        return logits;
    }
    memcpy(s->adjusted, logits, (size_t)s->n_vocab * sizeof *logits);
    for (int64_t i = 1; i <= n; i++) {
        int32_t token = history[(position - i) % SAMPLER_HISTORY];
        if (token >= 0 && token < s->n_vocab) {
            s->counts[token]++;
        }
    }
    for (int64_t i = 1; i <= n; i++) {
        int32_t token = history[(position - i) % SAMPLER_HISTORY];
        if (token < 0 || token >= s->n_vocab || s->counts[token] == 0) {
            continue;
        }
        double z = (double)logits[token];
        if (isfinite(z)) {
            z = z > 0 ? z / (double)o->repeat_penalty : z * (double)o->repeat_penalty;
            z -= s->counts[token] * (double)o->frequency_penalty + (double)o->presence_penalty;
            s->adjusted[token] = (float)(z > FLT_MAX ? FLT_MAX : z < -FLT_MAX ? -FLT_MAX : z);
        }
        s->counts[token] = 0;
    }
    return s->adjusted;
}

/* A logit that at least k tokens reach: the k-th largest of the blocks' largest. */
static float top_k_floor(sampler *s, int64_t k) {
    int64_t n_blocks = n_blocks_of(s->n_vocab);
    if (k >= n_blocks) {
        return -FLT_MAX;
    }
    for (int64_t i = 0; i < n_blocks; i++) {
        s->candidates[i] = (candidate){.key = key_of(s->block_max[i], i)};
    }
    float floor = logit_of(s->candidates[find_front(s->candidates, n_blocks, COUNT, (double)k) - 1]);
    return floor > -FLT_MAX ? floor : -FLT_MAX;
}

static int64_t collect(sampler *s, const float *z, float floor) {
    int64_t n = 0;
    for (int64_t begin = 0; begin < s->n_vocab; begin += BLOCK) {
        if (s->block_max[begin / BLOCK] >= floor) {
            int64_t end = s->n_vocab - begin < BLOCK ? s->n_vocab : begin + BLOCK;
            for (int64_t i = begin; i < end; i++) {
                if (z[i] >= floor) { /* false for NaN */
                    s->candidates[n++] = (candidate){.key = key_of(z[i], i)};
                }
            }
        }
    }
    return n;
}

static double total_weight(const candidate *c, int64_t n) {
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        total += c[i].weight;
    }
    return total;
}

static float largest_logit(const candidate *c, int64_t n) {
    uint64_t least = c[0].key;
    for (int64_t i = 1; i < n; i++) {
        least = c[i].key < least ? c[i].key : least;
    }
    return logit_of((candidate){.key = least});
}

static int64_t keep_typical(candidate *c, int64_t n, float typical_p, const float *z) {
    double total = total_weight(c, n), entropy = 0;
    float largest = largest_logit(c, n);
    for (int64_t i = 0; i < n; i++) {
        double log_p = gap(logit_of(c[i]), largest) - log(total);
        entropy -= c[i].weight > 0 ? c[i].weight / total * log_p : 0.0;
    }
    for (int64_t i = 0; i < n; i++) {
        double score = fabs(gap(logit_of(c[i]), largest) - log(total) + entropy);
        c[i].key = (uint64_t)f32_to_bits((float)(score < FLT_MAX ? score : FLT_MAX)) << 32 | (uint64_t)id_of(c[i]);
    }
    n = find_front(c, n, MASS_AT_LEAST, (double)typical_p * total);
    for (int64_t i = 0; i < n; i++) {
        c[i].key = key_of(z[id_of(c[i])], id_of(c[i]));
    }
    return n;
}

static int64_t keep_heavy(candidate *c, int64_t n, double least) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        if (c[i].weight >= least) {
            c[kept++] = c[i];
        }
    }
    return kept;
}

static void set_weights(candidate *c, int64_t n, double temperature) {
    float largest = largest_logit(c, n);
    for (int64_t i = 0; i < n; i++) {
        c[i].weight = exp(gap(logit_of(c[i]), largest) / temperature);
    }
}

static int32_t choose(sampler *s, const float *z, float largest) {
    const saved *o = &s->saved;
    candidate *c = s->candidates;
    bool by_mass = o->typical_p < 1.0f || o->top_p < 1.0f;
    float floor = largest == INFINITY ? INFINITY : o->top_k > 0 ? top_k_floor(s, o->top_k) : -FLT_MAX;
    if (!by_mass && o->min_p > 0.0f && largest < INFINITY) { /* leaves out what min-p will, with a margin for rounding */
        double least = (double)largest + log((double)o->min_p) - 1e-3 - 1e-6 * fabs((double)largest);
        floor = least > (double)floor ? (float)least : floor;
    }
    int64_t n = collect(s, z, floor);
    if (o->top_k > 0 && n > o->top_k) {
        n = find_front(c, n, COUNT, (double)o->top_k);
    }
    if (by_mass || o->min_p > 0.0f) {
        set_weights(c, n, 1.0);
    }
    if (o->typical_p < 1.0f) {
        n = keep_typical(c, n, o->typical_p, z);
    }
    if (o->top_p < 1.0f) {
        n = find_front(c, n, MASS_AT_LEAST, (double)o->top_p * total_weight(c, n));
    }
    if (o->min_p > 0.0f) {
        double heaviest = 0;
        for (int64_t i = 0; i < n; i++) {
            heaviest = c[i].weight > heaviest ? c[i].weight : heaviest;
        }
        n = keep_heavy(c, n, (double)o->min_p * heaviest);
    }
    set_weights(c, n, (double)o->temperature);
    n = keep_heavy(c, n, DBL_TRUE_MIN); /* weights that vanish cannot be drawn, not even by rounding */
    n = n > 0 ? n : 1;                  /* only with options that sampler_check_state would have refused */
    return id_of(c[find_front(c, n, MASS_ABOVE, next_uniform(&s->saved) * total_weight(c, n)) - 1]);
}

static int32_t find_first(const sampler *s, const float *z, float largest) {
    int64_t i = 0;
    while (s->block_max[i / BLOCK] != largest) {
        i += BLOCK;
    }
    while (z[i] != largest) {
        i++;
    }
    return (int32_t)i;
}

lmi_status sampler_draw(sampler *s, const float *logits, const int32_t *history, int64_t position, int64_t n_known,
                        int32_t *token, float *logprob, lmi_error *error) {
    const float *z = apply_penalties(s, logits, history, position, n_known);
    float largest = find_max(z, s->n_vocab, s->block_max);
    if (largest == -INFINITY) {
        fail(error, LMI_INTERNAL, "no token can be drawn: all %lld logits are NaN or -infinity", (long long)s->n_vocab);
        remedy(error,
               "The model's weights may be damaged: check the file with lmi info --check-tensors, or download it again.");
        return LMI_INTERNAL;
    }
    bool greedy = s->saved.temperature == 0.0f || s->saved.top_k == 1;
    *token = greedy ? find_first(s, z, largest) : choose(s, z, largest);
    if (logprob != NULL) {
        if (z != logits) {
            largest = find_max(logits, s->n_vocab, s->block_max);
        }
        *logprob = (float)log_probability(logits, s->n_vocab, *token, largest);
    }
    return LMI_OK;
}

/* ---- opening, options, state ------------------------------------------------------------------------------------- */

static size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

size_t sampler_bytes(int64_t n_vocab) {
    size_t n = n_vocab > 0 ? (size_t)n_vocab : 1;
    return round_up(sizeof(sampler)) + round_up(n * sizeof(candidate)) + round_up(n * sizeof(float)) +
           round_up((size_t)n_blocks_of((int64_t)n) * sizeof(float)) + round_up(n * sizeof(uint16_t));
}

sampler *sampler_at(void *memory, int64_t n_vocab) {
    size_t n = n_vocab > 0 ? (size_t)n_vocab : 1;
    unsigned char *next = memory;
    sampler *s = memory;
    next += round_up(sizeof *s);
    s->candidates = (candidate *)(void *)next;
    next += round_up(n * sizeof *s->candidates);
    s->adjusted = (float *)(void *)next;
    next += round_up(n * sizeof *s->adjusted);
    s->block_max = (float *)(void *)next;
    next += round_up((size_t)n_blocks_of((int64_t)n) * sizeof *s->block_max);
    s->counts = (uint16_t *)(void *)next;
    s->n_vocab = (int64_t)n;
    s->saved = (saved){.top_p = 1.0f, .typical_p = 1.0f, .repeat_penalty = 1.0f}; /* until set: the most likely token */
    seed_generator(&s->saved, 0);
    return s;
}

lmi_status sampler_set(sampler *s, const lmi_sampling *sampling, lmi_error *error) {
    if (sampling == NULL || sampling->size < sizeof *sampling) {
        fail(error, LMI_INVALID_ARGUMENT, "the sampling options have no valid size");
        remedy(error, "Fill them with lmi_sampling_default first.");
        return LMI_INVALID_ARGUMENT;
    }
    saved next = {.temperature = sampling->temperature,
                  .top_p = sampling->top_p,
                  .min_p = sampling->min_p,
                  .typical_p = sampling->typical_p,
                  .repeat_penalty = sampling->repeat_penalty,
                  .frequency_penalty = sampling->frequency_penalty,
                  .presence_penalty = sampling->presence_penalty,
                  .top_k = sampling->top_k,
                  .penalty_last = sampling->penalty_last};
    lmi_status status = check_options(&next, error);
    if (status == LMI_OK) {
        seed_generator(&next, sampling->seed);
        s->saved = next;
    }
    return status;
}

size_t sampler_state_bytes(void) { return sizeof(saved); }
void *sampler_state(sampler *s) { return &s->saved; }

lmi_status sampler_check_state(const void *state, lmi_error *error) {
    saved loaded;
    lmi_error cause;
    memcpy(&loaded, state, sizeof loaded); /* it may lie anywhere in a file */
    if (check_options(&loaded, &cause) != LMI_OK) {
        return fail(error, LMI_BAD_FORMAT, "the saved sampling options are damaged: %s", cause.message);
    }
    if ((loaded.stream_low & 1) == 0 || loaded.unused != 0) {
        return fail(error, LMI_BAD_FORMAT, "the saved random number generator is damaged");
    }
    return LMI_OK;
}
