#include "tokenizer/vocab.h"

#include <string.h>

/* ---- look-up ------------------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * 0x9fb21c651e98df25u;
    return hash ^ hash >> 32;
}

uint64_t text_hash(const void *text, size_t size) {
    const uint8_t *at = text;
    uint64_t hash = size * 0x9e3779b97f4a7c15u, word;
    for (; size >= 8; size -= 8, at += 8) {
        memcpy(&word, at, 8);
        hash = mix(hash, word);
    }
    if (size > 0) {
        word = 0;
        for (size_t i = 0; i < size; i++) {
            word = word << 8 | at[i];
        }
        hash = mix(hash, word);
    }
    return mix(hash, 0x2545f4914f6cdd1du);
}

uint32_t vocab_find(const tokenizer *t, const void *text, size_t size) {
    uint64_t hash = text_hash(text, size);
    uint32_t high = (uint32_t)(hash >> 32);
    for (uint64_t i = hash & t->text_mask;; i = (i + 1) & t->text_mask) {
        const text_slot *slot = &t->text_slots[i];
        if (slot->token == NO_TOKEN) {
            return NO_TOKEN;
        }
        if (slot->hash == high) {
            text_view found = t->texts[slot->token];
            if (found.size == size && memcmp(found.data, text, size) == 0) {
                return slot->token;
            }
        }
    }
}

uint32_t vocab_find_word(const tokenizer *t, const void *text, size_t size) {
    uint32_t token = vocab_find(t, text, size);
    return token != NO_TOKEN && is_word_kind(vocab_kind(t, token)) ? token : NO_TOKEN;
}

static uint64_t merge_hash(uint32_t left, uint32_t right) { return mix(((uint64_t)left << 32) + right, 0x2545f4914f6cdd1du); }

const merge_slot *vocab_find_merge(const tokenizer *t, uint32_t left, uint32_t right) {
    for (uint64_t i = merge_hash(left, right) & t->merge_mask;; i = (i + 1) & t->merge_mask) {
        const merge_slot *slot = &t->merge_slots[i];
        if (slot->left == left && slot->right == right) {
            return slot;
        }
        if (slot->left == NO_TOKEN) {
            return NULL;
        }
    }
}

/* ---- building ------------------------------------------------------------------------------------------------------ */

static lmi_status out_of_memory(lmi_error *error) { return fail(error, LMI_OUT_OF_MEMORY, "no memory for the vocabulary"); }

static lmi_status bad_vocab(lmi_error *error, lmi_status status) {
    remedy(error, "The file was written wrongly: convert the model again, or use another file of it.");
    return status;
}

/* Slots for n entries: a power of two, at most two thirds full. */
static uint64_t table_size(uint64_t n) {
    uint64_t size = 16;
    while (size < n + n / 2) {
        size *= 2;
    }
    return size;
}

/* With honest texts the longest chain of a table two thirds full is about 220 at 4 million entries. */
enum { LONGEST_CHAIN = 512, MOST_FALSE_HITS = 64, MOST_ENTRIES = 4194304 };

static lmi_status crafted(lmi_error *error, const char *what) {
    fail(error, LMI_BAD_FORMAT, "the %s of the vocabulary were chosen to make look-ups slow", what);
    remedy(error, "Do not use this file.");
    return LMI_BAD_FORMAT;
}

static lmi_status add_text(tokenizer *t, uint32_t token, int *false_hits, lmi_error *error) {
    text_view text = t->texts[token];
    uint64_t hash = text_hash(text.data, text.size);
    uint32_t high = (uint32_t)(hash >> 32);
    uint64_t i = hash & t->text_mask;
    for (int chain = 0; chain < LONGEST_CHAIN; chain++, i = (i + 1) & t->text_mask) {
        text_slot *slot = &t->text_slots[i];
        if (slot->token == NO_TOKEN) {
            *slot = (text_slot){high, token};
            return LMI_OK;
        }
        if (slot->hash != high) {
            continue;
        }
        if (text_equal(t->texts[slot->token], text)) {
            if (is_word_kind(vocab_kind(t, token)) || !is_word_kind(vocab_kind(t, slot->token))) {
                slot->token = token;
            }
            return LMI_OK;
        }
        if (++*false_hits > MOST_FALSE_HITS) {
            break;
        }
    }
    return crafted(error, "tokens");
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int vocab_byte_of(text_view text) {
    if (text.size != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>') {
        return -1;
    }
    int high = hex_digit(text.data[3]), low = hex_digit(text.data[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* The characters that stand for bytes in byte-level BPE (GPT-2's bytes_to_unicode): printable Latin-1 for itself, the
 * others in order from U+0100. */
static void map_bytes(tokenizer *t) {
    memset(t->point_bytes, 0xFF, sizeof t->point_bytes);
    uint16_t next = 0x100;
    for (int byte = 0; byte < 256; byte++) {
        bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        uint16_t point = printable ? (uint16_t)byte : next++;
        t->byte_points[byte] = point;
        t->point_bytes[point] = (int16_t)byte;
    }
}

static void find_byte_tokens(tokenizer *t) {
    for (int byte = 0; byte < 256 && !t->spm; byte++) {
        uint8_t text[4];
        uint32_t token = vocab_find(t, text, unicode_write(t->byte_points[byte], text));
        /* An added token of the same text stands for the character, not for the byte. */
        if (token != NO_TOKEN && (vocab_kind(t, token) == TOKEN_NORMAL || vocab_kind(t, token) == TOKEN_UNUSED)) {
            t->byte_tokens[byte] = (int32_t)token;
        }
    }
    for (int byte = 0; byte < 256; byte++) {
        t->n_byte_tokens += t->byte_tokens[byte] >= 0;
    }
}

lmi_status vocab_open_texts(tokenizer *t, const gguf *file, lmi_error *error) {
    const gguf_key *tokens, *types = gguf_find_key(file, "tokenizer.ggml.token_type");
    lmi_status status = gguf_get_array(file, "tokenizer.ggml.tokens", GGUF_REQUIRED, GGUF_STRING, -1, &tokens, error);
    if (status != LMI_OK) {
        return status;
    }
    if (tokens->count < 2 || tokens->count > MOST_ENTRIES) {
        return bad_vocab(error,
                         fail_at(error, LMI_BAD_FORMAT, tokens->offset, "the vocabulary has %llu tokens, not 2 to 4,194,304",
                                 (unsigned long long)tokens->count));
    }
    t->n_vocab = (int32_t)tokens->count;
    if (types != NULL) {
        gguf_type element = types->type == GGUF_ARRAY && types->element == GGUF_U32 ? GGUF_U32 : GGUF_I32;
        status = gguf_get_array(file, "tokenizer.ggml.token_type", GGUF_REQUIRED, element, t->n_vocab, &types, error);
        if (status != LMI_OK) {
            return status;
        }
    }

    uint64_t n_slots = table_size(tokens->count);
    t->texts = arena_take_array(&t->memory, tokens->count, sizeof t->texts[0]);
    t->flags = arena_take(&t->memory, tokens->count);
    t->text_slots = arena_take_array(&t->memory, n_slots, sizeof t->text_slots[0]);
    if (t->texts == NULL || t->flags == NULL || t->text_slots == NULL) {
        return out_of_memory(error);
    }
    t->text_mask = n_slots - 1;
    memset(t->text_slots, 0xFF, n_slots * sizeof t->text_slots[0]);
    memset(t->byte_tokens, 0xFF, sizeof t->byte_tokens);
    map_bytes(t);

    uint64_t cursor = tokens->offset;
    int false_hits = 0;
    for (uint32_t token = 0; token < (uint32_t)t->n_vocab; token++) {
        uint64_t offset = cursor;
        text_view text = gguf_next_string(file, &cursor);
        if (text.size > 65536) {
            return bad_vocab(
                error, fail_at(error, LMI_BAD_FORMAT, offset, "token %u has %zu bytes, more than 65,536", token, text.size));
        }
        int byte = vocab_byte_of(text);
        int64_t kind = types == NULL ? (t->spm && byte >= 0 ? TOKEN_BYTE : TOKEN_NORMAL) : gguf_int_at(file, types, token);
        if (kind < TOKEN_UNDEFINED || kind > TOKEN_BYTE) {
            return bad_vocab(error, fail_at(error, LMI_BAD_FORMAT, types->offset + 4 * (uint64_t)token,
                                            "token %u is of the unknown type %lld", token, (long long)kind));
        }
        if (kind == TOKEN_BYTE) {
            if (byte < 0) {
                return bad_vocab(
                    error, fail_at(error, LMI_BAD_FORMAT, offset, "token %u is a byte but not of the form <0xHH>", token));
            }
            t->byte_tokens[byte] = (int32_t)token;
        }
        t->texts[token] = text;
        t->flags[token] = (uint8_t)kind;
        t->longest = text.size > t->longest ? text.size : t->longest;
        if (text.size > 0) {
            status = add_text(t, token, &false_hits, error);
            if (status != LMI_OK) {
                return status;
            }
        }
    }
    find_byte_tokens(t);
    return LMI_OK;
}

/* ---- byte-level BPE: merges ---------------------------------------------------------------------------------------- */

/* A merge of or into something that is no token is refused, as by Hugging Face `tokenizers`: what it would do to ids is
 * anybody's guess, and no converter writes one. Of a merge listed twice the first counts. */
lmi_status vocab_open_merges(tokenizer *t, const gguf *file, lmi_error *error) {
    const gguf_key *merges;
    lmi_status status = gguf_get_array(file, "tokenizer.ggml.merges", GGUF_REQUIRED, GGUF_STRING, -1, &merges, error);
    if (status != LMI_OK) {
        return status;
    }
    if (merges->count > MOST_ENTRIES) {
        return bad_vocab(error,
                         fail_at(error, LMI_BAD_FORMAT, merges->offset, "the vocabulary has %llu merges, more than 4,194,304",
                                 (unsigned long long)merges->count));
    }
    uint64_t n_slots = table_size(merges->count);
    t->merge_slots = arena_take_array(&t->memory, n_slots, sizeof t->merge_slots[0]);
    if (t->merge_slots == NULL) {
        return out_of_memory(error);
    }
    t->merge_mask = n_slots - 1;
    memset(t->merge_slots, 0xFF, n_slots * sizeof t->merge_slots[0]);

    uint64_t cursor = merges->offset;
    char joined[2 * 1024];
    for (uint32_t rank = 0; rank < merges->count; rank++) {
        uint64_t offset = cursor;
        text_view merge = gguf_next_string(file, &cursor);
        const char *gap = merge.size < 3 ? NULL : memchr(merge.data + 1, ' ', merge.size - 2);
        size_t left_size = gap == NULL ? 0 : (size_t)(gap - merge.data), right_size = merge.size - left_size - 1;
        if (gap == NULL || merge.data[0] == ' ' || memchr(gap + 1, ' ', right_size) != NULL) {
            return bad_vocab(error,
                             fail_at(error, LMI_BAD_FORMAT, offset, "merge %u is not two tokens with a blank between", rank));
        }
        uint32_t left = vocab_find(t, merge.data, left_size), right = vocab_find(t, gap + 1, right_size), result = NO_TOKEN;
        if (left_size + right_size <= sizeof joined) { /* the longest real tokens have 1,024 bytes */
            memcpy(joined, merge.data, left_size);
            memcpy(joined + left_size, gap + 1, right_size);
            result = vocab_find(t, joined, left_size + right_size);
        }
        if (left == NO_TOKEN || right == NO_TOKEN || result == NO_TOKEN) {
            return bad_vocab(error, fail_at(error, LMI_BAD_FORMAT, offset,
                                            "merge %u speaks of a token that is not in the vocabulary", rank));
        }
        t->flags[result] |= TOKEN_MERGED;
        uint64_t i = merge_hash(left, right) & t->merge_mask;
        for (int chain = 0;; chain++, i = (i + 1) & t->merge_mask) {
            merge_slot *slot = &t->merge_slots[i];
            if (slot->left == NO_TOKEN) {
                *slot = (merge_slot){left, right, rank, result};
                break;
            }
            if (slot->left == left && slot->right == right) {
                break; /* listed twice: the first counts */
            }
            if (chain == LONGEST_CHAIN) {
                return crafted(error, "merges");
            }
        }
    }
    return LMI_OK;
}

/* ---- SentencePiece: scores ----------------------------------------------------------------------------------------- */

/* Floats, none a NaN, in falling order as rising integers; -0 and 0 are one. */
static uint32_t level_of(float score) {
    uint32_t bits;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    uint32_t rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ~rising;
}

/* Which characters stand together in some token: text can be cut between any others without a trace, as no merge can
 * reach across. */
static lmi_status note_neighbours(tokenizer *t, lmi_error *error) {
    enum { N_POINTS = UNICODE_BYTE + 256 };
    arena scratch;
    arena_open(&scratch);
    uint8_t *glued = arena_take(&scratch, N_POINTS / 8);
    t->neighbours = arena_take_array(&t->memory, (size_t)1 << (NEIGHBOUR_BITS - 6), sizeof t->neighbours[0]);
    if (glued == NULL || t->neighbours == NULL) {
        arena_close(&scratch);
        return out_of_memory(error);
    }
    for (uint32_t token = 0; token < (uint32_t)t->n_vocab; token++) {
        if (!is_word_kind(vocab_kind(t, token))) {
            continue;
        }
        const uint8_t *text = (const uint8_t *)t->texts[token].data;
        size_t size = t->texts[token].size;
        uint32_t left = 0, right;
        for (size_t at = 0; at < size; left = right) {
            bool first = at == 0;
            at += unicode_read(text, at, size, true, &right);
            if (first) {
                continue;
            }
            uint32_t bit = neighbour_bit(left, right);
            t->neighbours[bit >> 6] |= (uint64_t)1 << (bit & 63);
            if (right == BLANK_POINT && (glued[left >> 3] >> (left & 7) & 1) == 0) {
                glued[left >> 3] |= (uint8_t)(1u << (left & 7));
                t->n_glued++;
            }
        }
    }
    uint32_t *list = arena_take_array(&t->memory, t->n_glued + 1, sizeof list[0]);
    if (list != NULL) {
        size_t n = 0;
        for (uint32_t point = 0; point < N_POINTS; point++) {
            if (glued[point >> 3] >> (point & 7) & 1) {
                list[n++] = point;
            }
        }
    }
    t->glued = list;
    arena_close(&scratch);
    return list == NULL ? out_of_memory(error) : LMI_OK;
}

lmi_status vocab_open_scores(tokenizer *t, const gguf *file, lmi_error *error) {
    const gguf_key *scores = gguf_find_key(file, "tokenizer.ggml.scores");
    gguf_type element = scores != NULL && scores->type == GGUF_ARRAY && scores->element == GGUF_I32 ? GGUF_I32 : GGUF_F32;
    lmi_status status = gguf_get_array(file, "tokenizer.ggml.scores", GGUF_REQUIRED, element, t->n_vocab, &scores, error);
    if (status != LMI_OK) {
        return status;
    }
    t->levels = arena_take_array(&t->memory, (size_t)t->n_vocab, sizeof t->levels[0]);
    if (t->levels == NULL) {
        return out_of_memory(error);
    }
    for (uint32_t token = 0; token < (uint32_t)t->n_vocab; token++) {
        double score = gguf_real_at(file, scores, token);
        if (!(score >= -3.4e38 && score <= 3.4e38)) {
            return bad_vocab(error, fail_at(error, LMI_BAD_FORMAT, scores->offset + 4 * (uint64_t)token,
                                            "the score of token %u is not a number", token));
        }
        t->levels[token] = level_of((float)score);
    }
    return note_neighbours(t, error);
}
