/* Rules that cut text into words, numbers, punctuation and blanks. The regular expressions are those of the models'
 * tokenizer.json files; alternatives are tried in their order.
 *
 * UNICODE_MORE anywhere that matters makes a rule answer 0: nothing is decided before the text that decides it is there. */
#include "tokenizer/pretokenize.h"

static const uint32_t LETTER = UNICODE_L, NUMBER = UNICODE_BIT(UNICODE_N), NEWLINE = UNICODE_BIT(UNICODE_NEWLINE);
static const uint32_t PUNCTUATION = UNICODE_BIT(UNICODE_P) | UNICODE_BIT(UNICODE_S);

static inline unicode_class class_at(const scan *s, size_t at, size_t *length) {
    return unicode_at(s->unicode, s->text, at, s->size, s->closed, length);
}

static inline bool is_in(unicode_class class, uint32_t classes) { return (UNICODE_BIT(class) & classes) != 0; }

/* End of the run of `classes` that begins at `at`; what stops it in *stop. */
static size_t run_end(const scan *s, size_t at, uint32_t classes, unicode_class *stop) {
    for (;;) {
        size_t length;
        unicode_class class = class_at(s, at, &length);
        if (!is_in(class, classes)) {
            *stop = class;
            return at;
        }
        at += length;
    }
}

static size_t whole_run(const scan *s, size_t at, uint32_t classes) {
    unicode_class stop;
    size_t end = run_end(s, at, classes, &stop);
    return stop == UNICODE_MORE ? 0 : end;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ at the start of the text, or without `newlines` its last two alternatives. */
static size_t blanks(const scan *s, bool newlines) {
    size_t at = 0, last = 0, after_newline = 0, length;
    unicode_class class;
    while (is_in(class = class_at(s, at, &length), UNICODE_BLANK)) {
        last = at;
        at += length;
        if (class == UNICODE_NEWLINE) {
            after_newline = at;
        }
    }
    if (class == UNICODE_MORE) {
        return 0;
    }
    if (newlines && after_newline > 0) {
        return after_newline;
    }
    /* \s+(?!\S) gives back the last blank before a word, unless it is the only one: then \s+ takes it. */
    return class == UNICODE_END || last == 0 ? at : last;
}

/* Length of 's 't 're 've 'm 'll 'd at `at`, 0 if there is none; *more if it cannot be told yet. With `fold`, as (?i:...)
 * reads it: capitals too, and the long s, U+017F. */
static size_t contraction(const scan *s, size_t at, bool fold, bool *more) {
    *more = at >= s->size && !s->closed;
    if (at >= s->size || s->text[at] != '\'') {
        return 0;
    }
    uint8_t next[2] = {0, 0};
    for (size_t i = 0; i < 2; i++) {
        if (at + 1 + i >= s->size) {
            /* One more byte decides unless the one before it already did. */
            *more = !s->closed && (i == 0 || next[0] == 'r' || next[0] == 'v' || next[0] == 'l' || next[0] == 0xC5);
            break;
        }
        next[i] = s->text[at + 1 + i];
        if (fold && next[i] >= 'A' && next[i] <= 'Z') {
            next[i] = (uint8_t)(next[i] + 32);
        }
    }
    switch (next[0]) {
    case 's':
    case 't':
    case 'm':
    case 'd':
        return 2;
    case 'r':
    case 'v':
        return next[1] == 'e' ? 3 : 0;
    case 'l':
        return next[1] == 'l' ? 3 : 0;
    case 0xC5:
        return fold && next[1] == 0xBF ? 3 : 0;
    default:
        return 0;
    }
}

/* Up to `most` digits at the start, at least one is there; 0 if more text must come first. */
static size_t digits(const scan *s, size_t most) {
    size_t at = 0;
    for (size_t n = 0; most == 0 || n < most; n++) {
        size_t length;
        unicode_class class = class_at(s, at, &length);
        if (class == UNICODE_MORE) {
            return 0;
        }
        if (class != UNICODE_N) {
            break;
        }
        at += length;
    }
    return at;
}

/* `marks`+ then the rule's tail, from `at`. */
static size_t marks_and_tail(const rule *r, const scan *s, size_t at, uint32_t marks) {
    unicode_class stop;
    size_t end = run_end(s, at, marks, &stop);
    while (r->tail > 0 &&
           (stop == UNICODE_NEWLINE || (r->tail == 2 && stop != UNICODE_END && stop != UNICODE_MORE && s->text[end] == '/'))) {
        size_t length;
        end++;
        stop = class_at(s, end, &length);
    }
    return stop == UNICODE_MORE ? 0 : end;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
size_t scan_gpt2(const rule *r, const scan *s, bool *open) {
    (void)r;
    *open = false;
    bool more;
    size_t length = contraction(s, 0, false, &more);
    if (length > 0 || more) {
        return more ? 0 : length;
    }
    size_t at = s->text[0] == ' ' ? 1 : 0;
    unicode_class class = class_at(s, at, &length);
    if (class == UNICODE_MORE) {
        return 0;
    }
    if (is_in(class, LETTER)) {
        return whole_run(s, at, LETTER);
    }
    if (class == UNICODE_N) {
        return whole_run(s, at, NUMBER);
    }
    if (!is_in(class, UNICODE_BLANK | UNICODE_STOP)) {
        return whole_run(s, at, ~(UNICODE_BLANK | LETTER | NUMBER | UNICODE_STOP));
    }
    return blanks(s, false);
}

/* \p{N}{1,digits}| ?[^\s\p{L}\p{N}]+tail|\s*[\r\n]+|\s+(?!\S)|\s+, where no word begins; `class` is that of the first
 * character. Marks count as letters if the rule says so. */
static size_t no_word(const rule *r, const scan *s, unicode_class class) {
    if (class == UNICODE_N) {
        return digits(s, r->digits);
    }
    size_t length;
    size_t at = s->text[0] == ' ' ? 1 : 0;
    unicode_class next = at > 0 ? class_at(s, at, &length) : class;
    if (next == UNICODE_MORE) {
        return 0;
    }
    uint32_t marks = ~(UNICODE_BLANK | r->letters | NUMBER | UNICODE_STOP);
    return is_in(next, marks) ? marks_and_tail(r, s, at, marks) : blanks(s, true);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * with other digits, other tails, or [\p{L}\p{M}] for \p{L} in words and marks. */
size_t scan_words(const rule *r, const scan *s, bool *open) {
    *open = false;
    size_t length;
    if (r->contractions) {
        bool more;
        length = contraction(s, 0, true, &more);
        if (length > 0 || more) {
            return more ? 0 : length;
        }
    }
    unicode_class class = class_at(s, 0, &length);
    if (is_in(class, r->letters)) { /* a mark may be the first letter or what precedes it: the run is the same */
        return whole_run(s, 0, r->letters);
    }
    if (class == UNICODE_MORE) {
        return 0;
    }
    if (!is_in(class, NEWLINE | NUMBER)) {
        size_t ignored;
        unicode_class next = class_at(s, length, &ignored);
        if (next == UNICODE_MORE) {
            return 0;
        }
        if (is_in(next, r->letters)) {
            return whole_run(s, length, r->letters);
        }
    }
    return no_word(r, s, class);
}

/* With U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and W = [\p{Ll}\p{Lm}\p{Lo}\p{M}]: the end of U*W+ or, failing that and if `any`, of
 * U+, from `at`; `at` if there is none; 0 if more text must come first.
 *
 * U* runs as far as it can; then W+ takes over if a small letter follows, else U* steps back to the last character that
 * is in both, which ends the match as none of those after it is in W. */
static size_t cased_word_end(const scan *s, size_t at, bool any) {
    const uint32_t both = UNICODE_BIT(UNICODE_LM) | UNICODE_BIT(UNICODE_LO) | UNICODE_BIT(UNICODE_M);
    const uint32_t upper = both | UNICODE_BIT(UNICODE_LU) | UNICODE_BIT(UNICODE_LT);
    size_t end = at, after_both = at, length;
    unicode_class class;
    while (is_in(class = class_at(s, end, &length), upper)) {
        end += length;
        if (is_in(class, both)) {
            after_both = end;
        }
    }
    if (class == UNICODE_MORE) {
        return 0;
    }
    if (class == UNICODE_LL) {
        return whole_run(s, end, both | UNICODE_BIT(UNICODE_LL));
    }
    return after_both > at ? after_both : any ? end : at;
}

/* [^\r\n\p{L}\p{N}]?U*W+C?|[^\r\n\p{L}\p{N}]?U+W*C?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * with C the contractions (gpt-4o) or nothing (tekken, which takes one digit). */
size_t scan_cased_words(const rule *r, const scan *s, bool *open) {
    *open = false;
    size_t length;
    unicode_class class = class_at(s, 0, &length);
    if (class == UNICODE_MORE) {
        return 0;
    }
    size_t start = 0, end = 0;
    if (is_in(class, LETTER)) {
        end = cased_word_end(s, 0, true);
        if (end == 0) {
            return 0;
        }
    } else if (!is_in(class, NEWLINE | NUMBER)) {
        start = length;
        /* A mark may stand before the word or begin it: both ways of the first alternative come before the second. */
        end = cased_word_end(s, start, class != UNICODE_M);
        if (end == 0) {
            return 0;
        }
        if (end == start && class == UNICODE_M) {
            start = 0;
            end = cased_word_end(s, 0, true);
            if (end == 0) {
                return 0;
            }
        }
    }
    if (end > start) {
        bool more = false;
        size_t suffix = r->contractions ? contraction(s, end, true, &more) : 0;
        return more ? 0 : end + suffix;
    }
    return no_word(r, s, class);
}

static bool is_ascii_letter(uint8_t byte) { return (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z'); }

static bool is_ascii_mark(uint8_t byte) {
    return byte > 32 && byte < 127 && !is_ascii_letter(byte) && !(byte >= '0' && byte <= '9');
}

/* Whether one of scan_deepseek3's alternatives matches at the start of s: its length; 0: not yet known; SIZE_MAX: none. */
static size_t deepseek3_match(const rule *r, const scan *s) {
    const uint32_t letters = LETTER | UNICODE_BIT(UNICODE_M);
    size_t length, ignored;
    unicode_class class = class_at(s, 0, &length);
    if (is_in(class, letters)) {
        return whole_run(s, 0, letters);
    }
    if (class == UNICODE_MORE) {
        return 0;
    }
    unicode_class next = class_at(s, length, &ignored);
    if (next == UNICODE_MORE && class != UNICODE_NEWLINE) {
        return 0;
    }
    if (is_ascii_mark(s->text[0]) && length < s->size && is_ascii_letter(s->text[length])) {
        size_t end = length;
        while (end < s->size && is_ascii_letter(s->text[end])) {
            end++;
        }
        return end == s->size && !s->closed ? 0 : end;
    }
    if (!is_in(class, PUNCTUATION | NEWLINE) && is_in(next, letters)) {
        return whole_run(s, length, letters);
    }
    size_t lead = s->text[0] == ' ' ? 1 : 0;
    if (is_in(lead > 0 ? next : class, PUNCTUATION)) {
        return marks_and_tail(r, s, lead, PUNCTUATION);
    }
    return is_in(class, UNICODE_BLANK) ? blanks(s, true) : SIZE_MAX;
}

/* [!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|
 * \s+(?!\S)|\s+. Digits and controls match nothing: they lie between. */
size_t scan_deepseek3(const rule *r, const scan *s, bool *open) {
    scan rest = *s;
    size_t gap = 0;
    *open = false;
    while (rest.size > 0) {
        size_t length = deepseek3_match(r, &rest);
        if (length == 0) {
            *open = gap > 0;
            return gap;
        }
        if (length != SIZE_MAX) {
            return gap > 0 ? gap : length;
        }
        class_at(&rest, 0, &length);
        gap += length;
        rest.text += length;
        rest.size -= length;
    }
    *open = !s->closed;
    return gap;
}
