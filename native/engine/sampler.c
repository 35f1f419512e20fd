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

#include "backend/candidates.h"
#include "base/half.h"
#include "engine/logits.h"
#include "engine/ordering.h"

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
    float *block_max;      /* [n_vocab / LOGIT_BLOCK, rounded up]: top-k looks only where one of the k largest can be */
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

/* ---- the chain --------------------------------------------------------------------------------------------------- */

static int64_t n_blocks_of(int64_t n_vocab) { return (n_vocab + LOGIT_BLOCK - 1) / LOGIT_BLOCK; }

/* How many tokens back penalties look; 0 if they change nothing. */
static int64_t penalty_reach(const saved *o, int64_t position, int64_t n_known) {
    int64_t n = o->penalty_last < SAMPLER_HISTORY ? o->penalty_last : SAMPLER_HISTORY;
    n = n < n_known ? n : n_known;
    n = n < position ? n : position;
    return n <= 0 || (o->repeat_penalty == 1.0f && o->frequency_penalty == 0.0f && o->presence_penalty == 0.0f) ? 0 : n;
}

static void count_tokens(sampler *s, const int32_t *history, int64_t position, int64_t n) {
    for (int64_t i = 1; i <= n; i++) {
        int32_t token = history[(position - i) % SAMPLER_HISTORY];
        if (token >= 0 && token < s->n_vocab) {
            s->counts[token]++;
        }
    }
}

static float penalized(const saved *o, float logit, int count) {
    double z = (double)logit;
    if (count == 0 || !isfinite(z)) {
        return logit;
    }
    z = z > 0 ? z / (double)o->repeat_penalty : z * (double)o->repeat_penalty;
    z -= count * (double)o->frequency_penalty + (double)o->presence_penalty;
    return (float)(z > FLT_MAX ? FLT_MAX : z < -FLT_MAX ? -FLT_MAX : z);
}

/* Returns the logits to choose from: the model's, or a copy with penalties. */
static const float *apply_penalties(sampler *s, const float *logits, const int32_t *history, int64_t position,
                                    int64_t n_known) {
    const int64_t n = penalty_reach(&s->saved, position, n_known);
    if (n == 0) {
        return logits;
    }
    memcpy(s->adjusted, logits, (size_t)s->n_vocab * sizeof *logits);
    count_tokens(s, history, position, n);
    for (int64_t i = 1; i <= n; i++) {
        int32_t token = history[(position - i) % SAMPLER_HISTORY];
        if (token >= 0 && token < s->n_vocab && s->counts[token] > 0) {
            s->adjusted[token] = penalized(&s->saved, logits[token], s->counts[token]);
            s->counts[token] = 0;
        }
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
    for (int64_t begin = 0; begin < s->n_vocab; begin += LOGIT_BLOCK) {
        if (s->block_max[begin / LOGIT_BLOCK] >= floor) {
            int64_t end = s->n_vocab - begin < LOGIT_BLOCK ? s->n_vocab : begin + LOGIT_BLOCK;
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

/* Sums depend, in their last digits, on the order of what is summed. A few candidates are put in order first, so that those
 * of a device (sampler_draw_candidates) and those picked out of all logits give the same bits. */
static void settle(candidate *c, int64_t n) {
    if (n <= LOGIT_CANDIDATES) {
        sort_candidates(c, n);
    }
}

/* The links after top-k, over n candidates whose logits are in z; returns how many are left. */
static int64_t cut(const saved *o, candidate *c, int64_t n, const float *z) {
    settle(c, n);
    if (o->typical_p < 1.0f || o->top_p < 1.0f || o->min_p > 0.0f) {
        set_weights(c, n, 1.0);
    }
    if (o->typical_p < 1.0f) {
        n = keep_typical(c, n, o->typical_p, z);
        settle(c, n);
    }
    if (o->top_p < 1.0f) {
        n = find_front(c, n, MASS_AT_LEAST, (double)o->top_p * total_weight(c, n));
        settle(c, n);
    }
    if (o->min_p > 0.0f) {
        double heaviest = 0;
        for (int64_t i = 0; i < n; i++) {
            heaviest = c[i].weight > heaviest ? c[i].weight : heaviest;
        }
        n = keep_heavy(c, n, (double)o->min_p * heaviest);
        settle(c, n);
    }
    return n;
}

static int32_t draw_one(saved *o, candidate *c, int64_t n) {
    set_weights(c, n, (double)o->temperature);
    n = keep_heavy(c, n, DBL_TRUE_MIN); /* weights that vanish cannot be drawn, not even by rounding */
    n = n > 0 ? n : 1;                  /* only with options that sampler_check_state would have refused */
    settle(c, n);
    return id_of(c[find_front(c, n, MASS_ABOVE, next_uniform(o) * total_weight(c, n)) - 1]);
}

static int32_t choose(sampler *s, const float *z, float largest) {
    const saved *o = &s->saved;
    bool by_mass = o->typical_p < 1.0f || o->top_p < 1.0f;
    float floor = largest == INFINITY ? INFINITY : o->top_k > 0 ? top_k_floor(s, o->top_k) : -FLT_MAX;
    if (!by_mass && o->min_p > 0.0f && largest < INFINITY) { /* leaves out what min-p will, with a margin for rounding */
        double least = (double)largest + log((double)o->min_p) - 1e-3 - 1e-6 * fabs((double)largest);
        floor = least > (double)floor ? (float)least : floor;
    }
    int64_t n = collect(s, z, floor);
    if (o->top_k > 0 && n > o->top_k) {
        n = find_front(s->candidates, n, COUNT, (double)o->top_k);
    }
    n = cut(o, s->candidates, n, z);
    return draw_one(&s->saved, s->candidates, n);
}

static int32_t find_first(const sampler *s, const float *z, float largest) {
    int64_t i = 0;
    while (s->block_max[i / LOGIT_BLOCK] != largest) {
        i += LOGIT_BLOCK;
    }
    while (z[i] != largest) {
        i++;
    }
    return (int32_t)i;
}

lmi_status sampler_draw(sampler *s, const float *logits, const int32_t *history, int64_t position, int64_t n_known,
                        int32_t *token, float *logprob, lmi_error *error) {
    const float *z = apply_penalties(s, logits, history, position, n_known);
    float largest = logits_largest(z, s->n_vocab, s->block_max);
    if (largest == -INFINITY) {
        fail(error, LMI_BAD_FORMAT, "no token can be drawn: all %lld logits are NaN or -infinity", (long long)s->n_vocab);
        remedy(error,
               "The model's weights may be damaged: check the file with lmi info --check-tensors, or download it again.");
        return LMI_BAD_FORMAT;
    }
    bool greedy = s->saved.temperature == 0.0f || s->saved.top_k == 1;
    *token = greedy ? find_first(s, z, largest) : choose(s, z, largest);
    if (logprob != NULL) {
        if (z != logits) {
            largest = logits_largest(logits, s->n_vocab, s->block_max);
        }
        *logprob = (float)log_probability(logits, s->n_vocab, *token, largest);
    }
    return LMI_OK;
}

/* ---- from candidates --------------------------------------------------------------------------------------------- */

/* By how much, of itself, a sum over the vocabulary may be off: made on a device, and in another order. */
static const double SUM_ERROR = 1e-6, ORDER_ERROR = 1e-9;

/* Puts the candidates, with penalties, into s->candidates, in order; returns their number. What is not among them has a logit
 * of at most `bound`, with and without penalties: those that these lowered so far are left out, others may go before. */
static int64_t take_candidates(sampler *s, const logit_candidates *top, int64_t n_penalized, float bound) {
    int64_t n = 0;
    for (int32_t i = 0; i < top->n; i++) {
        const int32_t id = top->id[i];
        const float z = n_penalized == 0 ? top->logit[i] : penalized(&s->saved, top->logit[i], s->counts[id]);
        if (z > bound || (n_penalized == 0 && z > -INFINITY)) {
            s->adjusted[id] = z;
            s->candidates[n++] = (candidate){.key = key_of(z, id)};
        }
    }
    sort_candidates(s->candidates, n);
    return n;
}

/* How many of n candidates top-p and min-p leave if there are more tokens, of logits up to `bound`; `sum` is that of all
 * weights, 0 if it is not known. 0: cannot be told. Both cut a front off the order, so the shorter one counts. */
static int64_t find_end(const saved *o, candidate *c, int64_t n, float bound, double sum) {
    set_weights(c, n, 1.0);
    const double least = (double)o->min_p * c[0].weight;
    const bool ends = exp(gap(bound, logit_of(c[0]))) < least * (1.0 - ORDER_ERROR); /* min-p leaves none of the others */
    n = keep_heavy(c, n, least);
    if (o->top_p >= 1.0f) {
        return ends ? n : 0;
    }
    const double target = (double)o->top_p * sum;
    double mass = 0;
    for (int64_t i = 0; sum > 0.0 && i < n; i++) {
        mass += c[i].weight;
        if (mass >= target * (1.0 + SUM_ERROR) || (ends && i == n - 1)) {
            return i + 1;
        }
        if (mass > target * (1.0 - SUM_ERROR)) {
            return 0;
        }
    }
    return 0;
}

/* Draws among all tokens, of which n are at hand: the others weigh, together, no less than `low` and no more than `high`. */
static bool draw_among_all(saved *o, candidate *c, int64_t n, double sum, int32_t *token) {
    const double t = (double)o->temperature;
    if (!(t <= 1.0)) {
        return false; /* heat raises the small ones, by how much is not known */
    }
    set_weights(c, n, 1.0);
    const double others = sum - total_weight(c, n), margin = sum * SUM_ERROR;
    const double least = gap(logit_of(c[n - 1]), logit_of(c[0]));
    const double low = t == 1.0 && others > margin ? others - margin : 0.0;
    const double high = (others + margin) * exp(least * (1.0 / t - 1.0));
    set_weights(c, n, t);
    const double total = total_weight(c, n);
    saved next = *o;
    const double u = next_uniform(&next);
    double before = 0;
    for (int64_t i = 0; i < n; i++) {
        const double up_to = before + c[i].weight;
        if (up_to > u * (total + high) * (1.0 + ORDER_ERROR)) {
            if (before > u * (total + low) * (1.0 - ORDER_ERROR)) {
                return false;
            }
            *o = next;
            *token = id_of(c[i]);
            return true;
        }
        before = up_to;
    }
    return false;
}

static bool draw_candidates(sampler *s, const logit_candidates *top, int64_t n_penalized, int32_t *token) {
    saved *o = &s->saved;
    candidate *c = s->candidates;
    const bool all = top->n == s->n_vocab || top->logit[top->n - 1] == -INFINITY;
    const float bound = all ? -INFINITY : top->logit[top->n - 1];
    const bool raised = !(o->repeat_penalty >= 1.0f && o->frequency_penalty >= 0.0f && o->presence_penalty >= 0.0f);
    int64_t n = take_candidates(s, top, n_penalized, bound);
    if (n == 0 || (n_penalized > 0 && raised && !all)) {
        return false;
    }
    if (o->temperature == 0.0f || o->top_k == 1) {
        *token = id_of(c[0]);
        return true;
    }
    if (all || (o->top_k > 0 && o->top_k <= n)) {
        n = o->top_k > 0 && o->top_k < n ? o->top_k : n;
        *token = draw_one(o, c, cut(o, c, n, s->adjusted));
        return true;
    }
    if (o->typical_p < 1.0f) {
        return false;
    }
    const double sum = n_penalized == 0 && o->top_k == 0 ? top->sum : 0.0;
    if (sum > 0.0 && o->top_p >= 1.0f && o->min_p <= 0.0f) {
        return draw_among_all(o, c, n, sum, token);
    }
    n = find_end(o, c, n, bound, sum);
    if (n > 0) {
        *token = draw_one(o, c, n);
    }
    return n > 0;
}

bool sampler_draw_candidates(sampler *s, const logit_candidates *top, const int32_t *history, int64_t position, int64_t n_known,
                             int32_t *token, float *logprob) {
    if (top->has_nan || top->n < 1 || top->n > LOGIT_CANDIDATES || top->n > s->n_vocab || !isfinite(top->logit[0]) ||
        !(top->sum > 0.0)) {
        return false;
    }
    for (int32_t i = 0; i < top->n; i++) {
        if (top->id[i] < 0 || top->id[i] >= s->n_vocab) {
            return false;
        }
    }
    const int64_t n_penalized = penalty_reach(&s->saved, position, n_known);
    count_tokens(s, history, position, n_penalized);
    const bool drawn = draw_candidates(s, top, n_penalized, token);
    for (int64_t i = 1; i <= n_penalized; i++) {
        const int32_t one = history[(position - i) % SAMPLER_HISTORY];
        if (one >= 0 && one < s->n_vocab) {
            s->counts[one] = 0;
        }
    }
    for (int32_t i = 0; drawn && logprob != NULL && i < top->n; i++) {
        if (top->id[i] == *token) {
            *logprob = (float)(gap(top->logit[i], top->logit[0]) - log(top->sum));
        }
    }
    return drawn;
}

bool sampler_foresee(const sampler *s, draw_order next[2]) {
    const saved *o = &s->saved;
    const bool greedy = o->temperature == 0.0f || o->top_k == 1;
    const bool cuts = o->top_k > 0 || o->top_p < 1.0f || o->min_p > 0.0f;
    if (penalty_reach(o, INT64_MAX, INT64_MAX) > 0 ||
        (!greedy && (o->typical_p < 1.0f || o->top_k > LOGIT_CANDIDATES || (!cuts && o->temperature > 1.0f)))) {
        return false;
    }
    saved later = *o;
    for (int i = 0; i < 2; i++) {
        next[i] = greedy ? (draw_order){.temperature = 1.0f, .top_p = 1.0f, .top_k = 1}
                         : (draw_order){next_uniform(&later), o->temperature, o->top_p, o->min_p, o->top_k};
    }
    return true;
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
