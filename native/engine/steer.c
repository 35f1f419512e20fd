/* Hidden states after the last norm, and steers of the logits: their memory, and what callers give and get. */
#include <math.h>

#include "engine/session.h"

static bool wants_hidden(const session_plan *plan) { return plan->options.all_hidden != 0; }

uint64_t session_steer_bytes(const lmi_model *model, const session_plan *plan) {
    const uint64_t n_hidden = wants_hidden(plan) ? (uint64_t)plan->options.chunk : 0;
    return (n_hidden + 2 * (uint64_t)plan->options.steer_rank) * (uint64_t)model->spec.n_embd * sizeof(float);
}

static bool take_rows(lmi_session *s, int64_t n, float **rows) {
    *rows = n > 0 ? arena_take_array(&s->memory, (size_t)(n * s->model->spec.n_embd), sizeof **rows) : NULL;
    return n == 0 || *rows != NULL;
}

lmi_status session_take_steer(lmi_session *session, lmi_error *error) {
    const lmi_session_options *o = &session->plan.options;
    if (!take_rows(session, wants_hidden(&session->plan) ? o->chunk : 0, &session->hidden) ||
        !take_rows(session, o->steer_rank, &session->steer_down) || !take_rows(session, o->steer_rank, &session->steer_up)) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for hidden states and steers");
    }
    return LMI_OK;
}

const float *lmi_session_hidden(lmi_session *session, int64_t row) {
    if (session == NULL || session->n_hidden == 0 || row < -1 || row >= session->n_hidden) {
        return NULL;
    }
    return session->hidden + (row == -1 ? session->n_hidden - 1 : row) * session->model->spec.n_embd;
}

/* ---- steers ------------------------------------------------------------------------------------------------------- */

static lmi_status check_steer(const lmi_steer *steer, int32_t i, int64_t n_embd, lmi_error *error) {
    const double scale = steer->alpha * steer->epsilon;
    if (steer->p1 == NULL || steer->p2 == NULL || steer->rank < 1) {
        return fail(error, LMI_INVALID_ARGUMENT, "steer %d has no factors", i);
    }
    if (!isfinite(steer->alpha) || !isfinite(scale)) {
        return fail(error, LMI_INVALID_ARGUMENT, "alpha and epsilon of steer %d must be finite numbers", i);
    }
    for (int64_t j = 0; j < n_embd * steer->rank; j++) {
        if (!isfinite((float)(scale * (double)steer->p1[j])) || !isfinite(steer->p1[j]) || !isfinite(steer->p2[j])) {
            return fail(error, LMI_INVALID_ARGUMENT, "steer %d holds a number that is not finite, or is not once scaled", i);
        }
    }
    return LMI_OK;
}

/* Ranks of all, and of those that do something. */
static lmi_status check_steers(const lmi_session *s, const lmi_steer *steers, int32_t n, int64_t *rank, lmi_error *error) {
    int64_t all = 0;
    *rank = 0;
    if (n < 0 || (n > 0 && steers == NULL)) {
        return fail(error, LMI_INVALID_ARGUMENT, "no steers were given");
    }
    for (int32_t i = 0; i < n; i++) {
        if (steers[i].rank >
            s->plan.options.steer_rank - all) { /* before factors are looked at: this bounds how many there are */
            fail(error, LMI_INVALID_ARGUMENT, "the ranks of %d steers add up to more than the session's steer_rank of %lld", n,
                 (long long)s->plan.options.steer_rank);
            remedy(error, "Open the session with a larger steer_rank.");
            return LMI_INVALID_ARGUMENT;
        }
        lmi_status status = check_steer(&steers[i], i, s->model->spec.n_embd, error);
        if (status != LMI_OK) {
            return status;
        }
        all += steers[i].rank;
        *rank += steers[i].alpha * steers[i].epsilon != 0.0 ? steers[i].rank : 0;
    }
    return LMI_OK;
}

static void copy_steers(lmi_session *s, const lmi_steer *steers, int32_t n, int64_t rank) {
    const int64_t n_embd = s->model->spec.n_embd;
    int64_t at = 0;
    for (int32_t i = 0; i < n; i++) {
        const lmi_steer *steer = &steers[i];
        const double scale = steer->alpha * steer->epsilon;
        for (int64_t d = 0; scale != 0.0 && d < n_embd; d++) {
            for (int64_t r = 0; r < steer->rank; r++) {
                s->steer_down[(at + r) * n_embd + d] = (float)(scale * (double)steer->p1[d * steer->rank + r]);
                s->steer_up[d * rank + at + r] = steer->p2[d * steer->rank + r];
            }
        }
        at += scale != 0.0 ? steer->rank : 0;
    }
    s->steer = (steer_factors){rank, s->steer_down, s->steer_up, s->steer.version + 1};
}

lmi_status lmi_session_set_steers(lmi_session *session, const lmi_steer *steers, int32_t n, lmi_error *error) {
    lmi_status status = session_enter(session, error);
    if (status != LMI_OK) {
        return status;
    }
    int64_t rank;
    status = check_steers(session, steers, n, &rank, error);
    if (status == LMI_OK) {
        copy_steers(session, steers, n, rank);
        session_drop_ahead(session); /* what was read ahead was steered as before */
    }
    session_leave(session);
    return status;
}

/* ---- the model that a steer is for --------------------------------------------------------------------------------- */

void lmi_model_get_fingerprint(const lmi_model *model, uint8_t digest[32]) { model_fingerprint(model, digest); }
