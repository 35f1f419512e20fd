/* One timeline of tokens. Private to engine/. */
#ifndef LMI_ENGINE_SESSION_H
#define LMI_ENGINE_SESSION_H

#include <stdatomic.h>

#include "engine/draft.h"
#include "engine/model.h"
#include "engine/sampler.h"

/* Options as they will be, sizes included; what lmi_session_plan and lmi_session_open both start from. */
typedef struct session_plan {
    lmi_session_options options; /* every value resolved */
    layer_context *layers;       /* [n_layers] in the given arena */
    context_shape shape;
    int64_t capacity; /* of the widest ring */
    int64_t logits_rows;
    placement_plan place;
} session_plan;

/* `memory` holds the table of layers, as long as the plan is used. */
lmi_status session_plan_make(const lmi_model *model, const lmi_session_options *options, arena *memory, session_plan *plan,
                             lmi_error *error);
void session_plan_report(const lmi_model *model, const session_plan *plan, lmi_plan *report);
/* Work space that the session itself takes, beside the backend's. */
uint64_t session_own_bytes(const lmi_model *model, const session_plan *plan);

/* Of them, hidden states and the factors of steers. */
uint64_t session_steer_bytes(const lmi_model *model, const session_plan *plan);

struct lmi_session {
    lmi_model *model;
    const backend *device; /* runs `context` */
    arena memory;
    session_plan plan;
    backend_context *context;
    atomic_int in_use; /* a second thread is refused, not made to wait */
    atomic_int cancel;

    int64_t start;    /* position of the first token; the rest counts tokens from there */
    int64_t n_read;   /* tokens read: the next one has index n_read */
    int64_t furthest; /* most tokens ever run: later ring slots were overwritten up to here */
    int64_t recorded; /* most tokens ever read: the history holds the last of them */
    int32_t *history; /* [SAMPLER_HISTORY] token of index i at i % SAMPLER_HISTORY */
    float *logits;    /* [logits_rows][n_vocab] */
    int64_t n_rows;   /* rows of logits that there are */
    uint32_t held;    /* bit r: row r is still with the backend alone; see session_fetch_logits */
    sampler *draws;
    int32_t drawn; /* the last token that was sampled, when so many had been read; -1: none was */
    int64_t drawn_at;

    float *surprisal;  /* [chunk] of the chunk in progress; NULL: nobody asks */
    double *chunk_nll; /* [chunk] */
    float *hidden;     /* [chunk][n_embd], or NULL: they were not asked for */
    int64_t n_hidden;
    float *steer_down, *steer_up; /* [steer_rank * n_embd] each, or NULL */
    steer_factors steer;          /* what is in force; rank 0: nothing */

    draft *guesses;            /* NULL: nothing is read ahead */
    int32_t ahead[DRAFT_MOST]; /* tokens whose logits are computed and that were not asked for yet */
    int64_t n_ahead, n_taken;  /* of the last pass: guesses, and how many of them have come true so far */
    lmi_draft_counts counts;
};

/* How many tokens before n_read the history still holds. */
int64_t session_n_known(const lmi_session *session);

/* Takes what session_steer_bytes counts. */
lmi_status session_take_steer(lmi_session *session, lmi_error *error);

/* Brings a row that there is to session->logits, if it is not there yet. */
lmi_status session_fetch_logits(lmi_session *session, int64_t row, lmi_error *error);

/* Forgets what was read ahead. */
void session_drop_ahead(lmi_session *session);

/* Guards every call on a session: LMI_BUSY if another call is in progress. */
lmi_status session_enter(lmi_session *session, lmi_error *error);
void session_leave(lmi_session *session);

#endif
