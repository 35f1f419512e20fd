/* Steers as the library has them: logits against products in double, the same bits for any number of threads, nothing left behind,
 * values that make no sense. Also run under ThreadSanitizer. */
#define _GNU_SOURCE

#include "memory_llama.h"

enum { N_TOKENS = 70, CHUNK = 24, RANK_A = 5, RANK_B = 17, ROOM = RANK_A + RANK_B };

static lmi_session_options session_options(void) {
    lmi_session_options options;
    lmi_session_options_default(&options);
    options.window = 40;
    options.sinks = 3;
    options.chunk = CHUNK;
    options.all_logits = options.all_hidden = 1;
    options.steer_rank = ROOM;
    return options;
}

static lmi_session *open_session(lmi_model *model, const lmi_session_options *options) {
    lmi_session *session = NULL;
    lmi_error error = {0};
    CHECK(lmi_session_open(model, options, &session, &error) == LMI_OK, "%s | %s", error.message, error.remedy);
    return session;
}

static lmi_model_info info_of(const lmi_model *model) {
    lmi_model_info info;
    lmi_model_get_info(model, &info);
    return info;
}

static float *random_floats(int64_t n, uint64_t seed) {
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)check_normal(&seed);
    }
    return x;
}

/* Two steers of odd ranks. */
typedef struct pair {
    lmi_steer steers[2];
    float *p[4];
} pair;

static pair make_pair(int64_t n_embd, double alpha_a, double alpha_b) {
    pair s;
    for (int i = 0; i < 4; i++) {
        s.p[i] = random_floats(n_embd * (i < 2 ? RANK_A : RANK_B), (uint64_t)i + 1);
    }
    s.steers[0] = (lmi_steer){s.p[0], s.p[1], RANK_A, alpha_a, 1e-3};
    s.steers[1] = (lmi_steer){s.p[2], s.p[3], RANK_B, alpha_b, 1e-3};
    return s;
}

static void free_pair(pair *s) {
    for (int i = 0; i < 4; i++) {
        free(s->p[i]);
    }
}

/* Rows of the last chunk, as single tokens or at once. */
static float *read_rows(lmi_session *session, int64_t n_vocab, bool single) {
    int32_t tokens[N_TOKENS];
    uint64_t state = 7;
    lmi_error error = {0};
    for (int i = 0; i < N_TOKENS; i++) {
        tokens[i] = (int32_t)(check_random(&state) % (uint64_t)n_vocab);
    }
    CHECK(lmi_session_read(session, tokens, single ? N_TOKENS - 1 : N_TOKENS, NULL, &error) == LMI_OK, "%s", error.message);
    if (single) {
        CHECK(lmi_session_read(session, tokens + N_TOKENS - 1, 1, NULL, &error) == LMI_OK, "%s", error.message);
    }
    const int64_t n = lmi_session_n_rows(session);
    CHECK(n == (single ? 1 : (N_TOKENS - 1) % CHUNK + 1));
    float *rows = malloc((size_t)(n * n_vocab) * sizeof *rows);
    memcpy(rows, lmi_session_logits(session, 0), (size_t)(n * n_vocab) * sizeof *rows);
    CHECK(lmi_session_hot_allocations(session) == 0);
    return rows;
}

/* The steered hidden state as one matrix product each, in double. */
static void steer_row(const float *c, const pair *s, int64_t n_embd, double *out) {
    for (int64_t d = 0; d < n_embd; d++) {
        out[d] = (double)c[d];
    }
    for (int i = 0; i < 2; i++) {
        const lmi_steer *steer = &s->steers[i];
        for (int64_t r = 0; r < steer->rank; r++) {
            double dot = 0;
            for (int64_t d = 0; d < n_embd; d++) {
                dot += (double)c[d] * (double)steer->p1[d * steer->rank + r];
            }
            for (int64_t d = 0; d < n_embd; d++) {
                out[d] += steer->epsilon * steer->alpha * dot * (double)steer->p2[d * steer->rank + r];
            }
        }
    }
}

/* Logits of an F32 file against the file's own output matrix, in double, from the hidden state that the library gives. */
static void test_against_double(bool single) {
    lmi_model *model = open_model(QUANT_F32, 3);
    const lmi_model_info info = info_of(model);
    const lmi_session_options options = session_options();
    lmi_session *session = open_session(model, &options);
    pair s = make_pair(info.n_embd, 3, -20);
    lmi_error error = {0};
    CHECK(lmi_session_set_steers(session, s.steers, 2, &error) == LMI_OK, "%s", error.message);
    float *rows = read_rows(session, info.n_vocab, single);
    const float *matrix = NULL;
    for (int64_t i = 0; i < info.n_tensors; i++) {
        lmi_tensor tensor;
        CHECK(lmi_model_get_tensor(model, i, &tensor, &error) == LMI_OK);
        const bool output = tensor.name_size == 13 && memcmp(tensor.name, "output.weight", 13) == 0;
        const bool embedding = tensor.name_size == 17 && memcmp(tensor.name, "token_embd.weight", 17) == 0;
        matrix = output || (embedding && matrix == NULL) ? tensor.data : matrix;
    }
    double *c = malloc((size_t)info.n_embd * sizeof *c), worst = 0, largest = 0, moved = 0;
    for (int64_t t = 0; t < lmi_session_n_rows(session); t++) {
        const float *hidden = lmi_session_hidden(session, t);
        steer_row(hidden, &s, info.n_embd, c);
        for (int64_t v = 0; v < info.n_vocab; v++) {
            double expected = 0, plain = 0;
            for (int64_t d = 0; d < info.n_embd; d++) {
                expected += c[d] * (double)matrix[v * info.n_embd + d];
                plain += (double)hidden[d] * (double)matrix[v * info.n_embd + d];
            }
            worst = fmax(worst, fabs((double)rows[t * info.n_vocab + v] - expected));
            largest = fmax(largest, fabs(expected));
            moved = fmax(moved, fabs(expected - plain));
        }
    }
    CHECK(worst < 1e-5 * largest && moved > 0.05 * largest, "off by %g of %g, moved by %g", worst, largest, moved);
    CHECK(lmi_session_hidden(session, lmi_session_n_rows(session)) == NULL && lmi_session_hidden(session, -2) == NULL);
    free(c);
    free(rows);
    free_pair(&s);
    lmi_session_close(session);
    lmi_model_close(model);
}

static void test_threads_agree(void) {
    float *first = NULL;
    for (int n_threads = 1; n_threads < 5; n_threads++) {
        lmi_model *model = open_model(QUANT_Q8_0, n_threads);
        const lmi_model_info info = info_of(model);
        const lmi_session_options options = session_options();
        lmi_session *session = open_session(model, &options);
        pair s = make_pair(info.n_embd, 1, 2);
        CHECK(lmi_session_set_steers(session, s.steers, 2, NULL) == LMI_OK);
        float *rows = read_rows(session, info.n_vocab, false);
        CHECK(first == NULL || memcmp(first, rows, (size_t)(lmi_session_n_rows(session) * info.n_vocab) * sizeof *rows) == 0);
        free(first);
        first = rows;
        free_pair(&s);
        lmi_session_close(session);
        lmi_model_close(model);
    }
    free(first);
}

/* An alpha of 0, no steers, and steers taken back: bit for bit the model. */
static void test_nothing_is_nothing(quant_type type) {
    lmi_model *model = open_model(type, 2);
    const lmi_model_info info = info_of(model);
    lmi_session_options options = session_options();
    options.steer_rank = 0;
    lmi_session *plain = open_session(model, &options);
    float *expected = read_rows(plain, info.n_vocab, false);
    const size_t bytes = (size_t)(lmi_session_n_rows(plain) * info.n_vocab) * sizeof *expected;
    options = session_options();
    pair zero = make_pair(info.n_embd, 0, 0), some = make_pair(info.n_embd, 3, 4);
    lmi_session *session = open_session(model, &options);
    for (int i = 0; i < 4; i++) {
        CHECK(lmi_session_set_steers(session, i == 0 ? zero.steers : some.steers, i == 3 ? 0 : 2, NULL) == LMI_OK);
        float *rows = read_rows(session, info.n_vocab, false);
        CHECK((memcmp(rows, expected, bytes) == 0) == (i == 0 || i == 3), "case %d", i);
        free(rows);
        CHECK(lmi_session_rewind(session, 0, NULL) == LMI_OK && lmi_session_hidden(session, -1) == NULL);
    }
    free(expected);
    free_pair(&zero);
    free_pair(&some);
    lmi_session_close(plain);
    lmi_session_close(session);
    lmi_model_close(model);
}

static void test_arguments(void) {
    lmi_model *model = open_model(QUANT_F32, 1);
    lmi_session_options options = session_options();
    lmi_session *session = open_session(model, &options);
    pair s = make_pair(info_of(model).n_embd, 1, 1);
    lmi_error error = {0};
    const lmi_steer good = s.steers[0];
    lmi_steer bad[] = {good, good, good, good, good, good, good, good, good, good};
    bad[0].p1 = NULL;
    bad[1].p2 = NULL;
    bad[2].rank = 0;
    bad[3].rank = -1;
    bad[4].rank = ROOM + 1;
    bad[5].rank = INT64_MAX;
    bad[6].alpha = NAN;
    bad[7].alpha = INFINITY;
    bad[8].epsilon = -INFINITY;
    bad[9].alpha = 1e300; /* finite, but not times a factor */
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(lmi_session_set_steers(session, &bad[i], 1, &error) == LMI_INVALID_ARGUMENT, "case %zu", i);
    }
    lmi_steer many[] = {good, good, good, good, good}; /* 25 of 22 */
    CHECK(lmi_session_set_steers(session, many, 5, &error) == LMI_INVALID_ARGUMENT &&
          strstr(error.remedy, "steer_rank") != NULL);
    CHECK(lmi_session_set_steers(session, many, 4, &error) == LMI_OK);
    CHECK(lmi_session_set_steers(session, NULL, 1, &error) == LMI_INVALID_ARGUMENT);
    CHECK(lmi_session_set_steers(session, many, -1, &error) == LMI_INVALID_ARGUMENT);
    CHECK(lmi_session_set_steers(NULL, many, 1, &error) == LMI_INVALID_ARGUMENT);
    CHECK(lmi_session_hidden(NULL, 0) == NULL && lmi_session_hidden(session, -1) == NULL);
    s.p[3][4] = NAN;
    CHECK(lmi_session_set_steers(session, s.steers, 2, &error) == LMI_INVALID_ARGUMENT, "not a number");
    lmi_session_close(session);

    lmi_session *none;
    lmi_plan small, large;
    CHECK(lmi_session_plan(model, &options, &large, &error) == LMI_OK);
    options.steer_rank = options.all_hidden = 0;
    CHECK(lmi_session_plan(model, &options, &small, &error) == LMI_OK);
    const uint64_t n_embd = (uint64_t)info_of(model).n_embd; /* factors and hidden rows, beside the work space of a chunk */
    CHECK(large.work_bytes - small.work_bytes >= (2 * ROOM + 3 * CHUNK) * n_embd * sizeof(float));
    lmi_session_options wrong[4] = {options, options, options, options};
    wrong[0].steer_rank = -1;
    wrong[1].steer_rank = INT32_MAX;
    wrong[2].all_hidden = wrong[2].draft = 1;
    wrong[2].all_logits = 0;
    wrong[3].steer_rank = wrong[3].importance = 1;
    for (int i = 0; i < 4; i++) {
        CHECK(lmi_session_open(model, &wrong[i], &none, &error) == LMI_INVALID_ARGUMENT && none == NULL, "case %d", i);
    }
    free_pair(&s);
    lmi_model_close(model);
}

int main(void) {
    test_against_double(false);
    test_against_double(true);
    test_threads_agree();
    test_nothing_is_nothing(QUANT_F32);
    test_nothing_is_nothing(QUANT_Q4_K);
    test_arguments();
    return check_report();
}
