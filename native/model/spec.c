#include "model/spec.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const architecture architectures[] = {
    {.name = "llama", .has_rope_factors = true, .has_native_window = true, .experts = EXPERTS_NORMED},
    {.name = "gptj", .norm = NORM_LAYER, .residual = RESIDUAL_SHARED_NORM, .activation = ACTIVATION_GELU_TANH, .ungated = true},
    {.name = "gptneox",
     .pairing = ROPE_HALVES,
     .norm = NORM_LAYER,
     .residual = RESIDUAL_FROM_FILE,
     .activation = ACTIVATION_GELU_ERF,
     .ungated = true,
     .fused_qkv = true},
    {.name = "mpt", .alibi = true, .norm = NORM_LAYER, .activation = ACTIVATION_GELU_ERF, .ungated = true, .fused_qkv = true},
    {.name = "qwen2", .pairing = ROPE_HALVES, .has_native_window = true},
    {.name = "qwen2moe", .pairing = ROPE_HALVES, .experts = EXPERTS_UNNORMED, .shared_expert = true},
    {.name = "qwen3", .pairing = ROPE_HALVES, .head_norm = HEAD_NORM_EACH, .has_native_window = true},
    {.name = "qwen3moe", .pairing = ROPE_HALVES, .head_norm = HEAD_NORM_EACH, .experts = EXPERTS_NORMED},
    {.name = "gemma", .pairing = ROPE_HALVES, .activation = ACTIVATION_GELU_TANH, .scaled_embedding = true},
    {.name = "gemma2",
     .pairing = ROPE_HALVES,
     .norms = NORM_BOTH,
     .activation = ACTIVATION_GELU_TANH,
     .scaled_embedding = true,
     .has_native_window = true,
     .window_period = 2,
     .plain_scale_layers = 46},
    {.name = "gemma3",
     .pairing = ROPE_HALVES,
     .norms = NORM_BOTH,
     .head_norm = HEAD_NORM_EACH,
     .activation = ACTIVATION_GELU_TANH,
     .scaled_embedding = true,
     .has_native_window = true,
     .window_period = 6,
     .window_theta = 10000.0,
     .plain_scale_layers = 62},
    {.name = "phi3",
     .pairing = ROPE_HALVES,
     .fused_qkv = true,
     .fused_gate_up = true,
     .has_long_factors = true,
     .has_native_window = true},
    {.name = "gpt-oss",
     .pairing = ROPE_HALVES,
     .activation = ACTIVATION_SWIGLU_OAI,
     .attention_sinks = true,
     .has_native_window = true,
     .window_period = 2,
     .yarn_untruncated = true,
     .experts = EXPERTS_NORMED,
     .ffn_norm_name = "post_attention_norm"},
    {.name = "smollm3", .has_rope_factors = true, .rope_period = 4},
    {.name = "olmo2", .pairing = ROPE_HALVES, .norms = NORM_AFTER, .head_norm = HEAD_NORM_ALL},
    {.name = "starcoder2",
     .pairing = ROPE_HALVES,
     .norm = NORM_LAYER,
     .activation = ACTIVATION_GELU_TANH,
     .ungated = true,
     .has_native_window = true},
};
enum { N_ARCHITECTURES = sizeof architectures / sizeof *architectures };

/* Families whose attention has no keys that Λ could keep or drop: refused with the reason. */
static const struct {
    const char *name, *why;
} without_lambda[] = {
    {"mamba", "its layers keep a state instead of keys and values"},
    {"mamba2", "its layers keep a state instead of keys and values"},
    {"falcon-h1", "most of its layers keep a state instead of keys and values"},
    {"granitehybrid", "most of its layers keep a state instead of keys and values"},
    {"jamba", "most of its layers keep a state instead of keys and values"},
    {"kimi-linear", "most of its layers keep a state instead of keys and values"},
    {"lfm2moe", "most of its layers are convolutions that keep a state"},
    {"lfm2", "most of its layers are convolutions that keep a state"},
    {"nemotron_h_moe", "most of its layers keep a state instead of keys and values"},
    {"nemotron_h", "most of its layers keep a state instead of keys and values"},
    {"plamo2", "most of its layers keep a state instead of keys and values"},
    {"qwen35moe", "most of its layers keep a state instead of keys and values"},
    {"qwen35", "most of its layers keep a state instead of keys and values"},
    {"qwen3next", "most of its layers keep a state instead of keys and values"},
    {"arwkv7", "its layers keep a state instead of keys and values"},
    {"rwkv6qwen2", "its layers keep a state instead of keys and values"},
    {"rwkv6", "its layers keep a state instead of keys and values"},
    {"rwkv7", "its layers keep a state instead of keys and values"},
    {"deepseek2", "its keys are compressed across heads (MLA)"},
    {"deepseek2-ocr", "its keys are compressed across heads (MLA)"},
    {"glm-dsa", "its keys are compressed across heads (MLA)"},
    {"mistral4", "its keys are compressed across heads (MLA)"},
    {"minicpm3", "its keys are compressed across heads (MLA)"},
    {"plm", "its keys are compressed across heads (MLA)"},
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

static void read_float(reader *r, const char *suffix, gguf_need need, double min, double max, float *value) {
    double real = *value;
    read_real(r, suffix, need, min, max, &real);
    *value = (float)real;
}

static void read_bool(reader *r, const char *suffix, gguf_need need, bool *value) {
    if (r->status == LMI_OK) {
        r->status = gguf_get_bool(r->file, key_of(r, suffix), need, value, r->error);
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
    } else if (spec->arch->has_long_factors && (type.size == 0 || text_is(type, "longrope"))) {
        int64_t original_context = spec->trained_context;
        read_int(r, "rope.scaling.original_context_length", GGUF_OPTIONAL, 1, (int64_t)1 << 40, &original_context);
        rope->original_context = (double)original_context;
        read_real(r, "rope.scaling.attn_factor", GGUF_OPTIONAL, 1e-3, 1e3, &rope->attention_factor);
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
    bool truncate = !spec->arch->yarn_untruncated;
    read_bool(r, "rope.scaling.yarn_truncate", GGUF_OPTIONAL, &truncate);
    rope->untruncated = !truncate;
    if (spec->arch->window_theta > 0.0) {
        spec->has_rope_window = true;
        spec->rope_window = (rope_params){.n_rot = rope->n_rot, .factor = 1.0, .attention_factor = 1.0};
        spec->rope_window.theta = spec->arch->window_theta;
        read_real(r, "rope.freq_base_swa", GGUF_OPTIONAL, 1e-3, 1e15, &spec->rope_window.theta);
    }
}

/* Which layers have a window, and which turn nothing. */
static void read_layers(reader *r, model_spec *spec) {
    const architecture *arch = spec->arch;
    int64_t period = arch->window_period;
    const gguf_key *each = NULL;
    if (arch->has_native_window) {
        read_int(r, "attention.sliding_window", GGUF_OPTIONAL, 0, INT64_MAX, &spec->native_window);
        if (spec->native_window >= spec->trained_context) {
            spec->native_window = 0; /* a window as wide as everything it saw in training limits nothing */
        }
        const gguf_key *pattern = gguf_find_key(r->file, key_of(r, "attention.sliding_window_pattern"));
        if (pattern != NULL && pattern->type == GGUF_ARRAY && r->status == LMI_OK) {
            r->status = gguf_get_array(r->file, r->key, GGUF_REQUIRED, GGUF_BOOL, spec->n_layers, &each, r->error);
        } else {
            read_int(r, "attention.sliding_window_pattern", GGUF_OPTIONAL, 0, SPEC_MAX_LAYERS, &period);
        }
    }
    for (int64_t i = 0; i < spec->n_layers && r->status == LMI_OK; i++) {
        const bool windowed =
            each != NULL ? gguf_int_at(r->file, each, (uint64_t)i) != 0 : period == 0 || (i + 1) % period != 0;
        if (spec->native_window > 0 && windowed) {
            spec->layer_flags[i] |= LAYER_WINDOWED;
        }
        if (arch->alibi || (arch->rope_period > 0 && (i + 1) % arch->rope_period == 0)) {
            spec->layer_flags[i] |= LAYER_UNROTATED;
        }
    }
}

static void read_experts(reader *r, model_spec *spec) {
    if (spec->arch->experts == EXPERTS_NONE) {
        int64_t n = 0;
        read_int(r, "expert_count", GGUF_OPTIONAL, 0, INT64_MAX, &n);
        if (r->status == LMI_OK && n > 0) {
            r->status = fail(r->error, LMI_UNSUPPORTED, "experts are not supported for architecture \"%s\" (%s = %lld)",
                             r->prefix, r->key, (long long)n);
        }
        return;
    }
    read_int(r, "expert_count", GGUF_OPTIONAL, 0, SPEC_MAX_EXPERTS, &spec->n_experts);
    if (r->status != LMI_OK || spec->n_experts == 0) {
        return;
    }
    read_int(r, "expert_used_count", GGUF_REQUIRED, 1, spec->n_experts, &spec->n_experts_used);
    spec->n_ff_expert = spec->n_ff;
    read_int(r, "expert_feed_forward_length", GGUF_OPTIONAL, 1, 1048576, &spec->n_ff_expert);
    if (spec->arch->shared_expert) {
        spec->n_ff_shared = spec->n_ff;
        read_int(r, "expert_shared_feed_forward_length", GGUF_OPTIONAL, 1, 1048576, &spec->n_ff_shared);
    }
    spec->n_ff = 0;
}

/* Scales, caps and bounds of what flows through the layers. */
static void read_scales(reader *r, model_spec *spec) {
    const architecture *arch = spec->arch;
    const bool plain = arch->plain_scale_layers > 0 && spec->n_layers == arch->plain_scale_layers;
    spec->attention_scale = 1.0f / sqrtf(plain ? (float)spec->n_embd / (float)spec->n_heads : (float)spec->head_dim);
    spec->embedding_scale = arch->scaled_embedding ? sqrtf((float)spec->n_embd) : 1.0f;
    spec->alibi_max_bias = arch->alibi ? 8.0f : 0.0f;
    read_float(r, "attention.scale", GGUF_OPTIONAL, 1e-6, 1e6, &spec->attention_scale);
    read_float(r, "attn_logit_softcapping", GGUF_OPTIONAL, 1e-3, 1e6, &spec->attention_softcap);
    read_float(r, "final_logit_softcapping", GGUF_OPTIONAL, 1e-3, 1e6, &spec->output_softcap);
    if (arch->alibi) {
        read_float(r, "attention.max_alibi_bias", GGUF_OPTIONAL, 0.0, 1e3, &spec->alibi_max_bias);
        read_float(r, "attention.clamp_kqv", GGUF_OPTIONAL, 0.0, 1e6, &spec->clamp_qkv);
    }
    spec->gated = !arch->ungated;
    spec->parallel = arch->residual == RESIDUAL_PARALLEL || arch->residual == RESIDUAL_SHARED_NORM;
    if (arch->residual == RESIDUAL_FROM_FILE) {
        read_bool(r, "use_parallel_residual", GGUF_REQUIRED, &spec->parallel);
    }
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
    read_real(&r, spec->arch->norm == NORM_RMS ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon",
              GGUF_REQUIRED, 1e-30, 0.999, &eps);
    read_experts(&r, spec);
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
    read_layers(&r, spec);
    read_scales(&r, spec);
    read_rope(&r, spec);
    return r.status;
}
