"""What lies in a GGUF file: its keys as bytes to pass on, its tensors to read in parts.

`open_stored` trusts nothing: every count and extent is compared with the size of the file before it is used. It reads all parts
of a split file (`-00001-of-00003.gguf`).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from lmi.errors import FileFormatError, UnsupportedModel
from lmi.quantize import TypeInfo, type_info

from lmi_convert.mix import KINDS
from lmi_convert.writer import ALIGNMENT, Value

_SIZES = {
    0: 1,
    1: 1,
    2: 2,
    3: 2,
    4: 4,
    5: 4,
    6: 4,
    7: 1,
    10: 8,
    11: 8,
    12: 8,
}  # bytes of values of fixed size, by GGUF's numbers
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_MOST_HEADER = 1 << 30


@dataclass(frozen=True)
class Stored:
    """A tensor of a file. `shape`: fastest-running dimension last."""

    name: str
    shape: tuple[int, ...]
    type: TypeInfo
    path: str
    offset: int

    @property
    def rows(self) -> int:
        n = 1
        for d in self.shape[:-1]:
            n *= d
        return n

    @property
    def row_bytes(self) -> int:
        return self.type.row_bytes(self.shape[-1])

    @property
    def n_bytes(self) -> int:
        return self.rows * self.row_bytes

    def read(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Rows [first, last) as bytes: uint8, [rows][bytes of a row]."""
        last = self.rows if last is None else last
        data = np.empty((last - first, self.row_bytes), np.uint8)
        with open(self.path, "rb", buffering=0) as f:
            f.seek(self.offset + first * self.row_bytes)
            view = memoryview(data.reshape(-1))
            while len(view):
                n = f.readinto(view)
                if not n:
                    raise FileFormatError(
                        f"{self.path} became shorter while it was read", "Leave it alone until the run is over"
                    )
                view = view[n:]
        return data

    def parts(self, most_bytes: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows of at most `most_bytes`, none across two matrices of a stack."""
        matrix = self.shape[-2] if len(self.shape) > 1 else 1
        step = max(1, min(matrix, most_bytes // max(1, self.row_bytes)))
        for base in range(0, self.rows, matrix):
            for at in range(base, base + matrix, step):
                yield at, min(at + step, base + matrix)


@dataclass(frozen=True)
class StoredFile:
    """`keys`: of the first part, without those that say how the file is split."""

    paths: tuple[str, ...]
    keys: dict[str, Value]
    tensors: tuple[Stored, ...]

    def number(self, key: str, default: int = 0) -> int:
        """An integer key; of an array of them the largest."""
        value = self.keys.get(key)
        if value is None:
            return default
        kind, data = value.kind, value.data
        if kind == _ARRAY:
            kind, n = struct.unpack_from("<IQ", data)
            size = _SIZES.get(kind, 0)
            items = [struct.unpack_from(_FORMATS[kind], data, 12 + i * size)[0] for i in range(n)] if size else []
            return int(max(items, default=default))
        return int(struct.unpack(_FORMATS[kind], data)[0]) if kind in _FORMATS else default

    def text(self, key: str, default: str = "") -> str:
        value = self.keys.get(key)
        return value.data[8:].decode("utf-8", "replace") if value is not None and value.kind == _STRING else default


def part_paths(path: str) -> list[str]:
    """The files of a split model, of which `path` is one; else `path` alone."""
    found = _PART.search(path)
    if not found:
        return [path]
    n = int(found.group(2))
    paths = [f"{path[: found.start()]}-{i + 1:05}-of-{n:05}.gguf" for i in range(n)]
    missing = [p for p in paths if not os.path.isfile(p)]
    if missing:
        raise FileFormatError(f"{len(missing)} of {n} parts are missing: {missing[0]}", "Put all parts into one folder")
    return paths


def open_stored(path: str) -> StoredFile:
    """Raises FileFormatError, UnsupportedModel (a tensor of a type that cannot be decoded)."""
    from lmi.model import require_model_file

    keys: dict[str, Value] = {}
    tensors: dict[str, Stored] = {}
    paths = part_paths(path)
    for i, part in enumerate(paths):
        require_model_file(part)
        with open(part, "rb") as f:
            found, stored = _Header(f, part).read()
        keys = found if i == 0 else keys
        for t in stored:
            if t.name in tensors:
                raise FileFormatError(f"two tensors have the name {t.name}")
            tensors[t.name] = t
    keys = {name: value for name, value in keys.items() if not name.startswith("split.")}
    return StoredFile(tuple(paths), keys, tuple(tensors.values()))


class _Header:
    def __init__(self, f, path: str):
        self.f, self.path, self.size = f, path, os.fstat(f.fileno()).st_size
        self.at = 0

    def fail(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {what}", offset=self.at)

    def take(self, n: int) -> bytes:
        if n > self.size - self.at or self.at + n > _MOST_HEADER:
            raise self.fail(f"the header ends within a field at byte {self.at:,}")
        data = self.f.read(n)
        if len(data) != n:
            raise self.fail("the file became shorter while it was read")
        self.at += n
        return data

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> bytes:
        head = self.take(8)
        return head + self.take(struct.unpack("<Q", head)[0])

    def name(self) -> str:
        try:
            return self.string()[8:].decode()
        except UnicodeDecodeError:
            raise self.fail(f"a name that is not UTF-8 before byte {self.at:,}") from None

    def value(self, kind: int) -> bytes:
        if kind in _SIZES:
            return self.take(_SIZES[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise self.fail(f"there is no value type {kind} (byte {self.at:,})")
        head = self.take(12)
        element, n = struct.unpack("<IQ", head)
        if element in _SIZES:
            return head + self.take(n * _SIZES[element])
        if element != _STRING or n > (self.size - self.at) // 8:
            raise self.fail(f"an array of {n:,} values of type {element} (byte {self.at:,})")
        parts = [head]
        for _ in range(n):
            parts.append(self.string())
        return b"".join(parts)

    def read(self) -> tuple[dict[str, Value], list[Stored]]:
        if self.take(4) != b"GGUF" or self.number("<I") not in (2, 3):
            raise self.fail("not a GGUF file of version 2 or 3")
        n_tensors, n_keys = self.number("<Q"), self.number("<Q")
        if n_tensors > self.size // 24 or n_keys > self.size // 13:
            raise self.fail(f"{n_tensors:,} tensors and {n_keys:,} keys do not fit into the file")
        keys: dict[str, Value] = {}
        for _ in range(n_keys):
            name = self.name()
            if name in keys:
                raise self.fail(f"the key {name} appears twice")
            kind = self.number("<I")
            keys[name] = Value(kind, self.value(kind))
        infos = [self.info() for _ in range(n_tensors)]
        alignment = keys.pop("general.alignment", None)
        step = struct.unpack("<I", alignment.data)[0] if alignment is not None and alignment.kind == 4 else ALIGNMENT
        if step < 8 or step > 65536 or step & (step - 1):
            raise self.fail(f"alignment of {step} bytes")
        start = -(-self.at // step) * step
        stored = []
        for name, shape, kind, offset in infos:
            t = Stored(name, shape, kind, self.path, start + offset)
            if t.offset + t.n_bytes > self.size:
                raise self.fail(f"tensor {name} needs bytes up to {t.offset + t.n_bytes:,}, the file has {self.size:,}")
            stored.append(t)
        return keys, stored

    def info(self) -> tuple[str, tuple[int, ...], TypeInfo, int]:
        name = self.name()
        n_dims = self.number("<I")
        if not 1 <= n_dims <= 4:
            raise self.fail(f"tensor {name} has {n_dims} dimensions")
        shape = struct.unpack(f"<{n_dims}Q", self.take(8 * n_dims))[::-1]
        number, offset = self.number("<I"), self.number("<Q")
        kind = _types().get(number)
        if kind is None:
            raise UnsupportedModel(f"tensor {name} is of type {number}, which cannot be read", "Take a file of another type")
        n = 1
        for d in shape:
            n *= d
        if not 0 < n <= 1 << 48 or shape[-1] % kind.block_values:
            raise self.fail(f"tensor {name} has the shape {list(shape)}")
        return name, shape, kind, offset


@lru_cache(maxsize=1)
def _types() -> dict[int, TypeInfo]:
    return {type_info(kind).number: type_info(kind) for kind in KINDS}
