/* The sampler against a plain version that sorts, and in the corners: ties, NaN, infinities, options at their ends, hostile
 * orders and states. The Python tests compare it with NumPy (tests/sampler). */
#include "check.h"

#include <float.h>
#include <stdbool.h>
#include <time.h>

#include "engine/logits.h"
#include "engine/sampler.h"

__extension__ typedef unsigned __int128 u128;

/* ---- the plain version ------------------------------------------------------------------------------------------- */

typedef struct item {
    double z, weight, score;
    int32_t id;
} item;

static int by_logit(const void *left, const void *right) {
    const item *a = left, *b = right;
    return a->z != b->z ? (a->z > b->z ? -1 : 1) : (a->id > b->id) - (a->id < b->id);
}

static int by_score(const void *left, const void *right) {
    const item *a = left, *b = right;
    return a->score != b->score ? (a->score < b->score ? -1 : 1) : (a->id > b->id) - (a->id < b->id);
}

static double weigh(item *items, int64_t n, double temperature) {
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        items[i].weight = exp((items[i].z - items[0].z) / temperature);
        total += items[i].weight;
    }
    return total;
}

static int64_t run_of(const item *items, int64_t n, double mass) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        if ((sum += items[i].weight) >= mass) {
            return i + 1;
        }
    }
    return n;
}

typedef struct plain {
    u128 state, stream;
    lmi_sampling o;
} plain;

static void plain_seed(plain *p, const lmi_sampling *o) {
    uint64_t seed = o->seed;
    p->o = *o;
    p->state = (u128)check_random(&seed) << 64; /* check_random is SplitMix64 */
    p->state |= check_random(&seed);
    p->stream = (u128)check_random(&seed) << 64;
    p->stream |= check_random(&seed) | 1;
}

static double plain_uniform(plain *p) {
    p->state = p->state * ((u128)2549297995355413924u << 64 | 4865540595714422341u) + p->stream;
    uint64_t x = (uint64_t)(p->state >> 64) ^ (uint64_t)p->state;
    int turn = (int)(p->state >> 122);
    x = turn == 0 ? x : x >> turn | x << (64 - turn);
    return (double)(x >> 11) / 9007199254740992.0;
}

static int32_t plain_draw(plain *p, const float *logits, int64_t n_vocab, item *items) {
    const lmi_sampling *o = &p->o;
    int64_t n = 0;
    for (int32_t i = 0; i < n_vocab; i++) {
        if (logits[i] > -INFINITY) {
            items[n++] = (item){.z = (double)logits[i], .id = i};
        }
    }
    qsort(items, (size_t)n, sizeof *items, by_logit);
    if (o->temperature == 0 || o->top_k == 1) {
        return items[0].id;
    }
    n = o->top_k > 0 && n > o->top_k ? o->top_k : n;
    if (o->typical_p < 1) {
        double largest = items[0].z, total = weigh(items, n, 1), entropy = 0;
        for (int64_t i = 0; i < n; i++) {
            double log_p = items[i].z - largest - log(total);
            entropy -= items[i].weight > 0 ? items[i].weight / total * log_p : 0;
        }
        for (int64_t i = 0; i < n; i++) {
            items[i].score = (double)(float)fabs(largest - items[i].z + log(total) - entropy);
        }
        qsort(items, (size_t)n, sizeof *items, by_score);
        n = run_of(items, n, (double)o->typical_p * total);
        qsort(items, (size_t)n, sizeof *items, by_logit);
    }
    if (o->top_p < 1) {
        double total = weigh(items, n, 1);
        n = run_of(items, n, (double)o->top_p * total);
    }
    if (o->min_p > 0) {
        weigh(items, n, 1);
        while (n > 1 && items[n - 1].weight < (double)o->min_p) {
            n--;
        }
    }
    double target = plain_uniform(p) * weigh(items, n, (double)o->temperature), sum = 0;
    for (int64_t i = 0; i < n; i++) {
        if ((sum += items[i].weight) > target) {
            return items[i].id;
        }
    }
    return items[n - 1].id;
}

/* ---- tools ------------------------------------------------------------------------------------------------------- */

static const int32_t no_history[SAMPLER_HISTORY];

static lmi_sampling off(void) {
    return (lmi_sampling){.size = sizeof(lmi_sampling), .temperature = 1, .top_p = 1, .typical_p = 1, .repeat_penalty = 1};
}

static sampler *open_sampler(int64_t n_vocab) {
    void *memory = aligned_alloc(64, sampler_bytes(n_vocab));
    memset(memory, 0, sampler_bytes(n_vocab));
    return sampler_at(memory, n_vocab);
}

static int32_t draw(sampler *s, const float *logits) {
    int32_t token = -1;
    lmi_error error = {0};
    CHECK(sampler_draw(s, logits, no_history, 0, 0, &token, NULL, &error) == LMI_OK, "%s", error.message);
    return token;
}

/* ---- checks ------------------------------------------------------------------------------------------------------ */

static void test_against_plain(void) {
    const int64_t sizes[] = {1, 2, 15, 16, 17, 64, 65, 129, 1000, 3000};
    uint64_t random = 5;
    int64_t differing = 0, drawn = 0;
    for (int trial = 0; trial < 600; trial++) {
        int64_t n = sizes[trial % 10];
        sampler *s = open_sampler(n);
        float *logits = malloc((size_t)n * sizeof *logits);
        item *items = malloc((size_t)n * sizeof *items);
        lmi_sampling o = off();
        uint64_t links = check_random(&random);
        o.seed = check_random(&random);
        o.temperature = links & 1 ? (float)(0.1 + 3 * check_uniform(&random)) : 1;
        o.top_k = links & 2 ? (int32_t)(2 + check_random(&random) % 100) : 0;
        o.top_p = links & 4 ? (float)(0.01 + 0.98 * check_uniform(&random)) : 1;
        o.min_p = links & 8 ? (float)(0.3 * check_uniform(&random)) : 0;
        o.typical_p = links & 16 ? (float)(0.1 + 0.89 * check_uniform(&random)) : 1;
        plain p;
        plain_seed(&p, &o);
        CHECK(sampler_set(s, &o, NULL) == LMI_OK);
        double spread = 5 * check_uniform(&random);
        for (int k = 0; k < 20; k++) {
            for (int64_t i = 0; i < n; i++) {
                double z = check_normal(&random) * spread;
                logits[i] = (float)(links & 32 ? floor(z) : z);
                logits[i] = links & 64 && check_uniform(&random) < 0.2 ? NAN : logits[i];
            }
            logits[check_random(&random) % (uint64_t)n] = 0;
            differing += draw(s, logits) != plain_draw(&p, logits, n, items);
            drawn++;
        }
        free(items);
        free(logits);
        free(s);
    }
    CHECK(differing == 0, "%lld of %lld draws differ", (long long)differing, (long long)drawn);
}

/* Uniforms of seeds 0 and 2^64 - 1 as NumPy's PCG64 draws them, times 2^16 and cut (tests/oracle/sampler64.py). */
static void test_golden_numbers(void) {
    const int32_t golden[2][8] = {{20434, 40527, 15135, 13788, 8472, 16236, 30207, 300},
                                  {18661, 46245, 57325, 62426, 62351, 2670, 19554, 9005}};
    float *flat = calloc(1 << 16, sizeof *flat);
    sampler *s = open_sampler(1 << 16);
    for (int k = 0; k < 2; k++) {
        lmi_sampling o = off();
        o.seed = k == 0 ? 0 : UINT64_MAX;
        CHECK(sampler_set(s, &o, NULL) == LMI_OK);
        for (int i = 0; i < 8; i++) {
            int32_t token = draw(s, flat);
            CHECK(token == golden[k][i], "%d", token);
        }
    }
    free(s);
    free(flat);
}

static void test_nothing_to_draw(void) {
    sampler *s = open_sampler(70);
    float logits[70];
    int32_t token;
    lmi_error error;
    lmi_sampling chains[3] = {off(), off(), off()};
    chains[1].temperature = 0;
    chains[2].top_k = 5;
    for (int c = 0; c < 3; c++) {
        sampler_set(s, &chains[c], NULL);
        for (int i = 0; i < 70; i++) {
            logits[i] = i % 2 ? NAN : -INFINITY;
        }
        CHECK(sampler_draw(s, logits, no_history, 0, 0, &token, NULL, &error) == LMI_BAD_FORMAT);
        CHECK(strstr(error.message, "all 70 logits are NaN or -infinity") != NULL && error.remedy[0] != '\0');
        logits[69] = -FLT_MAX; /* one is enough */
        CHECK(draw(s, logits) == 69);
        logits[3] = INFINITY;
        logits[68] = INFINITY;
        int32_t one = draw(s, logits);
        CHECK(one == 3 || (c != 1 && one == 68));
    }
    free(s);
}

/* Every link and temperature at its ends, on logits at theirs: always a valid id. */
static void test_extremes(void) {
    const float temperatures[] = {0, 1e-45f, 1e-30f, 1e-3f, 1, 100};
    const float parts[] = {1e-45f, 1e-6f, 0.5f, 0.99999994f, 1};
    const float values[] = {-INFINITY, -FLT_MAX, -1e20f, -1, -1e-45f, -0.0f, 0, 1e-45f, 1, 88, 1e20f, FLT_MAX, INFINITY, NAN};
    uint64_t random = 9;
    enum { N = 131 };
    float logits[N];
    sampler *s = open_sampler(N);
    for (int trial = 0; trial < 3000; trial++) {
        lmi_sampling o = off();
        o.seed = check_random(&random);
        o.temperature = temperatures[check_random(&random) % 6];
        o.top_k = (int32_t[]){0, 1, 2, 130, 131, 132, INT32_MAX}[check_random(&random) % 7];
        o.top_p = parts[check_random(&random) % 5];
        o.typical_p = parts[check_random(&random) % 5];
        o.min_p = (float[]){0, 1e-45f, 0.5f, 1}[check_random(&random) % 4];
        o.repeat_penalty = (float[]){1e-45f, 0.5f, 1, 10}[check_random(&random) % 4];
        o.frequency_penalty = (float[]){-10, 0, 10}[check_random(&random) % 3];
        o.presence_penalty = (float[]){-10, 0, 10}[check_random(&random) % 3];
        o.penalty_last = (int32_t)(check_random(&random) % 4097);
        lmi_error error = {0};
        CHECK(sampler_set(s, &o, &error) == LMI_OK, "%s", error.message);
        uint64_t kinds = 1 + check_random(&random) % 14;
        for (int i = 0; i < N; i++) {
            logits[i] = values[check_random(&random) % kinds];
        }
        logits[7] = -5;
        int32_t history[SAMPLER_HISTORY], token = -1;
        for (int i = 0; i < SAMPLER_HISTORY; i++) {
            history[i] = (int32_t)(check_random(&random) % N);
        }
        float logprob = 1;
        lmi_status status = sampler_draw(s, logits, history, 10000, 4096, &token, &logprob, &error);
        CHECK(status == LMI_OK && token >= 0 && token < N && logits[token] > -INFINITY, "status %d token %d", (int)status,
              token);
        CHECK(logprob <= 1e-6f, "%g", (double)logprob);
    }
    free(s);
}

/* Orders that drive a naive quicksort to quadratic time; and what was chosen is still right. */
static void test_hostile_orders(void) {
    const int64_t n = 100000;
    float *logits = malloc((size_t)n * sizeof *logits);
    item *items = malloc((size_t)n * sizeof *items);
    sampler *s = open_sampler(n);
    clock_t begin = clock();
    for (int order = 0; order < 6; order++) {
        for (int64_t i = 0; i < n; i++) {
            double x = (double)i / (double)n;
            logits[i] = (float)(order == 0   ? x
                                : order == 1 ? -x
                                : order == 2 ? fabs(x - 0.5)  /* organ pipe */
                                : order == 3 ? -fabs(x - 0.5) /* its middle is largest */
                                : order == 4 ? 0              /* all equal */
                                             : (double)(i % 3) + 1e-3 * x);
        }
        for (int link = 0; link < 3; link++) {
            lmi_sampling o = off();
            o.top_p = link == 0 ? 0.3f : 1;
            o.top_k = link == 1 ? 30000 : 0;
            plain p;
            plain_seed(&p, &o);
            sampler_set(s, &o, NULL);
            CHECK(draw(s, logits) == plain_draw(&p, logits, n, items), "order %d, link %d", order, link);
        }
    }
    CHECK((double)(clock() - begin) / CLOCKS_PER_SEC < 20, "quadratic time");
    free(s);
    free(items);
    free(logits);
}

static void test_penalties(void) {
    enum { N = 8 };
    const float logits[N] = {1, 2, 3, -1, 0, 0, 0, -9};
    int32_t history[SAMPLER_HISTORY] = {0}, token;
    lmi_sampling o = off();
    sampler *s = open_sampler(N);
    o.temperature = 0;
    o.repeat_penalty = 2;
    o.penalty_last = 3;
    for (int i = 0; i < SAMPLER_HISTORY; i++) {
        history[i] = 2;
    }
    const int64_t position = ((int64_t)1 << 53) + 4097; /* 1 mod 4096: the last three are at 0, 4095, 4094 */
    sampler_set(s, &o, NULL);
    sampler_draw(s, logits, history, position, 4096, &token, NULL, NULL);
    CHECK(token == 1, "3 / 2 is less than 2: %d", token);
    sampler_draw(s, logits, history, position, 0, &token, NULL, NULL);
    CHECK(token == 2, "nothing is known");
    sampler_draw(s, logits, history, position, -1, &token, NULL, NULL);
    CHECK(token == 2);
    sampler_draw(s, logits, history, 0, 4096, &token, NULL, NULL);
    CHECK(token == 2, "nothing was read");
    history[0] = history[4094] = history[4095] = 1;
    sampler_draw(s, logits, history, position, 4096, &token, NULL, NULL);
    CHECK(token == 2, "only the last three count");
    history[0] = INT32_MAX; /* ids that are none */
    history[4095] = -1;
    history[4094] = N;
    sampler_draw(s, logits, history, position, 4096, &token, NULL, NULL);
    CHECK(token == 2);
    o.repeat_penalty = 1;
    o.frequency_penalty = 0.6f;
    history[0] = history[4094] = 2;
    sampler_set(s, &o, NULL);
    sampler_draw(s, logits, history, position, 4096, &token, NULL, NULL);
    CHECK(token == 1, "3 - 2 * 0.6 is less than 2");
    o.frequency_penalty = 0;
    o.presence_penalty = 0.6f;
    sampler_set(s, &o, NULL);
    sampler_draw(s, logits, history, position, 4096, &token, NULL, NULL);
    CHECK(token == 2, "3 - 0.6 is not");
    o.presence_penalty = -10;
    o.repeat_penalty = 10;
    history[4095] = 7;
    sampler_set(s, &o, NULL);
    float logprob;
    sampler_draw(s, logits, history, position, 4096, &token, &logprob, NULL);
    CHECK(token == 2 && fabs((double)logprob + log(1 + exp(-1) + exp(-2) + 3 * exp(-3) + exp(-4) + exp(-12))) < 3e-7,
          "the log probability is the model's own: %g", (double)logprob);
    free(s);
}

static void test_before_it_is_set(void) {
    const float logits[3] = {0, 5, 1};
    sampler *s = open_sampler(3);
    lmi_error error = {0};
    CHECK(draw(s, logits) == 1);
    CHECK(sampler_check_state(sampler_state(s), &error) == LMI_OK, "%s", error.message);
    free(s);
}

static void test_state(void) {
    unsigned char bytes[256];
    const size_t size = sampler_state_bytes();
    uint64_t random = 77;
    sampler *s = open_sampler(40), *other = open_sampler(40);
    float logits[40];
    for (int i = 0; i < 40; i++) {
        logits[i] = (float)check_normal(&random);
    }
    lmi_sampling o = off();
    o.seed = 4;
    o.top_p = 0.9f;
    sampler_set(s, &o, NULL);
    draw(s, logits);
    CHECK(size <= sizeof bytes - 1);
    memcpy(bytes + 1, sampler_state(s), size); /* at any address */
    CHECK(sampler_check_state(bytes + 1, NULL) == LMI_OK);
    memcpy(sampler_state(other), bytes + 1, size);
    for (int i = 0; i < 100; i++) {
        CHECK(draw(s, logits) == draw(other, logits));
    }
    /* Any bytes at all: refused, or options that can be drawn with; even unchecked ones stay inside. */
    long accepted = 0;
    for (int i = 0; i < 20000; i++) {
        memcpy(bytes, sampler_state(s), size);
        for (int k = 0; k < 3; k++) {
            bytes[check_random(&random) % size] = (unsigned char)check_random(&random);
        }
        accepted += sampler_check_state(bytes, NULL) == LMI_OK;
        memcpy(sampler_state(other), bytes, size);
        int32_t token = draw(other, logits);
        CHECK(token >= 0 && token < 40);
    }
    CHECK(accepted > 100 && accepted < 19900, "%ld", accepted);
    free(s);
    free(other);
}

static void test_options(void) {
    sampler *s = open_sampler(4);
    lmi_error error;
    lmi_sampling o = off();
    CHECK(sampler_set(s, NULL, &error) == LMI_INVALID_ARGUMENT);
    o.size = 8;
    CHECK(sampler_set(s, &o, &error) == LMI_INVALID_ARGUMENT && strstr(error.remedy, "lmi_sampling_default") != NULL);
    o = off();
    o.top_p = 1.5f;
    CHECK(sampler_set(s, &o, &error) == LMI_INVALID_ARGUMENT);
    CHECK(strcmp(error.message, "top_p must be more than 0 and at most 1, not 1.5") == 0, "%s", error.message);
    o = off();
    o.penalty_last = 4097;
    CHECK(sampler_set(s, &o, &error) == LMI_INVALID_ARGUMENT);
    CHECK(strcmp(error.message, "penalty_last must be at least 0 and at most 4096, not 4097") == 0, "%s", error.message);
    free(s);
}

static void test_nll(void) {
    const int64_t n = 5000;
    uint64_t random = 8;
    float *logits = malloc((size_t)n * sizeof *logits);
    long double total = 0;
    for (int64_t i = 0; i < n; i++) {
        logits[i] = (float)(check_normal(&random) * 6);
        total += expl((long double)logits[i]);
    }
    sampler *s = open_sampler(n);
    for (int32_t token = 0; token < n; token += 97) {
        double exact = (double)(logl(total) - (long double)logits[token]);
        CHECK(fabs(logits_nll(logits, n, token) - exact) < 1e-12 * (1 + exact), "%d", token);
    }
    int32_t token;
    float logprob;
    CHECK(sampler_draw(s, logits, no_history, 0, 0, &token, &logprob, NULL) == LMI_OK);
    CHECK(fabs((double)logprob + logits_nll(logits, n, token)) < 3e-7 * (1 - (double)logprob));
    CHECK(logits_nll(logits, n, -1) == INFINITY && logits_nll(logits, n, (int32_t)n) == INFINITY);
    free(s);
    free(logits);
}

/* ---- from candidates ---------------------------------------------------------------------------------------------- */

static void gather(const float *logits, int64_t n_vocab, uint64_t *random, item *items, logit_candidates *top) {
    memset(top, 0, sizeof *top);
    for (int32_t i = 0; i < n_vocab; i++) {
        items[i] = (item){.z = (double)logits[i], .id = i};
        top->has_nan |= isnan(logits[i]);
    }
    qsort(items, (size_t)n_vocab, sizeof *items, by_logit);
    top->n = (int32_t)(n_vocab < LOGIT_CANDIDATES ? n_vocab : LOGIT_CANDIDATES);
    for (int32_t i = 0; i < top->n; i++) {
        top->id[i] = items[i].id;
        top->logit[i] = (float)items[i].z;
    }
    /* -infinity less -infinity is no number; a sum may be off by 8e-7 of itself */
    top->sum = items[0].z == -INFINITY ? 0 : weigh(items, n_vocab, 1) * (1 + 1.6e-6 * (check_uniform(random) - 0.5));
}

/* One draw either way, from the same state of the generator. Candidates may say that they do not tell, but then nothing has
 * changed, and not where they can tell: returns whether they did. */
static bool draw_both(sampler *whole, sampler *few, const float *logits, const logit_candidates *top, const int32_t *history,
                      int64_t n_known) {
    unsigned char before[256];
    lmi_error error = {0};
    int32_t expected = -1, token = -1;
    float expected_logprob = 1, logprob = 1;
    memcpy(sampler_state(whole), sampler_state(few), sampler_state_bytes());
    memcpy(before, sampler_state(few), sampler_state_bytes());
    const lmi_status status = sampler_draw(whole, logits, history, 5000, n_known, &expected, &expected_logprob, &error);
    const bool told = sampler_draw_candidates(few, top, history, 5000, n_known, &token, &logprob);
    if (!told) {
        CHECK(token == -1 && logprob == 1 && memcmp(before, sampler_state(few), sampler_state_bytes()) == 0, "not touched");
        memcpy(sampler_state(few), sampler_state(whole), sampler_state_bytes());
        return false;
    }
    CHECK(status == LMI_OK && token == expected, "%d, not %d", (int)token, (int)expected);
    CHECK(memcmp(sampler_state(whole), sampler_state(few), sampler_state_bytes()) == 0, "the generators differ");
    CHECK(fabs((double)logprob - (double)expected_logprob) < 1.5e-6 * (1 - (double)expected_logprob), "%g, not %g",
          (double)logprob, (double)expected_logprob);
    return true;
}

static void test_candidates(void) {
    const int64_t sizes[] = {1, 2, 40, 255, 256, 257, 300, 1000, 5000};
    uint64_t random = 12;
    long told[6] = {0}, drawn[6] = {0}; /* by kind: all tokens, top_k, the same with penalties, top-p, min-p, everything */
    item *items = malloc(5000 * sizeof *items);
    float *logits = malloc(5000 * sizeof *logits);
    int32_t history[SAMPLER_HISTORY];
    for (int trial = 0; trial < 1800; trial++) {
        const int64_t n = sizes[trial % 9];
        sampler *whole = open_sampler(n), *few = open_sampler(n);
        lmi_sampling o = off();
        const uint64_t links = check_random(&random);
        o.seed = check_random(&random);
        o.temperature = links & 1 ? (float)(0.1 + 2 * check_uniform(&random)) : links & 2 ? 1 : 0.7f;
        o.top_k = links & 4 ? 0 : (int32_t)(1 + check_random(&random) % (links & 8 ? 60 : 300));
        o.top_p = links & 16 ? 1 : (float)(0.01 + 0.98 * check_uniform(&random));
        o.min_p = links & 32 ? 0 : (float)(0.2 * check_uniform(&random));
        o.typical_p = (links >> 40) % 4 != 0 ? 1 : (float)(0.1 + 0.89 * check_uniform(&random));
        const bool penalties = (links >> 42) % 4 == 0, raising = penalties && links >> 44 & 1;
        if (penalties) {
            o.penalty_last = (int32_t)(check_random(&random) % 65);
            o.repeat_penalty = (float)(raising ? 0.5 : 1 + check_uniform(&random));
            o.frequency_penalty = links >> 45 & 1 ? 0.3f : 0;
            o.presence_penalty = links >> 46 & 1 ? (raising ? -0.5f : 0.5f) : 0;
        }
        CHECK(sampler_set(few, &o, NULL) == LMI_OK);
        const double spread = (links >> 47) % 3 == 0 ? 0.3 : 3 + 5 * check_uniform(&random);
        for (int k = 0; k < 5; k++) {
            for (int64_t i = 0; i < n; i++) {
                const double z = check_normal(&random) * spread;
                logits[i] = (float)(links >> 50 & 1 ? floor(z) : z);
                logits[i] = (links >> 51) % 4 == 0 && check_uniform(&random) < 0.9 ? -INFINITY : logits[i];
                logits[i] = logits[i] == 0 && i % 2 ? -0.0f : logits[i];
            }
            logits[check_random(&random) % (uint64_t)n] = 0;
            logit_candidates top;
            gather(logits, n, &random, items, &top);
            for (int i = 0; i < SAMPLER_HISTORY; i++) { /* likely tokens, and any */
                history[i] =
                    i % 2 ? top.id[check_random(&random) % (uint64_t)top.n] : (int32_t)(check_random(&random) % (uint64_t)n);
            }
            const bool all = n <= LOGIT_CANDIDATES || top.logit[LOGIT_CANDIDATES - 1] == -INFINITY;
            const bool by_count = o.top_k > 0 && o.top_k <= LOGIT_CANDIDATES;
            const int kind = all                      ? 0
                             : by_count && !penalties ? 1
                             : by_count && !raising   ? 2
                             : o.top_p < 1            ? 3
                             : o.min_p > 0            ? 4
                                                      : 5;
            for (int j = 0; j < 8; j++) {
                told[kind] += draw_both(whole, few, logits, &top, history, 4096);
                drawn[kind]++;
            }
        }
        free(whole);
        free(few);
    }
    CHECK(told[0] == drawn[0] && drawn[0] > 20000, "all tokens: %ld of %ld", told[0], drawn[0]);
    CHECK(told[1] == drawn[1] && drawn[1] > 5000, "top-k: %ld of %ld", told[1], drawn[1]);
    CHECK(told[2] * 2 > drawn[2] && drawn[2] > 500, "top-k, penalties: %ld of %ld", told[2], drawn[2]);
    for (int kind = 3; kind < 6; kind++) {
        CHECK(told[kind] * 20 > drawn[kind] && told[kind] < drawn[kind], "kind %d: %ld of %ld", kind, told[kind], drawn[kind]);
    }
    free(items);
    free(logits);
}

/* What candidates cannot tell they leave alone. */
static void test_candidates_refused(void) {
    enum { N = 600 };
    float logits[N];
    item items[N];
    logit_candidates top, changed;
    uint64_t random = 3;
    int32_t token;
    for (int i = 0; i < N; i++) {
        logits[i] = (float)check_normal(&random);
    }
    sampler *s = open_sampler(N);
    lmi_sampling o = off();
    o.temperature = 0;
    CHECK(sampler_set(s, &o, NULL) == LMI_OK);
    gather(logits, N, &random, items, &top);
    CHECK(sampler_draw_candidates(s, &top, no_history, 0, 0, &token, NULL) && token == items[0].id);
    changed = top;
    changed.has_nan = 1;
    CHECK(!sampler_draw_candidates(s, &changed, no_history, 0, 0, &token, NULL));
    for (int i = 0; i < 3; i++) {
        changed = top;
        changed.logit[0] = (float[]){NAN, INFINITY, -INFINITY}[i];
        CHECK(!sampler_draw_candidates(s, &changed, no_history, 0, 0, &token, NULL));
        changed = top;
        changed.n = (int[]){0, -1, 257}[i];
        CHECK(!sampler_draw_candidates(s, &changed, no_history, 0, 0, &token, NULL));
        changed = top;
        changed.id[200] = (int[]){-1, N, INT32_MAX}[i];
        CHECK(!sampler_draw_candidates(s, &changed, no_history, 0, 0, &token, NULL));
        changed = top;
        changed.sum = (double[]){0, -1, (double)NAN}[i];
        CHECK(!sampler_draw_candidates(s, &changed, no_history, 0, 0, &token, NULL));
    }
    /* Where top-p cuts to the last digit, a sum that is off by so little decides: only the whole row tells. */
    double mass = 0;
    for (int i = 0; i < 100; i++) {
        mass += items[i].weight;
        o = off();
        o.top_p = (float)(mass / top.sum);
        CHECK(sampler_set(s, &o, NULL) == LMI_OK);
        CHECK(!sampler_draw_candidates(s, &top, no_history, 0, 0, &token, NULL), "after %d", i);
        o.top_p = (float)((mass - 0.5 * items[i].weight) / top.sum);
        CHECK(sampler_set(s, &o, NULL) == LMI_OK);
        CHECK(sampler_draw_candidates(s, &top, no_history, 0, 0, &token, NULL), "within %d", i);
    }
    o = off();
    o.temperature = 0;
    /* A penalty that pulls the largest below all candidates: who is first then? One of 600, or of the candidates. */
    int32_t history[SAMPLER_HISTORY];
    for (int i = 0; i < SAMPLER_HISTORY; i++) {
        history[i] = top.id[i % LOGIT_CANDIDATES];
    }
    o.presence_penalty = 10;
    o.penalty_last = LOGIT_CANDIDATES;
    CHECK(sampler_set(s, &o, NULL) == LMI_OK);
    CHECK(!sampler_draw_candidates(s, &top, history, 5000, 4096, &token, NULL), "all of them fell");
    o.penalty_last = LOGIT_CANDIDATES - 1;
    CHECK(sampler_set(s, &o, NULL) == LMI_OK);
    int32_t expected;
    CHECK(sampler_draw(s, logits, history, 5000, 4096, &expected, NULL, NULL) == LMI_OK);
    if (sampler_draw_candidates(s, &top, history, 5000, 4096, &token, NULL)) {
        CHECK(token == expected, "%d, not %d", (int)token, (int)expected);
    }
    free(s);
}

int main(void) {
    test_against_plain();
    test_golden_numbers();
    test_nothing_to_draw();
    test_extremes();
    test_hostile_orders();
    test_penalties();
    test_before_it_is_set();
    test_state();
    test_options();
    test_nll();
    test_candidates();
    test_candidates_refused();
    return check_report();
}
