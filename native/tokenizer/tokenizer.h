/* Text to tokens and back, for the vocabularies that GGUF files carry: SentencePiece BPE ("llama") and byte-level BPE ("gpt2").
 *
 * Linear time, no recursion, streaming: any way of cutting the input gives the same ids. A tokenizer does not change after
 * it was opened and may be shared; an encoder or decoder belongs to one thread. */
#ifndef LMI_TOKENIZER_TOKENIZER_H
#define LMI_TOKENIZER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/text.h"
#include "gguf/gguf.h"

typedef struct tokenizer tokenizer;

/* The file must outlive the tokenizer: token texts stay views into it where they can. */
lmi_status tokenizer_open(const gguf *file, tokenizer **out, lmi_error *error);
void tokenizer_close(tokenizer *t);
void tokenizer_get_info(const tokenizer *t, lmi_vocab_info *info);
uint64_t tokenizer_bytes(const tokenizer *t); /* memory held, with one encoder's */

bool tokenizer_is_end(const tokenizer *t, int32_t token); /* EOS, EOT, EOM and what the file lists as such */
/* As lmi_model_token_text. */
size_t tokenizer_token_text(const tokenizer *t, int32_t token, bool special, char *text, size_t size);

typedef struct lmi_encoder encoder; /* as the public header calls it */
uint64_t encoder_bytes(void);       /* held by one */
lmi_status encoder_open(const tokenizer *t, bool parse_special, encoder **out, lmi_error *error);
void encoder_close(encoder *e);
lmi_status encoder_feed(encoder *e, const char *text, size_t size, lmi_error *error);
lmi_status encoder_finish(encoder *e, lmi_error *error);
size_t encoder_take(encoder *e, int32_t *tokens, size_t capacity);

/* Adds and takes away nothing: the blank that SentencePiece puts before a text comes out as a blank. */
typedef struct lmi_decoder decoder;
lmi_status decoder_open(const tokenizer *t, bool special, decoder **out, lmi_error *error);
void decoder_close(decoder *d);
const char *decoder_push(decoder *d, int32_t token, size_t *size);

#endif
