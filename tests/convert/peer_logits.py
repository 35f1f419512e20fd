"""Run as a program where llama-cpp-python is installed: logits of llama.cpp for a file, after every token.

python peer_logits.py model.gguf tokens.npy logits.npy
"""

import ctypes
import sys

import llama_cpp
import numpy as np


def main(model_path: str, tokens_path: str, logits_path: str) -> None:
    tokens = np.load(tokens_path).astype(np.int32)
    n = len(tokens)
    lib = llama_cpp
    lib.llama_backend_init()
    options = lib.llama_model_default_params()
    options.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(model_path.encode(), options)
    if not model:
        sys.exit(3)
    context_options = lib.llama_context_default_params()
    context_options.n_ctx = n
    context_options.n_batch = context_options.n_ubatch = n
    context_options.n_threads = context_options.n_threads_batch = 2
    context_options.type_k = context_options.type_v = 0  # F32
    context_options.flash_attn_type = 0
    context_options.swa_full = True
    context = lib.llama_init_from_model(model, context_options)
    batch = lib.llama_batch_init(n, 0, 1)
    batch.n_tokens = n
    for i, token in enumerate(tokens):
        batch.token[i] = int(token)
        batch.pos[i] = i
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = 1
    if lib.llama_decode(context, batch) != 0:
        sys.exit(4)
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (n_vocab,)).copy() for i in range(n)]
    np.save(logits_path, np.array(rows))


if __name__ == "__main__":
    assert ctypes.sizeof(ctypes.c_float) == 4
    main(*sys.argv[1:])
