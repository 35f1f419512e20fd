"""The families, one file each. A new one is a file here with a `FAMILIES` list, and its name in `MODULES`."""

from __future__ import annotations

import importlib
from pathlib import Path

from lmi.errors import UnsupportedModel

from lmi_convert.checkpoint import shown
from lmi_convert.config import Config
from lmi_convert.family import Family

MODULES = ("llama", "gptj", "mpt", "gptneox", "qwen", "gemma", "phi3", "gpt_oss", "smollm3", "olmo2", "starcoder2")

_STATE = "its layers keep a state instead of keys and values"
_MOSTLY_STATE = "most of its layers keep a state instead of keys and values"
_LINEAR = "most of its layers are linear attention, which keeps a state instead of keys and values"
_MLA = "its keys are compressed across heads (MLA)"

_CONVOLUTIONS = "most of its layers are convolutions"

# What names of classes begin with, of models whose attention has no keys that a window could keep or drop: refused with the
# reason.
WITHOUT_LAMBDA = {
    _STATE: "Mamba FalconMamba Rwkv RWKV xLSTM RetNet",
    _MOSTLY_STATE: "Jamba Bamba FalconH1 GraniteMoeHybrid NemotronH Plamo2 RecurrentGemma Zamba",
    _LINEAR: "Qwen3Next Qwen3_5 MiniMaxForCausalLM MiniMaxText01 MiniMaxM1 BailingHybrid OlmoHybrid KimiLinear",
    _MLA: "DeepseekV DeepSeekV KimiK KimiVL GlmMoeDsa Glm4MoeLite LongcatFlash MiniCPM3 Mistral4 PLMForCausalLM Youtu",
    _CONVOLUTIONS: "Lfm2 Lfm3",
}
# Keys of config.json that say the same of models with other names.
_TELLING = {
    "linear_attn_config": _LINEAR,
    "linear_num_key_heads": _LINEAR,
    "mamba_d_ssm": _MOSTLY_STATE,
    "mamba_d_state": _MOSTLY_STATE,
    "ssm_state_size": _MOSTLY_STATE,
    "conv_L_cache": _CONVOLUTIONS,
    "kv_lora_rank": _MLA,
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
            f"{folder}/config.json names no architecture (model_type {shown(config.get('model_type'))})",
            f"Supported: {supported()}",
        )
    for family in families():
        if names[0] in family.classes:
            return family
    why = without_lambda(names[0], config)
    if why is not None:
        why = f": {why}, so a window over them does not apply"
    elif any(config.get(part) is not None for part in ("vision_config", "audio_config", "text_config")):
        why = ": of models that read more than text, only Gemma 3 can be converted (its language part)"
    raise UnsupportedModel(
        f"architecture {shown(names[0])} is not supported{why or ''}",
        f"Supported: {supported()}",
    )


def without_lambda(name: str, config: Config) -> str | None:
    """Why the window has nothing to keep in models of this class, or None."""
    for why, stems in WITHOUT_LAMBDA.items():
        if name.startswith(tuple(stems.split())):
            return why
    for key, why in _TELLING.items():
        if config.get(key) is not None:
            return why
    return None
