"""What a family file has to say, and the words it says it with.

A family is a function that is given a `Build`: it names keys and tensors in the order of the file and checks every shape on the
way. What it does not name is left over and refused, so nothing of a checkpoint is lost unnoticed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from lmi.errors import FileFormatError, UnsupportedModel

from lmi_convert.checkpoint import FLOATS, SCALE_BLOCK, Checkpoint, Source, shown
from lmi_convert.config import Config
from lmi_convert.matrix import Matrix, constant, rows_of, stacked
from lmi_convert.writer import Value, boolean, f32, string, u32


@dataclass(frozen=True)
class Family:
    """`architecture`: of the GGUF file. `classes`: names in `architectures` of config.json. `build`: says what goes into the
    file."""

    architecture: str
    classes: tuple[str, ...]
    build: Callable[[Build], None]
    prefixes: tuple[str, ...] = ("",)  # that names in the checkpoint may have before those that `build` uses
    truncates_vocabulary: bool = False  # embeddings have rows without tokens, which are left out


@dataclass(frozen=True)
class Entry:
    """A tensor of the file to be. `packed`: its blocks as they are, [rows][bytes] per piece, where the checkpoint has them in a
    type of GGUF already (`packed_type`). `exact`: always F32, whatever the quantization."""

    name: str
    matrix: Matrix
    exact: bool = False
    packed_type: str | None = None


@dataclass(frozen=True)
class Sizes:
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv: int
    head_dim: int
    n_vocab: int

    @property
    def q(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv(self) -> int:
        return self.n_kv * self.head_dim


class Weights:
    """The tensors of a checkpoint, each taken at most once and never with another shape than expected."""

    def __init__(self, checkpoint: Checkpoint, prefixes: tuple[str, ...] = ("",)):
        self._sources = checkpoint.sources
        self._prefixes = prefixes
        self._used: set[str] = set()
        self.has_f8 = any(s.dtype == "F8_E4M3" for s in self._sources.values())

    def find(self, name: str) -> Source | None:
        for prefix in self._prefixes:
            full = prefix + (name.removeprefix("model.") if prefix.startswith("model.") else name)
            if full in self._sources:
                return self._sources[full]
        return None

    def source(self, name: str, shape: tuple[int, ...] | None, floats: bool = True) -> Source:
        """Raises FileFormatError where it is missing or of another shape."""
        found = self.find(name)
        if found is None:
            raise FileFormatError(f"tensor {name} is missing", "Download the folder again; config.json says it should be there")
        if shape is not None and found.shape != tuple(shape):
            raise FileFormatError(
                f"tensor {found.name} has the shape {_shape(found.shape)}, config.json implies {_shape(shape)}",
                "Check that config.json and the weights belong together",
            )
        if floats and found.dtype not in FLOATS:
            raise UnsupportedModel(
                f"tensor {found.name} is of the type {found.dtype}: weights quantized by another tool cannot be converted",
                "Take the original checkpoint (BF16, F16, F32 or F8)",
            )
        if 0 in found.shape:
            raise FileFormatError(f"tensor {found.name} is empty: {_shape(found.shape)}", "Download the folder again")
        self._used.add(found.name)
        return found

    def has(self, name: str) -> bool:
        return self.find(name) is not None

    def scales(self, source: Source) -> Source | None:
        """Of F8 weights: one per block of 128 x 128, or one for all."""
        if source.dtype != "F8_E4M3":
            return None
        for suffix in ("_scale_inv", "_scale"):
            name = source.name + suffix
            if name in self._sources:
                found = self._sources[name]
                blocks = tuple(-(-d // SCALE_BLOCK) for d in source.shape)
                if found.shape not in ((), (1,), blocks) or found.dtype not in FLOATS:
                    raise UnsupportedModel(
                        f"tensor {name} has the shape {_shape(found.shape)}; F8 weights are read with one scale, or one for "
                        f"each block of {SCALE_BLOCK} x {SCALE_BLOCK} ({_shape(blocks)})",
                        "Take the checkpoint in BF16",
                    )
                self._used.add(name)
                self.ignore(rf"^{re.escape(source.name.removesuffix('weight'))}(input|activation)_scale$")
                return found
        raise FileFormatError(f"tensor {source.name} is F8 and has no scales", "Download the folder again")

    def ignore(self, pattern: str) -> None:
        """Tensors that are known and not needed: buffers, parts of other modalities."""
        known = re.compile(pattern)
        self._used |= {name for name in self._sources if known.search(name)}

    def require_all_used(self, architecture: str) -> None:
        left = sorted(set(self._sources) - self._used)
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise FileFormatError(
                f"tensor {left[0]}{more} of the checkpoint is not known to the family {architecture!r}",
                "It is another model than config.json says, or a newer kind of it: converting it would give wrong text",
            )


@dataclass
class Build:
    """What a family fills in. Names on the left are those of GGUF, on the right those of the checkpoint."""

    architecture: str
    config: Config
    weights: Weights
    keys: dict[str, Value] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    sizes: Sizes = None
    notes: list[str] = field(default_factory=list)  # for the person who converts
    truncates_vocabulary: bool = False  # embeddings may have more rows than there are tokens, and lose them

    # ---- keys ----

    def key(self, suffix: str, value: Value) -> None:
        self.keys[f"{self.architecture}.{suffix}"] = value

    def shape(
        self,
        *,
        layers: tuple = ("num_hidden_layers", "n_layer"),
        embd: tuple = ("hidden_size", "n_embd"),
        ff: tuple = ("intermediate_size", "n_inner"),
        ff_default: int | None = None,
        heads: tuple = ("num_attention_heads", "n_head"),
        context: tuple = ("max_position_embeddings", "n_positions"),
        head_dim_key: bool = True,
    ) -> Sizes:
        """Reads the sizes that every model has, and writes their keys."""
        c = self.config
        n_embd = c.integer(*embd, low=8, high=131072)
        n_heads = c.integer(*heads, high=1024)
        n_kv = c.integer("num_key_value_heads", default=n_heads, high=1024)
        named_dim = c.integer("head_dim", default=0, low=8, high=1024) if head_dim_key else 0
        if (n_embd % n_heads and not named_dim) or n_heads % n_kv:
            raise FileFormatError(
                f"{c.file}: {n_heads} heads, {n_kv} key-value heads and the width {n_embd} do not fit together",
                "Download config.json again",
            )
        ff_default = ff_default * n_embd if ff_default else None
        s = self.sizes = Sizes(
            n_layers=c.integer(*layers, high=1024),
            n_embd=n_embd,
            n_ff=c.integer(*ff, high=1048576, **({} if ff_default is None else {"default": ff_default})),
            n_heads=n_heads,
            n_kv=n_kv,
            head_dim=named_dim or n_embd // n_heads,
            n_vocab=c.integer("vocab_size", low=2, high=4194304),
        )
        self.key("block_count", u32(s.n_layers))
        self.key("context_length", u32(c.integer(*context)))
        self.key("embedding_length", u32(s.n_embd))
        self.key("feed_forward_length", u32(s.n_ff))
        self.key("attention.head_count", u32(s.n_heads))
        self.key("attention.head_count_kv", u32(s.n_kv))
        if named_dim:
            self.key("attention.key_length", u32(named_dim))
            self.key("attention.value_length", u32(named_dim))
        self.key("vocab_size", u32(s.n_vocab))
        return s

    def rms_norm(self, *names: str, default: float = 1e-6) -> None:
        self.key(
            "attention.layer_norm_rms_epsilon",
            f32(self.config.real(*(names or ("rms_norm_eps",)), default=default, low=1e-30, high=0.999)),
        )

    def layer_norm(self, *names: str, default: float = 1e-5) -> None:
        self.key("attention.layer_norm_epsilon", f32(self.config.real(*names, default=default, low=1e-30, high=0.999)))

    def rope(
        self, n_rot: int, *, theta: float = 10000.0, layers: str = "full_attention", stretched: tuple[str, ...] = ()
    ) -> Config:
        """The rotary embedding: base, rotated values, and the usual ways of stretching it. `stretched`: those that the family
        itself sees to."""
        p = self.config.rope(layers)
        if not 2 <= n_rot <= self.sizes.head_dim or n_rot % 2:
            raise FileFormatError(
                f"{self.config.file}: {n_rot} of the {self.sizes.head_dim} values of a head turn, not a number of pairs",
                "Download config.json again",
            )
        part = p.real("partial_rotary_factor", default=0.0, high=1.0)
        if part and int(part * self.sizes.head_dim) != n_rot:
            raise UnsupportedModel(
                f"{p.file}: partial_rotary_factor is {part:g}: in the family {self.architecture!r} "
                f"{n_rot} of {self.sizes.head_dim} values of a head turn",
                "A GGUF file of this family has no place for it",
            )
        self.key("rope.dimension_count", u32(n_rot))
        base = p.real("rope_theta", default=theta, low=1.001, high=1e15)
        self.key("rope.freq_base", f32(base))
        kind = p.get("rope_type")
        if kind == "linear":
            self.key("rope.scaling.type", string("linear"))
            self.key("rope.scaling.factor", f32(p.real("factor", low=1e-3, high=1e6)))
        elif kind == "yarn":
            self._yarn(p)
        elif kind == "llama3":
            self.add("rope_freqs.weight", constant(llama3_factors(p, base, n_rot)), exact=True)
        elif kind == "dynamic":
            self.notes.append("dynamic rope scaling left out: it begins beyond the trained context, which a window never is")
        elif kind not in ("default", *stretched):
            raise UnsupportedModel(
                f"{p.file}: rope_type is {shown(kind)}", "Supported: default, linear, llama3, longrope (phi3), yarn"
            )
        return p

    def _yarn(self, p: Config) -> None:
        factor = p.real("factor", low=1e-3, high=1e6)
        self.key("rope.scaling.type", string("yarn"))
        self.key("rope.scaling.factor", f32(factor))
        original = p.integer("original_max_position_embeddings", default=self.config.integer("max_position_embeddings"))
        self.key("rope.scaling.original_context_length", u32(original))

        def magnitude(scale: float) -> float:
            return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

        # Who reads the file multiplies by 1 + 0.1 ln(factor), so the key is what is left after that.
        wanted = p.real("attention_factor", "attn_factor", default=0.0, low=0.01, high=100.0)
        if not wanted and p.get("mscale") and p.get("mscale_all_dim"):
            wanted = magnitude(p.real("mscale", high=100.0)) / magnitude(p.real("mscale_all_dim", high=100.0))
        if wanted and abs(wanted / magnitude(1.0) - 1) > 1e-6:
            self.key("rope.scaling.attn_factor", f32(wanted / magnitude(1.0)))
        for name in ("beta_fast", "beta_slow"):
            if p.get(name) is not None:
                self.key(f"rope.scaling.yarn_{name}", f32(p.real(name, low=1e-3, high=1e6)))
        if not p.flag("truncate", default=True):
            self.key("rope.scaling.yarn_truncate", boolean(False))

    def window(self, *, default: int | None = None) -> int | None:
        """The family's own window: tokens that a token sees, itself among them."""
        w = self.config.integer("sliding_window", default=default, low=1, high=1 << 40)
        if w is not None:
            self.key("attention.sliding_window", u32(min(w, (1 << 32) - 1)))
        return w

    def require_windows(self, windowed: Callable[[int], bool]) -> None:
        """Which layers have the window is fixed for a family: a model that has it elsewhere cannot be written down."""
        kinds = self.config.get("layer_types")
        if kinds is not None and kinds != [
            "sliding_attention" if windowed(i) else "full_attention" for i in range(self.sizes.n_layers)
        ]:
            raise UnsupportedModel(
                f"config.json: layer_types is not the order of windows that the family {self.architecture!r} has",
                "A GGUF file of this family has no place for it",
            )

    # ---- tensors ----

    def add(self, name: str, matrix: Matrix, *, exact: bool = False, packed_type: str | None = None) -> None:
        self.entries.append(Entry(name, matrix, exact, packed_type))

    def read(
        self, name: str, *shape: int, order=None, ranges=None, change=None, result: tuple[int, ...] | None = None
    ) -> Matrix:
        """A tensor of the checkpoint with exactly this shape. `order`: as `adjacent_pairs` gives it; `ranges`, `change`,
        `result` (the shape then): as `rows_of` takes them."""
        source = self.weights.source(name, shape)
        scales = self.weights.scales(source)
        if order is not None:
            spans = order(shape[0])
            return rows_of(source, [span for span, _ in spans], shape=shape, scales=scales, change=spans[0][1])
        return rows_of(source, ranges, shape=result, scales=scales, change=change)

    def vector(self, name: str, theirs: str, n: int, *, plus: float = 0.0, order=None) -> None:
        matrix = self.read(theirs, n, order=order)
        self.add(name, matrix.mapped(lambda x: x + np.float32(plus)) if plus else matrix, exact=True)

    def norm(self, name: str, theirs: str, n: int | None = None, *, bias: bool | None = False, plus: float = 0.0) -> None:
        """`bias` None: if it is there. `plus`: added to the weights, for families that store them less that."""
        n = n or self.sizes.n_embd
        self.vector(f"{name}.weight", f"{theirs}.weight", n, plus=plus)
        if self._wants(bias, theirs):
            self.vector(f"{name}.bias", f"{theirs}.bias", n)

    def linear(self, name: str, theirs: str, rows: int, cols: int, *, bias: bool | None = False, order=None) -> None:
        """`bias` None: if it is there."""
        self.add(f"{name}.weight", self.read(f"{theirs}.weight", rows, cols, order=order))
        if self._wants(bias, theirs):
            self.vector(f"{name}.bias", f"{theirs}.bias", rows, order=order)

    def _wants(self, bias: bool | None, theirs: str) -> bool:
        return self.weights.has(f"{theirs}.bias") if bias is None else bias

    def attention(
        self,
        blk: str,
        theirs: str,
        *,
        bias: bool | None = False,
        out_bias: bool | None = False,
        order=None,
        out: str = "o_proj",
    ):
        """Separate q, k, v and output. `order`: of the rows of q and k, given the number of heads."""
        s = self.sizes
        self.linear(f"{blk}.attn_q", f"{theirs}.q_proj", s.q, s.n_embd, bias=bias, order=order and order(s.n_heads))
        self.linear(f"{blk}.attn_k", f"{theirs}.k_proj", s.kv, s.n_embd, bias=bias, order=order and order(s.n_kv))
        self.linear(f"{blk}.attn_v", f"{theirs}.v_proj", s.kv, s.n_embd, bias=bias)
        self.linear(f"{blk}.attn_output", f"{theirs}.{out}", s.n_embd, s.q, bias=out_bias)

    def gated(self, blk: str, theirs: str, n_ff: int | None = None, *, bias: bool | None = False, suffix: str = "") -> None:
        """Gate, up and down."""
        n_ff = n_ff or self.sizes.n_ff
        self.linear(f"{blk}.ffn_gate{suffix}", f"{theirs}.gate_proj", n_ff, self.sizes.n_embd, bias=bias)
        self.linear(f"{blk}.ffn_up{suffix}", f"{theirs}.up_proj", n_ff, self.sizes.n_embd, bias=bias)
        self.linear(f"{blk}.ffn_down{suffix}", f"{theirs}.down_proj", self.sizes.n_embd, n_ff, bias=bias)

    def experts(
        self, blk: str, theirs: str, n: int, n_ff: int, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    ) -> None:
        """Routed experts, one tensor of each kind for all: from one per expert, or from tensors that hold them all already."""
        E = self.sizes.n_embd
        for ours, name, rows, cols, half in (
            ("gate", names[0], n_ff, E, 0),
            ("up", names[1], n_ff, E, 1),
            ("down", names[2], E, n_ff, None),
        ):
            if self.weights.has(f"{theirs}.gate_up_proj"):
                fused = f"{theirs}.{'down_proj' if half is None else 'gate_up_proj'}"
                height = rows if half is None else 2 * rows
                begin = 0 if half is None else half * rows

                def change(x: np.ndarray, begin=begin, rows=rows) -> np.ndarray:
                    return x[:, begin : begin + rows]

                ranges = [(i, i + 1) for i in range(n)]
                matrix = self.read(fused, n, height, cols, ranges=ranges, change=change, result=(n, rows, cols))
            else:
                matrix = stacked([self.read(f"{theirs}.{i}.{name}.weight", rows, cols) for i in range(n)])
            self.add(f"{blk}.ffn_{ours}_exps.weight", matrix)

    def embedding(self, theirs: str) -> None:
        s = self.sizes
        found = self.weights.find(theirs)
        if self.truncates_vocabulary and found is not None and len(found.shape) == 2 and found.shape[0] >= s.n_vocab:
            self.add("token_embd.weight", self.read(theirs, *found.shape, ranges=[(0, s.n_vocab)]))
        else:
            self.add("token_embd.weight", self.read(theirs, s.n_vocab, s.n_embd))

    def output(self, theirs: str, *, tied: bool, bias: bool = False) -> None:
        """`tied`: what the family's configuration means where it does not say."""
        s = self.sizes
        if self.config.flag("tie_word_embeddings", default=tied):
            self.weights.ignore(rf"(^|\.){re.escape(theirs)}\.weight$")
        else:
            self.linear("output", theirs, s.n_vocab, s.n_embd, bias=bias)

    def layers(self, theirs: str) -> Iterator[tuple[int, str, str]]:
        """(index, "blk.N", name in the checkpoint) of each."""
        for i in range(self.sizes.n_layers):
            yield i, f"blk.{i}", f"{theirs}.{i}"


def llama3_factors(p: Config, base: float, n_rot: int) -> list[float]:
    """What each frequency is divided by: long waves by `factor`, short ones by 1, in between a mixture (Llama 3.1)."""
    factor = p.real("factor", low=1.0, high=1e6)
    low, high = p.real("low_freq_factor", low=1e-6), p.real("high_freq_factor", low=1e-6)
    if not low < high:
        raise FileFormatError(f"{p.file}: low_freq_factor is not below high_freq_factor", "Download config.json again")
    original = p.integer("original_max_position_embeddings")
    found = []
    for i in range(n_rot // 2):
        turns = original / (2 * math.pi * base ** (2 * i / n_rot))  # that this pair makes in the original context
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1.0 / ((1 - smooth) / factor + smooth))
    return found


def _shape(shape) -> str:
    return " x ".join(map(str, shape)) or "()"
