/* Special tokens: the ids that the file names, what ends a generation, and how they are found in text. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer/vocab.h"

/* ---- ids ----------------------------------------------------------------------------------------------------------- */

/* *id keeps its value if the key is absent. Files write "none" as -1, also where the type is unsigned. */
static lmi_status read_id(const tokenizer *t, const gguf *file, const char *name, int32_t *id, lmi_error *error) {
    int64_t value = INT64_MIN;
    lmi_status status = gguf_get_int(file, name, GGUF_OPTIONAL, INT64_MIN, INT64_MAX, &value, error);
    if (status != LMI_OK || value == INT64_MIN) {
        return status;
    }
    if (value == -1 || value == UINT32_MAX) {
        *id = -1;
        return LMI_OK;
    }
    if (value < 0 || value >= t->n_vocab) {
        fail_at(error, LMI_BAD_FORMAT, gguf_find_key(file, name)->offset,
                "key \"%s\" is %lld, but the vocabulary has %d tokens", name, (long long)value, t->n_vocab);
        remedy(error, "The file was written wrongly: convert the model again, or use another file of it.");
        return LMI_BAD_FORMAT;
    }
    *id = (int32_t)value;
    return LMI_OK;
}

static lmi_status read_flag(const gguf *file, const char *name, int32_t id, const char *token, bool *flag, lmi_error *error) {
    bool named = gguf_find_key(file, name) != NULL;
    lmi_status status = gguf_get_bool(file, name, GGUF_OPTIONAL, flag, error);
    if (status != LMI_OK) {
        return status;
    }
    if (*flag && id < 0) {
        *flag = false;
        if (named) {
            fail(error, LMI_BAD_FORMAT, "key \"%s\" is true, but the vocabulary has no %s token", name, token);
            remedy(error, "The file was written wrongly: convert the model again, or use another file of it.");
            return LMI_BAD_FORMAT;
        }
    }
    return LMI_OK;
}

static lmi_status read_ids(tokenizer *t, const gguf *file, int32_t ends[5], lmi_error *error) {
    t->bos = t->eos = t->unk = -1;
    if (t->spm) { /* where SentencePiece puts them unless told otherwise */
        t->unk = 0;
        t->bos = 1;
        t->eos = t->n_vocab > 2 ? 2 : -1;
    } else if (t->n_vocab > 11 && text_is(t->texts[11], "<|endoftext|>")) { /* Falcon, whose first files name none */
        t->bos = t->pre->no_bos ? -1 : 11;
        t->eos = 11;
    }
    for (int i = 0; i < 5; i++) {
        ends[i] = -1;
    }
    const struct {
        const char *name;
        int32_t *id;
    } keys[] = {{"tokenizer.ggml.bos_token_id", &t->bos},      {"tokenizer.ggml.eos_token_id", &t->eos},
                {"tokenizer.ggml.unknown_token_id", &t->unk},  {"tokenizer.ggml.eot_token_id", &ends[0]},
                {"tokenizer.ggml.eom_token_id", &ends[1]},     {"tokenizer.ggml.fim_pad_token_id", &ends[2]},
                {"tokenizer.ggml.fim_rep_token_id", &ends[3]}, {"tokenizer.ggml.fim_sep_token_id", &ends[4]}};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        lmi_status status = read_id(t, file, keys[i].name, keys[i].id, error);
        if (status != LMI_OK) {
            return status;
        }
    }
    t->add_bos = t->spm || t->pre->add_bos;
    lmi_status status = read_flag(file, "tokenizer.ggml.add_bos_token", t->bos, "BOS", &t->add_bos, error);
    return status != LMI_OK ? status : read_flag(file, "tokenizer.ggml.add_eos_token", t->eos, "EOS", &t->add_eos, error);
}

/* ---- what ends a generation ---------------------------------------------------------------------------------------- */

static void set_kind(tokenizer *t, uint32_t token, token_kind kind) {
    t->flags[token] = (uint8_t)((t->flags[token] & ~(unsigned)TOKEN_KIND) | (unsigned)kind);
}

/* Whether ordinary text can become this token. */
static bool is_made_by_merging(const tokenizer *t, uint32_t token) {
    if (!is_word_kind(vocab_kind(t, token)) || vocab_kind(t, token) == TOKEN_USER_DEFINED) {
        return false;
    }
    if (!t->spm) {
        return (t->flags[token] & TOKEN_MERGED) != 0;
    }
    text_view text = t->texts[token];
    for (size_t i = 1; i < text.size; i++) {
        /* One byte is a character: the texts asked about are ASCII but for DeepSeek's, which are not made of words. */
        bool left = i == 1 || vocab_find_word(t, text.data, i) != NO_TOKEN;
        bool right = i + 1 == text.size || vocab_find_word(t, text.data + i, text.size - i) != NO_TOKEN;
        if (left && right) {
            return true;
        }
    }
    return false;
}

/* The special token of this text, or NO_TOKEN. Files that type such a token as ordinary are common; it counts unless text
 * can become it, as `</s>` does in vocabularies that learnt it from web pages. */
static uint32_t special_named(const tokenizer *t, const char *text) {
    uint32_t token = vocab_find(t, text, strlen(text));
    return token == NO_TOKEN || vocab_kind(t, token) == TOKEN_BYTE || is_made_by_merging(t, token) ? NO_TOKEN : token;
}

static void mark_ends(tokenizer *t, const int32_t ends[5]) {
    /* Known by their texts, as few files name them: turns and messages first, then what only fill-in-the-middle models have. */
    static const char *const TEXTS[] = {"<|eot_id|>",
                                        "<|im_end|>",
                                        "<|end|>",
                                        "<|return|>",
                                        "<|call|>",
                                        "<|flush|>",
                                        "<|calls|>",
                                        "<end_of_turn>",
                                        "<turn|>",
                                        "</s>",
                                        "<|endoftext|>",
                                        "<|eom_id|>",
                                        "<EOT>",
                                        "_<EOT>",
                                        "[EOT]",
                                        "[EOS]",
                                        "<eos>",
                                        "[e~[",
                                        "<|end_of_text|>",
                                        "<end_of_utterance>",
                                        "<|tool_response>",
                                        "<｜end▁of▁sentence｜>",
                                        "<|fim_pad|>",
                                        "<fim-pad>",
                                        "<fim_pad>",
                                        "<|fim_repo|>",
                                        "<|repo_name|>",
                                        "<fim-repo>",
                                        "<reponame>",
                                        "<|file_sep|>"};
    for (size_t i = 0; i < sizeof TEXTS / sizeof TEXTS[0]; i++) {
        uint32_t token = special_named(t, TEXTS[i]);
        if (token != NO_TOKEN) {
            set_kind(t, token, TOKEN_CONTROL);
            t->flags[token] |= TOKEN_END;
        }
    }
    /* gpt-oss and Solar end a message with <|end|> and go on; Gemma 4 has a `</s>` that is not its end. */
    uint32_t returns = special_named(t, "<|return|>"), call = special_named(t, "<|call|>"),
             calls = special_named(t, "<|calls|>");
    uint32_t flush = special_named(t, "<|flush|>"), end = special_named(t, "<|end|>"), s = special_named(t, "</s>");
    if (end != NO_TOKEN && (call != NO_TOKEN || calls != NO_TOKEN) && (returns != NO_TOKEN || flush != NO_TOKEN)) {
        t->flags[end] &= (uint8_t)~TOKEN_END;
    }
    if (s != NO_TOKEN && special_named(t, "<|tool_response>") != NO_TOKEN) {
        t->flags[s] &= (uint8_t)~TOKEN_END;
    }
    for (int i = -1; i < 5; i++) {
        int32_t token = i < 0 ? t->eos : ends[i];
        if (token >= 0) {
            t->flags[token] |= TOKEN_END;
        }
    }
}

/* ---- finding them in text ------------------------------------------------------------------------------------------ */

static int compare_specials(const void *left, const void *right) {
    const special_token *a = left, *b = right;
    size_t size = a->text.size < b->text.size ? a->text.size : b->text.size;
    int order = memcmp(a->text.data, b->text.data, size);
    if (order == 0) {
        order = (a->text.size > b->text.size) - (a->text.size < b->text.size);
    }
    return order != 0 ? order : (a->token > b->token) - (a->token < b->token);
}

/* SentencePiece text is matched with its blanks written as U+2581. */
static bool escape_blanks(arena *a, text_view *text) {
    size_t n_blanks = 0;
    for (size_t i = 0; i < text->size; i++) {
        n_blanks += text->data[i] == ' ';
    }
    if (n_blanks == 0) {
        return true;
    }
    char *escaped = arena_take(a, text->size + n_blanks * (BLANK_SIZE - 1));
    if (escaped == NULL) {
        return false;
    }
    size_t size = 0;
    for (size_t i = 0; i < text->size; i++) {
        if (text->data[i] == ' ') {
            memcpy(escaped + size, BLANK, BLANK_SIZE);
            size += BLANK_SIZE;
        } else {
            escaped[size++] = text->data[i];
        }
    }
    *text = (text_view){escaped, size};
    return true;
}

static bool is_special_kind(token_kind kind, bool parse_special) {
    return kind == TOKEN_USER_DEFINED || (parse_special && (kind == TOKEN_CONTROL || kind == TOKEN_UNKNOWN));
}

static lmi_status open_list(tokenizer *t, bool parse_special, special_list *list, lmi_error *error) {
    size_t n = 0, kept = 0;
    for (uint32_t token = 0; token < (uint32_t)t->n_vocab; token++) {
        n += is_special_kind(vocab_kind(t, token), parse_special);
    }
    special_token *items = arena_take_array(&t->memory, n + 1, sizeof items[0]);
    if (items == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for the vocabulary");
    }
    n = 0;
    for (uint32_t token = 0; token < (uint32_t)t->n_vocab; token++) {
        text_view text = t->texts[token];
        if (is_special_kind(vocab_kind(t, token), parse_special) && text.size > 0 && text.size <= LONGEST_SPECIAL) {
            if (t->spm && !escape_blanks(&t->memory, &text)) {
                return fail(error, LMI_OUT_OF_MEMORY, "no memory for the vocabulary");
            }
            items[n++] = (special_token){text, (int32_t)token};
        }
    }
    qsort(items, n, sizeof items[0], compare_specials);
    for (size_t i = 0; i < n; i++) {
        if (kept > 0 && text_equal(items[kept - 1].text, items[i].text)) {
            kept--; /* of several tokens with one text the last counts */
        }
        items[kept++] = items[i];
    }
    list->items = items;
    for (size_t byte = 0, i = 0; byte < 257; byte++) {
        while (i < kept && (uint8_t)items[i].text.data[0] < byte) {
            i++;
        }
        list->first[byte] = (uint32_t)i;
    }
    return LMI_OK;
}

/* First of items[low, high) whose byte at `depth` is at least `byte`; all of them have one. */
static size_t narrow(const special_token *items, size_t low, size_t high, size_t depth, int byte) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uint8_t)items[middle].text.data[depth] < byte) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

size_t special_find(const special_list *list, const uint8_t *text, size_t at, size_t size, bool closed, int32_t *token) {
    size_t low = list->first[text[at]], high = list->first[text[at] + 1], found = 0;
    for (size_t depth = 1; low < high; depth++) {
        if (list->items[low].text.size == depth) { /* sorted: the shortest comes first */
            found = depth;
            *token = list->items[low++].token;
            if (low == high) {
                break;
            }
        }
        if (at + depth >= size) {
            return closed ? found : SIZE_MAX;
        }
        int byte = text[at + depth];
        low = narrow(list->items, low, high, depth, byte);
        high = narrow(list->items, low, high, depth, byte + 1);
    }
    return found;
}

/* ---- opening ------------------------------------------------------------------------------------------------------- */

/* Phi-3's special tokens swallow the blanks that follow them; files do not say so, llama.cpp goes by the model's name too. */
static lmi_status mark_strips(tokenizer *t, const gguf *file, lmi_error *error) {
    text_view name = {"", 0};
    lmi_status status = gguf_get_string(file, "general.name", GGUF_OPTIONAL, &name, error);
    bool is_phi3 = false;
    for (size_t i = 0; i + 4 <= name.size && status == LMI_OK; i++) {
        const char *at = name.data + i;
        size_t dash = at[3] == '-' && i + 5 <= name.size;
        is_phi3 = is_phi3 || ((at[0] | 32) == 'p' && (at[1] | 32) == 'h' && (at[2] | 32) == 'i' && at[3 + dash] == '3');
    }
    for (uint32_t token = 0; is_phi3 && token < (uint32_t)t->n_vocab; token++) {
        text_view text = t->texts[token];
        if (is_special_kind(vocab_kind(t, token), true) && !text_is(text, "<unk>") && !text_is(text, "<s>") &&
            !text_is(text, "<|endoftext|>")) {
            t->flags[token] |= TOKEN_STRIP;
        }
    }
    return status;
}

lmi_status vocab_open_specials(tokenizer *t, const gguf *file, lmi_error *error) {
    int32_t ends[5];
    lmi_status status = read_ids(t, file, ends, error);
    if (status != LMI_OK) {
        return status;
    }
    if (t->spm && gguf_find_key(file, "tokenizer.ggml.token_type") == NULL) {
        const int32_t ids[] = {t->unk, t->bos, t->eos};
        for (int i = 0; i < 3; i++) {
            if (ids[i] >= 0) {
                set_kind(t, (uint32_t)ids[i], i == 0 ? TOKEN_UNKNOWN : TOKEN_CONTROL);
            }
        }
    }
    mark_ends(t, ends);
    status = mark_strips(t, file, error);
    for (int i = 0; i < 2 && status == LMI_OK; i++) {
        status = open_list(t, i == 1, &t->specials[i], error);
    }
    return status;
}
