"""Which type each tensor of a model gets: the mixes by their usual names.

    kinds = choose("Q4_K_M", [(name, shape), ...], Shape("llama", n_layers=32, n_heads=32, n_kv_heads=8))

A mix is a type for most weights and a rule for those that suffer more from few bits: the values and the second matrix of the
feed-forward (in some layers), the output. The rules are those of llama.cpp, so that files of one name are of one size wherever
they were made. Vectors, norms, routers and biases are never quantized.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lmi.errors import InvalidArgument
from lmi.quantize import type_info


@dataclass(frozen=True)
class Mix:
    """`kind`: of most weights; `file_type`: general.file_type of the GGUF file."""

    name: str
    kind: str
    file_type: int
    about: str


# Bits a weight of each mix: of Llama-3.1-8B, as published with llama.cpp.
MIXES = {
    mix.name: mix
    for mix in (
        Mix("F32", "F32", 0, "32 bits, as computed"),
        Mix("F16", "F16", 1, "16 bits"),
        Mix("BF16", "BF16", 32, "16 bits, the range of F32"),
        Mix("Q8_0", "Q8_0", 7, "8.5 bits: hardly a difference"),
        Mix("Q6_K", "Q6_K", 18, "6.6 bits: very small loss"),
        Mix("Q5_K_M", "Q5_K", 17, "5.7 bits: small loss"),
        Mix("Q5_K_S", "Q5_K", 16, "5.6 bits"),
        Mix("Q5_1", "Q5_1", 9, "6 bits, older"),
        Mix("Q5_0", "Q5_0", 8, "5.5 bits, older"),
        Mix("Q4_K_M", "Q4_K", 15, "4.9 bits: the usual choice"),
        Mix("Q4_K_S", "Q4_K", 14, "4.7 bits"),
        Mix("Q4_1", "Q4_1", 3, "5 bits, older"),
        Mix("Q4_0", "Q4_0", 2, "4.5 bits, older"),
        Mix("IQ4_NL", "IQ4_NL", 25, "4.7 bits, uneven steps"),
        Mix("IQ4_XS", "IQ4_XS", 30, "4.5 bits, uneven steps"),
        Mix("MXFP4", "MXFP4", 38, "experts in 4.25 bits, the rest in Q8_0"),
        Mix("Q3_K_L", "Q3_K", 13, "4.3 bits"),
        Mix("Q3_K_M", "Q3_K", 12, "4.0 bits: visible loss"),
        Mix("Q3_K_S", "Q3_K", 11, "3.7 bits: large loss"),
        Mix("Q2_K", "Q2_K", 10, "3.2 bits: very large loss"),
    )
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4_MOE": "MXFP4"}
KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
KINDS += ("IQ4_NL", "IQ4_XS", "MXFP4")

# What a row gets that is not whole blocks of the wanted type; F16 where that does not fit either.
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

# Matrices that are small and decide much: the router of experts, positions, convolutions, per-layer projections.
_EXACT = re.compile(
    r"_norm\.weight$|ffn_gate_inp|^position_embd\.weight$|^token_types\.weight$|altup|laurel|per_layer_model_proj|"
    r"ssm_conv1d\.weight|shortconv\.conv\.weight|attn_rel_b\.weight"
)
_VALUES = ("attn_v.weight", "attn_qkv.weight")  # a fused projection holds the values too
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Shape:
    """What the rules ask about a model."""

    architecture: str
    n_layers: int
    n_heads: int = 1
    n_kv_heads: int = 1
    n_experts: int = 0

    @property
    def heads_per_kv(self) -> int:
        return self.n_heads // max(1, self.n_kv_heads)


@dataclass(frozen=True)
class Override:
    """`kind` for tensors in whose name `pattern`, a regular expression, is found."""

    pattern: re.Pattern
    kind: str


def find_mix(name: str) -> Mix:
    """By name, in any case; "Q4_K" is Q4_K_M. Raises InvalidArgument."""
    wanted = name.strip().upper()
    mix = MIXES.get(ALIASES.get(wanted, wanted))
    if mix is None:
        import difflib

        close = difflib.get_close_matches(wanted, [*MIXES, *ALIASES], n=3, cutoff=0.5)
        raise InvalidArgument(f"{name!r} is no quantization", "Take one of: " + ", ".join(close or MIXES))
    return mix


def parse_override(text: str) -> Override:
    """ "ffn_down=Q6_K". Raises InvalidArgument."""
    pattern, separator, kind = text.rpartition("=")
    if not separator or not pattern:
        raise InvalidArgument(f"{text!r} is not PATTERN=TYPE", "For example: attn_v=Q8_0")
    if kind.upper() not in KINDS:
        raise InvalidArgument(f"{kind!r} is not a tensor type that can be written", "Take one of: " + ", ".join(KINDS))
    try:
        return Override(re.compile(pattern), kind.upper())
    except re.error as e:
        raise InvalidArgument(f"{pattern!r} is not a regular expression: {e}") from None


def quantizable(name: str, shape: Sequence[int]) -> bool:
    """False of vectors, norms, biases, routers: they stay exact whatever the mix."""
    return sum(d > 1 for d in shape) >= 2 and name.endswith("weight") and not _EXACT.search(name)


def fitting(kind: str, cols: int) -> str:
    """`kind`, or what takes its place where rows of `cols` values are not whole blocks of it."""
    if cols % type_info(kind).block_values == 0:
        return kind
    kind = FALLBACK.get(kind, "F16")
    return kind if cols % type_info(kind).block_values == 0 else "F16"


def choose(
    mix: str,
    tensors: Sequence[tuple[str, Sequence[int]]],
    model: Shape,
    *,
    overrides: Sequence[Override] = (),
    importance: bool = False,
) -> list[str | None]:
    """The type of each tensor, (name, shape with the fastest-running dimension last); None: not for quantizing, keep it exact.
    The last override that matches wins. `importance`: an importance matrix will be used."""
    rule = _Rule(find_mix(mix), model, {name for name, _ in tensors}, importance)
    chosen: list[str | None] = []
    for name, shape in tensors:
        kind = None
        if quantizable(name, shape):
            kind = rule.kind(name, shape)
            for override in overrides:
                if override.pattern.search(name):
                    kind = override.kind
            kind = fitting(kind, shape[-1])
        chosen.append(kind)
    return chosen


class _Rule:
    def __init__(self, mix: Mix, model: Shape, names: set[str], importance: bool):
        self.mix, self.model, self.importance = mix, model, importance
        self.has_output = "output.weight" in names
        self.n_values = sum(any(part in name for part in _VALUES) for name in names)
        self.wide = model.heads_per_kv >= 4  # keys and values are small then, and more bits for them cost little
        self.eight_experts = model.n_experts == 8
        # The 70B: eight heads share their values, whose matrix is an eighth of the others.
        self.seventy = model.n_layers == 80 and model.architecture in ("llama", "qwen2") and model.heads_per_kv > 1

    def kind(self, name: str, shape: Sequence[int]) -> str:
        if not type_info(self.mix.kind).quantized:
            return self.mix.kind
        if name == "output.weight" or (name == "token_embd.weight" and not self.has_output):
            return self._output(shape)
        if self.mix.name == "MXFP4":
            return "MXFP4" if len(shape) > 2 and shape[-3] > 1 else "Q8_0"
        if name in ("token_embd.weight", "per_layer_token_embd.weight"):
            return self.mix.kind
        found = _LAYER.search(name)
        layer = int(found.group(1)) if found else 0
        if any(part in name for part in _VALUES):
            return self._values(layer)
        if "attn_k.weight" in name:
            return "Q8_0" if self.eight_experts else self.mix.kind
        if "attn_q.weight" in name:
            return self.mix.kind
        if "ffn_down" in name:
            return self._ffn_down(layer)
        if "attn_output.weight" in name:
            return self._attention_output()
        return self.mix.kind

    def _output(self, shape: Sequence[int]) -> str:
        if self.mix.kind in ("MXFP4", "Q8_0") or shape[-1] % type_info(self.mix.kind).block_values:
            return "Q8_0"
        return "Q6_K"

    def _values(self, layer: int) -> str:
        mix, kind = self.mix.name, self.mix.kind
        if mix == "Q2_K":
            kind = "Q4_K" if self.wide else "Q3_K"
        elif mix == "Q3_K_M":
            kind = "Q5_K" if layer < 2 else "Q4_K"
        elif mix == "Q3_K_L" or (mix in ("IQ4_NL", "IQ4_XS") and self.wide):
            kind = "Q5_K"
        elif mix in ("Q4_K_M", "Q5_K_M") and more_bits(layer, self.n_values):
            kind = "Q6_K"
        elif mix == "Q4_K_S" and layer < 4:
            kind = "Q5_K"
        if self.seventy and kind in ("Q3_K", "Q4_K"):
            kind = "Q5_K"
        return "Q8_0" if self.eight_experts else kind

    def _ffn_down(self, layer: int) -> str:
        mix, kind, n = self.mix.name, self.mix.kind, self.model.n_layers
        if mix == "Q2_K":
            return "Q3_K"
        if mix == "Q3_K_M":
            return "Q5_K" if layer < n // 16 else "Q4_K"
        if mix == "Q3_K_L":
            return "Q5_K"
        if mix in ("Q4_K_M", "Q5_K_M") and more_bits(layer, n):
            return "Q6_K"
        early = layer < n // 8
        if early and (mix == "Q4_K_S" or (mix in ("IQ4_NL", "IQ4_XS") and not self.importance)):
            return "Q5_K"
        if early and self.importance and mix in ("Q4_0", "Q5_0"):
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[mix]
        return kind

    def _attention_output(self) -> str:
        mix, kind = self.mix.name, self.mix.kind
        if self.eight_experts:
            return "Q5_K" if mix in ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M") else kind
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, kind)


def more_bits(layer: int, n_layers: int) -> bool:
    """The first and the last eighth of the layers, and every third in between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
