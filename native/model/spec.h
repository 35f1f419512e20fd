/* What a model is: one row of features per architecture, and the hyper-parameters that a file gives it.
 *
 * The forward pass (steps.h) reads features and numbers, never the name of an architecture. A new one is a row of
 * `architectures` in spec.c. */
#ifndef LMI_MODEL_SPEC_H
#define LMI_MODEL_SPEC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "gguf/gguf.h"
#include "kernels/kernels.h"
#include "lambda/rope.h"

typedef struct architecture {
    const char *name;       /* general.architecture; also the prefix of its keys */
    rope_pairing pairing;   /* which values of a head turn together */
    bool has_rope_factors;  /* may carry rope_freqs.weight */
    bool has_native_window; /* key attention.sliding_window, if there, holds for every layer */
} architecture;

enum { SPEC_MAX_LAYERS = 1024, SPEC_MAX_VOCAB = 4194304 };

typedef struct model_spec {
    const architecture *arch;
    int64_t n_layers;
    int64_t n_embd;
    int64_t n_heads;
    int64_t n_kv_heads;
    int64_t head_dim;
    int64_t n_rot; /* values of a head that turn */
    int64_t n_ff;
    int64_t n_vocab; /* rows of the embedding */
    int64_t trained_context;
    int64_t native_window; /* 0: none */
    float norm_eps;
    rope_params rope; /* factors are filled in by bind */
} model_spec;

/* Every number is in the range of its kind and consistent with the others; shapes of tensors are bind's to check. */
lmi_status model_spec_read(const gguf *file, model_spec *spec, lmi_error *error);

#endif
