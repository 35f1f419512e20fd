/* The vocabulary of a tokenizer: texts, kinds, and the tables that encoding looks things up in. Built once, then constant. */
#ifndef LMI_TOKENIZER_VOCAB_H
#define LMI_TOKENIZER_VOCAB_H

#include "base/arena.h"
#include "tokenizer/pretokenize.h"
#include "tokenizer/tokenizer.h"

#define NO_TOKEN UINT32_MAX

/* tokenizer.ggml.token_type */
typedef enum token_kind {
    TOKEN_UNDEFINED = 0,
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6
} token_kind;

enum {
    TOKEN_KIND = 7,   /* of tokenizer.flags */
    TOKEN_END = 8,    /* generation ends here */
    TOKEN_STRIP = 16, /* blanks after it do not count (Phi-3's special tokens) */
    TOKEN_MERGED = 32 /* some merge makes it */
};

/* Hash tables are open-addressed with linear probing, at most half full. */
typedef struct text_slot {
    uint32_t hash;  /* high half of text_hash; the low half chooses the slot */
    uint32_t token; /* NO_TOKEN: free */
} text_slot;

typedef struct merge_slot {
    uint32_t left; /* NO_TOKEN: free */
    uint32_t right;
    uint32_t rank;
    uint32_t result;
} merge_slot;

typedef struct special_token {
    text_view text;
    int32_t token;
} special_token;

/* Special tokens sorted by text, and for each first byte where they begin. */
typedef struct special_list {
    const special_token *items;
    uint32_t first[257];
} special_list;

struct tokenizer {
    arena memory;
    bool spm;
    const pretokenizer *pre; /* NULL for spm */
    unicode unicode;

    int32_t n_vocab;
    int32_t bos, eos, unk; /* -1: none */
    bool add_bos, add_eos;
    text_view *texts; /* [n_vocab] as the file has them */
    uint8_t *flags;   /* [n_vocab] */
    size_t longest;   /* bytes of the longest text */

    text_slot *text_slots;
    uint64_t text_mask;

    int32_t byte_tokens[256]; /* -1 where the vocabulary has none */
    int n_byte_tokens;
    uint16_t byte_points[256];  /* byte-level BPE: the character that stands for a byte in token texts */
    int16_t point_bytes[0x144]; /* and back; -1 */

    merge_slot *merge_slots; /* bpe */
    uint64_t merge_mask;

    uint32_t *levels;      /* spm: [n_vocab] smaller merges first; order of -score */
    bool space_prefix;     /* spm: text begins with a blank of its own, and so does text after a special token */
    bool single_blanks;    /* spm: a run of blanks counts as one, and none at the ends of a text */
    const uint32_t *glued; /* spm: sorted characters that some token has right before U+2581 */
    size_t n_glued;
    uint64_t *neighbours; /* spm: bit set of hashed pairs of characters that stand together in some token */

    special_list specials[2]; /* [0] found in any text: user-defined ones; [1] with parse_special: all */
};

/* Longer special tokens are not looked for in texts (real ones have a few dozen bytes): this bounds the time per byte. */
enum { LONGEST_SPECIAL = 512 };

/* SentencePiece writes a blank as U+2581. */
#define BLANK "\xE2\x96\x81"
enum { BLANK_SIZE = 3, BLANK_POINT = 0x2581 };

enum { NEIGHBOUR_BITS = 18 };
static inline uint32_t neighbour_bit(uint32_t left, uint32_t right) {
    uint64_t mixed = ((uint64_t)left << 21 ^ right) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(mixed >> (64 - NEIGHBOUR_BITS));
}

uint64_t text_hash(const void *text, size_t size);
/* The token with this text, or NO_TOKEN. Of several, one that text can become comes first, then the last. */
uint32_t vocab_find(const tokenizer *t, const void *text, size_t size);
/* The same among tokens that text becomes by merging: not control, unknown or byte tokens. */
uint32_t vocab_find_word(const tokenizer *t, const void *text, size_t size);
/* The merge of two tokens, or NULL. */
const merge_slot *vocab_find_merge(const tokenizer *t, uint32_t left, uint32_t right);

/* The byte that "<0xHH>" stands for, -1 for any other text. */
int vocab_byte_of(text_view text);

static inline token_kind vocab_kind(const tokenizer *t, uint32_t token) { return (token_kind)(t->flags[token] & TOKEN_KIND); }
static inline bool is_word_kind(token_kind kind) {
    return kind == TOKEN_NORMAL || kind == TOKEN_USER_DEFINED || kind == TOKEN_UNUSED;
}

/* The parts of tokenizer_open, in order. */
lmi_status vocab_open_texts(tokenizer *t, const gguf *file, lmi_error *error);
lmi_status vocab_open_merges(tokenizer *t, const gguf *file, lmi_error *error);
lmi_status vocab_open_scores(tokenizer *t, const gguf *file, lmi_error *error);
lmi_status vocab_open_specials(tokenizer *t, const gguf *file, lmi_error *error);

/* The longest special token that begins at text[at]: its length, its token in *token; 0 if there is none; SIZE_MAX if that
 * depends on text still to come. */
size_t special_find(const special_list *list, const uint8_t *text, size_t at, size_t size, bool closed, int32_t *token);

#endif
