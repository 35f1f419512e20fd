"""The families, one file each. A new one is a file here with a `FAMILIES` list, and its name in `MODULES`."""

from __future__ import annotations

import importlib
from pathlib import Path

from lmi.errors import UnsupportedModel

from lmi_convert.config import Config
from lmi_convert.family import Family

MODULES = ("llama", "gptj", "mpt", "gptneox", "qwen", "gemma", "phi3", "gpt_oss", "smollm3", "olmo2", "starcoder2")

# Model types whose attention has no keys that a window could keep or drop: refused with the reason.
WITHOUT_LAMBDA = {
    "Mamba": "its layers keep a state instead of keys and values",
    "Rwkv": "its layers keep a state instead of keys and values",
    "Qwen3Next": "most of its layers are linear attention, which keeps a state instead of keys and values",
    "Qwen3_5": "most of its layers are linear attention, which keeps a state instead of keys and values",
    "Deepseek": "its keys are compressed across heads (MLA)",
    "Kimi": "its keys are compressed across heads (MLA) or replaced by a state (linear attention)",
    "MiniMax": "most of its layers are linear attention, which keeps a state instead of keys and values",
    "Jamba": "most of its layers keep a state instead of keys and values",
    "FalconH1": "its layers mix attention with a state",
    "Bamba": "most of its layers keep a state instead of keys and values",
    "Lfm2": "most of its layers are convolutions",
}


def families() -> list[Family]:
    return [f for module in MODULES for f in importlib.import_module(f"lmi_convert.families.{module}").FAMILIES]


def supported() -> str:
    return ", ".join(sorted({f.architecture for f in families()}))


def find(config: Config, folder: Path) -> Family:
    """The family of a checkpoint, by `architectures` of its config.json."""
    names = config.get("architectures", default=[])
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UnsupportedModel(
            f"{folder}/config.json names no architecture (model_type {config.get('model_type')!r})", f"Supported: {supported()}"
        )
    for family in families():
        if names[0] in family.classes:
            return family
    shown = names[0][:80]
    for stem, why in WITHOUT_LAMBDA.items():
        if shown.startswith(stem):
            raise UnsupportedModel(
                f"architecture {shown!r} is not supported: {why}, so a window over them does not apply",
                f"Supported: {supported()}",
            )
    raise UnsupportedModel(f"architecture {shown!r} is not supported", f"Supported: {supported()}")
