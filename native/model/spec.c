#include "model/spec.h"

#include <stdio.h>
#include <string.h>

static const architecture architectures[] = {
    {.name = "llama", .pairing = ROPE_ADJACENT, .has_rope_factors = true, .has_native_window = true},
};
enum { N_ARCHITECTURES = sizeof architectures / sizeof *architectures };

/* Families whose attention has no keys that Λ could keep or drop: refused with the reason. */
static const struct {
    const char *name, *why;
} without_lambda[] = {
    {"mamba", "its layers keep a state instead of keys and values"},
    {"mamba2", "its layers keep a state instead of keys and values"},
    {"rwkv6", "its layers keep a state instead of keys and values"},
    {"rwkv7", "its layers keep a state instead of keys and values"},
    {"deepseek2", "its keys are compressed across heads (MLA)"},
};

static lmi_status find_architecture(const gguf *file, const architecture **arch, lmi_error *error) {
    text_view name;
    lmi_status status = gguf_get_string(file, "general.architecture", GGUF_REQUIRED, &name, error);
    if (status != LMI_OK) {
        return status;
    }
    for (int i = 0; i < N_ARCHITECTURES; i++) {
        if (text_is(name, architectures[i].name)) {
            *arch = &architectures[i];
            return LMI_OK;
        }
    }
    char supported[256] = "";
    size_t used = 0;
    for (int i = 0; i < N_ARCHITECTURES && used + 64 < sizeof supported; i++) {
        used += (size_t)snprintf(supported + used, sizeof supported - used, "%s%s", i > 0 ? ", " : "", architectures[i].name);
    }
    int shown = name.size < 64 ? (int)name.size : 64;
    for (size_t i = 0; i < sizeof without_lambda / sizeof *without_lambda; i++) {
        if (text_is(name, without_lambda[i].name)) {
            fail(error, LMI_UNSUPPORTED, "architecture \"%.*s\" is not supported: %s, so a window over them does not apply",
                 shown, name.data, without_lambda[i].why);
            remedy(error, "Supported: %s.", supported);
            return LMI_UNSUPPORTED;
        }
    }
    fail(error, LMI_UNSUPPORTED, "architecture \"%.*s\" is not supported", shown, name.data);
    remedy(error, "Supported: %s.", supported);
    return LMI_UNSUPPORTED;
}

/* Keys are "<architecture>.<suffix>". */
typedef struct reader {
    const gguf *file;
    const char *prefix;
    lmi_error *error;
    lmi_status status; /* of the first failure: the rest does nothing */
    char key[128];
} reader;

static const char *key_of(reader *r, const char *suffix) {
    snprintf(r->key, sizeof r->key, "%s.%s", r->prefix, suffix);
    return r->key;
}

static void read_int(reader *r, const char *suffix, gguf_need need, int64_t min, int64_t max, int64_t *value) {
    if (r->status == LMI_OK) {
        r->status = gguf_get_int(r->file, key_of(r, suffix), need, min, max, value, r->error);
    }
}

static void read_real(reader *r, const char *suffix, gguf_need need, double min, double max, double *value) {
    if (r->status == LMI_OK) {
        r->status = gguf_get_real(r->file, key_of(r, suffix), need, min, max, value, r->error);
    }
}

static void refuse_int_above(reader *r, const char *suffix, int64_t max, const char *what) {
    int64_t value = 0;
    read_int(r, suffix, GGUF_OPTIONAL, INT64_MIN, INT64_MAX, &value);
    if (r->status == LMI_OK && value > max) {
        r->status = fail(r->error, LMI_UNSUPPORTED, "%s is not supported for architecture \"%s\" (%s = %lld)", what, r->prefix,
                         r->key, (long long)value);
    }
}

static void read_rope(reader *r, model_spec *spec) {
    rope_params *rope = &spec->rope;
    *rope = (rope_params){.theta = 10000.0, .factor = 1.0, .attention_factor = 1.0, .beta_fast = 32.0, .beta_slow = 1.0};
    spec->n_rot = spec->head_dim;
    read_int(r, "rope.dimension_count", GGUF_OPTIONAL, 2, spec->head_dim, &spec->n_rot);
    read_real(r, "rope.freq_base", GGUF_OPTIONAL, 1e-3, 1e15, &rope->theta);
    text_view type = text_of("");
    if (r->status == LMI_OK) {
        r->status = gguf_get_string(r->file, key_of(r, "rope.scaling.type"), GGUF_OPTIONAL, &type, r->error);
    }
    double factor = 0.0;
    read_real(r, "rope.scale_linear", GGUF_OPTIONAL, 0.0, 1e6, &factor); /* files from before scaling had a type */
    if (factor > 0.0 && factor != 1.0) {
        rope->scaling = ROPE_SCALING_LINEAR;
    }
    read_real(r, "rope.scaling.factor", GGUF_OPTIONAL, 0.0, 1e6, &factor);
    if (text_is(type, "linear")) {
        rope->scaling = ROPE_SCALING_LINEAR;
    } else if (text_is(type, "yarn")) {
        rope->scaling = ROPE_SCALING_YARN;
        int64_t original_context = spec->trained_context;
        read_int(r, "rope.scaling.original_context_length", GGUF_OPTIONAL, 1, (int64_t)1 << 40, &original_context);
        rope->original_context = (double)original_context;
        read_real(r, "rope.scaling.attn_factor", GGUF_OPTIONAL, 1e-3, 1e3, &rope->attention_factor);
        read_real(r, "rope.scaling.yarn_beta_fast", GGUF_OPTIONAL, 1e-3, 1e6, &rope->beta_fast);
        read_real(r, "rope.scaling.yarn_beta_slow", GGUF_OPTIONAL, 1e-3, 1e6, &rope->beta_slow);
    } else if (type.size != 0 && !text_is(type, "none") && r->status == LMI_OK) {
        r->status = fail(r->error, LMI_UNSUPPORTED, "rope scaling \"%.*s\" is not supported for architecture \"%s\"",
                         type.size < 64 ? (int)type.size : 64, type.data, r->prefix);
    }
    if (rope->scaling != ROPE_SCALING_NONE && factor > 0.0) {
        rope->factor = factor;
    }
    if (r->status == LMI_OK && (spec->n_rot % 2 != 0 || spec->n_rot / 2 > ROPE_MAX_PAIRS)) {
        r->status = fail(r->error, LMI_BAD_FORMAT, "rope.dimension_count is %lld; it must be even and at most %d",
                         (long long)spec->n_rot, 2 * ROPE_MAX_PAIRS);
    }
    rope->n_rot = (int32_t)spec->n_rot;
}

lmi_status model_spec_read(const gguf *file, model_spec *spec, lmi_error *error) {
    *spec = (model_spec){0};
    lmi_status status = find_architecture(file, &spec->arch, error);
    if (status != LMI_OK) {
        return status;
    }
    reader r = {.file = file, .prefix = spec->arch->name, .error = error, .status = LMI_OK};
    read_int(&r, "block_count", GGUF_REQUIRED, 1, SPEC_MAX_LAYERS, &spec->n_layers);
    read_int(&r, "context_length", GGUF_REQUIRED, 1, (int64_t)1 << 40, &spec->trained_context);
    read_int(&r, "embedding_length", GGUF_REQUIRED, 8, 131072, &spec->n_embd);
    read_int(&r, "feed_forward_length", GGUF_REQUIRED, 1, 1048576, &spec->n_ff);
    read_int(&r, "attention.head_count", GGUF_REQUIRED, 1, 1024, &spec->n_heads);
    spec->n_kv_heads = spec->n_heads;
    read_int(&r, "attention.head_count_kv", GGUF_OPTIONAL, 1, 1024, &spec->n_kv_heads);
    double eps = 0.0;
    read_real(&r, "attention.layer_norm_rms_epsilon", GGUF_REQUIRED, 1e-30, 0.999, &eps);
    refuse_int_above(&r, "expert_count", 0, "a mixture of experts");
    if (r.status != LMI_OK) {
        return r.status;
    }
    spec->norm_eps = (float)eps;
    if (spec->n_heads % spec->n_kv_heads != 0) {
        return fail(error, LMI_BAD_FORMAT, "%lld query heads cannot share %lld key-value heads evenly",
                    (long long)spec->n_heads, (long long)spec->n_kv_heads);
    }
    spec->head_dim = spec->n_embd / spec->n_heads;
    if (gguf_find_key(file, key_of(&r, "attention.key_length")) == NULL && spec->n_embd % spec->n_heads != 0) {
        return fail(error, LMI_BAD_FORMAT, "%lld heads do not divide the embedding length %lld", (long long)spec->n_heads,
                    (long long)spec->n_embd);
    }
    read_int(&r, "attention.key_length", GGUF_OPTIONAL, 8, 1024, &spec->head_dim);
    int64_t value_length = spec->head_dim;
    read_int(&r, "attention.value_length", GGUF_OPTIONAL, 8, 1024, &value_length);
    if (r.status == LMI_OK && value_length != spec->head_dim) {
        return fail(error, LMI_UNSUPPORTED, "keys of %lld and values of %lld numbers: only equal sizes are supported",
                    (long long)spec->head_dim, (long long)value_length);
    }
    if (r.status == LMI_OK && (spec->head_dim < 8 || spec->head_dim > 1024 || spec->head_dim % 2 != 0)) {
        return fail(error, LMI_BAD_FORMAT, "head size %lld is not an even number from 8 to 1024", (long long)spec->head_dim);
    }
    if (spec->arch->has_native_window) {
        read_int(&r, "attention.sliding_window", GGUF_OPTIONAL, 0, INT64_MAX, &spec->native_window);
        if (spec->native_window >= spec->trained_context) {
            spec->native_window = 0; /* a window as wide as everything it saw in training limits nothing */
        }
    }
    read_rope(&r, spec);
    return r.status;
}
