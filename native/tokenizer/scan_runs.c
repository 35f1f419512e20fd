/* Rules that single out runs of some characters: digits, punctuation, scripts. */
#include "tokenizer/pretokenize.h"

typedef struct range {
    uint32_t first, last;
} range;

/* Letters of the scripts that have case, as the deepseek-llm tokenizer lists them. */
static const range CASED_LETTERS[] = {
    {0x41, 0x5A},       {0x61, 0x7A},       {0xB5, 0xB5},       {0xC0, 0xD6},       {0xD8, 0xF6},       {0xF8, 0x1BA},
    {0x1BC, 0x1BF},     {0x1C4, 0x293},     {0x295, 0x2AF},     {0x370, 0x373},     {0x376, 0x377},     {0x37B, 0x37D},
    {0x37F, 0x37F},     {0x386, 0x386},     {0x388, 0x38A},     {0x38C, 0x38C},     {0x38E, 0x3A1},     {0x3A3, 0x3F5},
    {0x3F7, 0x481},     {0x48A, 0x52F},     {0x531, 0x556},     {0x10A0, 0x10C5},   {0x13A0, 0x13F5},   {0x13F8, 0x13FD},
    {0x1C90, 0x1CBA},   {0x1CBD, 0x1CBF},   {0x1D00, 0x1D2B},   {0x1D6B, 0x1D77},   {0x1D79, 0x1D9A},   {0x1E00, 0x1F15},
    {0x1F18, 0x1F1D},   {0x1F20, 0x1F45},   {0x1F48, 0x1F4D},   {0x1F50, 0x1F57},   {0x1F59, 0x1F59},   {0x1F5B, 0x1F5B},
    {0x1F5D, 0x1F5D},   {0x1F5F, 0x1F7D},   {0x1F80, 0x1FB4},   {0x1FB6, 0x1FBC},   {0x1FBE, 0x1FBE},   {0x1FC2, 0x1FC4},
    {0x1FC6, 0x1FCC},   {0x1FD0, 0x1FD3},   {0x1FD6, 0x1FDB},   {0x1FE0, 0x1FEC},   {0x1FF2, 0x1FF4},   {0x1FF6, 0x1FFC},
    {0x2102, 0x2102},   {0x2107, 0x2107},   {0x210A, 0x2113},   {0x2115, 0x2115},   {0x2119, 0x211D},   {0x2124, 0x2124},
    {0x2126, 0x2126},   {0x2128, 0x2128},   {0x212A, 0x212D},   {0x212F, 0x2134},   {0x2139, 0x2139},   {0x213C, 0x213F},
    {0x2145, 0x2149},   {0x214E, 0x214E},   {0x2183, 0x2184},   {0x2C00, 0x2C7B},   {0x2C7E, 0x2CE4},   {0x2CEB, 0x2CEE},
    {0x2CF2, 0x2CF3},   {0xA640, 0xA66D},   {0xA680, 0xA69B},   {0xA722, 0xA76F},   {0xA771, 0xA787},   {0xA78B, 0xA78E},
    {0xAB70, 0xABBF},   {0xFB00, 0xFB06},   {0xFB13, 0xFB17},   {0xFF21, 0xFF3A},   {0xFF41, 0xFF5A},   {0x10400, 0x1044F},
    {0x104B0, 0x104D3}, {0x104D8, 0x104FB}, {0x10C80, 0x10CB2}, {0x10CC0, 0x10CF2}, {0x118A0, 0x118DF}, {0x1E900, 0x1E943}};

static inline bool is_between(uint32_t point, uint32_t first, uint32_t last) { return point >= first && point <= last; }

static bool is_cased_letter(uint32_t point) {
    if (point < 0x80) {
        return is_between(point | 0x20, 'a', 'z');
    }
    size_t low = 0, high = sizeof CASED_LETTERS / sizeof CASED_LETTERS[0];
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (CASED_LETTERS[middle].last < point) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < sizeof CASED_LETTERS / sizeof CASED_LETTERS[0] && CASED_LETTERS[low].first <= point;
}

static inline bool is_sign(uint32_t point) { /* ASCII that Unicode counts as symbols, less ` */
    switch (point) {
    case '$':
    case '+':
    case '<':
    case '=':
    case '>':
    case '^':
    case '|':
    case '~':
        return true;
    default:
        return false;
    }
}

static inline bool is_stop(uint32_t point) {
    switch (point) {
    case '(':
    case ')':
    case '|':
    case '.':
    case ',':
    case '!':
    case '?':
    case 0x2026: /* … */
    case 0x3002: /* 。 */
    case 0xFF0C: /* ， */
    case 0x3001: /* 、 */
    case 0x0964: /* । */
    case 0x06D4: /* ۔ */
    case 0x060C: /* ، */
        return true;
    default:
        return false;
    }
}

static inline bool is_member(const rule *r, uint32_t point, unicode_class class) {
    switch (r->set) {
    case SET_CLASSES:
        return (UNICODE_BIT(class) & r->classes) != 0;
    case SET_PUNCTUATION:
        return class == UNICODE_P || is_sign(point);
    case SET_PUNCTUATION_2:
        return class == UNICODE_P || is_sign(point) || point == '`';
    case SET_ASCII_DIGIT:
        return is_between(point, '0', '9');
    case SET_CASED_LETTER:
        return is_cased_letter(point);
    case SET_WIDE_MARK: /* [!-/:-~！-／：-～‘-‟　-。] */
        return is_between(point, '!', '/') || is_between(point, ':', '~') || is_between(point, 0xFF01, 0xFF0F) ||
               is_between(point, 0xFF1A, 0xFF5E) || is_between(point, 0x2018, 0x201F) || is_between(point, 0x3000, 0x3002);
    case SET_CJK: /* [一-龥ࠀ-一가-퟿] */
        return is_between(point, 0x0800, 0x9FA5) || is_between(point, 0xAC00, 0xD7FF);
    case SET_HAN_KANA: /* [一-龥぀-ゟ゠-ヿ] */
        return is_between(point, 0x4E00, 0x9FA5) || is_between(point, 0x3040, 0x30FF);
    case SET_BLOOM_WORD: /* [^(\s|.,!?…。，、।۔،)] */
        return (UNICODE_BIT(class) & UNICODE_BLANK) == 0 && !is_stop(point);
    }
    return false;
}

static inline size_t read_at(const scan *s, size_t at, uint32_t *point) {
    if (s->text[at] < 0x80) {
        *point = s->text[at];
        return 1;
    }
    return unicode_read(s->text, at, s->size, s->closed, point);
}

/* A match at `at`: its end; 0: depends on text still to come; SIZE_MAX: there is none. */
static inline size_t match_end(const rule *r, const scan *s, size_t at, size_t *first_length) {
    size_t length;
    uint32_t point;
    length = read_at(s, at, &point);
    *first_length = length;
    if (length == 0) {
        return 0;
    }
    unicode_class class = unicode_class_of(s->unicode, point);
    /* With the lead if that works out, else without. */
    bool lead = r->lead == 1 ? (UNICODE_BIT(class) & UNICODE_BLANK) != 0 : r->lead == 2 && point == ' ';
    for (int with_lead = lead ? 1 : 0; with_lead >= 0; with_lead--) {
        size_t end = with_lead ? at + length : at;
        size_t n = 0;
        for (; r->most == 0 || n < r->most; n++) {
            if (end == s->size) {
                if (!s->closed) {
                    return 0;
                }
                break;
            }
            size_t step = read_at(s, end, &point);
            if (step == 0) {
                return 0;
            }
            if (!is_member(r, point, unicode_class_of(s->unicode, point))) {
                break;
            }
            end += step;
        }
        if (n >= r->least) {
            return end;
        }
    }
    return SIZE_MAX;
}

/* lead? member{least,most}: the match that begins here, or what lies before the next one. */
size_t scan_runs(const rule *r, const scan *s, bool *open) {
    size_t at = 0;
    while (at < s->size) {
        size_t length, end = match_end(r, s, at, &length);
        if (end == 0) {
            break;
        }
        if (end != SIZE_MAX) {
            *open = false;
            return at > 0 ? at : end;
        }
        at += length;
    }
    *open = at < s->size || !s->closed;
    return at;
}

/* \s+$: the blanks that end the piece, or what lies before them. */
size_t scan_last_blanks(const rule *r, const scan *s, bool *open) {
    (void)r;
    size_t at = 0, blanks = 0; /* blanks: where the run that reaches up to `at` begins */
    for (;;) {
        size_t length;
        unicode_class class = unicode_at(s->unicode, s->text, at, s->size, s->closed, &length);
        if (class == UNICODE_END) {
            *open = false;
            return blanks > 0 ? blanks : at;
        }
        if (class == UNICODE_MORE) {
            *open = blanks > 0;
            return blanks;
        }
        at += length;
        if ((UNICODE_BIT(class) & UNICODE_BLANK) == 0) {
            blanks = at;
        }
    }
}
