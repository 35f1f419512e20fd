/* From a tensor of the file to the step that multiplies with it. */
#include "engine/session.h"

/* Weights are views into tensors; several of them, where a file has fused what we multiply one by one. */
static bool lies_in(const weight *w, const gguf_tensor *tensor) {
    const uint8_t *begin = tensor->data, *at = w->data;
    return at >= begin && (uint64_t)(at - begin) < tensor->n_bytes;
}

static const input_sums *find_sums(const lmi_session *s, const gguf_tensor *tensor) {
    const backend_model *shared = &s->model->shared; /* only the CPU keeps sums, where it runs all steps */
    for (int64_t i = 0; i < shared->n_steps; i++) {
        const input_sums *sums = s->device->importance(s->context, i);
        for (int w = 0; sums != NULL && w < STEP_MAX_OUTPUTS; w++) {
            if (shared->steps[i].w[w] != NULL && lies_in(shared->steps[i].w[w], tensor)) {
                return sums;
            }
        }
    }
    return NULL;
}

lmi_status lmi_session_importance(lmi_session *session, int64_t index, lmi_importance *importance, lmi_error *error) {
    lmi_status status = session_enter(session, error);
    if (status != LMI_OK) {
        return status;
    }
    const gguf *file = session->model->file;
    if (importance == NULL || !session->plan.shape.importance) {
        status = fail(error, LMI_INVALID_ARGUMENT, "the session was opened without the importance option");
    } else if (index < 0 || index >= file->n_tensors) {
        status = fail(error, LMI_INVALID_ARGUMENT, "there is no tensor %lld", (long long)index);
    } else {
        const input_sums *sums = find_sums(session, &file->tensors[index]);
        *importance = (lmi_importance){0};
        if (sums != NULL) {
            *importance = (lmi_importance){sums->n, sums->width, sums->squares, sums->counts};
        }
    }
    session_leave(session);
    return status;
}
