"""Importance matrices: for each matrix of a model the mean square of what each of its columns was multiplied with.

Reads both forms in which llama.cpp writes them, and writes the newer. The old one (`.dat`) has no magic number: a count, then
per entry its name, how often it was called, and the sums divided by that in part. The new one is a GGUF file with
`NAME.in_sum2` and `NAME.counts`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from lmi.errors import FileFormatError, PromptError

from lmi_convert import writer

_MOST_ENTRIES, _MOST_NAME, _MOST_VALUES = 1 << 20, 1 << 16, 1 << 31


@dataclass(frozen=True)
class Importance:
    """`columns`: by name of the tensor, float32 [matrices of a stack][columns]. `dataset`, `chunks`: of what text, or "", 0."""

    columns: dict[str, np.ndarray]
    dataset: str = ""
    chunks: int = 0

    def of(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """[matrices][columns] for a tensor; None if it was not seen. Raises FileFormatError where the sizes do not agree."""
        found = self.columns.get(name)
        if found is None:
            return None
        n = 1
        for d in shape[:-2]:
            n *= d
        if found.size != n * shape[-1]:
            if name == "token_embd.weight":  # its rows are looked up, not multiplied
                return None
            raise FileFormatError(
                f"the importance matrix has {found.size:,} values for {name}, which has {n * shape[-1]:,} columns",
                "It was made for another model",
            )
        return found.reshape(n, shape[-1])


def read_importance(path: str) -> Importance:
    """Raises FileFormatError."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as f:
            found = _read_gguf(path) if f.read(4) == b"GGUF" else _read_old(path, size)
    except OSError as e:
        raise FileFormatError(
            f"cannot read the importance matrix {path}: {e.strerror or e}", "lmi imatrix makes such a file"
        ) from None
    for name, values in found.columns.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise FileFormatError(f"the importance matrix {path} has negative or infinite values for {name}", "Make it again")
    if not found.columns:
        raise FileFormatError(f"{path} holds no importance matrix", "lmi imatrix makes such a file")
    return found


def _read_gguf(path: str) -> Importance:
    from lmi_convert.stored import open_stored

    file = open_stored(path)
    tensors = {t.name: t for t in file.tensors}
    columns = {}
    for name, sums in tensors.items():
        if not name.endswith(".in_sum2"):
            continue
        stem = name.removesuffix(".in_sum2")
        counts = tensors.get(f"{stem}.counts")
        if (
            counts is None
            or sums.type.name != "F32"
            or counts.type.name != "F32"
            or counts.rows * counts.shape[-1] != sums.rows
        ):
            raise FileFormatError(f"{path}: {name} has no counts that fit")
        total = sums.read().view(np.float32).reshape(sums.rows, sums.shape[-1])
        count = counts.read().view(np.float32).reshape(sums.rows, 1)
        # What was never reached (an expert that no token chose) says nothing: all its columns are alike.
        columns[stem] = np.where(count > 0, total / np.maximum(count, 1), np.float32(1)).astype(np.float32)
    return Importance(columns, "", file.number("imatrix.chunk_count"))


def _read_old(path: str, size: int) -> Importance:
    with open(path, "rb") as f:
        data = f.read()
    at = 0

    def take(form: str):
        nonlocal at
        n = struct.calcsize(form)
        if at + n > len(data):
            raise FileFormatError(f"{path} is not an importance matrix, or is incomplete", offset=at)
        value = struct.unpack_from(form, data, at)[0]
        at += n
        return value

    def text(n: int) -> str:
        nonlocal at
        if not 0 <= n <= _MOST_NAME or at + n > len(data):
            raise FileFormatError(f"{path} is not an importance matrix, or is incomplete", offset=at)
        at += n
        return data[at - n : at].decode("utf-8", "replace")

    entries = take("<i")
    if not 1 <= entries <= _MOST_ENTRIES:
        raise FileFormatError(f"{path} is not an importance matrix: it begins with {entries}")
    columns = {}
    for _ in range(entries):
        name, calls, n = text(take("<i")), take("<i"), take("<i")
        if not 1 <= n <= _MOST_VALUES or at + 4 * n > size:
            raise FileFormatError(f"{path} is incomplete: {n:,} values of {name!r} at byte {at:,}")
        values = np.frombuffer(data, "<f4", n, at).astype(np.float32)
        at += 4 * n
        columns[name] = (values / calls if calls > 0 else values).reshape(1, -1)
    chunks = take("<i") if at + 4 <= len(data) else 0
    dataset = text(take("<i")) if at + 4 <= len(data) else ""
    return Importance(columns, dataset, chunks)


def collect(
    model,
    blocks: Iterable[bytes],
    path: str | os.PathLike,
    *,
    dataset: str = "",
    limit: int | None = None,
    overwrite: bool = False,
    opened: Callable[[object], object] | None = None,
    progress: Callable[[int], object] | None = None,
    **options,
) -> int:
    """Reads a text with `model` as one stream and writes what its matrices were multiplied with. Returns how many tokens.

    `limit`: stop after so many tokens. `dataset`: the text's name, kept in the file. `opened(session)`, then
    `progress(position)` after each chunk. Other options as for `Model.session`. Raises PromptError for an empty text,
    OutputError, Cancelled.
    """
    writer.require_writable(os.fspath(path), overwrite=overwrite)
    tokens = (token for ids in model.iter_tokens_of_blocks(blocks) for token in ids)
    with model.session(**options, importance=True) as session:
        if opened:
            opened(session)
        n = session.read_tokens(islice(tokens, limit), progress=progress)
        if n < 2:
            raise PromptError("the text is empty", "Some thousand tokens are the least that is of use")
        found, chunk = session.importance(), session.plan.chunk
    keys = {
        "general.type": writer.string("imatrix"),
        "imatrix.datasets": writer.strings([dataset]),
        "imatrix.chunk_count": writer.u32(-(-n // chunk)),
        "imatrix.chunk_size": writer.u32(chunk),
    }
    tensors = []
    for name, (squares, counts) in found.items():
        tensors.append(_tensor(f"{name}.in_sum2", squares))
        tensors.append(_tensor(f"{name}.counts", counts.reshape(-1, 1)))
    writer.write(path, keys, tensors, overwrite=overwrite, verify=read_importance)
    return n


def _tensor(name: str, values: np.ndarray) -> writer.Tensor:
    return writer.Tensor(name, values.shape, "F32", lambda: [values.astype(np.float32)])
