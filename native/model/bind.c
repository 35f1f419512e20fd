#include "model/bind.h"

#include <stdio.h>
#include <string.h>

typedef struct binder {
    const gguf *file;
    lmi_error *error;
    lmi_status status; /* of the first failure: the rest does nothing */
    uint8_t *used;     /* [n_tensors] */
    char name[80];
} binder;

static const gguf_tensor *find(binder *b, bool required) {
    const gguf_tensor *tensor = gguf_find_tensor(b->file, b->name);
    if (tensor != NULL) {
        b->used[tensor - b->file->tensors] = 1;
    } else if (required) {
        b->status = fail(b->error, LMI_BAD_FORMAT, "tensor %s is missing", b->name);
    }
    return tensor;
}

static bool has_shape(binder *b, const gguf_tensor *tensor, int64_t cols, int64_t rows) {
    if (tensor->shape[0] == cols && tensor->shape[1] == rows && tensor->shape[2] == 1 && tensor->shape[3] == 1) {
        return true;
    }
    b->status = fail(b->error, LMI_BAD_FORMAT, "tensor %s has shape %lld x %lld x %lld x %lld, expected %lld x %lld", b->name,
                     (long long)tensor->shape[0], (long long)tensor->shape[1], (long long)tensor->shape[2],
                     (long long)tensor->shape[3], (long long)cols, (long long)rows);
    return false;
}

/* Norms, biases and factors are read as they lie, so they must be float32. */
static const float *bind_vector(binder *b, const char *name, int64_t n, bool required) {
    if (b->status != LMI_OK) {
        return NULL;
    }
    snprintf(b->name, sizeof b->name, "%s", name);
    const gguf_tensor *tensor = find(b, required);
    if (tensor == NULL || !has_shape(b, tensor, n, 1)) {
        return NULL;
    }
    if (tensor->type->type != QUANT_F32) {
        b->status =
            fail(b->error, LMI_UNSUPPORTED, "tensor %s is %s; norms and biases must be F32", b->name, tensor->type->name);
        return NULL;
    }
    return (const float *)(const void *)(b->file->bytes + tensor->offset);
}

static void bind_matrix(binder *b, const char *stem, int64_t rows, int64_t cols, weight *w) {
    if (b->status != LMI_OK) {
        return;
    }
    snprintf(b->name, sizeof b->name, "%s.weight", stem);
    const gguf_tensor *tensor = find(b, true);
    if (tensor == NULL || !has_shape(b, tensor, cols, rows)) {
        return;
    }
    *w = (weight){
        .data = b->file->bytes + tensor->offset,
        .type = tensor->type,
        .rows = rows,
        .cols = cols,
        .row_bytes = (size_t)(tensor->n_bytes / (uint64_t)rows),
    };
    char bias[80];
    snprintf(bias, sizeof bias, "%s.bias", stem);
    w->bias = bind_vector(b, bias, rows, false);
}

static void bind_layer(binder *b, const model_spec *spec, int64_t index, layer_weights *layer) {
    const int64_t q_dim = spec->n_heads * spec->head_dim;
    const int64_t kv_dim = spec->n_kv_heads * spec->head_dim;
    const struct {
        const char *stem;
        weight *target;
        int64_t rows, cols;
    } matrices[] = {
        {"attn_q", &layer->q, q_dim, spec->n_embd},           {"attn_k", &layer->k, kv_dim, spec->n_embd},
        {"attn_v", &layer->v, kv_dim, spec->n_embd},          {"attn_output", &layer->o, spec->n_embd, q_dim},
        {"ffn_gate", &layer->gate, spec->n_ff, spec->n_embd}, {"ffn_up", &layer->up, spec->n_ff, spec->n_embd},
        {"ffn_down", &layer->down, spec->n_embd, spec->n_ff},
    };
    char name[64];
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        snprintf(name, sizeof name, "blk.%lld.%s", (long long)index, matrices[i].stem);
        bind_matrix(b, name, matrices[i].rows, matrices[i].cols, matrices[i].target);
    }
    snprintf(name, sizeof name, "blk.%lld.attn_norm.weight", (long long)index);
    layer->attention_norm = bind_vector(b, name, spec->n_embd, true);
    snprintf(name, sizeof name, "blk.%lld.ffn_norm.weight", (long long)index);
    layer->ffn_norm = bind_vector(b, name, spec->n_embd, true);
}

static lmi_status refuse_leftovers(const binder *b, const model_spec *spec, lmi_error *error) {
    for (int64_t i = 0; i < b->file->n_tensors; i++) {
        const text_view name = b->file->tensors[i].name;
        static const char ignored[] = ".attn_rot_embd"; /* frequencies that old converters wrote beside rope.freq_base */
        const size_t n = sizeof ignored - 1;
        if (!b->used[i] && !(name.size >= n && memcmp(name.data + name.size - n, ignored, n) == 0)) {
            return fail(error, LMI_UNSUPPORTED, "tensor %.*s is not known to architecture \"%s\"", (int)name.size, name.data,
                        spec->arch->name);
        }
    }
    return LMI_OK;
}

lmi_status model_bind(const gguf *file, model_spec *spec, arena *memory, model_weights *weights, lmi_error *error) {
    *weights = (model_weights){0};
    binder b = {.file = file, .error = error, .status = LMI_OK};
    if (file->n_tensors == 0) {
        fail(error, LMI_UNSUPPORTED, "the file holds a vocabulary and no weights");
        remedy(error, "It can be used with: lmi tokenize, lmi info.");
        return LMI_UNSUPPORTED;
    }
    b.used = arena_take(memory, (size_t)file->n_tensors);
    weights->layers = arena_take_array(memory, (size_t)spec->n_layers, sizeof *weights->layers);
    if (b.used == NULL || weights->layers == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for the tables of %lld layers", (long long)spec->n_layers);
    }
    const gguf_tensor *embedding = gguf_find_tensor(file, "token_embd.weight");
    if (embedding == NULL) {
        return fail(error, LMI_BAD_FORMAT, "tensor token_embd.weight is missing");
    }
    spec->n_vocab = embedding->shape[1];
    if (spec->n_vocab < 2 || spec->n_vocab > SPEC_MAX_VOCAB) {
        return fail(error, LMI_BAD_FORMAT, "tensor token_embd.weight has %lld rows; a vocabulary has 2 to %d tokens",
                    (long long)spec->n_vocab, SPEC_MAX_VOCAB);
    }
    bind_matrix(&b, "token_embd", spec->n_vocab, spec->n_embd, &weights->embedding);
    weights->output_norm = bind_vector(&b, "output_norm.weight", spec->n_embd, true);
    if (gguf_find_tensor(file, "output.weight") != NULL) {
        bind_matrix(&b, "output", spec->n_vocab, spec->n_embd, &weights->output);
    } else {
        weights->output = weights->embedding;
    }
    for (int64_t i = 0; i < spec->n_layers && b.status == LMI_OK; i++) {
        bind_layer(&b, spec, i, &weights->layers[i]);
    }
    if (spec->arch->has_rope_factors) {
        weights->rope_factors = bind_vector(&b, "rope_freqs.weight", spec->n_rot / 2, false);
        spec->rope.factors = weights->rope_factors;
    }
    if (b.status != LMI_OK) {
        return b.status;
    }
    for (int64_t i = 0; i < file->n_tensors; i++) {
        weights->n_bytes += file->tensors[i].n_bytes; /* cannot overflow: extents do not overlap */
        weights->n_parameters += file->tensors[i].n_values;
    }
    return refuse_leftovers(&b, spec, error);
}
