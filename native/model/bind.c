#include "model/bind.h"

#include <stdio.h>
#include <string.h>

typedef struct binder {
    const gguf *file;
    lmi_error *error;
    lmi_status status; /* of the first failure: the rest does nothing */
    uint8_t *used;     /* [n_tensors] */
    char name[96];
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

/* Matrices have n = 1, those of experts n = the number of experts. */
static bool has_shape(binder *b, const gguf_tensor *tensor, int64_t cols, int64_t rows, int64_t n) {
    if (tensor->shape[0] == cols && tensor->shape[1] == rows && tensor->shape[2] == n && tensor->shape[3] == 1) {
        return true;
    }
    b->status = fail(b->error, LMI_BAD_FORMAT, "tensor %s has shape %lld x %lld x %lld x %lld, expected %lld x %lld x %lld",
                     b->name, (long long)tensor->shape[0], (long long)tensor->shape[1], (long long)tensor->shape[2],
                     (long long)tensor->shape[3], (long long)cols, (long long)rows, (long long)n);
    return false;
}

/* Norms, biases and factors are read as they lie, so they must be float32. */
static const float *bind_floats(binder *b, const char *name, int64_t cols, int64_t rows, bool required) {
    if (b->status != LMI_OK) {
        return NULL;
    }
    snprintf(b->name, sizeof b->name, "%s", name);
    const gguf_tensor *tensor = find(b, required);
    if (tensor == NULL || !has_shape(b, tensor, cols, rows, 1)) {
        return NULL;
    }
    if (tensor->type->type != QUANT_F32) {
        b->status =
            fail(b->error, LMI_UNSUPPORTED, "tensor %s is %s; norms and biases must be F32", b->name, tensor->type->name);
        return NULL;
    }
    return (const float *)(const void *)tensor->data;
}

/* `n` matrices in one tensor. */
static void bind_matrices(binder *b, const char *stem, int64_t n, int64_t rows, int64_t cols, weight *w) {
    if (b->status != LMI_OK) {
        return;
    }
    snprintf(b->name, sizeof b->name, "%s.weight", stem);
    const gguf_tensor *tensor = find(b, true);
    if (tensor == NULL || !has_shape(b, tensor, cols, rows, n)) {
        return;
    }
    *w = (weight){
        .data = tensor->data,
        .type = tensor->type,
        .rows = rows,
        .cols = cols,
        .row_bytes = (size_t)(tensor->n_bytes / (uint64_t)(rows * n)),
    };
    char bias[80];
    snprintf(bias, sizeof bias, "%s.bias", stem);
    w->bias = n > 1 ? bind_floats(b, bias, rows, n, false) : bind_floats(b, bias, rows, 1, false);
}

static void bind_matrix(binder *b, const char *stem, int64_t rows, int64_t cols, weight *w) {
    bind_matrices(b, stem, 1, rows, cols, w);
}

/* Rows first .. first + rows of a matrix that was bound whole. */
static weight rows_of(const weight *whole, int64_t first, int64_t rows) {
    weight part = *whole;
    part.rows = rows;
    if (whole->data != NULL) {
        part.data = (const uint8_t *)whole->data + (size_t)first * whole->row_bytes;
        part.bias = whole->bias != NULL ? whole->bias + first : NULL;
    }
    return part;
}

/* Names in a layer: "blk.3.attn_q". */
typedef struct layer_name {
    char text[80];
} layer_name;

static layer_name name_in(int64_t layer, const char *stem, const char *end) {
    layer_name name;
    snprintf(name.text, sizeof name.text, "blk.%lld.%s%s", (long long)layer, stem, end);
    return name;
}

static norm_weights bind_norm(binder *b, const model_spec *spec, const char *stem) {
    char name[96];
    snprintf(name, sizeof name, "%s.weight", stem);
    norm_weights norm = {.scale = bind_floats(b, name, spec->n_embd, 1, true)};
    if (spec->arch->norm == NORM_LAYER) {
        snprintf(name, sizeof name, "%s.bias", stem);
        norm.bias = bind_floats(b, name, spec->n_embd, 1, false);
    }
    return norm;
}

static void bind_norms(binder *b, const model_spec *spec, int64_t i, layer_weights *layer) {
    const architecture *arch = spec->arch;
    if (arch->norms != NORM_AFTER) {
        const char *ffn_norm = arch->ffn_norm_name != NULL ? arch->ffn_norm_name : "ffn_norm";
        layer->attention_norm = bind_norm(b, spec, name_in(i, "attn_norm", "").text);
        layer->ffn_norm =
            arch->residual == RESIDUAL_SHARED_NORM ? layer->attention_norm : bind_norm(b, spec, name_in(i, ffn_norm, "").text);
    }
    if (arch->norms != NORM_BEFORE) {
        layer->attention_post_norm = bind_norm(b, spec, name_in(i, "post_attention_norm", "").text);
        layer->ffn_post_norm = bind_norm(b, spec, name_in(i, "post_ffw_norm", "").text);
    }
}

static void bind_attention(binder *b, const model_spec *spec, int64_t i, layer_weights *layer) {
    const architecture *arch = spec->arch;
    const int64_t q_dim = spec->n_heads * spec->head_dim, kv_dim = spec->n_kv_heads * spec->head_dim;
    /* Phi-3 files have one matrix for q, k, v or three, whoever wrote them. */
    if (arch->fused_qkv && gguf_find_tensor(b->file, name_in(i, "attn_q", ".weight").text) == NULL) {
        weight whole = {0};
        bind_matrix(b, name_in(i, "attn_qkv", "").text, q_dim + 2 * kv_dim, spec->n_embd, &whole);
        layer->q = rows_of(&whole, 0, q_dim);
        layer->k = rows_of(&whole, q_dim, kv_dim);
        layer->v = rows_of(&whole, q_dim + kv_dim, kv_dim);
    } else {
        bind_matrix(b, name_in(i, "attn_q", "").text, q_dim, spec->n_embd, &layer->q);
        bind_matrix(b, name_in(i, "attn_k", "").text, kv_dim, spec->n_embd, &layer->k);
        bind_matrix(b, name_in(i, "attn_v", "").text, kv_dim, spec->n_embd, &layer->v);
    }
    bind_matrix(b, name_in(i, "attn_output", "").text, spec->n_embd, q_dim, &layer->o);
    if (arch->head_norm != HEAD_NORM_NONE) {
        const bool all = arch->head_norm == HEAD_NORM_ALL;
        layer->q_norm = bind_floats(b, name_in(i, "attn_q_norm", ".weight").text, all ? q_dim : spec->head_dim, 1, true);
        layer->k_norm = bind_floats(b, name_in(i, "attn_k_norm", ".weight").text, all ? kv_dim : spec->head_dim, 1, true);
    }
    if (arch->attention_sinks) {
        layer->sink_logits = bind_floats(b, name_in(i, "attn_sinks", ".weight").text, spec->n_heads, 1, true);
    }
}

static void bind_dense(binder *b, const model_spec *spec, int64_t i, layer_weights *layer) {
    const int64_t n_ff = spec->n_ff, n_embd = spec->n_embd;
    if (spec->arch->fused_gate_up) {
        weight whole = {0};
        bind_matrix(b, name_in(i, "ffn_up", "").text, 2 * n_ff, n_embd, &whole);
        layer->gate = rows_of(&whole, 0, n_ff);
        layer->up = rows_of(&whole, n_ff, n_ff);
    } else {
        if (spec->gated) {
            bind_matrix(b, name_in(i, "ffn_gate", "").text, n_ff, n_embd, &layer->gate);
        }
        bind_matrix(b, name_in(i, "ffn_up", "").text, n_ff, n_embd, &layer->up);
    }
    bind_matrix(b, name_in(i, "ffn_down", "").text, n_embd, n_ff, &layer->down);
}

static void bind_experts(binder *b, const model_spec *spec, int64_t i, layer_weights *layer) {
    const int64_t n = spec->n_experts, n_ff = spec->n_ff_expert, n_embd = spec->n_embd;
    bind_matrix(b, name_in(i, "ffn_gate_inp", "").text, n, n_embd, &layer->router);
    bind_matrices(b, name_in(i, "ffn_gate_exps", "").text, n, n_ff, n_embd, &layer->gates);
    bind_matrices(b, name_in(i, "ffn_up_exps", "").text, n, n_ff, n_embd, &layer->ups);
    bind_matrices(b, name_in(i, "ffn_down_exps", "").text, n, n_embd, n_ff, &layer->downs);
    if (spec->n_ff_shared > 0) {
        bind_matrix(b, name_in(i, "ffn_gate_inp_shexp", "").text, 1, n_embd, &layer->shared_gate);
        bind_matrix(b, name_in(i, "ffn_gate_shexp", "").text, spec->n_ff_shared, n_embd, &layer->gate);
        bind_matrix(b, name_in(i, "ffn_up_shexp", "").text, spec->n_ff_shared, n_embd, &layer->up);
        bind_matrix(b, name_in(i, "ffn_down_shexp", "").text, n_embd, spec->n_ff_shared, &layer->down);
    }
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

static void bind_rope_factors(binder *b, model_spec *spec) {
    const int64_t n = spec->n_rot / 2;
    if (spec->arch->has_rope_factors) {
        spec->rope.factors = bind_floats(b, "rope_freqs.weight", n, 1, false);
    }
    if (spec->arch->has_long_factors && gguf_find_tensor(b->file, "rope_factors_long.weight") != NULL) {
        spec->has_rope_long = true;
        spec->rope_long = spec->rope;
        spec->rope_long.factors = bind_floats(b, "rope_factors_long.weight", n, 1, true);
        spec->rope.factors = bind_floats(b, "rope_factors_short.weight", n, 1, true);
    }
}

/* Bytes and parameters in all, and those that one token meets. */
static void count(const gguf *file, const model_spec *spec, model_weights *weights) {
    for (int64_t i = 0; i < file->n_tensors; i++) {
        const gguf_tensor *tensor = &file->tensors[i];
        weights->n_bytes += tensor->n_bytes; /* cannot overflow: extents do not overlap */
        weights->n_parameters += tensor->n_values;
        const uint64_t n_experts = (uint64_t)spec->n_experts, used = (uint64_t)spec->n_experts_used;
        const bool of_experts = n_experts > 0 && tensor->shape[2] == spec->n_experts;
        weights->n_bytes_active += of_experts ? tensor->n_bytes / n_experts * used : tensor->n_bytes;
        weights->n_parameters_active += of_experts ? tensor->n_values / n_experts * used : tensor->n_values;
    }
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
    weights->output_norm = bind_norm(&b, spec, "output_norm");
    if (gguf_find_tensor(file, "output.weight") != NULL) {
        bind_matrix(&b, "output", spec->n_vocab, spec->n_embd, &weights->output);
    } else {
        weights->output = weights->embedding;
    }
    for (int64_t i = 0; i < spec->n_layers && b.status == LMI_OK; i++) {
        layer_weights *layer = &weights->layers[i];
        bind_norms(&b, spec, i, layer);
        bind_attention(&b, spec, i, layer);
        if (spec->n_experts > 0) {
            bind_experts(&b, spec, i, layer);
        } else {
            bind_dense(&b, spec, i, layer);
        }
    }
    bind_rope_factors(&b, spec);
    if (b.status != LMI_OK) {
        return b.status;
    }
    count(file, spec, weights);
    return refuse_leftovers(&b, spec, error);
}
