"""Checkpoint folder -> GGUF file: reads, decides, writes; the rooms beside it know how.

report = convert("Qwen3-0.6B", "model.gguf", quant="Q4_K_M")
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from lmi.errors import FileFormatError, InvalidArgument
from lmi.formats import human_count
from lmi.quantize import quantize, type_info

from lmi_convert import families
from lmi_convert.checkpoint import Checkpoint, read_json, require_folder, to_float32
from lmi_convert.config import Config
from lmi_convert.family import Build, Entry, Family, Weights
from lmi_convert.importance import Importance, read_importance
from lmi_convert.matrix import Matrix
from lmi_convert.mix import Override, Shape, choose, find_mix, parse_override
from lmi_convert.tokens import Vocabulary
from lmi_convert.vocab import check_pre, read_vocabulary
from lmi_convert.writer import Tensor, Value, f32, file_bytes, i32, require_writable, string, u32, write

AS_IT_IS = "auto"  # the type that the checkpoint's own weights have
GATHERED = 16 << 20  # bytes of float32 that are quantized at once: enough for all threads, little of the memory
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class Report:
    """What was, or with `dry_run` would be, written. `types`: (type, tensors, bytes), most bytes first."""

    path: str
    architecture: str
    quant: str
    n_tensors: int
    n_parameters: int
    n_bytes: int
    source_bytes: int
    n_vocab: int
    vocabulary: str
    types: tuple[tuple[str, int, int], ...]
    tensors: tuple[Tensor, ...] = field(repr=False, default=())
    notes: tuple[str, ...] = ()


def convert(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    quant: str = AS_IT_IS,
    overwrite: bool = False,
    dry_run: bool = False,
    allow_pickle: bool = False,
    allow_nonfinite: bool = False,
    pre: str | None = None,
    name: str | None = None,
    tensor_types: Sequence[str] = (),
    imatrix: str | os.PathLike | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    plan: Callable[[Report], object] | None = None,
) -> Report:
    """Converts the checkpoint in `folder` to the file `output`, which appears whole or not at all.

    `quant`: a mix ("Q4_K_M"), a type ("F16") or "auto". `tensor_types`: "PATTERN=TYPE", the last that matches a name wins.
    `pre`: name of the pre-tokenizer. `imatrix`: file of an importance matrix. `progress(done, total)`: bytes of the file so
    far. `plan(report)`: called before anything is written.

    Raises FileFormatError for a checkpoint that is incomplete or damaged, UnsupportedModel for one of another family,
    InvalidArgument, OutputError. Nothing is left behind then.
    """
    output, folder = os.fspath(output), Path(folder)
    overrides = [parse_override(text) for text in tensor_types]
    if quant.lower() != AS_IT_IS:
        find_mix(quant)
    if pre is not None:
        check_pre(pre)
    if name is not None and not name.isprintable():
        raise InvalidArgument(f"the name {name!a} cannot be written", "Take letters, digits and signs")
    importance = read_importance(os.fspath(imatrix)) if imatrix is not None else None
    if not dry_run:
        require_writable(output, overwrite=overwrite)
    require_folder(folder)
    config = Config.read(folder)
    family = families.find(config, folder)
    with Checkpoint(folder, allow_pickle=allow_pickle) as checkpoint:
        vocabulary = read_vocabulary(folder, config, pre=pre)
        build = build_model(family, config, checkpoint, vocabulary)
        quant = _own_type(build) if quant.lower() == AS_IT_IS else find_mix(quant).name
        encoding = Encoding(importance, allow_nonfinite, threads)
        tensors = plan_tensors(build, quant, overrides, encoding)
        keys = {**general_keys(family, build, quant, folder, name), **build.keys, **vocabulary.keys()}
        report = _report(output, family, quant, build, vocabulary, keys, tensors, checkpoint)
        if plan:
            plan(report)
        if not dry_run:
            write(output, keys, _watched(tensors, progress, report.n_bytes) if progress else tensors, overwrite=overwrite)
        return report


def _watched(tensors: list[Tensor], progress: Callable[[int, int], object], total: int) -> list[Tensor]:
    """The same tensors; `progress` hears of every piece of them that has been written."""
    done = total - sum(t.n_bytes for t in tensors)

    def watched(t: Tensor) -> Callable[[], Iterator]:
        def data() -> Iterator:
            nonlocal done
            for piece in t.data():
                yield piece
                done += memoryview(piece).nbytes
                progress(done, total)

        return data

    return [replace(t, data=watched(t)) for t in tensors]


@dataclass(frozen=True)
class Encoding:
    """How values become blocks, the same for all tensors."""

    importance: Importance | None = None
    allow_nonfinite: bool = False
    threads: int | None = None


def build_model(family: Family, config: Config, checkpoint: Checkpoint, vocabulary: Vocabulary) -> Build:
    """Every key and tensor of the family, with all tensors of the checkpoint accounted for; the vocabulary padded to fit."""
    build = Build(family.architecture, config, Weights(checkpoint, family.prefixes))
    build.truncates_vocabulary = family.truncates_vocabulary
    n = len(vocabulary.texts)
    if family.truncates_vocabulary and n < config.integer("vocab_size", default=n, low=2) or config.get("vocab_size") is None:
        config.values["vocab_size"] = n
    family.build(build)
    build.weights.require_all_used(family.architecture)
    vocabulary.pad(build.sizes.n_vocab)
    return build


# ---- types ------------------------------------------------------------------------------------------------------


def _own_type(build: Build) -> str:
    """The type of most of the matrices."""
    sizes: dict[str, int] = {}
    for e in build.entries:
        if not e.exact and not e.packed_type:
            sizes[e.matrix.dtype] = sizes.get(e.matrix.dtype, 0) + int(np.prod(e.matrix.shape, dtype=object))
    own = max(sizes, key=sizes.get) if sizes else "F32"
    return "BF16" if own == "F32" and build.weights.has_f8 else own


def plan_tensors(build: Build, quant: str, overrides: Sequence[Override], encoding: Encoding) -> list[Tensor]:
    s = build.sizes
    n_experts = next((e.matrix.shape[0] for e in build.entries if e.name.endswith("_exps.weight")), 0)
    shape = Shape(build.architecture, s.n_layers, s.n_heads, s.n_kv, n_experts)
    named = [(e.name, e.matrix.shape) for e in build.entries]
    kinds = choose(quant, named, shape, overrides=overrides, importance=encoding.importance is not None)
    tensors = []
    for entry, kind in zip(build.entries, kinds):
        if entry.packed_type:
            tensors.append(Tensor(entry.name, entry.matrix.shape, entry.packed_type, entry.matrix.pieces))
        else:
            kind = "F32" if entry.exact or kind is None else kind
            tensors.append(Tensor(entry.name, entry.matrix.shape, kind, _encoder(entry, kind, encoding)))
    return tensors


def _encoder(entry: Entry, kind: str, encoding: Encoding) -> Callable[[], Iterator]:
    """Makes the bytes of a tensor when it is called."""
    weights = None
    if encoding.importance is not None and type_info(kind).quantized:
        weights = encoding.importance.of(entry.name, entry.matrix.shape)
    rows = entry.matrix.shape[-2] if weights is not None and len(weights) > 1 else None  # of one matrix of a stack

    def data() -> Iterator:
        row = 0
        for values, dtype in _gathered(entry.matrix):
            if not encoding.allow_nonfinite:
                _require_finite(values, dtype, entry.matrix, row)
            for part in _by_matrix(values, row, rows):
                if dtype == kind:
                    yield np.ascontiguousarray(part)
                else:
                    columns = None if weights is None else weights[row // rows if rows else 0]
                    yield _encoded(part, dtype, kind, entry, row, columns, encoding)
                row += len(part)

    return data


def _by_matrix(values: np.ndarray, first_row: int, rows: int | None) -> Iterator[np.ndarray]:
    """Cut where one matrix of a stack ends; `rows`: of each, or None for no cuts."""
    at = 0
    while at < len(values):
        end = len(values) if rows is None else min(len(values), at + rows - (first_row + at) % rows)
        yield values[at:end]
        at = end


def _gathered(matrix: Matrix) -> Iterator[tuple[np.ndarray, str]]:
    """Small pieces put together, [n][cols], with their type."""
    cols, waiting, size = matrix.shape[-1], [], 0
    for piece in matrix.pieces():
        waiting.append(np.ascontiguousarray(piece).reshape(-1, cols))
        size += piece.size * 4
        del piece
        if size >= GATHERED:
            yield np.concatenate(waiting) if len(waiting) > 1 else waiting[0], matrix.dtype
            waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting) if len(waiting) > 1 else waiting[0], matrix.dtype


def _encoded(values, dtype: str, kind: str, entry: Entry, row: int, columns, encoding: Encoding) -> np.ndarray:
    if kind == "F32":
        return to_float32(values, dtype)
    try:
        return quantize(
            values,
            kind,
            source=dtype,
            importance=columns,
            threads=encoding.threads,
            allow_nonfinite=encoding.allow_nonfinite,
            first_row=row,
        )
    except InvalidArgument as e:
        raise FileFormatError(f"tensor {entry.matrix.origin or entry.name}: {e.message}", _remedy(kind)) from None


def _remedy(kind: str) -> str:
    if kind == "F16":
        return "F16 holds magnitudes up to 65504: take -q BF16, or look where the checkpoint comes from"
    return "The checkpoint is damaged, or its training failed: download it again"


# Of each type: its bits as numpy has them, all but the sign, and the smallest that is not finite without it.
_BITS = {"BF16": (np.uint16, 0x7FFF, 0x7F80), "F16": (np.uint16, 0x7FFF, 0x7C00), "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000)}
_CACHED = 1 << 17  # values looked at together: few enough to stay in the processor's cache


def _require_finite(values: np.ndarray, dtype: str, matrix: Matrix, first_row: int) -> None:
    form, magnitude, limit = _BITS[dtype]
    bits = np.ascontiguousarray(values).view(form).reshape(-1)
    if all((bits[at : at + _CACHED] & form(magnitude)).max() < limit for at in range(0, bits.size, _CACHED)):
        return
    bad = np.nonzero((bits & form(magnitude)) >= limit)[0]
    row, col = divmod(int(bad[0]), values.shape[-1])
    raise FileFormatError(
        f"tensor {matrix.origin} holds {len(bad):,} NaN or infinite values, the first in row {first_row + row}, column {col}",
        "The checkpoint is damaged, or its training failed: download it again, or convert it as it is with --allow-nonfinite",
    )


# ---- keys -------------------------------------------------------------------------------------------------------


def general_keys(family: Family, build: Build, quant: str, folder: Path, name: str | None) -> dict[str, Value]:
    keys = {"general.architecture": string(family.architecture), "general.type": string("model")}
    keys["general.name"] = string(name or _name(folder, build.config).encode("utf-8", "replace"))
    keys["general.size_label"] = string(human_count(_parameters(build)).replace(" ", ""))
    keys |= _sampling(folder)
    keys["general.file_type"] = u32(find_mix(quant).file_type)
    keys["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    return keys


def _name(folder: Path, config: Config) -> str:
    """The folder's, unless that is a hash, as folders of download caches are."""
    own = Path(os.path.abspath(folder)).name
    if re.fullmatch(r"[0-9a-f]{32,64}", own):
        cached = Path(os.path.abspath(folder)).parent.parent.name
        given = config.get("_name_or_path", default="")
        own = cached.split("--")[-1] if cached.startswith("models--") else str(given).rstrip("/").split("/")[-1] or own
    return own[:200] or "model"


def _sampling(folder: Path) -> dict[str, Value]:
    """What generation_config.json advises, where it makes sense."""
    path = folder / "generation_config.json"
    c = Config(read_json(path) if path.is_file() else {}, path.name)
    found: dict[str, Value] = {}
    for key, theirs, low, high in (
        ("temp", "temperature", 0.0, 1000.0),
        ("top_p", "top_p", 0.0, 1.0),
        ("min_p", "min_p", 0.0, 1.0),
    ):
        value = c.get(theirs)
        if type(value) in (int, float) and low <= value <= high:
            found[f"general.sampling.{key}"] = f32(value)
    top_k = c.get("top_k")
    if type(top_k) is int and 0 <= top_k < 1 << 31:
        found["general.sampling.top_k"] = i32(top_k)
    return found if c.get("do_sample") else {}


def _parameters(build: Build) -> int:
    return sum(int(np.prod(e.matrix.shape, dtype=object)) for e in build.entries if not e.name.startswith("rope_"))


def _report(output, family, quant, build, vocabulary, keys, tensors, checkpoint) -> Report:
    types: dict[str, list[int]] = {}
    for t in tensors:
        count = types.setdefault(t.type, [0, 0])
        count[0] += 1
        count[1] += t.n_bytes
    kind = "SentencePiece" if vocabulary.kind == "llama" else f"byte-level BPE, {vocabulary.pre}"
    return Report(
        path=output,
        architecture=family.architecture,
        quant=quant,
        n_tensors=len(tensors),
        n_parameters=_parameters(build),
        n_bytes=file_bytes(keys, tensors),
        source_bytes=sum(s.n_bytes for s in checkpoint.sources.values()),
        n_vocab=len(vocabulary.texts),
        vocabulary=kind,
        types=tuple(sorted(((k, n, size) for k, (n, size) in types.items()), key=lambda t: -t[2])),
        tensors=tuple(tensors),
        notes=(*build.notes, *vocabulary.notes),
    )
