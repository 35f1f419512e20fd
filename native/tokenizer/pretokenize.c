#include "tokenizer/pretokenize.h"

#include <stdio.h>

/* ---- the rules of each family -------------------------------------------------------------------------------------- */

enum { NUMBER = UNICODE_BIT(UNICODE_N), MARKED_LETTER = UNICODE_L | UNICODE_BIT(UNICODE_M) };

#define RUN(...) {.next = scan_runs, .least = 1, __VA_ARGS__}
#define DIGITS(n) RUN(.set = SET_CLASSES, .classes = NUMBER, .most = (n))
#define EACH_NEWLINE RUN(.set = SET_CLASSES, .classes = UNICODE_BIT(UNICODE_NEWLINE), .most = 1)
#define THREE_DIGITS {.next = scan_runs, .set = SET_ASCII_DIGIT, .least = 3, .most = 3}
#define GPT2 {.next = scan_gpt2}
#define WORDS(...) {.next = scan_words, .letters = UNICODE_L, .contractions = true, .tail = 1, __VA_ARGS__}

static const rule GPT2_RULES[] = {GPT2};
static const rule DIGIT_GPT2_RULES[] = {DIGITS(1), GPT2};
static const rule DEFAULT_RULES[] = {RUN(.set = SET_PUNCTUATION), GPT2, DIGITS(0), THREE_DIGITS};
static const rule FALCON_RULES[] = {RUN(.set = SET_PUNCTUATION_2), GPT2, DIGITS(0), THREE_DIGITS};
static const rule LLAMA3_RULES[] = {WORDS(.digits = 3)};
static const rule QWEN2_RULES[] = {WORDS(.digits = 1)};
static const rule QWEN35_RULES[] = {
    {.next = scan_words, .letters = MARKED_LETTER, .contractions = true, .tail = 1, .digits = 1}};
static const rule SEED_CODER_RULES[] = {
    {.next = scan_words, .letters = UNICODE_L, .contractions = true, .tail = 0, .digits = 1}};
static const rule MINICPM5_RULES[] = {DIGITS(3), WORDS(.digits = 0)};
static const rule TEKKEN_RULES[] = {{.next = scan_cased_words, .letters = UNICODE_L, .tail = 2, .digits = 1}};
static const rule GPT4O_RULES[] = {
    {.next = scan_cased_words, .letters = UNICODE_L, .tail = 2, .digits = 3, .contractions = true}};
static const rule DEEPSEEK_LLM_RULES[] = {EACH_NEWLINE,
                                          RUN(.set = SET_CASED_LETTER, .lead = 1),
                                          RUN(.set = SET_WIDE_MARK, .lead = 1),
                                          {.next = scan_last_blanks},
                                          RUN(.set = SET_CJK),
                                          DIGITS(1)};
static const rule DEEPSEEK_CODER_RULES[] = {EACH_NEWLINE, RUN(.set = SET_CLASSES, .classes = UNICODE_L, .lead = 1),
                                            RUN(.set = SET_CLASSES, .classes = UNICODE_BIT(UNICODE_P), .lead = 1),
                                            RUN(.set = SET_CJK), DIGITS(1)};
static const rule DEEPSEEK3_RULES[] = {DIGITS(3), RUN(.set = SET_HAN_KANA), {.next = scan_deepseek3, .tail = 1}};
static const rule BLOOM_RULES[] = {RUN(.set = SET_BLOOM_WORD, .lead = 2)};
static const rule VIKING_RULES[] = {RUN(.set = SET_BLOOM_WORD, .lead = 2), DIGITS(1)};

#define RULES(list) .rules = list, .n_rules = (int)(sizeof list / sizeof list[0])

/* Names as llama.cpp's converter writes them; those of one family stand together, the best known first. */
static const pretokenizer PRETOKENIZERS[] = {
    {.name = "default", RULES(DEFAULT_RULES)},
    {.name = "llama-bpe", RULES(LLAMA3_RULES), .ignore_merges = true, .add_bos = true},
    {.name = "llama3", RULES(LLAMA3_RULES), .ignore_merges = true, .add_bos = true},
    {.name = "llama-v3", RULES(LLAMA3_RULES), .ignore_merges = true, .add_bos = true},
    {.name = "falcon3", RULES(LLAMA3_RULES), .ignore_merges = true, .add_bos = true},
    {.name = "falcon-h1", RULES(LLAMA3_RULES), .ignore_merges = true, .add_bos = true},
    {.name = "pixtral", RULES(LLAMA3_RULES), .ignore_merges = true, .add_bos = true},
    {.name = "midm-2.0", RULES(LLAMA3_RULES), .ignore_merges = true, .add_bos = true},
    {.name = "lfm2", RULES(LLAMA3_RULES), .ignore_merges = true, .add_bos = true},
    {.name = "jina-v5-nano", RULES(LLAMA3_RULES), .ignore_merges = true, .add_bos = true},
    {.name = "dbrx", RULES(LLAMA3_RULES)},
    {.name = "smaug-bpe", RULES(LLAMA3_RULES)},
    {.name = "chatglm-bpe", RULES(LLAMA3_RULES), .no_bos = true},
    {.name = "glm4", RULES(LLAMA3_RULES), .no_bos = true},
    {.name = "qwen2", RULES(QWEN2_RULES)},
    {.name = "deepseek-r1-qwen", RULES(QWEN2_RULES)},
    {.name = "megrez", RULES(QWEN2_RULES)},
    {.name = "stablelm2", RULES(QWEN2_RULES)},
    {.name = "hunyuan", RULES(QWEN2_RULES)},
    {.name = "solar-open", RULES(QWEN2_RULES)},
    {.name = "grok-2", RULES(QWEN2_RULES)},
    {.name = "kormo", RULES(QWEN2_RULES)},
    {.name = "f2llmv2", RULES(QWEN2_RULES)},
    {.name = "bailingmoe", RULES(QWEN2_RULES)},
    {.name = "bailingmoe2", RULES(QWEN2_RULES)},
    {.name = "llada-moe", RULES(QWEN2_RULES)},
    {.name = "qwen35", RULES(QWEN35_RULES)},
    {.name = "seed-coder", RULES(SEED_CODER_RULES)},
    {.name = "minicpm5", RULES(MINICPM5_RULES), .ignore_merges = true},
    {.name = "gpt-2", RULES(GPT2_RULES)},
    {.name = "gpt2", RULES(GPT2_RULES)},
    {.name = "mpt", RULES(GPT2_RULES)},
    {.name = "olmo", RULES(GPT2_RULES)},
    {.name = "phi-2", RULES(GPT2_RULES)},
    {.name = "jais", RULES(GPT2_RULES)},
    {.name = "trillion", RULES(GPT2_RULES)},
    {.name = "granite-docling", RULES(GPT2_RULES)},
    {.name = "gigachat", RULES(GPT2_RULES)},
    {.name = "a.x-4.0", RULES(GPT2_RULES)},
    {.name = "mellum", RULES(GPT2_RULES)},
    {.name = "exaone4", RULES(GPT2_RULES)},
    {.name = "modern-bert", RULES(GPT2_RULES)},
    {.name = "jina-es", RULES(GPT2_RULES)},
    {.name = "jina-de", RULES(GPT2_RULES)},
    {.name = "jina-v1-en", RULES(GPT2_RULES)},
    {.name = "jina-v2-es", RULES(GPT2_RULES)},
    {.name = "jina-v2-de", RULES(GPT2_RULES)},
    {.name = "jina-v2-code", RULES(GPT2_RULES)},
    {.name = "roberta-bpe", RULES(GPT2_RULES)},
    {.name = "starcoder", RULES(DIGIT_GPT2_RULES)},
    {.name = "refact", RULES(DIGIT_GPT2_RULES)},
    {.name = "command-r", RULES(DIGIT_GPT2_RULES)},
    {.name = "smollm", RULES(DIGIT_GPT2_RULES)},
    {.name = "codeshell", RULES(DIGIT_GPT2_RULES)},
    {.name = "exaone", RULES(DIGIT_GPT2_RULES)},
    {.name = "minerva-7b", RULES(DIGIT_GPT2_RULES)},
    {.name = "mellum2", RULES(DIGIT_GPT2_RULES)},
    {.name = "falcon", RULES(FALCON_RULES)},
    {.name = "tekken", RULES(TEKKEN_RULES), .ignore_merges = true, .add_bos = true},
    {.name = "gpt-4o", RULES(GPT4O_RULES)},
    {.name = "llama4", RULES(GPT4O_RULES)},
    {.name = "kanana2", RULES(GPT4O_RULES)},
    {.name = "minimax-m2", RULES(GPT4O_RULES)},
    {.name = "deepseek-llm", RULES(DEEPSEEK_LLM_RULES)},
    {.name = "deepseek-coder", RULES(DEEPSEEK_CODER_RULES)},
    {.name = "deepseek-v3", RULES(DEEPSEEK3_RULES)},
    {.name = "hunyuan-dense", RULES(DEEPSEEK3_RULES)},
    {.name = "joyai-llm", RULES(DEEPSEEK3_RULES)},
    {.name = "bloom", RULES(BLOOM_RULES)},
    {.name = "poro-chat", RULES(BLOOM_RULES)},
    {.name = "gpt3-finnish", RULES(BLOOM_RULES)},
    {.name = "viking", RULES(VIKING_RULES)}};

enum { N_PRETOKENIZERS = sizeof PRETOKENIZERS / sizeof PRETOKENIZERS[0] };

const pretokenizer *pretokenizer_find(text_view name) {
    for (size_t i = 0; i < N_PRETOKENIZERS; i++) {
        if (text_is(name, PRETOKENIZERS[i].name)) {
            return &PRETOKENIZERS[i];
        }
    }
    return NULL;
}

const char *pretokenizer_list(char *text, size_t size) {
    size_t used = 0;
    int more = 0;
    text[0] = '\0';
    for (size_t i = 0; i < N_PRETOKENIZERS; i++) {
        if (i > 0 && PRETOKENIZERS[i].rules == PRETOKENIZERS[i - 1].rules) {
            more++;
        } else {
            int n = snprintf(text + used, size - used, "%s%s", i > 0 ? ", " : "", PRETOKENIZERS[i].name);
            used += n > 0 && (size_t)n < size - used ? (size_t)n : 0;
        }
    }
    snprintf(text + used, size - used, ", and %d more names for these", more);
    return text;
}

/* ---- cutting ------------------------------------------------------------------------------------------------------- */

/* Hands the text down the rules, each one's piece to the next. Returns the length of the last rule's piece, or 0 and in
 * *stale whether a rule above worked from an unfinished piece that was cut in an earlier call, when less text was there. */
static size_t cut_once(const pretokenizer *p, cuts *c, const scan *s, bool *stale) {
    scan piece = *s;
    *stale = false;
    for (int i = 0; i < p->n_rules; i++) {
        if (c->left[i] > 0) {
            *stale = *stale || !c->shut[i];
        } else {
            bool open = false;
            size_t length = piece.size == 0 ? 0 : p->rules[i].next(&p->rules[i], &piece, &open);
            if (length == 0 || (open && i + 1 == p->n_rules)) {
                return 0;
            }
            c->left[i] = length;
            c->shut[i] = !open;
        }
        piece.size = c->left[i];
        piece.closed = c->shut[i];
    }
    return piece.size;
}

size_t pretokenize(const pretokenizer *p, cuts *c, const scan *s) {
    for (;;) {
        bool stale;
        size_t length = cut_once(p, c, s, &stale);
        for (int i = 0; i < p->n_rules; i++) {
            if (length > 0) {
                c->left[i] -= length;
            } else if (!c->shut[i]) {
                c->left[i] = 0; /* an unfinished piece: cut anew with what is there by then */
            }
        }
        if (length > 0 || !stale) {
            return length;
        }
    }
}
