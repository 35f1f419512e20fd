/* lmi.h: the only door to the native library.
 *
 * A MODEL is an opened GGUF file: its mapped weights, its tokenizer and a pool of threads. It does not change after
 * lmi_model_open, and any number of sessions may share it. A SESSION is one timeline of tokens with a context buffer of
 * fixed size: each token attends to the first G tokens ("sinks") and the last L tokens ("window"), at distances of at
 * most L (LM-Infinite, arXiv 2308.16137, section 4). While the text is no longer than L tokens this is ordinary attention.
 *
 * Threads: a session may be used by one thread at a time; a second one gets LMI_BUSY at once. Only lmi_session_cancel may
 * be called at any time. Sessions of one model may live in different threads; their calls take turns at the pool.
 * Close sessions before their model.
 *
 * Memory: everything is allocated by the _open calls. lmi_session_read, _sample and _rewind allocate nothing.
 *
 * Devices: a GPU may run the model, or its last layers. Its copy of their weights is made when the first session is opened, for
 * as many layers as then fit, and stays until the model is closed. States move between sessions on any devices.
 *
 * Errors: every call that can fail returns a status and, if `error` is not NULL, fills in what happened and what to do.
 * Nothing is printed, nothing aborts. Strings are UTF-8; sizes are in bytes unless said otherwise.
 *
 * The Python package reads this very file through cffi: keep to plain declarations, no macros in them but LMI_API.
 */
#ifndef LMI_H
#define LMI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define LMI_API __attribute__((visibility("default")))
#else
#define LMI_API
#endif

/* ---- status ------------------------------------------------------------------------------------------------------ */

typedef enum lmi_status {
    LMI_OK = 0,
    LMI_INVALID_ARGUMENT = -1, /* the caller's value is out of range */
    LMI_IO = -2,               /* cannot open, read or write a file */
    LMI_BAD_FORMAT = -3,       /* the file is not what it claims to be, damaged or incomplete */
    LMI_UNSUPPORTED = -4,      /* a sound file that this version cannot run */
    LMI_OUT_OF_MEMORY = -5,
    LMI_DEVICE = -6,    /* the requested device is missing, cannot do what was asked of it, or failed */
    LMI_STATE = -7,     /* a saved state does not fit this model or these options, or a rewind is too deep */
    LMI_CANCELLED = -8, /* lmi_session_cancel was called */
    LMI_BUSY = -9,      /* the session is in use by another thread */
    LMI_NO_SPACE = -10, /* the disk is full */
    LMI_INTERNAL = -11  /* a bug: please report */
} lmi_status;

typedef struct lmi_error {
    lmi_status status;
    int64_t offset;    /* byte of the file where it was noticed, or -1 */
    char message[704]; /* what is wrong, one line, no full stop */
    char remedy[256];  /* what to do, one line; may be empty */
} lmi_error;

LMI_API const char *lmi_version(void);

/* Lists what was built and what this CPU has, as "name=value" lines. Returns the length needed, less the final NUL. */
LMI_API size_t lmi_build_info(char *text, size_t size);

typedef enum lmi_isa { /* instruction sets that kernels are written for */
                       LMI_ISA_AUTO = 0,
                       LMI_ISA_REF = 1, /* portable C */
                       LMI_ISA_AVX2 = 2,
                       LMI_ISA_AVXVNNI = 3, /* AVX2 and AVX-VNNI */
                       LMI_ISA_AVX512 = 4,  /* AVX-512 F/BW/VL/DQ/VNNI */
                       LMI_ISA_AMX = 5,     /* that and AMX-INT8, AMX-BF16 */
                       LMI_ISA_NEON = 6
} lmi_isa;

LMI_API const char *lmi_isa_name(lmi_isa isa);
/* 1 if this library has kernels for `isa` and this CPU and operating system run them. LMI_ISA_AUTO is always 1. */
LMI_API int32_t lmi_isa_available(lmi_isa isa);

/* ---- devices ----------------------------------------------------------------------------------------------------- */

typedef enum lmi_device {                      /* where sessions run */
                          LMI_DEVICE_AUTO = 0, /* as CUDA where there is a GPU that can be used, else as CPU */
                          LMI_DEVICE_CPU = 1,
                          LMI_DEVICE_CUDA = 2
} lmi_device;

typedef struct lmi_device_info {
    char name[128];
    int32_t index;
    int32_t major, minor; /* compute capability */
    int32_t n_multiprocessors;
    int32_t driver, runtime; /* versions of CUDA: 13000 is 13.0 */
    uint64_t total_bytes, free_bytes;
} lmi_device_info;

/* The GPU with that number, as it is now; LMI_DEVICE with the cause and the remedy if it cannot be used. `library`: path of the library
 * that runs it; NULL: liblmi_cuda beside this one, opened only if the system has a CUDA driver. */
LMI_API lmi_status lmi_device_find(int32_t index, const char *library, lmi_device_info *info, lmi_error *error);

/* Called now and then while something long goes on: bytes done and bytes in all. Anything but 0 stops it with LMI_CANCELLED. */
typedef int32_t lmi_progress(void *context, uint64_t done, uint64_t all);

/* ---- model ------------------------------------------------------------------------------------------------------- */

typedef struct lmi_model lmi_model;

typedef struct lmi_model_options {
    size_t size;       /* sizeof(lmi_model_options), set by lmi_model_options_default */
    int32_t n_threads; /* workers, the calling thread included; 0: one per usable core */
    lmi_isa isa;
    int32_t vocab_only; /* 1: stop after the tokenizer; such a model cannot open sessions */
    int32_t no_map;     /* 1: read the file into memory instead of mapping it */
    lmi_device device;
    int32_t device_index;       /* which GPU */
    int32_t gpu_layers;         /* how many layers it runs, the last ones; -1: as many as fit */
    const char *device_library; /* as for lmi_device_find; NULL is the usual one */
    lmi_progress *progress;     /* of copying weights to the GPU, in the first lmi_session_open; or NULL */
    void *progress_context;
} lmi_model_options;

LMI_API void lmi_model_options_default(lmi_model_options *options);
LMI_API lmi_status lmi_model_open(const char *path, const lmi_model_options *options, lmi_model **model, lmi_error *error);
LMI_API void lmi_model_close(lmi_model *model); /* NULL is allowed */

typedef struct lmi_model_info {
    const char *architecture; /* "llama"; owned by the model */
    const char *isa;          /* of the kernels in use */
    const char *device;       /* name of the GPU that the model may use, "" for none; owned by the model, as the next */
    const char *no_device;    /* why there is none, one line; "" if none was to be looked for */
    int64_t device_layers;    /* that it runs; -1: as many as fit, which the first session decides */
    int32_t n_threads;
    int32_t gguf_version;
    int32_t vocab_only;
    int32_t has_tokenizer;
    int64_t n_layers;
    int64_t n_embd;
    int64_t n_heads;
    int64_t n_kv_heads;
    int64_t head_dim;
    int64_t n_ff;           /* of an expert where there are experts */
    int64_t n_experts;      /* 0: none */
    int64_t n_experts_used; /* by each token */
    int64_t n_vocab;
    int64_t trained_context; /* tokens */
    int64_t native_window;   /* sliding window that the model was trained with, tokens; 0: none */
    int64_t n_native_layers; /* layers that have it */
    double rope_theta;       /* 0: positions by ALiBi */
    int64_t n_parameters;
    int64_t n_parameters_active; /* less the experts that a token does not choose */
    uint64_t weight_bytes;
    uint64_t weight_bytes_active; /* read for one token */
    uint64_t file_bytes;          /* of all files */
    int32_t n_files;              /* the model may lie in several */
    int64_t n_metadata;
    int64_t n_tensors;
} lmi_model_info;

LMI_API void lmi_model_get_info(const lmi_model *model, lmi_model_info *info);

/* SHA-256 of the file's metadata and tensor table, its size and samples of its data: what saved states and steers are tied to. */
LMI_API void lmi_model_get_fingerprint(const lmi_model *model, uint8_t digest[32]);

/* Bytes a second at which the weights are read, doing nothing with them: by all threads, best pass of a fifth of a second or more, and by
 * the GPU what it has. What a model of more than the caches hold cannot write faster than. 0 without weights, or if the GPU cannot say. */
LMI_API double lmi_model_read_speed(lmi_model *model);

/* Metadata and tensors of the file, by index. Views stay valid while the model is open; they are not NUL-terminated. */
typedef struct lmi_metadata {
    const char *key;
    size_t key_size;
    const char *type;   /* "u32", "string", "array of f32", ... */
    int64_t n_elements; /* of an array, else 1 */
    const void *value;  /* [value_size] as in the file, unaligned: numbers little-endian, bools bytes, strings after a u64 */
    size_t value_size;
} lmi_metadata;

typedef struct lmi_tensor {
    const char *name;
    size_t name_size;
    const char *type; /* "Q4_K" */
    int64_t shape[4]; /* ne: shape[0] runs fastest; unused ones are 1 */
    int32_t n_dims;
    uint64_t n_bytes;
    uint64_t offset;  /* in its file */
    const void *data; /* [n_bytes], while the model is open */
} lmi_tensor;

LMI_API lmi_status lmi_model_get_metadata(const lmi_model *model, int64_t index, lmi_metadata *item, lmi_error *error);
LMI_API lmi_status lmi_model_get_tensor(const lmi_model *model, int64_t index, lmi_tensor *item, lmi_error *error);

/* ---- tokens ------------------------------------------------------------------------------------------------------ */

typedef struct lmi_vocab_info {
    const char *kind;         /* "spm" or "bpe" */
    const char *pretokenizer; /* name of the scanner in use, "" for spm */
    int32_t n_vocab;
    int32_t bos; /* ids, or -1 where the vocabulary has none */
    int32_t eos;
    int32_t unk;
    int32_t add_bos;
    int32_t add_eos;
} lmi_vocab_info;

LMI_API lmi_status lmi_model_get_vocab(const lmi_model *model, lmi_vocab_info *info, lmi_error *error);
/* 1 if the model says that generation ends at this token (end of text, of turn, of message). */
LMI_API int32_t lmi_model_is_end_token(const lmi_model *model, int32_t token);
/* Bytes of a token as they appear in text; control tokens are empty unless `special`. Writes at most `size` bytes, no NUL;
 * returns the full length. An id outside the vocabulary has no bytes. */
LMI_API size_t lmi_model_token_text(const lmi_model *model, int32_t token, int32_t special, char *text, size_t size);

/* Text to tokens, as a stream: any way of cutting the input into calls gives the same ids. BOS and EOS are the caller's
 * to add. Invalid UTF-8 becomes byte tokens or U+FFFD as the vocabulary has it. */
typedef struct lmi_encoder lmi_encoder;
LMI_API lmi_status lmi_encoder_open(const lmi_model *model, int32_t parse_special, lmi_encoder **encoder, lmi_error *error);
LMI_API void lmi_encoder_close(lmi_encoder *encoder);
LMI_API lmi_status lmi_encoder_feed(lmi_encoder *encoder, const char *text, size_t size, lmi_error *error);
LMI_API lmi_status lmi_encoder_finish(lmi_encoder *encoder, lmi_error *error); /* the text ends here; feed then starts anew */
LMI_API size_t lmi_encoder_take(lmi_encoder *encoder, int32_t *tokens, size_t capacity); /* ids that are certain by now */

/* Tokens to text, as a stream: what comes out is always complete UTF-8; invalid bytes become U+FFFD. */
typedef struct lmi_decoder lmi_decoder;
LMI_API lmi_status lmi_decoder_open(const lmi_model *model, int32_t special, lmi_decoder **decoder, lmi_error *error);
LMI_API void lmi_decoder_close(lmi_decoder *decoder);
/* Returns a view of the text that `token` completed (valid until the next call), its length in *size. token -1: the end,
 * which gives back what is still held. */
LMI_API const char *lmi_decoder_push(lmi_decoder *decoder, int32_t token, size_t *size);

/* ---- session ----------------------------------------------------------------------------------------------------- */

typedef struct lmi_session lmi_session;

typedef enum lmi_kv_type { LMI_KV_F16 = 0, LMI_KV_Q8_0 = 1, LMI_KV_F32 = 2 } lmi_kv_type;

typedef enum lmi_placement {                            /* where the sinks seem to be once they are out of the window */
                             LMI_PLACEMENT_CEILING = 0, /* all at distance L (LM-Infinite): for up to about 100 sinks */
                             LMI_PLACEMENT_CONTIGUOUS =
                                 1, /* in order, just before the window (StreamingLLM): for a long kept prefix */
                             LMI_PLACEMENT_TRUE =
                                 2 /* where they are, however far: for comparison, no model was trained on it */
} lmi_placement;

/* What becomes of the middle of the text: tokens that are neither sinks nor in the window any more. */
typedef enum lmi_recall {
    LMI_RECALL_NONE = 0,     /* forgotten */
    LMI_RECALL_TOPK = 1,     /* all kept; each query head of a token read alone sees the K that it looks for most
                                (LM-Infinite, section 4). Memory and work grow with the text: to compare with, not to use */
    LMI_RECALL_SURPRISE = 2, /* M tokens kept, those that the model expected least (SirLLM, arXiv 2405.12528) */
    LMI_RECALL_BLOCKS = 3    /* kept in blocks of B tokens; each kv head sees the N blocks that it looks for most (as InfLLM,
                                arXiv 2402.04617). When the budget is used up, the block goes that was not chosen for longest */
} lmi_recall;

typedef struct lmi_recall_options {
    lmi_recall kind;
    int32_t layer;      /* the first that recalls; -1: 4 for TOPK, 0 for the others */
    int64_t n;          /* K, M or N; 0: 5, 256, or as many blocks as half a window has */
    int64_t block;      /* B, a multiple of 16; 0: 32 */
    int64_t distance;   /* at which what is recalled seems to be, tokens; 0: window / 2 */
    uint64_t budget;    /* bytes that TOPK and BLOCKS may keep; 0: 1 GiB */
    double decay;       /* SURPRISE: what surprise counts after another window of text, 1e-10 to 1; 0: 0.9 */
    const char *folder; /* keep keys and values in a file there that has no name and goes with the session; NULL: in memory */
} lmi_recall_options;

typedef struct lmi_session_options {
    size_t size;
    int64_t window; /* L, tokens; 0: min(trained context - sinks, 4096) */
    int64_t sinks;  /* G, tokens; -1: 16, or less where the trained context is tiny */
    lmi_kv_type kv_type;
    lmi_placement placement;
    int64_t chunk;      /* most tokens pushed through the layers at once; 0: 512 */
    int64_t rollback;   /* deepest rewind, tokens; 0: 64 */
    int32_t all_logits; /* 1: keep logits of every token of a read call of at most `chunk` tokens, not only of the last */
    int32_t importance; /* 1: keep sums for lmi_session_importance */
    int32_t draft; /* most tokens guessed ahead while single tokens are read, at most 7; 0: none. Not with all_..., recall */
    int32_t all_hidden; /* 1: keep hidden states of every token of a read call of at most `chunk` tokens: lmi_session_hidden */
    int32_t steer_rank; /* most that the ranks of lmi_session_set_steers may add up to; memory for them is taken now. 0: none */
    lmi_recall_options recall; /* a GPU that has all layers recalls blocks, in memory; the rest is the CPU's */
} lmi_session_options;

LMI_API void lmi_session_options_default(lmi_session_options *options);

typedef struct lmi_plan { /* what a session will hold, known before it is opened */
    int64_t window;       /* L, G, chunk, rollback and capacity as they will be */
    int64_t sinks;
    int64_t chunk;
    int64_t rollback;
    int64_t ring_slots;         /* per full-attention layer */
    uint64_t weight_bytes;      /* that the CPU reads for tokens, mapped or read; all, if the file was read into memory */
    uint64_t context_bytes;     /* keys and values of the CPU's layers: allocated once, never grows */
    uint64_t recall_bytes;      /* what may be kept of the middle, of it; pages are taken as it fills */
    uint64_t recall_file_bytes; /* of recall_bytes, what lies in a file and not in memory */
    int64_t recall_tokens;      /* that have room there */
    int64_t recall_seen;        /* most of them that a token sees */
    uint64_t work_bytes;        /* activations, logits, scratch, and what is exchanged with the GPU */
    uint64_t tokenizer_bytes;   /* with one encoder's */
    uint64_t total_bytes;
    uint64_t available_bytes; /* memory that the system can give now */
    int32_t weights_mapped;
    int64_t device_layers; /* that the GPU runs; 0: the CPU runs all, and what follows is 0 */
    uint64_t device_weight_bytes;
    uint64_t device_context_bytes;
    uint64_t device_work_bytes;
    uint64_t device_needed_bytes;    /* that must still be found there: weights only until they have been copied */
    uint64_t device_available_bytes; /* free there now, less a reserve for the driver */
    char device_note[256];           /* why a GPU that was looked for does not run all layers, one line; may be empty */
} lmi_plan;

/* Before the first session is opened: as if it were the first. */
LMI_API lmi_status lmi_session_plan(const lmi_model *model, const lmi_session_options *options, lmi_plan *plan,
                                    lmi_error *error);

LMI_API lmi_status lmi_session_open(lmi_model *model, const lmi_session_options *options, lmi_session **session,
                                    lmi_error *error);
LMI_API void lmi_session_close(lmi_session *session);
LMI_API void lmi_session_get_plan(const lmi_session *session, lmi_plan *plan);

/* Reads n >= 1 tokens, in chunks. If it is cancelled or fails, *n_read says how many tokens count as read: whole chunks. */
LMI_API lmi_status lmi_session_read(lmi_session *session, const int32_t *tokens, size_t n, size_t *n_read, lmi_error *error);

/* Reading ahead: with the option `draft`, a call that reads one token also reads guesses at the next ones, taken from what
 * followed the same tokens earlier in the text, in the same pass over the weights. If the next call reads the token that was
 * guessed, its logits are there already. Logits are bit for bit those without the option; only the time differs, and guessing
 * stops where it does not pay. Tokens read ahead count as read for the depth of a rewind. */
typedef struct lmi_draft_counts {
    int64_t n_guessed; /* tokens, since the session was opened */
    int64_t n_true;    /* of them, how many came true */
    int64_t n_passes;  /* passes over the weights for single tokens */
} lmi_draft_counts;
LMI_API void lmi_session_get_draft(const lmi_session *session, lmi_draft_counts *counts);

/* Logits [n_vocab] float32 after the last token read; with all_logits, `row` counts the tokens of the last read call's
 * last chunk, 0-based, and -1 is the last. NULL if there is no such row, or if the GPU that has them failed (the next call that
 * returns a status says so). Valid until the next read, rewind or load. */
LMI_API const float *lmi_session_logits(lmi_session *session, int64_t row);
LMI_API int64_t lmi_session_n_rows(const lmi_session *session);

/* Minus the natural logarithm of the probability of `token` in a row of logits; +infinity for an id out of range. */
LMI_API double lmi_session_nll(lmi_session *session, int64_t row, int32_t token);
/* The same for n rows from first_row on, tokens[i] against row first_row + i, on all threads: nll[n]. */
LMI_API lmi_status lmi_session_nll_rows(lmi_session *session, int64_t first_row, const int32_t *tokens, size_t n, double *nll,
                                        lmi_error *error);

/* Hidden state [n_embd] float32 of a token of the last read call's last chunk, after the last norm and before any steer: what the
 * output matrix makes logits of. Rows as in lmi_session_logits, one after the other in memory; NULL if there is none, or without
 * all_hidden. */
LMI_API const float *lmi_session_hidden(lmi_session *session, int64_t row);

/* A steer (LM-Steer, arXiv 2305.12798): before the output matrix a hidden state c becomes c + sum of epsilon alpha (c P1) P2^T over
 * all steers. Nothing before it, keys and values included, changes; a soft cap of the logits comes after it. */
typedef struct lmi_steer {
    const float *p1, *p2; /* [n_embd][rank] */
    int64_t rank;
    double alpha, epsilon;
} lmi_steer;

/* Puts these n steers, copied, in the place of those before; n 0: none. From the next read on: logits that are there stay as they are.
 * Where every alpha is 0, logits are bit for bit those without steers. Steers are the session's, not its timeline's: no saved state holds
 * them, and rewinding and loading leave them as they are. */
LMI_API lmi_status lmi_session_set_steers(lmi_session *session, const lmi_steer *steers, int32_t n, lmi_error *error);

LMI_API int64_t lmi_session_position(const lmi_session *session); /* tokens read so far */
/* Moves an empty session's counter, as if `position` tokens had been read and forgotten: for tests of long positions. */
LMI_API lmi_status lmi_session_set_start(lmi_session *session, int64_t position, lmi_error *error);

/* Forgets the last tokens so that `position` remain. At most `rollback` back from the furthest token read, or all the way to 0. */
LMI_API lmi_status lmi_session_rewind(lmi_session *session, int64_t position, lmi_error *error);

/* Stops a read in progress, between two layers; with none in progress, the next one. From any thread or signal handler. */
LMI_API void lmi_session_cancel(lmi_session *session);
LMI_API void lmi_session_clear_cancel(lmi_session *session);

typedef struct lmi_view { /* what the last token read could attend to, as [begin, end) token positions */
    int64_t sinks_end;    /* [0, sinks_end) */
    int64_t window_begin; /* [window_begin, position) */
    int64_t position;
    int64_t forgotten; /* read and no longer visible in full-attention layers, nor kept */
    int64_t kept;      /* of the middle: what can be recalled */
    int64_t dropped;   /* of the forgotten: were kept until the budget was used up */
} lmi_view;
LMI_API void lmi_session_get_view(const lmi_session *session, lmi_view *view);

/* Allocations attempted while tokens were read or written: 0, or a bug. */
LMI_API int64_t lmi_session_hot_allocations(const lmi_session *session);

/* What a tensor was multiplied with since the session was opened: squares of each column's input, summed over tokens. Rewinding
 * and loading take nothing away; a chunk that was cancelled may count in part. */
typedef struct lmi_importance {
    int64_t n_matrices;    /* experts of a stack, or 1; 0: the tensor is not multiplied with anything */
    int64_t n_cols;        /* shape[0] of the tensor */
    const double *squares; /* [n_matrices][n_cols]; valid while the session is open and nothing is read */
    const int64_t *counts; /* [n_matrices] tokens that reached it */
} lmi_importance;

/* Of the tensor with that index (lmi_model_get_tensor). LMI_INVALID_ARGUMENT if the option was not set. */
LMI_API lmi_status lmi_session_importance(lmi_session *session, int64_t index, lmi_importance *importance, lmi_error *error);

/* ---- sampling ---------------------------------------------------------------------------------------------------- */

/* The chain, in this order; each link is off at the value in brackets:
 * penalties over the last `penalty_last` tokens -> top-k -> typical -> top-p -> min-p -> temperature -> draw.
 * Random numbers: PCG64 (XSL-RR 128/64, as in NumPy) seeded by SplitMix64 of `seed`; one draw of 53 bits a token. */
typedef struct lmi_sampling {
    size_t size;
    float temperature;       /* [1]; 0: the most likely token, and nothing random */
    int32_t top_k;           /* [0] */
    float top_p;             /* [1] */
    float min_p;             /* [0] */
    float typical_p;         /* [1] */
    float repeat_penalty;    /* [1] divides positive and multiplies negative logits of tokens seen */
    float frequency_penalty; /* [0] subtracted once for each time seen */
    float presence_penalty;  /* [0] subtracted once if seen */
    int32_t penalty_last;    /* tokens looked back at, at most 4096 */
    uint64_t seed;
} lmi_sampling;

LMI_API void lmi_sampling_default(lmi_sampling *sampling); /* 0.8, 40, 0.95, 0.05, typical 1, penalties off over 64, seed 0 */
LMI_API lmi_status lmi_session_set_sampling(lmi_session *session, const lmi_sampling *sampling, lmi_error *error);
/* Draws a token from the last logits. It is not read: pass it to lmi_session_read to go on. */
LMI_API lmi_status lmi_session_sample(lmi_session *session, int32_t *token, float *logprob, lmi_error *error);

/* ---- saved state ------------------------------------------------------------------------------------------------- */

/* The whole timeline: context buffer, position, logits of the last token, sampler. Its size depends on the options only.
 * A file is written whole or not at all, and is checked against the model, the options and its own sums when loaded. */
LMI_API size_t lmi_session_state_size(const lmi_session *session);
LMI_API lmi_status lmi_session_state_write(lmi_session *session, void *bytes, size_t size, lmi_error *error);
LMI_API lmi_status lmi_session_state_read(lmi_session *session, const void *bytes, size_t size, lmi_error *error);
LMI_API lmi_status lmi_session_save(lmi_session *session, const char *path, lmi_error *error);
LMI_API lmi_status lmi_session_load(lmi_session *session, const char *path, lmi_error *error);
/* The options that a state file was saved with (window, sinks, kv_type, placement, chunk, rollback). */
LMI_API lmi_status lmi_state_file_options(const char *path, lmi_session_options *options, lmi_error *error);

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* Bytes of n values of a tensor type by its name ("Q4_K"), 0 if the type is unknown or n is not whole blocks. */
LMI_API uint64_t lmi_tensor_bytes(const char *type, int64_t n);
/* Decodes n values to float32, bit-equal to the reference decoders of the `gguf` package. */
LMI_API lmi_status lmi_dequantize(const char *type, const void *blocks, size_t size, float *values, int64_t n,
                                  lmi_error *error);

/* ---- quantizing -------------------------------------------------------------------------------------------------- */

typedef struct lmi_type_info {
    const char *name;     /* "Q4_K" */
    int32_t number;       /* in GGUF files */
    int32_t block_values; /* values in a block; rows are whole blocks */
    int32_t block_bytes;
} lmi_type_info;

/* A tensor type by its name; LMI_UNSUPPORTED if there is none. */
LMI_API lmi_status lmi_type_find(const char *name, lmi_type_info *info, lmi_error *error);

typedef struct lmi_quantize_options {
    size_t size;             /* sizeof(lmi_quantize_options), set by lmi_quantize_options_default */
    const float *importance; /* [cols], finite and not negative: how much an error in a column matters; NULL: all the same */
    int32_t n_threads;       /* 0: one per usable core. The result does not depend on it */
    int32_t allow_nonfinite; /* 1: F32, F16 and BF16 may hold infinities and NaN */
    int64_t first_row;       /* number of the first row, for messages about a part of a tensor */
} lmi_quantize_options;

LMI_API void lmi_quantize_options_default(lmi_quantize_options *options);
/* Turns rows x cols values of type `from` ("F32", "BF16", any that can be decoded) into blocks of type `to`, with the least
 * squared error, weighted by importance, that the search finds. `options` may be NULL. Both sizes are in bytes and must be
 * exact. A value that is not finite, or over 65504 in magnitude where the type has half-precision scales, is
 * LMI_INVALID_ARGUMENT, names its row and column, and leaves `blocks` untouched. */
LMI_API lmi_status lmi_quantize(const char *from, const void *source, size_t source_size, const char *to, void *blocks,
                                size_t size, int64_t rows, int64_t cols, const lmi_quantize_options *options, lmi_error *error);

/* ---- the machine ------------------------------------------------------------------------------------------------- */

typedef struct lmi_memory {
    uint64_t resident_bytes;      /* of this process now */
    uint64_t peak_resident_bytes; /* since it began */
    uint64_t anonymous_bytes;     /* the part that is not a mapped file */
    uint64_t available_bytes;     /* what the system can still give, limits of the container included */
    uint64_t total_bytes;
} lmi_memory;
LMI_API void lmi_memory_now(lmi_memory *memory);

#ifdef __cplusplus
}
#endif
#endif
