"""Checkpoints become GGUF files: `convert` reads a Hugging Face folder, one file of `families/` says what each tensor is.

from lmi_convert import convert
convert("Qwen3-0.6B", "model.gguf", quant="Q4_K_M")
"""

from __future__ import annotations

__all__ = ["convert"]


def __getattr__(name: str):
    if name == "convert":
        from lmi_convert.convert import convert

        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
