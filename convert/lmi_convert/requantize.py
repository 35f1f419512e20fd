"""A GGUF file with other tensor types: `requantize("model-f16.gguf", "model.gguf", "Q4_K_M")`.

A few megabytes of one tensor are in memory at a time. Tensors that the mix leaves alone, or that have their type already, are
passed on as they are, and so are all keys but the two that name the types.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from lmi.errors import InvalidArgument, OutputError
from lmi.quantize import quantize, type_info

from lmi_convert.importance import Importance
from lmi_convert.mix import Mix, Override, Shape, choose, find_mix
from lmi_convert.stored import Stored, StoredFile, open_stored
from lmi_convert.writer import Tensor, Value, file_bytes, require_writable, u32, write

PART_BYTES = 16 << 20  # of a source tensor: what is encoded between two looks at signals
QUANTIZATION_VERSION = 2  # of the block layouts, as GGUF counts them


@dataclass(frozen=True)
class Plan:
    """What will be written. `changes`: (tensor, type it has, type it gets), in the order of the file. `lossy`: bytes of source
    tensors that were quantized before and will be quantized again. `unfit`: tensors that get another type than the mix
    says, their rows not being whole blocks of that."""

    source: StoredFile
    mix: Mix
    keys: dict[str, Value]
    tensors: list[Tensor]
    changes: list[tuple[Stored, str]]
    n_bytes: int
    lossy: int
    without_importance: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)


def shape_of(file: StoredFile) -> Shape:
    """What the rules of a mix ask, from the keys of the file."""
    architecture = file.text("general.architecture")
    heads = file.number(f"{architecture}.attention.head_count", 1)
    return Shape(
        architecture,
        n_layers=file.number(f"{architecture}.block_count"),
        n_heads=heads,
        n_kv_heads=file.number(f"{architecture}.attention.head_count_kv", heads),
        n_experts=file.number(f"{architecture}.expert_count"),
    )


def make_plan(
    source: str,
    mix: str,
    *,
    overrides: Sequence[Override] = (),
    importance: Importance | None = None,
    threads: int | None = None,
    on_part: Callable[[int], object] | None = None,
) -> Plan:
    """Everything but the writing. `on_part(bytes)`: after each part of a source tensor."""
    file = open_stored(source)
    if not file.tensors:
        raise InvalidArgument(f"{source} has no tensors: it holds a vocabulary only")
    chosen_mix = find_mix(mix)
    named = [(t.name, t.shape) for t in file.tensors]
    kinds = choose(mix, named, shape_of(file), overrides=overrides, importance=importance is not None)
    tensors, changes, lossy, without, unfit = [], [], 0, [], []
    block = type_info(chosen_mix.kind).block_values
    for t, wanted in zip(file.tensors, kinds):
        kind = wanted or t.type.name
        weights = None
        if wanted and t.shape[-1] % block:
            unfit.append(t.name)
        if kind != t.type.name:
            lossy += t.n_bytes if t.type.quantized else 0
            if importance is not None:
                weights = importance.of(t.name, t.shape)
                if weights is None:
                    without.append(t.name)
        changes.append((t, kind))
        tensors.append(Tensor(t.name, t.shape, kind, lambda t=t, k=kind, w=weights: _encoded(t, k, w, threads, on_part)))
    keys = dict(file.keys)
    keys["general.file_type"] = u32(chosen_mix.file_type)
    keys["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    return Plan(file, chosen_mix, keys, tensors, changes, file_bytes(keys, tensors), lossy, without, unfit)


def requantize(
    source: str,
    target: str,
    mix: str,
    *,
    overrides: Sequence[Override] = (),
    importance: Importance | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[Tensor, int], object] | None = None,
    on_part: Callable[[int], object] | None = None,
    plan: Plan | None = None,
) -> int:
    """Writes `target`, whole or not at all; returns its size. Raises FileFormatError, UnsupportedModel, InvalidArgument (a
    value that its type cannot hold, by tensor, row and column), OutputError."""
    plan = plan or make_plan(source, mix, overrides=overrides, importance=importance, threads=threads, on_part=on_part)
    require_other(plan.source.paths, target)
    require_writable(target, overwrite=overwrite)
    return write(target, plan.keys, plan.tensors, overwrite=overwrite, progress=progress)


def require_other(sources: Sequence[str], target: str) -> None:
    """Raises OutputError where the target is one of the sources: it is read while the target is written."""
    for path in sources:
        try:
            same = os.path.samefile(path, target)
        except OSError:
            same = False
        if same:
            raise OutputError(f"cannot write {target}: it is the file to be read", "Name another file")


def _encoded(t: Stored, kind: str, weights: np.ndarray | None, threads, on_part) -> Iterator[np.ndarray]:
    matrix = t.shape[-2] if len(t.shape) > 1 else 1
    for first, last in t.parts(PART_BYTES):
        data = t.read(first, last)
        if kind != t.type.name:
            columns = None if weights is None else weights[first // matrix]
            try:
                data = quantize(
                    data, kind, source=t.type.name, cols=t.shape[-1], importance=columns, threads=threads, first_row=first
                )
            except InvalidArgument as e:
                raise InvalidArgument(f"tensor {t.name}: {e.message}", e.remedy) from None
        yield data
        if on_part:
            on_part((last - first) * t.row_bytes)
