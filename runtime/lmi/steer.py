"""Steers (LM-Steer, arXiv 2305.12798): files that shift what a model writes towards a style, by an amount of choice.

Before the output matrix a hidden state c becomes c + epsilon alpha (c P1) P2^T, summed over all steers. A file holds P1 and P2
as safetensors, and the fingerprint of the model file that they were trained for.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from lmi import errors
from lmi._native import check, native
from lmi.plan import integer, real

FORMAT = "lmi.steer.1"
MOST_HEADER = 1 << 20  # bytes
MOST_BYTES = 1 << 30  # of factors: a rank of 8192 at a width of 16384
MOST_ALPHA = 1e6
_NAMES = ("p1", "p2")


@dataclass(frozen=True)
class Steer:
    """`p1`, `p2`: float32 [n_embd][rank], as bytes; `fingerprint`: of the model file; `notes`: how it was made."""

    path: str
    n_embd: int
    rank: int
    epsilon: float
    fingerprint: str
    notes: dict[str, str] = field(default_factory=dict)
    p1: bytes = field(default=b"", repr=False)
    p2: bytes = field(default=b"", repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike, model=None) -> Steer:
        """Raises FileFormatError for a file that is not a sound steer, StateError for one of another model than `model`."""
        path = os.fspath(path)
        try:
            with open(path, "rb", opener=_open_at_once) as file:
                return cls._of(file, path, model)
        except FileNotFoundError:
            raise errors.FileFormatError(f"no such file: {path}", "lmi steer train makes such a file") from None
        except (OSError, ValueError) as e:  # ValueError: a name with a NUL
            raise errors.FileFormatError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from None

    @classmethod
    def _of(cls, file, path: str, model) -> Steer:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise errors.FileFormatError(f"{path} is not a plain file")
        head = file.read(8)
        n = int.from_bytes(head, "little")
        if len(head) < 8 or n > MOST_HEADER or n > status.st_size - 8:
            raise _bad(path, "it is not a safetensors file, or it is incomplete")
        table = _parse(file.read(n), path)
        n_embd, rank = _shape(table, path)
        size = 4 * n_embd * rank
        if status.st_size != 8 + n + 2 * size:
            raise _bad(path, f"its header tells of {8 + n + 2 * size:,} bytes, the file has {status.st_size:,}")
        notes = table["__metadata__"]
        steer = cls(path, n_embd, rank, _epsilon(notes, path), notes["fingerprint"], notes)
        if model is not None:
            steer.require(model)
        data = file.read(2 * size)
        if len(data) != 2 * size:
            raise _bad(path, "it became shorter while it was read")
        if not math.isfinite(sum(_floats(data))):
            raise _bad(path, "it holds numbers that are not finite")
        begin = {name: table[name]["data_offsets"][0] for name in _NAMES}
        p1, p2 = (data[begin[name] : begin[name] + size] for name in _NAMES)
        return cls(path, n_embd, rank, steer.epsilon, steer.fingerprint, notes, p1, p2)

    def require(self, model) -> None:
        """Raises StateError if this is a steer of another model file."""
        if self.fingerprint != model.fingerprint or self.n_embd != model.info.n_embd:
            raise errors.StateError(
                f"{self.path} was trained for another model file than {model.path}",
                f"Train it for this one: lmi steer train {model.path}",
            )

    def pieces(self) -> list[bytes]:
        """What the file holds, as `lmi_convert.writer.write_pieces` takes it."""
        size = len(self.p1)
        places = {"p1": [0, size], "p2": [size, 2 * size]}
        facts = {"format": FORMAT, "fingerprint": self.fingerprint, "epsilon": repr(self.epsilon)}
        table = {"__metadata__": {**self.notes, **facts}}
        for name, place in places.items():
            table[name] = {"dtype": "F32", "shape": [self.n_embd, self.rank], "data_offsets": place}
        header = json.dumps(table, ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8)
        return [len(header).to_bytes(8, "little"), header, self.p1, self.p2]


def _open_at_once(path, flags):
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe is refused, not waited for


def _bad(path: str, why: str) -> errors.FileFormatError:
    return errors.FileFormatError(f"{path} is not a steer: {why}", "lmi steer train makes such a file")


def _parse(header: bytes, path: str) -> dict:
    def once(pairs):
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError
        return table

    try:
        table = json.loads(header.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise _bad(path, "its header is not JSON, or names something twice") from None
    if not isinstance(table, dict) or set(table) != {"__metadata__", *_NAMES}:
        raise _bad(path, "it must hold the tensors p1 and p2, and metadata")
    notes = table["__metadata__"]
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise _bad(path, "its metadata are not texts")
    if notes.get("format") != FORMAT:
        raise _bad(path, f"its metadata do not say format {FORMAT}")
    print_ = notes.get("fingerprint", "")
    if len(print_) != 64 or not set(print_) <= set("0123456789abcdef"):
        raise _bad(path, "its metadata lack the model's fingerprint")
    return table


def _shape(table: dict, path: str) -> tuple[int, int]:
    shapes, places = [], []
    for name in _NAMES:
        entry = table[name] if isinstance(table[name], dict) else {}
        shape, place = entry.get("shape"), entry.get("data_offsets")
        if entry.get("dtype") != "F32":
            raise _bad(path, f"{name} is not float32 (F32)")
        if not _pair(shape) or not _pair(place) or place[1] - place[0] != 4 * shape[0] * shape[1]:
            raise _bad(path, f"the shape and place of {name} make no sense")
        shapes.append(shape)
        places.append(place)
    n_embd, rank = shapes[0]
    if shapes[1] != shapes[0] or not 1 <= rank <= n_embd or 8 * n_embd * rank > MOST_BYTES:
        raise _bad(path, f"factors of {shapes[0]} and {shapes[1]} numbers; they have the same shape, at most square")
    if sorted(places) != [[0, 4 * n_embd * rank], [4 * n_embd * rank, 8 * n_embd * rank]]:
        raise _bad(path, "its tensors overlap or leave gaps")
    return n_embd, rank


def _pair(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(v) is int and 0 <= v < 1 << 40 for v in value)


def _epsilon(notes: dict, path: str) -> float:
    try:
        value = float(notes.get("epsilon", ""))
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise _bad(path, "its metadata lack an epsilon of at most 1")
    return value


def _floats(data: bytes) -> array:
    values = array("f")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


# ---- in use ---------------------------------------------------------------------------------------------------------


def load(model, pairs: Iterable) -> list[tuple[Steer, float]]:
    """[(path or Steer, alpha), ...] with the files read, everything checked against the model."""
    loaded = []
    for pair in pairs or ():
        try:
            which, alpha = pair
        except (TypeError, ValueError):
            raise errors.InvalidArgument(f"a steer is a pair (file, alpha), not {pair!r}") from None
        alpha = real(alpha, "alpha", -MOST_ALPHA, MOST_ALPHA)
        if isinstance(which, Steer):
            which.require(model)
        else:
            which = Steer.read(which, model)
        loaded.append((which, alpha))
    return loaded


def resolve(model, options: dict) -> tuple[dict, list[tuple[Steer, float]]]:
    """Options of a session without `steer`, which becomes room for the ranks of all; and the steers, loaded."""
    steers = load(model, options.get("steer"))
    needed = sum(s.rank for s, _ in steers)
    rank = max(needed, integer(options.get("steer_rank") or 0, "steer_rank", 0))
    return {**{k: v for k, v in options.items() if k != "steer"}, "steer_rank": rank}, steers


def apply(session_pointer, steers: list[tuple[Steer, float]], error) -> None:
    """Puts these in force in a session of the library."""
    ffi, lib = native()
    c = ffi.new("lmi_steer[]", max(1, len(steers)))
    keep = []
    for i, (steer, alpha) in enumerate(steers):
        factors = [ffi.from_buffer("float[]", _floats(data)) for data in (steer.p1, steer.p2)]
        keep.append(factors)
        c[i].p1, c[i].p2 = factors
        c[i].rank, c[i].alpha, c[i].epsilon = steer.rank, alpha, steer.epsilon
    check(lib.lmi_session_set_steers(session_pointer, c, len(steers), error), error)
