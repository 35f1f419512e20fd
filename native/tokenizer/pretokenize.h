/* Cuts text into the pieces that byte-level BPE merges within, as the regular expressions of the models' tokenizers do.
 *
 * The expressions are written out by hand: time is linear in the text whatever it is, nothing recurses, and a cut is only
 * made when no text still to come could move it. A pre-tokenizer is a list of rules; each cuts the pieces of the one before,
 * matches and what lies between matches alike (the "Isolated" behaviour of Hugging Face's Sequence of Splits). */
#ifndef LMI_TOKENIZER_PRETOKENIZE_H
#define LMI_TOKENIZER_PRETOKENIZE_H

#include "base/text.h"
#include "tokenizer/unicode.h"

/* What a rule sees: `text` from where it has to cut to the end of the piece it may cut. If that end is the end of the piece
 * `closed` is set, else the piece may go on with text still to come. */
typedef struct scan {
    const unicode *unicode;
    const uint8_t *text;
    size_t size;
    bool closed;
} scan;

/* Characters that a rule speaks of. */
typedef enum char_set {
    SET_CLASSES,       /* those of rule.classes */
    SET_PUNCTUATION,   /* [\p{P}$+<=>^~|] */
    SET_PUNCTUATION_2, /* the same and ` */
    SET_ASCII_DIGIT,
    SET_CASED_LETTER, /* of deepseek-llm: scripts that have case */
    SET_WIDE_MARK,    /* of deepseek-llm: ASCII, full-width and CJK punctuation */
    SET_CJK,          /* of deepseek-llm and -coder */
    SET_HAN_KANA,     /* of deepseek-v3 */
    SET_BLOOM_WORD    /* all but spaces and sentence marks */
} char_set;

typedef struct rule rule;
struct rule {
    /* Length of the next piece, at least 1, or 0 if that depends on text still to come. *open: these bytes lie between two
     * matches, and more of what lies there may follow. */
    size_t (*next)(const rule *r, const scan *s, bool *open);

    /* Rules for words. */
    uint32_t letters; /* classes that make words */
    size_t digits;    /* most digits in a piece; 0: any number */
    int tail;         /* what clings to punctuation: 0 nothing, 1 [\r\n]*, 2 [\r\n/]* */
    bool contractions;

    /* Rules for runs: lead? member{least,most} */
    char_set set;
    uint32_t classes;
    int lead; /* 0: none, 1: one \s, 2: one ' ' */
    size_t least;
    size_t most; /* 0: any number */
};

enum { MAX_RULES = 6 };

typedef struct pretokenizer {
    const char *name; /* as tokenizer.ggml.pre has it */
    const rule *rules;
    int n_rules;
    bool ignore_merges; /* a piece that is a token is that token, whatever the merges say */
    bool add_bos;       /* where the file does not say */
    bool no_bos;        /* has no BOS unless the file names one */
} pretokenizer;

const pretokenizer *pretokenizer_find(text_view name); /* NULL if there is none */
/* For messages: one name of each family, and how many more there are. Returns `text`; size > 0. */
const char *pretokenizer_list(char *text, size_t size);

/* Where each rule is in its current piece. Zeroed at the start of a text and after a special token. */
typedef struct cuts {
    size_t left[MAX_RULES]; /* bytes of the current piece still to be handed on; 0: cut anew */
    bool shut[MAX_RULES];   /* that piece ends there */
} cuts;

/* Length of the next piece of s, or 0 if it depends on text still to come; then call again with more. With s->closed and
 * s->size > 0 it is never 0. The caller moves s->text on by what is returned. */
size_t pretokenize(const pretokenizer *p, cuts *c, const scan *s);

/* The rules. */
size_t scan_gpt2(const rule *r, const scan *s, bool *open);
size_t scan_words(const rule *r, const scan *s, bool *open);       /* llama-bpe, qwen2 and their kin */
size_t scan_cased_words(const rule *r, const scan *s, bool *open); /* tekken, gpt-4o: words end where capitals begin */
size_t scan_deepseek3(const rule *r, const scan *s, bool *open);
size_t scan_runs(const rule *r, const scan *s, bool *open);
size_t scan_last_blanks(const rule *r, const scan *s, bool *open); /* \s+$ */

#endif
