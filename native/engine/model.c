#include "engine/model.h"

#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/hash.h"

void lmi_model_options_default(lmi_model_options *options) {
    *options = (lmi_model_options){
        .size = sizeof *options,
        .isa = LMI_ISA_AUTO,
        .device = LMI_DEVICE_AUTO,
        .gpu_layers = -1,
    };
}

static lmi_status check_options(const lmi_model_options *options, lmi_error *error) {
    if (options->size != sizeof *options) {
        return fail(error, LMI_INVALID_ARGUMENT,
                    "lmi_model_options has %zu bytes here and %zu at the caller: use its default function", sizeof *options,
                    options->size);
    }
    if (options->n_threads < 0 || options->n_threads > POOL_MAX_WORKERS) {
        return fail(error, LMI_INVALID_ARGUMENT, "threads must be between 1 and %d, not %d", POOL_MAX_WORKERS,
                    options->n_threads);
    }
    if (options->device < LMI_DEVICE_AUTO || options->device > LMI_DEVICE_CUDA) {
        return fail(error, LMI_INVALID_ARGUMENT, "device %d is not known", (int)options->device);
    }
    if (options->device_index < 0 || options->gpu_layers < -1) {
        return fail(error, LMI_INVALID_ARGUMENT, "the GPU's number and its layers must not be negative, not %d and %d",
                    options->device_index, options->gpu_layers);
    }
    if (options->device == LMI_DEVICE_CPU && options->gpu_layers > 0) {
        fail(error, LMI_INVALID_ARGUMENT, "%d layers are to run on a GPU, and all on the CPU", options->gpu_layers);
        remedy(error, "Leave out --gpu-layers or --device cpu.");
        return LMI_INVALID_ARGUMENT;
    }
    return LMI_OK;
}

static lmi_status open_vocabulary(lmi_model *m, bool required, lmi_error *error) {
    if (gguf_find_key(m->file, "tokenizer.ggml.model") == NULL && !required) {
        return LMI_OK; /* tokens can still be read by number */
    }
    return tokenizer_open(m->file, &m->tokens, error);
}

static lmi_status open_ropes(lmi_model *m, lmi_error *error) {
    const model_spec *spec = &m->spec;
    if (spec->arch->alibi) {
        return LMI_OK;
    }
    lmi_status status = rope_table_init(&m->rope, &spec->rope, error);
    if (status == LMI_OK && spec->has_rope_window) {
        status = rope_table_init(&m->rope_window, &spec->rope_window, error);
    }
    if (status == LMI_OK && spec->has_rope_long) {
        status = rope_table_init(&m->rope_long, &spec->rope_long, error);
    }
    return status;
}

static lmi_status open_weights(lmi_model *m, const lmi_model_options *options, lmi_error *error) {
    lmi_status status = model_bind(m->file, &m->spec, &m->memory, &m->weights, error);
    if (status != LMI_OK) {
        return status;
    }
    if (m->tokens != NULL) {
        lmi_vocab_info vocab;
        tokenizer_get_info(m->tokens, &vocab);
        if (vocab.n_vocab > m->spec.n_vocab) {
            return fail(error, LMI_BAD_FORMAT, "the vocabulary has %d tokens and the embedding %lld rows", vocab.n_vocab,
                        (long long)m->spec.n_vocab);
        }
    }
    status = open_ropes(m, error);
    if (status != LMI_OK) {
        return status;
    }
    m->shared = (backend_model){.spec = &m->spec, .layer1 = m->spec.n_layers, .kernels = m->kernels, .workers = m->workers};
    m->shared.steps = model_steps(&m->spec, &m->weights, &m->memory, &m->shared.n_steps);
    if (m->shared.steps == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for the steps of %lld layers", (long long)m->spec.n_layers);
    }
    status = placement_open(m, options, error);
    if (status != LMI_OK) {
        return status;
    }
    m->has_weights = true;
    file_prefetch(&m->view, m->file->data_offset, m->view.size - m->file->data_offset);
    for (int64_t i = 0; i < m->shards.n; i++) {
        file_prefetch(&m->shards.views[i], 0, m->shards.views[i].size);
    }
    return LMI_OK;
}

static void describe(lmi_model *m) {
    const model_spec *spec = &m->spec;
    m->info = (lmi_model_info){
        .architecture = m->architecture,
        .isa = cpu_isa_name(m->kernels->isa),
        .device = m->devices.info.name,
        .no_device = m->devices.none,
        .n_threads = pool_n_workers(m->workers),
        .gguf_version = (int32_t)m->file->version,
        .vocab_only = !m->has_weights,
        .has_tokenizer = m->tokens != NULL,
        .n_layers = spec->n_layers,
        .n_embd = spec->n_embd,
        .n_heads = spec->n_heads,
        .n_kv_heads = spec->n_kv_heads,
        .head_dim = spec->head_dim,
        .n_ff = spec->n_experts > 0 ? spec->n_ff_expert : spec->n_ff,
        .n_vocab = spec->n_vocab,
        .trained_context = spec->trained_context,
        .native_window = spec->native_window,
        .n_experts = spec->n_experts,
        .n_experts_used = spec->n_experts_used,
        .rope_theta = spec->arch != NULL && spec->arch->alibi ? 0.0 : spec->rope.theta,
        .n_parameters = (int64_t)m->weights.n_parameters,
        .n_parameters_active = (int64_t)m->weights.n_parameters_active,
        .weight_bytes = m->weights.n_bytes,
        .weight_bytes_active = m->weights.n_bytes_active,
        .file_bytes = m->view.size,
        .n_files = 1 + (int32_t)m->shards.n,
        .n_metadata = m->file->n_keys,
        .n_tensors = m->file->n_tensors,
    };
    for (int64_t i = 0; i < m->shards.n; i++) {
        m->info.file_bytes += m->shards.views[i].size;
    }
    for (int64_t i = 0; i < spec->n_layers; i++) {
        m->info.n_native_layers += (spec->layer_flags[i] & LAYER_WINDOWED) != 0;
    }
    if (!m->has_weights && m->tokens != NULL) {
        lmi_vocab_info vocab;
        tokenizer_get_info(m->tokens, &vocab);
        m->info.n_vocab = vocab.n_vocab;
    }
}

static lmi_status keep_architecture(lmi_model *m, lmi_error *error) {
    text_view name = text_of("");
    lmi_status status = gguf_get_string(m->file, "general.architecture", GGUF_OPTIONAL, &name, error);
    if (status != LMI_OK) {
        return status;
    }
    const size_t n = name.size < 64 ? name.size : 64;
    m->architecture = arena_take(&m->memory, n + 1);
    if (m->architecture == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory to open the model");
    }
    memcpy(m->architecture, name.data, n);
    return LMI_OK;
}

static lmi_status open_parts(lmi_model *m, const char *path, const lmi_model_options *options, lmi_error *error) {
    lmi_status status = kernels_get(options->isa, &m->kernels, error);
    if (status == LMI_OK) {
        status = file_open(path, !options->no_map, &m->view, error);
    }
    if (status == LMI_OK) {
        status = gguf_open(m->view.bytes, m->view.size, &m->file, error);
    }
    if (status == LMI_OK) {
        status = keep_architecture(m, error);
    }
    if (status == LMI_OK && !options->vocab_only) {
        status = shards_open(path, !options->no_map, m->file, &m->shards, error);
    }
    if (status == LMI_OK && !options->vocab_only) {
        status = model_spec_read(m->file, &m->spec, error);
    }
    if (status == LMI_OK) {
        status = open_vocabulary(m, options->vocab_only != 0, error);
    }
    if (status == LMI_OK) {
        const int n = options->vocab_only ? 1 : options->n_threads > 0 ? options->n_threads : cpu_count();
        status = pool_open(n < POOL_MAX_WORKERS ? n : POOL_MAX_WORKERS, &m->workers, error);
    }
    if (status == LMI_OK && !options->vocab_only) {
        status = open_weights(m, options, error);
    }
    return status;
}

lmi_status lmi_model_open(const char *path, const lmi_model_options *options, lmi_model **model, lmi_error *error) {
    if (model == NULL || path == NULL) {
        return fail(error, LMI_INVALID_ARGUMENT, "lmi_model_open needs a path and a place for the model");
    }
    *model = NULL;
    lmi_model_options defaults;
    if (options == NULL) {
        lmi_model_options_default(&defaults);
        options = &defaults;
    }
    lmi_status status = check_options(options, error);
    if (status != LMI_OK) {
        return status;
    }
    lmi_model *m = calloc(1, sizeof *m);
    if (m == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory to open the model");
    }
    m->view.fd = -1;
    arena_open(&m->memory);
    status = open_parts(m, path, options, error);
    if (status != LMI_OK) {
        shards_explain(&m->shards, error);
        lmi_model_close(m);
        return status;
    }
    describe(m);
    *model = m;
    return LMI_OK;
}

void lmi_model_close(lmi_model *model) {
    if (model == NULL) {
        return;
    }
    placement_close(model);
    pool_close(model->workers);
    tokenizer_close(model->tokens);
    gguf_close(model->file);
    shards_close(&model->shards);
    file_close(&model->view);
    arena_close(&model->memory);
    free(model);
}

static void add_file(sha256 *hash, const gguf *file) {
    enum { SAMPLES = 64, SAMPLE_BYTES = 4096 };
    const uint64_t size = file->size, head = file->data_offset < size ? file->data_offset : size;
    sha256_add(hash, file->bytes, (size_t)head);
    sha256_add(hash, &size, sizeof size);
    const uint64_t data = size - head;
    for (uint64_t i = 0; i < SAMPLES && data > 0; i++) {
        const uint64_t at = data / SAMPLES * i;
        const uint64_t n = data - at < SAMPLE_BYTES ? data - at : SAMPLE_BYTES;
        sha256_add(hash, file->bytes + head + at, (size_t)n);
    }
}

void model_fingerprint(const lmi_model *model, uint8_t digest[32]) {
    sha256 hash;
    sha256_begin(&hash);
    add_file(&hash, model->file);
    for (int64_t i = 0; i < model->shards.n; i++) {
        add_file(&hash, model->shards.files[i]);
    }
    sha256_end(&hash, digest);
}
