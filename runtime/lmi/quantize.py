"""Tensors to blocks and back: the library's encoders, for numpy arrays.

    blocks = quantize(values, "Q4_K", importance=column_weights)
    again = dequantize(blocks, "Q4_K")

Calls release the GIL and use `threads` threads; what they give does not depend on how many.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lmi import errors
from lmi._native import check, native, text_of

_KINDS = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}


@dataclass(frozen=True)
class TypeInfo:
    """A tensor type: `number` in GGUF files; rows are whole blocks of `block_values` values in `block_bytes` bytes."""

    name: str
    number: int
    block_values: int
    block_bytes: int

    @property
    def quantized(self) -> bool:
        """False of F32, F16 and BF16."""
        return self.block_values > 1

    def row_bytes(self, cols: int) -> int:
        """Raises InvalidArgument where a row is not whole blocks."""
        if cols <= 0 or cols % self.block_values:
            raise errors.InvalidArgument(f"rows of {cols} values are not whole blocks of {self.block_values} ({self.name})")
        return cols // self.block_values * self.block_bytes


@lru_cache(maxsize=64)
def type_info(kind: str) -> TypeInfo:
    """Raises UnsupportedModel for a name that is not a type."""
    ffi, lib = native()
    info, error = ffi.new("lmi_type_info *"), ffi.new("lmi_error *")
    check(lib.lmi_type_find(kind.encode(), info, error), error)
    return TypeInfo(text_of(info.name), info.number, info.block_values, info.block_bytes)


def quantize(
    values: np.ndarray,
    kind: str,
    *,
    source: str | None = None,
    cols: int | None = None,
    importance: np.ndarray | None = None,
    threads: int | None = None,
    allow_nonfinite: bool = False,
    first_row: int = 0,
) -> np.ndarray:
    """Rows of values as blocks of type `kind`: uint8, [rows][bytes of a row].

    `values`: float32 or float16, [..., cols]; or, with `source`, the bits of numbers of another type: uint16 for "BF16", or
    bytes
    of any blocks with `cols` values a row. `importance`: [cols], how much the square of an error in a column counts.
    `first_row`:
    number of the first row in error messages.

    Raises InvalidArgument for a value that the type cannot hold (NaN, infinity, over 65504), by row and column. F32, F16 and
    BF16
    take NaN and infinity with `allow_nonfinite`.
    """
    ffi, lib = native()
    values = np.ascontiguousarray(values)
    if source is None:
        if values.dtype not in _KINDS:
            raise errors.InvalidArgument(f"arrays of {values.dtype} need a source type")
        source = _KINDS[values.dtype]
    to, from_type = type_info(kind), type_info(source)
    if cols is None:
        item = from_type.block_bytes
        if from_type.quantized or values.dtype.itemsize != item or not values.ndim:
            raise errors.InvalidArgument(f"{values.dtype} [{values.ndim} dimensions] are not rows of {source}")
        cols = values.shape[-1]
    row = from_type.row_bytes(cols)
    if not values.nbytes or values.nbytes % row:
        raise errors.InvalidArgument(f"{values.nbytes:,} bytes are not rows of {cols} values of {source}")
    rows = values.nbytes // row
    blocks = np.empty((rows, to.row_bytes(cols)), np.uint8)
    options, error = ffi.new("lmi_quantize_options *"), ffi.new("lmi_error *")
    lib.lmi_quantize_options_default(options)
    options.n_threads = threads or 0
    options.allow_nonfinite = 1 if allow_nonfinite and not to.quantized else 0
    options.first_row = first_row
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        if importance.shape != (cols,):
            raise errors.InvalidArgument(f"importance of shape {importance.shape} for rows of {cols} values")
        options.importance = ffi.from_buffer("float[]", importance)
    status = lib.lmi_quantize(
        source.encode(),
        ffi.from_buffer(values.reshape(-1).view(np.uint8)),
        values.nbytes,
        kind.encode(),
        ffi.from_buffer(blocks),
        blocks.nbytes,
        rows,
        cols,
        options,
        error,
    )
    check(status, error)
    return blocks


def dequantize(blocks: np.ndarray, kind: str) -> np.ndarray:
    """Blocks of type `kind` as float32: [rows][cols] from [rows][bytes of a row], else [values]."""
    ffi, lib = native()
    blocks = np.ascontiguousarray(blocks)
    info = type_info(kind)
    if not blocks.nbytes or blocks.nbytes % info.block_bytes:
        raise errors.InvalidArgument(f"{blocks.nbytes:,} bytes are not whole blocks of {info.block_bytes} ({kind})")
    n = blocks.nbytes // info.block_bytes * info.block_values
    values = np.empty(n, np.float32)
    error = ffi.new("lmi_error *")
    data = ffi.from_buffer(blocks.reshape(-1).view(np.uint8))
    check(lib.lmi_dequantize(kind.encode(), data, blocks.nbytes, ffi.from_buffer("float[]", values), n, error), error)
    return values.reshape(blocks.shape[0], -1) if blocks.ndim == 2 else values
