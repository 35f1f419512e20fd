"""A tensor that is made when it is asked for, piece by piece.

A `Matrix` knows its shape and how to make its rows one after another; ops on it (permute the rows of a head, split a fused
projection, stack experts, add one) change how, and make nothing. A piece is a few megabytes, or one head, or one expert, so the
largest tensor of a model never has to be in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmi_convert.checkpoint import SCALE_BLOCK, Source, to_float32

PIECE_BYTES = 32 << 20


@dataclass(frozen=True)
class Matrix:
    """`pieces()` yields arrays whose rows, one after another, are those of the matrix: [n][..., shape[-1]] as float32, or, with
    `dtype` BF16 or F16, as the bits of such numbers."""

    shape: tuple[int, ...]
    dtype: str  # "F32", "F16" or "BF16": of its pieces
    pieces: Callable[[], Iterator[np.ndarray]]
    origin: str = ""  # name in the checkpoint, for messages

    @property
    def rows(self) -> int:
        n = 1
        for d in self.shape[:-1]:
            n *= d
        return n

    def floats(self) -> Iterator[np.ndarray]:
        """The pieces as float32, [n][shape[-1]]."""
        for piece in self.pieces():
            yield np.ascontiguousarray(to_float32(piece, self.dtype).reshape(-1, self.shape[-1]))

    def mapped(self, change: Callable[[np.ndarray], np.ndarray]) -> Matrix:
        """Every value changed, in float32."""
        return replace(self, dtype="F32", pieces=lambda: (change(piece) for piece in self.floats()))

    def shaped(self, *shape: int) -> Matrix:
        """The same values in another shape with the same last dimension, or a vector as a vector."""
        return replace(self, shape=shape)

    def values(self) -> np.ndarray:
        """The whole matrix as float32: for small ones."""
        return np.concatenate([piece.reshape(-1) for piece in self.floats()]).reshape(self.shape)


def constant(values: Sequence[float]) -> Matrix:
    data = np.asarray(values, np.float32)
    return Matrix(data.shape, "F32", lambda: iter([data.reshape(1, -1)]))


def rows_of(
    source: Source,
    ranges: Sequence[tuple[int, int]] | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    scales: Source | None = None,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Matrix:
    """Rows of a tensor of the checkpoint: all, or those of `ranges` of its first dimension one after another. `change`: what
    happens to the rows of one range, as an array of the stored type; ranges are not cut then. `scales`: of F8 weights."""
    whole = ranges is None
    ranges = [(0, source.shape[0] if source.shape else 1)] if whole else list(ranges)
    if shape is None:
        shape = (sum(last - first for first, last in ranges), *source.shape[1:]) if source.shape else (1,)
    width = max(1, source.n_bytes // max(1, source.shape[0] if source.shape else 1))
    step = max(1, PIECE_BYTES // width)
    if scales is not None:
        step = max(SCALE_BLOCK, step // SCALE_BLOCK * SCALE_BLOCK)

    def read(first: int, last: int) -> np.ndarray:
        data = source.read(first, last)
        if scales is not None:
            return scaled(data, source, scales, first)
        return to_float32(data, source.dtype) if source.dtype not in ("BF16", "F16") else data

    def pieces() -> Iterator[np.ndarray]:
        for first, last in ranges:
            if change is not None:
                yield change(read(first, last))
            else:
                for at in range(first, last, step):
                    yield read(at, min(last, at + step))

    def vector() -> Iterator[np.ndarray]:
        yield np.concatenate(list(pieces())).reshape(1, -1)

    if len(shape) == 1 and len(source.shape) == 1:
        return Matrix(shape, source.dtype if source.dtype in ("BF16", "F16") else "F32", vector, source.name)
    return Matrix(shape, source.dtype if source.dtype in ("BF16", "F16") else "F32", pieces, source.name)


def scaled(data: np.ndarray, source: Source, scales: Source, first: int) -> np.ndarray:
    """F8 weights times the scale of their block of 128 x 128, or of the whole tensor. `first`: row of data[0]."""
    table = to_float32(scales.read(0, scales.shape[0] if scales.shape else 1), scales.dtype)
    values = to_float32(data, source.dtype)
    if table.size == 1:
        return values * table.reshape(())
    last_row = first + len(values) - 1
    table = table[first // SCALE_BLOCK : last_row // SCALE_BLOCK + 1]
    by_row = np.repeat(table, SCALE_BLOCK, 0)[first % SCALE_BLOCK :][: len(values)]
    return values * np.repeat(by_row, SCALE_BLOCK, 1)[:, : values.shape[1]]


def stacked(parts: Sequence[Matrix]) -> Matrix:
    """[n, ...] of n equal ones."""
    dtype = parts[0].dtype if all(p.dtype == parts[0].dtype for p in parts) else "F32"

    def pieces() -> Iterator[np.ndarray]:
        for part in parts:
            yield from part.pieces() if part.dtype == dtype else part.floats()

    return Matrix((len(parts), *parts[0].shape), dtype, pieces, parts[0].origin)


def joined(parts: Sequence[Matrix]) -> Matrix:
    """Rows of several matrices of the same width one after another."""
    flat = stacked(parts)
    return replace(flat, shape=(sum(p.shape[0] for p in parts), *parts[0].shape[1:]))


# ---- orders of rows ---------------------------------------------------------------------------------------------


def adjacent_pairs(heads: int) -> Callable[[Matrix | Source], list]:
    """Hugging Face's q and k hold, per head, first the first halves of all rotated pairs, then the second; files of `llama`
    hold pair after pair. This is the order of rows of one head that makes the latter from the former."""

    def change(rows: np.ndarray) -> np.ndarray:
        half = rows.shape[0] // 2
        return rows.reshape(2, half, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)

    return lambda n: [((h * n // heads, (h + 1) * n // heads), change) for h in range(heads)]
