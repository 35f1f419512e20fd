"""Quantizes a file to every mix named with llama.cpp: peer_mixes.py IN FOLDER NAME=NUMBER... writes FOLDER/NAME.gguf.

Given the first of several files it writes as many: FOLDER/NAME-00001-of-0000N.gguf and so on.
"""

import ctypes
import sys

import llama_cpp

silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
source, folder, *mixes = sys.argv[1:]
for mix in mixes:
    name, number = mix.split("=")
    options = llama_cpp.llama_model_quantize_default_params()
    options.nthread = 1
    options.ftype = int(number)
    options.keep_split = "-00001-of-" in source
    path = f"{folder}/{name}" + ("" if options.keep_split else ".gguf")
    if llama_cpp.llama_model_quantize(source.encode(), path.encode(), ctypes.byref(options)):
        sys.exit(f"llama.cpp does not quantize to {name}")
