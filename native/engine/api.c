/* The rest of lmi.h: arguments are checked here and passed on to the rooms below. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "engine/model.h"

const char *lmi_version(void) { return LMI_VERSION; }

const char *lmi_isa_name(lmi_isa isa) { return cpu_isa_name(isa); }

int32_t lmi_isa_available(lmi_isa isa) {
    const kernels *table;
    return kernels_get(isa, &table, NULL) == LMI_OK;
}

size_t lmi_build_info(char *text, size_t size) {
    const kernels *best;
    const bool has_best = kernels_get(LMI_ISA_AUTO, &best, NULL) == LMI_OK;
    int n = snprintf(text, size, "version=%s\ncompiler=%s\nbest=%s\n", LMI_VERSION, __VERSION__,
                     has_best ? cpu_isa_name(best->isa) : "none");
    size_t used = n > 0 ? (size_t)n : 0;
    for (int isa = LMI_ISA_REF; isa <= LMI_ISA_NEON; isa++) {
        n = snprintf(used < size ? text + used : NULL, used < size ? size - used : 0, "%s=%s\n", cpu_isa_name((lmi_isa)isa),
                     lmi_isa_available((lmi_isa)isa) ? "yes"
                     : cpu_has((lmi_isa)isa)         ? "not built"
                                                     : "no");
        used += n > 0 ? (size_t)n : 0;
    }
    return used;
}

void lmi_memory_now(lmi_memory *memory) { memory_now(memory); }

/* ---- the file ----------------------------------------------------------------------------------------------------- */

void lmi_model_get_info(const lmi_model *model, lmi_model_info *info) {
    *info = model->info;
    const bool settled = !model->has_weights || atomic_load(&model->devices.settled) != 0;
    info->device_layers = settled ? model->devices.place.device_layers : -1;
}

static const char *type_text(const gguf_key *key) {
    static const char *const arrays[] = {
        [GGUF_U8] = "array of u8",   [GGUF_I8] = "array of i8",         [GGUF_U16] = "array of u16",
        [GGUF_I16] = "array of i16", [GGUF_U32] = "array of u32",       [GGUF_I32] = "array of i32",
        [GGUF_F32] = "array of f32", [GGUF_BOOL] = "array of bool",     [GGUF_U64] = "array of u64",
        [GGUF_I64] = "array of i64", [GGUF_STRING] = "array of string", [GGUF_ARRAY] = "array of array",
        [GGUF_F64] = "array of f64",
    };
    return key->type == GGUF_ARRAY ? arrays[key->element] : gguf_type_name(key->type);
}

lmi_status lmi_model_get_metadata(const lmi_model *model, int64_t index, lmi_metadata *item, lmi_error *error) {
    if (index < 0 || index >= model->file->n_keys) {
        return fail(error, LMI_INVALID_ARGUMENT, "there is no metadata key %" PRId64 " of %" PRId64, index,
                    model->file->n_keys);
    }
    const gguf_key *key = &model->file->keys[index];
    *item = (lmi_metadata){
        .key = key->name.data,
        .key_size = key->name.size,
        .type = type_text(key),
        .n_elements = (int64_t)key->count,
        .value = model->file->bytes + key->offset,
        .value_size = (size_t)(key->end - key->offset),
    };
    return LMI_OK;
}

lmi_status lmi_model_get_tensor(const lmi_model *model, int64_t index, lmi_tensor *item, lmi_error *error) {
    if (index < 0 || index >= model->file->n_tensors) {
        return fail(error, LMI_INVALID_ARGUMENT, "there is no tensor %" PRId64 " of %" PRId64, index, model->file->n_tensors);
    }
    const gguf_tensor *tensor = &model->file->tensors[index];
    *item = (lmi_tensor){
        .name = tensor->name.data,
        .name_size = tensor->name.size,
        .type = tensor->type->name,
        .n_dims = (int32_t)tensor->n_dims,
        .n_bytes = tensor->n_bytes,
        .offset = tensor->offset,
        .data = tensor->data,
    };
    memcpy(item->shape, tensor->shape, sizeof item->shape);
    return LMI_OK;
}

/* ---- tokens ------------------------------------------------------------------------------------------------------- */

static lmi_status need_tokens(const lmi_model *model, lmi_error *error) {
    if (model == NULL || model->tokens == NULL) {
        return fail(error, LMI_UNSUPPORTED, "the file has no vocabulary (tokenizer.ggml.model)");
    }
    return LMI_OK;
}

lmi_status lmi_model_get_vocab(const lmi_model *model, lmi_vocab_info *info, lmi_error *error) {
    lmi_status status = need_tokens(model, error);
    if (status == LMI_OK) {
        tokenizer_get_info(model->tokens, info);
    }
    return status;
}

int32_t lmi_model_is_end_token(const lmi_model *model, int32_t token) {
    return model->tokens != NULL && tokenizer_is_end(model->tokens, token);
}

size_t lmi_model_token_text(const lmi_model *model, int32_t token, int32_t special, char *text, size_t size) {
    return model->tokens == NULL ? 0 : tokenizer_token_text(model->tokens, token, special != 0, text, size);
}

lmi_status lmi_encoder_open(const lmi_model *model, int32_t parse_special, lmi_encoder **out, lmi_error *error) {
    *out = NULL;
    lmi_status status = need_tokens(model, error);
    return status == LMI_OK ? encoder_open(model->tokens, parse_special != 0, out, error) : status;
}

void lmi_encoder_close(lmi_encoder *e) { encoder_close(e); }
lmi_status lmi_encoder_feed(lmi_encoder *e, const char *text, size_t size, lmi_error *error) {
    return encoder_feed(e, text, size, error);
}
lmi_status lmi_encoder_finish(lmi_encoder *e, lmi_error *error) { return encoder_finish(e, error); }
size_t lmi_encoder_take(lmi_encoder *e, int32_t *tokens, size_t capacity) { return encoder_take(e, tokens, capacity); }

lmi_status lmi_decoder_open(const lmi_model *model, int32_t special, lmi_decoder **out, lmi_error *error) {
    *out = NULL;
    lmi_status status = need_tokens(model, error);
    return status == LMI_OK ? decoder_open(model->tokens, special != 0, out, error) : status;
}

void lmi_decoder_close(lmi_decoder *d) { decoder_close(d); }
const char *lmi_decoder_push(lmi_decoder *d, int32_t token, size_t *size) { return decoder_push(d, token, size); }

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

uint64_t lmi_tensor_bytes(const char *type, int64_t n) {
    const quant_info *info = type == NULL ? NULL : quant_find_name(text_of(type));
    if (info == NULL || n < 0 || n % info->block_values != 0 || (uint64_t)n > UINT64_MAX / info->block_bytes) {
        return 0;
    }
    return (uint64_t)n / info->block_values * info->block_bytes;
}

lmi_status lmi_dequantize(const char *type, const void *blocks, size_t size, float *values, int64_t n, lmi_error *error) {
    const quant_info *info = type == NULL ? NULL : quant_find_name(text_of(type));
    if (info == NULL) {
        return fail(error, LMI_UNSUPPORTED, "tensor type %.60s is not supported", type == NULL ? "(null)" : type);
    }
    const uint64_t needed = lmi_tensor_bytes(type, n);
    if (n <= 0 || needed == 0) {
        return fail(error, LMI_INVALID_ARGUMENT, "%" PRId64 " values are not whole blocks of %u (%s)", n, info->block_values,
                    info->name);
    }
    if (size != needed) {
        return fail(error, LMI_INVALID_ARGUMENT, "%" PRId64 " values of %s take %" PRIu64 " bytes, not %zu", n, info->name,
                    needed, size);
    }
    info->to_f32(blocks, values, n);
    return LMI_OK;
}
