#include "tokenizer/tokenizer.h"

#include <stdlib.h>

#include "tokenizer/vocab.h"

static lmi_status unsupported_model(text_view model, lmi_error *error) {
    fail(error, LMI_UNSUPPORTED,
         "the tokenizer is of kind \"%.*s\"; \"llama\" (SentencePiece) and \"gpt2\" (byte-level BPE) are supported",
         (int)(model.size < 64 ? model.size : 64), model.data);
    remedy(error, "Use a model of another family; WordPiece, Unigram and RWKV vocabularies cannot be read.");
    return LMI_UNSUPPORTED;
}

static lmi_status choose_pretokenizer(tokenizer *t, const gguf *file, lmi_error *error) {
    text_view name = text_of("default"); /* as files older than the key are read */
    lmi_status status = gguf_get_string(file, "tokenizer.ggml.pre", GGUF_OPTIONAL, &name, error);
    if (status != LMI_OK) {
        return status;
    }
    t->pre = pretokenizer_find(name.size == 0 ? text_of("default") : name);
    if (t->pre == NULL) {
        char list[400];
        fail(error, LMI_UNSUPPORTED, "the pre-tokenizer \"%.*s\" is not supported; known are %s",
             (int)(name.size < 48 ? name.size : 48), name.data, pretokenizer_list(list, sizeof list));
        remedy(error, "Use a model with one of these, or a newer version of lmi.");
        return LMI_UNSUPPORTED;
    }
    return LMI_OK;
}

static lmi_status open_parts(tokenizer *t, const gguf *file, lmi_error *error) {
    text_view model;
    lmi_status status = gguf_get_string(file, "tokenizer.ggml.model", GGUF_REQUIRED, &model, error);
    if (status != LMI_OK) {
        return status;
    }
    t->spm = text_is(model, "llama");
    if (!t->spm && !text_is(model, "gpt2")) {
        return unsupported_model(model, error);
    }
    if (!unicode_open(&t->unicode, &t->memory)) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for the vocabulary");
    }
    if (!t->spm) {
        status = choose_pretokenizer(t, file, error);
    } else {
        t->space_prefix = true;
        status = gguf_get_bool(file, "tokenizer.ggml.add_space_prefix", GGUF_OPTIONAL, &t->space_prefix, error);
        if (status == LMI_OK) {
            status = gguf_get_bool(file, "tokenizer.ggml.remove_extra_whitespaces", GGUF_OPTIONAL, &t->single_blanks, error);
        }
    }
    if (status == LMI_OK) {
        status = vocab_open_texts(t, file, error);
    }
    if (status == LMI_OK) {
        status = t->spm ? vocab_open_scores(t, file, error) : vocab_open_merges(t, file, error);
    }
    return status != LMI_OK ? status : vocab_open_specials(t, file, error);
}

lmi_status tokenizer_open(const gguf *file, tokenizer **out, lmi_error *error) {
    *out = NULL;
    tokenizer *t = calloc(1, sizeof *t);
    if (t == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for the vocabulary");
    }
    arena_open(&t->memory);
    lmi_status status = open_parts(t, file, error);
    if (status != LMI_OK) {
        tokenizer_close(t);
        return status;
    }
    *out = t;
    return LMI_OK;
}

void tokenizer_close(tokenizer *t) {
    if (t != NULL) {
        arena_close(&t->memory);
        free(t);
    }
}

void tokenizer_get_info(const tokenizer *t, lmi_vocab_info *info) {
    *info = (lmi_vocab_info){.kind = t->spm ? "spm" : "bpe",
                             .pretokenizer = t->spm ? "" : t->pre->name,
                             .n_vocab = t->n_vocab,
                             .bos = t->bos,
                             .eos = t->eos,
                             .unk = t->unk,
                             .add_bos = t->add_bos,
                             .add_eos = t->add_eos};
}

uint64_t tokenizer_bytes(const tokenizer *t) { return sizeof *t + t->memory.reserved + encoder_bytes(); }

bool tokenizer_is_end(const tokenizer *t, int32_t token) {
    return token >= 0 && token < t->n_vocab && (t->flags[token] & TOKEN_END) != 0;
}
