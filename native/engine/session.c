/* Sessions: opening, reading in chunks, rewinding, cancelling, sampling. */
#define _GNU_SOURCE
#include "engine/session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/logits.h"
#include "lambda/window.h"

#define MAX_POSITION ((int64_t)1 << 62)

lmi_status session_enter(lmi_session *session, lmi_error *error) {
    if (session == NULL) {
        return fail(error, LMI_INVALID_ARGUMENT, "no session was given");
    }
    int idle = 0;
    if (!atomic_compare_exchange_strong(&session->in_use, &idle, 1)) {
        fail(error, LMI_BUSY, "the session is in use by another thread");
        remedy(error, "Open one session per thread.");
        return LMI_BUSY;
    }
    return LMI_OK;
}

int64_t session_n_known(const lmi_session *session) {
    const int64_t oldest = session->recorded > SAMPLER_HISTORY ? session->recorded - SAMPLER_HISTORY : 0;
    return session->n_read > oldest ? session->n_read - oldest : 0;
}

void session_leave(lmi_session *session) { atomic_store(&session->in_use, 0); }

/* The first session decides which layers run where: nobody else may plan by another decision meanwhile. */
static lmi_status place_session(lmi_session *s, const lmi_session_options *options, lmi_error *error) {
    lmi_model *model = s->model;
    const bool first = model->has_weights && atomic_load(&model->devices.settled) == 0;
    if (first) {
        pool_lock(model->workers);
    }
    lmi_status status = session_plan_make(model, options, &s->memory, &s->plan, error);
    if (status == LMI_OK) {
        status = placement_settle(model, &s->plan.place, error);
    }
    if (first) {
        pool_unlock(model->workers);
    }
    return status;
}

static lmi_status open_parts(lmi_session *s, const lmi_session_options *options, lmi_error *error) {
    lmi_model *model = s->model;
    lmi_status status = place_session(s, options, error);
    if (status == LMI_OK) {
        s->device = model->devices.place.device;
        status = s->device->open(&model->devices.place.model, &s->plan.shape, &s->memory, &s->context, error);
    }
    if (status != LMI_OK) {
        return status;
    }
    s->history = arena_take_array(&s->memory, SAMPLER_HISTORY, sizeof *s->history);
    s->logits = arena_take_array(&s->memory, (size_t)(s->plan.logits_rows * model->spec.n_vocab), sizeof *s->logits);
    void *draws = arena_take(&s->memory, sampler_bytes(model->spec.n_vocab));
    if (s->history == NULL || s->logits == NULL || draws == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for the logits of %lld tokens", (long long)s->plan.logits_rows);
    }
    s->draws = sampler_at(draws, model->spec.n_vocab);
    s->drawn = -1;
    if (s->plan.options.draft > 0) {
        void *guesses = arena_take(&s->memory, draft_bytes());
        if (guesses == NULL) {
            return fail(error, LMI_OUT_OF_MEMORY, "no memory for guesses");
        }
        s->guesses = draft_at(guesses);
    }
    if (s->plan.options.recall.kind == LMI_RECALL_SURPRISE) {
        s->surprisal = arena_take_array(&s->memory, (size_t)s->plan.options.chunk, sizeof *s->surprisal);
        s->chunk_nll = arena_take_array(&s->memory, (size_t)s->plan.options.chunk, sizeof *s->chunk_nll);
        if (s->surprisal == NULL || s->chunk_nll == NULL) {
            return fail(error, LMI_OUT_OF_MEMORY, "no memory for surprisals");
        }
    }
    status = session_take_steer(s, error);
    if (status != LMI_OK) {
        return status;
    }
    lmi_sampling sampling;
    lmi_sampling_default(&sampling);
    return sampler_set(s->draws, &sampling, error);
}

lmi_status lmi_session_open(lmi_model *model, const lmi_session_options *options, lmi_session **session, lmi_error *error) {
    if (model == NULL || session == NULL) {
        return fail(error, LMI_INVALID_ARGUMENT, "lmi_session_open needs a model and a place for the session");
    }
    *session = NULL;
    lmi_session *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for a session");
    }
    s->model = model;
    arena_open(&s->memory);
    lmi_status status = open_parts(s, options, error);
    if (status != LMI_OK) {
        lmi_session_close(s);
        return status;
    }
    arena_seal(&s->memory);
    *session = s;
    return LMI_OK;
}

void lmi_session_close(lmi_session *session) {
    if (session != NULL) {
        if (session->context != NULL && session->device->close != NULL) {
            session->device->close(session->context);
        }
        arena_close(&session->memory);
        free(session);
    }
}

void lmi_session_get_plan(const lmi_session *session, lmi_plan *plan) {
    session_plan_report(session->model, &session->plan, plan);
}

/* ---- reading ------------------------------------------------------------------------------------------------------ */

static lmi_status check_tokens(const lmi_session *s, const int32_t *tokens, size_t n, lmi_error *error) {
    if (tokens == NULL || n == 0) {
        return fail(error, LMI_INVALID_ARGUMENT, "there are no tokens to read");
    }
    if (n > (size_t)(MAX_POSITION - s->start - s->n_read)) {
        return fail(error, LMI_INVALID_ARGUMENT, "the position would exceed 2^62");
    }
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= s->model->spec.n_vocab) {
            return fail(error, LMI_INVALID_ARGUMENT, "token %d at index %zu is not in the vocabulary of %lld", tokens[i], i,
                        (long long)s->model->spec.n_vocab);
        }
    }
    return LMI_OK;
}

/* The tokens become part of the text. */
static void take_tokens(lmi_session *s, const int32_t *tokens, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        s->history[(s->n_read + i) % SAMPLER_HISTORY] = tokens[i];
    }
    s->n_read += n;
    s->recorded = s->n_read > s->recorded ? s->n_read : s->recorded;
}

/* A device keeps its rows until somebody asks for them, except where all are asked for. */
static bool holds_logits(const lmi_session *s) { return s->device->fetch_logits != NULL && s->plan.options.all_logits == 0; }

/* What is read is what was drawn: most likely the next one will be, too, and a device may go on with it. */
static bool foresee(const lmi_session *s, const int32_t *tokens, int64_t n, draw_order next[2]) {
    return s->device->runs_ahead && s->plan.shape.ahead && n == 1 && tokens[0] == s->drawn && s->n_read == s->drawn_at &&
           s->n_read < MAX_POSITION - s->start - 2 && sampler_foresee(s->draws, next);
}

static lmi_status run_tokens(lmi_session *s, const int32_t *tokens, int64_t n, int64_t n_logits, lmi_error *error) {
    draw_order next[2];
    const bool ahead = foresee(s, tokens, n, next);
    const backend_chunk chunk = {
        .tokens = tokens,
        .n_tokens = n,
        .first = s->n_read,
        .start = s->start,
        .logits = holds_logits(s) ? NULL : s->logits,
        .n_logits = n_logits,
        .last_hidden = s->hidden,
        .n_last_hidden = s->hidden != NULL ? n : 0,
        .steer = s->steer.rank > 0 ? &s->steer : NULL,
        .next = ahead ? next : NULL,
        .cancel = &s->cancel,
    };
    /* From here on ring slots are overwritten, whether or not the chunk is finished. */
    const int64_t end = s->n_read + n + ahead;
    s->furthest = end > s->furthest ? end : s->furthest;
    lmi_status status = s->device->run(s->context, &chunk, error);
    if (status == LMI_OK) { /* if not, the logits of before still stand */
        s->held = holds_logits(s) ? (1u << n_logits) - 1 : 0;
    }
    return status;
}

typedef struct nll_job {
    const float *logits; /* of the first row */
    int64_t n_vocab;
    const int32_t *tokens;
    double *nll;
} nll_job;

static void score_row(void *context, int64_t piece, int worker) {
    const nll_job *job = context;
    (void)worker;
    job->nll[piece] = logits_nll(job->logits + piece * job->n_vocab, job->n_vocab, job->tokens[piece]);
}

/* Of the first token of a chunk, from the logits before it; where there are none, at the beginning or after a rewind, none. */
static void surprise_first(lmi_session *s, int32_t token) {
    const int64_t n_vocab = s->model->spec.n_vocab;
    const float *before = s->logits + (s->n_rows - 1) * n_vocab;
    const float surprisal = s->n_rows > 0 ? (float)logits_nll(before, n_vocab, token) : 0.0f;
    s->device->surprise(s->context, s->n_read, &surprisal, 1);
}

static void surprise_rest(lmi_session *s, const int32_t *tokens, int64_t n) {
    nll_job job = {s->logits, s->model->spec.n_vocab, tokens + 1, s->chunk_nll};
    pool_run(s->model->workers, score_row, &job, n - 1);
    for (int64_t i = 0; i < n - 1; i++) {
        s->surprisal[i] = (float)s->chunk_nll[i];
    }
    s->device->surprise(s->context, s->n_read + 1, s->surprisal, n - 1);
}

static lmi_status read_chunk(lmi_session *s, const int32_t *tokens, int64_t n, bool is_last, lmi_error *error) {
    const bool surprise = s->surprisal != NULL;
    const int64_t n_logits = s->plan.options.all_logits || surprise ? n : is_last ? 1 : 0;
    if (surprise) {
        surprise_first(s, tokens[0]);
    }
    lmi_status status = run_tokens(s, tokens, n, n_logits, error);
    if (status == LMI_OK) {
        if (surprise && n > 1) {
            surprise_rest(s, tokens, n);
        }
        take_tokens(s, tokens, n);
        s->n_rows = n_logits;
        s->n_hidden = s->hidden != NULL ? n : 0;
        for (int64_t i = 0; s->guesses != NULL && i < n; i++) {
            draft_add(s->guesses, tokens[i]);
        }
    }
    return status;
}

/* ---- reading ahead ------------------------------------------------------------------------------------------------ */

void session_drop_ahead(lmi_session *session) { session->n_ahead = session->n_taken = 0; }

/* True if the token is the one that was guessed: its logits are in the next row. */
static bool take_ahead(lmi_session *s, int32_t token) {
    if (s->n_taken == s->n_ahead || token != s->ahead[s->n_taken]) {
        return false;
    }
    take_tokens(s, &token, 1);
    draft_add(s->guesses, token);
    s->n_taken++;
    s->n_rows++;
    s->counts.n_true++;
    return true;
}

static lmi_status read_one(lmi_session *s, int32_t token, lmi_error *error) {
    if (s->n_ahead > 0) {
        draft_learn(s->guesses, s->n_ahead, s->n_taken);
    }
    session_drop_ahead(s);
    draft_add(s->guesses, token);
    int32_t tokens[1 + DRAFT_MOST] = {token};
    /* The first tokens of a text, which become sinks, are computed another way, and a full counter cannot go on. */
    const bool early = s->n_read<s->plan.options.sinks, late = s->n_read> MAX_POSITION - s->start - 2 * DRAFT_MOST;
    const int64_t n = early || late ? 0 : draft_guess(s->guesses, s->plan.options.draft, tokens + 1);
    const double began = clock_seconds();
    lmi_status status = run_tokens(s, tokens, 1 + n, 1 + n, error);
    if (status != LMI_OK) {
        draft_take_back(s->guesses, 1);
        return status;
    }
    draft_time(s->guesses, n, clock_seconds() - began);
    take_tokens(s, tokens, 1);
    memcpy(s->ahead, tokens + 1, (size_t)n * sizeof *tokens);
    s->n_ahead = n;
    s->n_rows = 1;
    s->counts.n_guessed += n;
    s->counts.n_passes++;
    return LMI_OK;
}

void lmi_session_get_draft(const lmi_session *session, lmi_draft_counts *counts) { *counts = session->counts; }

/* ---- a read call -------------------------------------------------------------------------------------------------- */

static lmi_status read_all(lmi_session *s, const int32_t *tokens, size_t n, size_t *done, lmi_error *error) {
    const size_t chunk = (size_t)s->plan.options.chunk;
    /* Tokens that are read together choose together what they recall; the one that is answered to chooses for itself. */
    const lmi_recall kind = s->plan.options.recall.kind;
    const bool alone = (kind == LMI_RECALL_TOPK || kind == LMI_RECALL_BLOCKS) && s->plan.options.all_logits == 0;
    lmi_status status = file_check(&s->model->view, error);
    status = status == LMI_OK ? shards_check(&s->model->shards, error) : status;
    pool_lock(s->model->workers);
    if (status == LMI_OK && n == 1 && s->guesses != NULL) {
        status = read_one(s, tokens[0], error);
        *done = status == LMI_OK;
    } else {
        session_drop_ahead(s);
        while (status == LMI_OK && *done < n) {
            size_t part = n - *done < chunk ? n - *done : chunk;
            if (alone && part > 1 && part == n - *done) {
                part--;
            }
            status = read_chunk(s, tokens + *done, (int64_t)part, *done + part == n, error);
            *done += status == LMI_OK ? part : 0;
        }
    }
    pool_unlock(s->model->workers);
    return status;
}

lmi_status lmi_session_read(lmi_session *session, const int32_t *tokens, size_t n, size_t *n_read, lmi_error *error) {
    size_t done = 0;
    lmi_status status = session_enter(session, error);
    if (status != LMI_OK) {
        return status;
    }
    status = check_tokens(session, tokens, n, error);
    if (status == LMI_OK && n == 1 && atomic_load(&session->cancel) == 0 && take_ahead(session, tokens[0])) {
        done = 1;
    } else if (status == LMI_OK) {
        status = read_all(session, tokens, n, &done, error);
    }
    if (n_read != NULL) {
        *n_read = done;
    }
    session_leave(session);
    return status;
}

/* Rows that a backend keeps are few: one, and those of guesses. */
static bool is_held(const lmi_session *s, int64_t row) { return row >= 0 && row <= DRAFT_MOST && (s->held >> row & 1) != 0; }

lmi_status session_fetch_logits(lmi_session *session, int64_t row, lmi_error *error) {
    if (!is_held(session, row)) {
        return LMI_OK;
    }
    float *logits = session->logits + row * session->model->spec.n_vocab;
    pool_lock(session->model->workers);
    lmi_status status = session->device->fetch_logits(session->context, row, logits, error);
    pool_unlock(session->model->workers);
    if (status == LMI_OK) {
        session->held &= ~(1u << row);
    }
    return status;
}

/* Row -1 is the last. *logits is NULL if there is no such row. */
static lmi_status find_logits(lmi_session *s, int64_t row, const float **logits, lmi_error *error) {
    *logits = NULL;
    if (s->n_rows == 0 || row < -1 || row >= s->n_rows) {
        return LMI_OK;
    }
    row = row == -1 ? s->n_rows - 1 : row;
    lmi_status status = session_fetch_logits(s, row, error);
    if (status == LMI_OK) {
        *logits = s->logits + row * s->model->spec.n_vocab;
    }
    return status;
}

const float *lmi_session_logits(lmi_session *session, int64_t row) {
    const float *logits = NULL;
    return session != NULL && find_logits(session, row, &logits, NULL) == LMI_OK ? logits : NULL;
}

int64_t lmi_session_n_rows(const lmi_session *session) { return session->n_rows; }

double lmi_session_nll(lmi_session *session, int64_t row, int32_t token) {
    const float *logits = lmi_session_logits(session, row);
    if (logits == NULL || token < 0 || token >= session->model->spec.n_vocab) {
        return INFINITY;
    }
    return logits_nll(logits, session->model->spec.n_vocab, token);
}

lmi_status lmi_session_nll_rows(lmi_session *session, int64_t first_row, const int32_t *tokens, size_t n, double *nll,
                                lmi_error *error) {
    lmi_status status = session_enter(session, error);
    if (status != LMI_OK) {
        return status;
    }
    if (first_row < 0 || n == 0 || n > (size_t)session->n_rows || first_row > session->n_rows - (int64_t)n || tokens == NULL ||
        nll == NULL) {
        status = fail(error, LMI_INVALID_ARGUMENT, "rows %lld and on, %zu of them: the last read left %lld",
                      (long long)first_row, n, (long long)session->n_rows);
    } else {
        for (int64_t i = first_row; i < first_row + (int64_t)n && status == LMI_OK; i++) {
            status = session_fetch_logits(session, i, error);
        }
    }
    if (status == LMI_OK) {
        const int64_t n_vocab = session->model->spec.n_vocab;
        nll_job job = {session->logits + first_row * n_vocab, n_vocab, tokens, nll};
        pool_lock(session->model->workers);
        pool_run(session->model->workers, score_row, &job, (int64_t)n);
        pool_unlock(session->model->workers);
    }
    session_leave(session);
    return status;
}

/* ---- moving ------------------------------------------------------------------------------------------------------- */

int64_t lmi_session_position(const lmi_session *session) { return session->start + session->n_read; }

lmi_status lmi_session_set_start(lmi_session *session, int64_t position, lmi_error *error) {
    lmi_status status = session_enter(session, error);
    if (status != LMI_OK) {
        return status;
    }
    if (session->furthest != 0) {
        status = fail(error, LMI_INVALID_ARGUMENT, "the start can be set only before the first token is read");
    } else if (position < 0 || position > MAX_POSITION) {
        status = fail(error, LMI_INVALID_ARGUMENT, "the start must be between 0 and 2^62");
    } else {
        session->start = position;
    }
    session_leave(session);
    return status;
}

/* Keys still there: after `furthest` tokens a ring holds the last `capacity` of them. The next query, at index n, needs the
 * window - 1 before it. Two layers may differ in window and capacity, never in the difference. */
static bool can_rewind(const lmi_session *s, int64_t n) {
    if (n == 0) {
        return true;
    }
    for (int64_t i = 0; i < s->model->spec.n_layers; i++) {
        const layer_context *layer = &s->plan.layers[i];
        const int64_t oldest_needed = n - (layer->window - 1) > 0 ? n - (layer->window - 1) : 0;
        if (oldest_needed < s->furthest - layer->capacity) {
            return false;
        }
    }
    return true;
}

lmi_status lmi_session_rewind(lmi_session *session, int64_t position, lmi_error *error) {
    lmi_status status = session_enter(session, error);
    if (status != LMI_OK) {
        return status;
    }
    const int64_t n = position - session->start;
    if (position < session->start || n > session->n_read) {
        status = fail(error, LMI_INVALID_ARGUMENT, "cannot rewind to %lld: the text covers %lld to %lld", (long long)position,
                      (long long)session->start, (long long)lmi_session_position(session));
    } else if (!can_rewind(session, n)) {
        status = fail(error, LMI_STATE, "cannot rewind to %lld: tokens that it needs were overwritten after %lld were read",
                      (long long)position, (long long)(session->start + session->furthest));
        remedy(error, "Restore a saved state, read the text again, or open the session with a larger rollback.");
    } else {
        const int64_t n_back = session->n_read - n;
        if (n_back > 0) {
            session_drop_ahead(session);
        }
        if (session->guesses != NULL) {
            draft_take_back(session->guesses, n_back);
        }
        session->n_rows = n_back == 0 ? session->n_rows : 0;
        session->n_hidden = n_back == 0 ? session->n_hidden : 0;
        session->n_read = n;
        if (n == 0) { /* an empty text needs nothing of what the ring and the history hold */
            session->furthest = session->recorded = 0;
        }
    }
    session_leave(session);
    return status;
}

void lmi_session_cancel(lmi_session *session) { atomic_store(&session->cancel, 1); }
void lmi_session_clear_cancel(lmi_session *session) { atomic_store(&session->cancel, 0); }

void lmi_session_get_view(const lmi_session *session, lmi_view *view) {
    const int64_t n = session->n_read, window = session->plan.options.window;
    const bool native = session->model->info.n_native_layers == session->model->spec.n_layers; /* else some layers see more */
    const int64_t own_window =
        native && session->model->spec.native_window < window ? session->model->spec.native_window : window;
    const int64_t begin = n > own_window ? n - own_window : 0;
    const int64_t kept = native ? 0 : session->plan.options.sinks;
    const int64_t sinks = kept < begin ? kept : begin;
    int64_t recalled = 0, dropped = 0;
    if (session->plan.options.recall.kind != LMI_RECALL_NONE) {
        session->device->recall_counts(session->context, n > 0 ? n - 1 : 0, &recalled, &dropped);
    }
    *view = (lmi_view){
        .sinks_end = session->start + sinks,
        .window_begin = session->start + begin,
        .position = session->start + n,
        .forgotten = begin - sinks - recalled,
        .kept = recalled,
        .dropped = dropped,
    };
}

int64_t lmi_session_hot_allocations(const lmi_session *session) { return session->memory.refused; }

/* ---- sampling ----------------------------------------------------------------------------------------------------- */

void lmi_sampling_default(lmi_sampling *sampling) {
    *sampling = (lmi_sampling){
        .size = sizeof *sampling,
        .temperature = 0.8f,
        .top_k = 40,
        .top_p = 0.95f,
        .min_p = 0.05f,
        .typical_p = 1.0f,
        .repeat_penalty = 1.0f,
        .penalty_last = 64,
    };
}

lmi_status lmi_session_set_sampling(lmi_session *session, const lmi_sampling *sampling, lmi_error *error) {
    lmi_status status = session_enter(session, error);
    if (status != LMI_OK) {
        return status;
    }
    status = sampling == NULL ? fail(error, LMI_INVALID_ARGUMENT, "no sampling was given")
                              : sampler_set(session->draws, sampling, error);
    session_leave(session);
    return status;
}

/* From the few that a device tells of, where they are enough and the row is not here already. */
static lmi_status sample_candidates(lmi_session *s, int32_t *token, float *logprob, bool *drawn, lmi_error *error) {
    const int64_t row = s->n_rows - 1;
    *drawn = false;
    if (!is_held(s, row) || s->device->candidates == NULL) {
        return LMI_OK;
    }
    logit_candidates top;
    pool_lock(s->model->workers);
    lmi_status status = s->device->candidates(s->context, row, &top, error);
    pool_unlock(s->model->workers);
    if (status == LMI_OK) {
        *drawn = sampler_draw_candidates(s->draws, &top, s->history, s->n_read, session_n_known(s), token, logprob);
    }
    return status;
}

static lmi_status sample(lmi_session *s, int32_t *token, float *logprob, lmi_error *error) {
    if (s->n_rows == 0 || token == NULL) {
        return fail(error, LMI_INVALID_ARGUMENT, "there are no logits to sample from: read a token first");
    }
    const float *logits;
    bool drawn;
    lmi_status status = sample_candidates(s, token, logprob, &drawn, error);
    if (status == LMI_OK && !drawn) {
        status = find_logits(s, -1, &logits, error);
        if (status == LMI_OK) {
            status = sampler_draw(s->draws, logits, s->history, s->n_read, session_n_known(s), token, logprob, error);
        }
    }
    if (status == LMI_OK) {
        s->drawn = *token;
        s->drawn_at = s->n_read;
    }
    return status;
}

lmi_status lmi_session_sample(lmi_session *session, int32_t *token, float *logprob, lmi_error *error) {
    lmi_status status = session_enter(session, error);
    if (status == LMI_OK) {
        status = sample(session, token, logprob, error);
        session_leave(session);
    }
    return status;
}
