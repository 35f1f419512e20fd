/* Tokens to text. The decoder adds nothing and takes nothing away: the blank that SentencePiece puts before a text comes out
 * as a blank, since a token that goes on a text needs it; who decodes from the start of a text drops it. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer/vocab.h"

/* ---- bytes of a token ---------------------------------------------------------------------------------------------- */

/* Writes bytes as far as there is room and counts all of them. */
typedef struct sink {
    char *text;
    size_t size;
    size_t n;
} sink;

static void put(sink *s, const void *bytes, size_t n) {
    if (s->n < s->size) {
        size_t room = s->size - s->n;
        memcpy(s->text + s->n, bytes, n < room ? n : room);
    }
    s->n += n;
}

static void put_unescaped(sink *s, text_view text) {
    for (size_t at = 0; at < text.size;) {
        if (text.size - at >= BLANK_SIZE && memcmp(text.data + at, BLANK, BLANK_SIZE) == 0) {
            put(s, " ", 1);
            at += BLANK_SIZE;
        } else {
            put(s, text.data + at, 1);
            at++;
        }
    }
}

/* Characters back to the bytes they stand for; a text with a character that stands for none is meant literally. */
static void put_bytes(const tokenizer *t, sink *s, text_view text) {
    const uint8_t *bytes = (const uint8_t *)text.data;
    for (int writing = 0; writing < 2; writing++) {
        for (size_t at = 0; at < text.size;) {
            uint32_t point;
            at += unicode_read(bytes, at, text.size, true, &point);
            int16_t byte = point < sizeof t->point_bytes / sizeof t->point_bytes[0] ? t->point_bytes[point] : -1;
            if (byte < 0) {
                put(s, text.data, text.size);
                return;
            }
            if (writing) {
                put(s, &(uint8_t){(uint8_t)byte}, 1);
            }
        }
    }
}

size_t tokenizer_token_text(const tokenizer *t, int32_t token, bool special, char *text, size_t size) {
    sink s = {text, size, 0};
    if (token < 0 || token >= t->n_vocab) {
        return 0;
    }
    text_view found = t->texts[token];
    switch (vocab_kind(t, (uint32_t)token)) {
    case TOKEN_NORMAL:
        if (t->spm) {
            put_unescaped(&s, found);
        } else {
            put_bytes(t, &s, found);
        }
        break;
    case TOKEN_USER_DEFINED: /* of byte-level BPE: written as it is */
        if (t->spm) {
            put_unescaped(&s, found);
        } else {
            put(&s, found.data, found.size);
        }
        break;
    case TOKEN_BYTE:
        put(&s, &(uint8_t){(uint8_t)vocab_byte_of(found)}, 1);
        break;
    case TOKEN_CONTROL:
    case TOKEN_UNKNOWN:
    case TOKEN_UNUSED:
    case TOKEN_UNDEFINED:
        if (special) {
            put(&s, found.data, found.size);
        }
        break;
    }
    return s.n;
}

/* ---- the decoder --------------------------------------------------------------------------------------------------- */

struct lmi_decoder {
    const tokenizer *t;
    bool special;
    size_t n_held;   /* bytes of a character that is not whole yet, at the start of `bytes` */
    uint8_t *bytes;  /* [3 + longest] */
    size_t capacity; /* of bytes */
    char *text;      /* [3 * capacity + 1] */
};

lmi_status decoder_open(const tokenizer *t, bool special, decoder **out, lmi_error *error) {
    *out = NULL;
    decoder *d = calloc(1, sizeof *d);
    size_t capacity = 3 + (t->longest < 8 ? 8 : t->longest);
    uint8_t *bytes = malloc(capacity + 3 * capacity + 1);
    if (d == NULL || bytes == NULL) {
        free(d);
        free(bytes);
        return fail(error, LMI_OUT_OF_MEMORY, "no memory for a decoder");
    }
    *d = (decoder){.t = t, .special = special, .bytes = bytes, .capacity = capacity, .text = (char *)bytes + capacity};
    *out = d;
    return LMI_OK;
}

void decoder_close(decoder *d) {
    if (d != NULL) {
        free(d->bytes);
        free(d);
    }
}

/* How many bytes at text[at] belong together as one faulty piece: the longest that begins a valid character, at least 1. */
static size_t faulty_size(const uint8_t *text, size_t at, size_t size) {
    uint32_t point;
    size_t n = 1;
    while (n < 3 && at + n < size && unicode_read(text, at, at + n + 1, false, &point) == 0) {
        n++;
    }
    return n;
}

const char *decoder_push(decoder *d, int32_t token, size_t *size) {
    bool closed = token < 0;
    size_t n = d->n_held, room = d->capacity - d->n_held, at = 0, out = 0;
    n += tokenizer_token_text(d->t, token, d->special, (char *)d->bytes + n, room);
    while (at < n) {
        uint32_t point;
        size_t length = unicode_read(d->bytes, at, n, closed, &point);
        if (length == 0) {
            break;
        }
        if (point < UNICODE_BYTE) {
            memcpy(d->text + out, d->bytes + at, length);
            out += length;
        } else {
            length = faulty_size(d->bytes, at, n);
            memcpy(d->text + out, "\xEF\xBF\xBD", 3);
            out += 3;
        }
        at += length;
    }
    d->n_held = n - at;
    memmove(d->bytes, d->bytes + at, d->n_held);
    d->text[out] = '\0';
    *size = out;
    return d->text;
}
