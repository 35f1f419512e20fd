/* The encoder: text comes in at any cuts, is held until no text still to come can change what it becomes, and leaves as
 * tokens.
 *
 *   text in -> [blanks to U+2581 (spm)] -> special tokens | plain text between them -> pieces -> merges -> tokens out
 *
 * What is held is looked at again only when it has doubled since the last time, so that even text without a place to cut,
 * fed byte by byte, costs linear time. Held text is a word or two where the text has blanks.
 *
 * SentencePiece has no pieces: merges may reach across anything. But a merge makes a token, so none reaches across two
 * characters that no token has side by side; text is cut before a blank that ends a run of others, where no token has such
 * a thing inside (hardly any vocabulary does), and long text without one between any two such characters. Cuts of this kind
 * never change the result, so it does not matter that they depend on how much text is there. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer/merge.h"

enum {
    SLICE = 32768, /* bytes taken in at a time */
    UNCUT = 512,   /* spm: text longer than this is cut between any characters that no token joins */
    CACHE_BITS = 13,
    CACHED_TEXT = 22, /* bytes of a cached piece */
    CACHED_TOKENS = 10
};

typedef struct cached { /* what a short piece became; one cache line */
    uint8_t size;       /* 0: free */
    uint8_t n_tokens;
    char text[CACHED_TEXT];
    int32_t tokens[CACHED_TOKENS];
} cached;

struct lmi_encoder {
    const tokenizer *t;
    const special_list *specials;
    merger merger;
    size_t n_taken; /* tokens of merger.tokens already given out */
    cached *cache;  /* [1 << CACHE_BITS] */

    uint8_t *text; /* held: [begin, end) of it; the BLANK_SIZE bytes before `begin` may be overwritten */
    size_t begin;
    size_t end;
    size_t capacity;
    size_t retry; /* look again when this many bytes are held */

    size_t plain;      /* bytes from `begin` in which no special token begins */
    bool plain_ends;   /* and right after which one does, or the text ends */
    bool prefix_due;   /* spm: a blank comes before the next plain text */
    bool strip_due;    /* blanks here do not count */
    bool blank_held;   /* spm that reads runs of blanks as one: one has come, and counts if something follows */
    bool any_text;     /* and something came before */
    size_t match_size; /* of the special token after `plain`; 0: none known */
    int32_t match;
    cuts cuts;
};

static void begin_text(encoder *e) {
    e->begin = e->end = BLANK_SIZE;
    e->retry = 0;
    e->plain = 0;
    e->plain_ends = false;
    e->prefix_due = e->t->space_prefix;
    e->strip_due = false;
    e->blank_held = e->any_text = false;
    e->match_size = 0;
    e->cuts = (cuts){0};
    e->merger.after_unknown = false;
}

uint64_t encoder_bytes(void) { return sizeof(encoder) + ((uint64_t)1 << CACHE_BITS) * sizeof(cached); }

lmi_status encoder_open(const tokenizer *t, bool parse_special, encoder **out, lmi_error *error) {
    *out = NULL;
    encoder *e = calloc(1, sizeof *e);
    cached *cache = calloc((size_t)1 << CACHE_BITS, sizeof cache[0]);
    if (e == NULL || cache == NULL) {
        free(e);
        free(cache);
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for an encoder");
    }
    e->t = t;
    e->cache = cache;
    e->merger.t = t;
    e->specials = &t->specials[parse_special ? 1 : 0];
    begin_text(e);
    *out = e;
    return LMI_OK;
}

void encoder_close(encoder *e) {
    if (e != NULL) {
        merger_close(&e->merger);
        free(e->cache);
        free(e->text);
        free(e);
    }
}

/* ---- pieces to tokens ---------------------------------------------------------------------------------------------- */

/* Token that the whole piece is (ignore_merges), or NO_TOKEN. */
static uint32_t whole_piece(const tokenizer *t, const uint8_t *text, size_t size) {
    uint8_t written[1024];
    size_t n = 0;
    if (size > t->longest || 2 * size > sizeof written) {
        return NO_TOKEN;
    }
    for (size_t i = 0; i < size; i++) {
        n += unicode_write(t->byte_points[text[i]], written + n);
    }
    uint32_t token = vocab_find(t, written, n);
    return token != NO_TOKEN && vocab_kind(t, token) == TOKEN_NORMAL ? token : NO_TOKEN;
}

static lmi_status encode_piece(encoder *e, const uint8_t *text, size_t size, lmi_error *error) {
    merger *m = &e->merger;
    cached *entry = NULL;
    lmi_status status = LMI_OK;
    if (size <= CACHED_TEXT && !m->after_unknown) {
        entry = &e->cache[text_hash(text, size) >> (64 - CACHE_BITS)];
        if (entry->size == size && memcmp(entry->text, text, size) == 0) {
            for (size_t i = 0; i < entry->n_tokens && status == LMI_OK; i++) {
                status = merger_push(m, entry->tokens[i], error);
            }
            return status;
        }
    }
    size_t n_before = m->n_tokens;
    uint32_t whole = !e->t->spm && e->t->pre->ignore_merges ? whole_piece(e->t, text, size) : NO_TOKEN;
    status = whole != NO_TOKEN ? merger_push(m, (int32_t)whole, error) : merge_text(m, text, size, error);
    size_t n = m->n_tokens - n_before;
    if (status == LMI_OK && entry != NULL && n <= CACHED_TOKENS && !m->after_unknown) {
        entry->size = (uint8_t)size;
        entry->n_tokens = (uint8_t)n;
        memcpy(entry->text, text, size);
        if (n > 0) {
            memcpy(entry->tokens, m->tokens + n_before, n * sizeof entry->tokens[0]);
        }
    }
    return status;
}

/* ---- pieces of SentencePiece text ---------------------------------------------------------------------------------- */

static bool may_cut_before_blank(const tokenizer *t, uint32_t left) {
    size_t low = 0, high = t->n_glued;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (t->glued[middle] < left) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low == t->n_glued || t->glued[low] != left;
}

/* Length of the first stretch of text[0, size) that merges for itself, 0 if that depends on text still to come. */
static size_t spm_piece(const tokenizer *t, const uint8_t *text, size_t size, bool closed) {
    uint32_t left = 0, point;
    size_t at = 0;
    while (at < size) {
        size_t length = 1;
        point = text[at];
        if (point >= 128) {
            length = unicode_read(text, at, size, closed, &point);
            if (length == 0) {
                return 0;
            }
        }
        if (at > 0) {
            if (point == BLANK_POINT) {
                if (may_cut_before_blank(t, left)) {
                    return at;
                }
            } else if (at > UNCUT) {
                uint32_t bit = neighbour_bit(left, point);
                if ((t->neighbours[bit >> 6] >> (bit & 63) & 1) == 0) {
                    return at;
                }
            }
        }
        left = point;
        at += length;
    }
    return closed ? at : 0;
}

/* ---- the stream ---------------------------------------------------------------------------------------------------- */

/* Makes room for `more` bytes after `end`, moving what is held to the front when that is worth it. */
static lmi_status make_room(encoder *e, size_t more, lmi_error *error) {
    size_t held = e->end - e->begin;
    if (e->begin > BLANK_SIZE && e->begin > held) {
        memmove(e->text + BLANK_SIZE, e->text + e->begin, held);
        e->begin = BLANK_SIZE;
        e->end = BLANK_SIZE + held;
    }
    if (e->end + more <= e->capacity) {
        return LMI_OK;
    }
    size_t larger = e->capacity + e->capacity / 2;
    larger = larger < e->end + more ? e->end + more : larger;
    uint8_t *moved = realloc(e->text, larger);
    if (moved == NULL) {
        return fail(error, LMI_OUT_OF_MEMORY, "no memory to hold text that cannot be cut yet");
    }
    e->text = moved;
    e->capacity = larger;
    return LMI_OK;
}

static void take_in(encoder *e, const char *text, size_t size) {
    if (!e->t->spm) {
        memcpy(e->text + e->end, text, size);
        e->end += size;
        return;
    }
    uint8_t *at = e->text + e->end;
    for (size_t i = 0; i < size; i++) {
        bool blank = text[i] == ' ';
        if (e->t->single_blanks) {
            if (blank) {
                e->blank_held = e->any_text;
                continue;
            }
            blank = e->blank_held;
            e->blank_held = false;
            e->any_text = true;
        }
        if (blank) {
            memcpy(at, BLANK, BLANK_SIZE);
            at += BLANK_SIZE;
        }
        if (text[i] != ' ') {
            *at++ = (uint8_t)text[i];
        }
    }
    e->end = (size_t)(at - e->text);
}

/* Skips blanks after a special token that swallows them. False if it depends on text still to come whether more follow. */
static bool strip_blanks(encoder *e, bool closed) {
    while (e->strip_due) {
        uint32_t point = UNICODE_BYTE;
        if (e->begin == e->end) {
            return closed;
        }
        size_t length = unicode_read(e->text, e->begin, e->end, closed, &point);
        if (length == 0) {
            return false;
        }
        bool blank =
            (e->t->spm && point == BLANK_POINT) || (UNICODE_BIT(unicode_class_of(&e->t->unicode, point)) & UNICODE_BLANK) != 0;
        e->strip_due = blank;
        e->begin += blank ? length : 0;
    }
    return true;
}

/* Moves `plain` on to the next special token, or to where one may begin that is not all there yet. */
static void find_special(encoder *e, bool closed) {
    size_t at = e->begin + e->plain, size = 0;
    for (; at < e->end; at++) {
        if (e->specials->first[e->text[at]] == e->specials->first[e->text[at] + 1]) {
            continue;
        }
        size = special_find(e->specials, e->text, at, e->end, closed, &e->match);
        if (size > 0) {
            break;
        }
    }
    e->plain = at - e->begin;
    e->match_size = size == SIZE_MAX ? 0 : size;
    e->plain_ends = e->match_size > 0 || (closed && at == e->end);
}

static lmi_status push_special(encoder *e, lmi_error *error) {
    const tokenizer *t = e->t;
    const uint8_t *text = e->text + e->begin;
    /* SentencePiece's own tokens for runs of blanks (Gemma) are ordinary text to what follows. */
    bool only_blanks = t->spm && e->match_size % BLANK_SIZE == 0;
    for (size_t i = 0; only_blanks && i < e->match_size; i += BLANK_SIZE) {
        only_blanks = memcmp(text + i, BLANK, BLANK_SIZE) == 0;
    }
    e->prefix_due = t->space_prefix && !only_blanks;
    e->strip_due = (t->flags[e->match] & TOKEN_STRIP) != 0;
    e->begin += e->match_size;
    e->match_size = 0;
    e->plain_ends = false;
    e->cuts = (cuts){0};
    return merger_push(&e->merger, e->match, error);
}

/* Turns what is held into tokens as far as it is certain; all of it if `closed`. */
static lmi_status advance(encoder *e, bool closed, lmi_error *error) {
    lmi_status status = LMI_OK;
    bool searched = false;
    while (status == LMI_OK && strip_blanks(e, closed)) {
        if (!searched && !e->plain_ends) {
            find_special(e, closed);
            searched = true;
        }
        if (e->plain == 0) {
            if (e->match_size == 0) {
                break;
            }
            status = push_special(e, error);
            searched = false;
            continue;
        }
        if (e->prefix_due) {
            /* Look again from the blank: tokens that begin with one count as well. */
            e->prefix_due = false;
            e->begin -= BLANK_SIZE;
            memcpy(e->text + e->begin, BLANK, BLANK_SIZE);
            e->plain = 0;
            e->match_size = 0;
            e->plain_ends = searched = false;
            continue;
        }
        const uint8_t *text = e->text + e->begin;
        size_t size;
        if (e->t->spm) {
            size = spm_piece(e->t, text, e->plain, e->plain_ends);
        } else {
            scan piece = {&e->t->unicode, text, e->plain, e->plain_ends};
            size = pretokenize(e->t->pre, &e->cuts, &piece);
        }
        if (size == 0) {
            break;
        }
        status = encode_piece(e, text, size, error);
        e->begin += size;
        e->plain -= size;
    }
    e->retry = 2 * (e->end - e->begin);
    return status;
}

lmi_status encoder_feed(encoder *e, const char *text, size_t size, lmi_error *error) {
    lmi_status status = LMI_OK;
    for (size_t at = 0; at < size && status == LMI_OK;) {
        size_t n = size - at < SLICE ? size - at : SLICE;
        status = make_room(e, e->t->spm ? (n + 1) * (BLANK_SIZE + 1) : n, error);
        if (status == LMI_OK) {
            take_in(e, text + at, n);
            at += n;
            if (e->end - e->begin >= e->retry) {
                status = advance(e, false, error);
            }
        }
    }
    if (status != LMI_OK) {
        begin_text(e);
    }
    return status;
}

lmi_status encoder_finish(encoder *e, lmi_error *error) {
    lmi_status status = e->end > e->begin ? advance(e, true, error) : LMI_OK;
    begin_text(e);
    merger_trim(&e->merger);
    enum { KEEP = 1 << 20 };
    if (e->capacity > KEEP) {
        free(e->text);
        e->text = NULL;
        e->capacity = 0;
    }
    return status;
}

size_t encoder_take(encoder *e, int32_t *tokens, size_t capacity) {
    size_t n = e->merger.n_tokens - e->n_taken;
    n = n < capacity ? n : capacity;
    if (n > 0) {
        memcpy(tokens, e->merger.tokens + e->n_taken, n * sizeof tokens[0]);
    }
    e->n_taken += n;
    if (e->n_taken == e->merger.n_tokens) {
        e->n_taken = e->merger.n_tokens = 0;
    }
    return n;
}
