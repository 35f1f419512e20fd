"""Writes a GGUF v3 file: whole or not at all, one tensor in memory at a time, the same bytes every time.

    keys = {"general.architecture": string("llama"), "llama.block_count": u32(2), "tokenizer.ggml.tokens": strings(tokens)}
    tensors = [Tensor("token_embd.weight", (512, 64), "Q8_0", lambda: [blocks])]
    write("model.gguf", keys, tensors)

`write` is what there is to call. What it does, in order: refuses an existing file (without `overwrite`), checks the room on the
disk, writes to `model.gguf.partial-PID-RANDOM` beside it, pulls the data of each tensor only when its turn comes, fsyncs, lets
the strict reader of the library open the result (`verify`), renames, fsyncs the folder. Whatever ends it early (an exception
of a tensor's data, a signal turned into an exception, a full disk) removes the partial file and leaves what had the name
before as it was.

Keys are written in the order of the dict, tensors in the order of the list. Raises `lmi.errors.OutputError` where the file
cannot be written; what the tensors' own functions raise comes through.
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lmi import errors
from lmi.formats import human_bytes

ALIGNMENT = 32
MAGIC, VERSION = 0x46554747, 3
PIECE = 64 << 20  # bytes given to one call of write: a signal is noticed between two
LONGEST_NAME = 63  # bytes of a tensor's name that every reader takes

# ---- values of keys ---------------------------------------------------------------------------------------------

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64 = 4, 5, 6, 7, 8, 9, 10


@dataclass(frozen=True)
class Value:
    """A value as it lies in the file: `kind` is GGUF's number of its type, `data` the bytes that follow that number. One read
    from another file can be passed on as it is."""

    kind: int
    data: bytes


def u32(value: int) -> Value:
    return Value(_U32, struct.pack("<I", value))


def u64(value: int) -> Value:
    return Value(_U64, struct.pack("<Q", value))


def i32(value: int) -> Value:
    return Value(_I32, struct.pack("<i", value))


def f32(value: float) -> Value:
    return Value(_F32, struct.pack("<f", value))


def boolean(value: bool) -> Value:
    return Value(_BOOL, struct.pack("<?", value))


def string(value: str | bytes) -> Value:
    return Value(_STRING, _text(value))


def strings(values: Sequence[str | bytes]) -> Value:
    return _array(_STRING, len(values), b"".join(map(_text, values)))


def i32s(values: Sequence[int]) -> Value:
    return _array(_I32, len(values), struct.pack(f"<{len(values)}i", *values))


def u32s(values: Sequence[int]) -> Value:
    return _array(_U32, len(values), struct.pack(f"<{len(values)}I", *values))


def f32s(values: Sequence[float]) -> Value:
    return _array(_F32, len(values), struct.pack(f"<{len(values)}f", *values))


def booleans(values: Sequence[bool]) -> Value:
    return _array(_BOOL, len(values), bytes(bool(v) for v in values))


def _text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def _array(kind: int, n: int, data: bytes) -> Value:
    return Value(_ARRAY, struct.pack("<IQ", kind, n) + data)


# ---- tensors ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """`shape`: slowest dimension first, as numpy has it. `type`: by its name, "F32", "Q4_K". `data()`: called once, when its
    turn comes; gives the bytes in order, as any number of buffers (C-contiguous numpy arrays, bytes). They must add up to
    `n_bytes`."""

    name: str
    shape: tuple[int, ...]
    type: str
    data: Callable[[], Iterable]

    @property
    def n_bytes(self) -> int:
        return tensor_bytes(self.shape, self.type)

    @property
    def n_values(self) -> int:
        n = 1
        for d in self.shape:
            n *= d
        return n


def type_sizes(kind: str) -> tuple[int, int, int]:
    """(GGUF's number of the type, values of a block, bytes of a block)"""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    number = GGMLQuantizationType[kind]
    return (int(number), *GGML_QUANT_SIZES[number])


def tensor_bytes(shape: Sequence[int], kind: str) -> int:
    _, values, size = type_sizes(kind)
    if not shape or shape[-1] % values:
        raise errors.InvalidArgument(
            f"rows of {shape[-1] if shape else 0} values cannot be stored in blocks of {values} ({kind})"
        )
    n = size
    for d in (*shape[:-1], shape[-1] // values):
        n *= d
    return n


# ---- the file ---------------------------------------------------------------------------------------------------


def header(keys: Mapping[str, Value], tensors: Sequence[Tensor]) -> bytes:
    """Everything before the data of the tensors, padding included."""
    parts = [struct.pack("<IIQQ", MAGIC, VERSION, len(tensors), len(keys))]
    for key, value in keys.items():
        parts += [_text(key), struct.pack("<I", value.kind), value.data]
    offset, seen = 0, set()
    for t in tensors:
        name = t.name.encode()
        if t.name in seen or not 0 < len(name) <= LONGEST_NAME or not 1 <= len(t.shape) <= 4:
            raise errors.InternalError(f"tensor {t.name!r} of shape {t.shape} cannot be written")
        seen.add(t.name)
        parts += [_text(name), struct.pack("<I", len(t.shape)), struct.pack(f"<{len(t.shape)}Q", *reversed(t.shape))]
        parts.append(struct.pack("<IQ", type_sizes(t.type)[0], offset))
        offset += _padded(t.n_bytes)
    data = b"".join(parts)
    return data + bytes(_padded(len(data)) - len(data))


def file_bytes(keys: Mapping[str, Value], tensors: Sequence[Tensor]) -> int:
    """Size of the file that `write` would write."""
    return len(header(keys, tensors)) + sum(_padded(t.n_bytes) for t in tensors)


def write(
    path: str | os.PathLike,
    keys: Mapping[str, Value],
    tensors: Sequence[Tensor],
    *,
    overwrite: bool = False,
    verify: Callable[[str], object] | None = None,
    progress: Callable[[Tensor, int], object] | None = None,
) -> int:
    """Writes the file; returns its size. `verify(partial path)`: looks at the finished file before it gets its name and
    raises if it is not sound; None is `read_back`. `progress(tensor, bytes written so far)`: before each tensor."""
    path = os.fspath(path)
    require_writable(path, overwrite=overwrite)
    head = header(keys, tensors)
    total = len(head) + sum(_padded(t.n_bytes) for t in tensors)
    with _partial(path, total) as (partial, out):
        done = out(head)
        for t in tensors:
            if progress:
                progress(t, done)
            n = 0
            for piece in t.data():
                n += out(piece)
            if n != t.n_bytes:
                raise errors.InternalError(f"tensor {t.name}: {n:,} bytes were made, {t.n_bytes:,} announced")
            done += n + out(bytes(_padded(n) - n))
        (verify or read_back)(partial)
        if not overwrite and os.path.lexists(path):
            raise _exists(path)
    return total


def write_pieces(
    path: str | os.PathLike, pieces: Sequence[bytes], *, overwrite: bool = False, verify: Callable[[str], object]
) -> int:
    """Writes a file of another kind in the same way; returns its size."""
    path = os.fspath(path)
    require_writable(path, overwrite=overwrite)
    total = sum(map(len, pieces))
    with _partial(path, total) as (partial, out):
        for piece in pieces:
            out(piece)
        verify(partial)
        if not overwrite and os.path.lexists(path):
            raise _exists(path)
    return total


def read_back(path: str) -> None:
    """Opens a file with the library's strict reader: header, extents, every shape against the hyper-parameters, vocabulary."""
    from lmi import Model

    try:
        Model(path, device="cpu").close()
    except errors.Error as e:
        raise errors.InternalError(
            f"the file that was written does not read back: {e.message}", "Please report this; nothing was left behind"
        ) from e


def require_writable(path: str, *, overwrite: bool) -> None:
    """What can be known before any work is done: OutputError for an existing file, a missing or read-only folder."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise errors.OutputError(f"cannot write {path}: it is a folder", f"Name a file: {os.path.join(path, 'model.gguf')}")
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)
    if os.path.lexists(path) and not os.path.isfile(path):
        raise errors.OutputError(f"cannot write {path}: it is not a regular file", "Name another file")
    if not os.path.isdir(folder):
        raise errors.OutputError(f"cannot write {path}: no such folder: {folder}", "Make the folder first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise errors.OutputError(f"cannot write {path}: no permission to write in {folder}", "Name a file in another folder")


def stale_partials(path: str, *, older_than: float = 86400.0) -> list[str]:
    """Partial files of this name that a killed run left behind more than a day ago. They are reported, never used."""
    folder, name = os.path.dirname(path) or ".", os.path.basename(path)
    found = []
    try:
        for entry in os.scandir(folder):
            if (
                entry.name.startswith(f"{name}.partial-")
                and time.time() - entry.stat(follow_symlinks=False).st_mtime > older_than
            ):
                found.append(entry.path)
    except OSError:
        pass
    return sorted(found)


@contextmanager
def _partial(path: str, total: int):
    """(its path, a function that appends a buffer and returns its size). Given the name of `path` if all went well."""
    partial, fd = f"{path}.partial-{os.getpid()}-{secrets.token_hex(4)}", -1

    def append(data) -> int:
        with _told(path, total):
            return _append(fd, data)

    try:
        with _told(path, total):
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)
            _require_room(path, total)
        yield partial, append
        with _told(path, total):
            os.fchmod(fd, _mode(path))
            os.fsync(fd)
            fd, closing = -1, fd
            os.close(closing)
            os.rename(partial, path)
            partial = None
        _sync_folder(os.path.dirname(path) or ".")
    finally:
        if fd >= 0:
            try:
                os.close(fd)
            except OSError:
                pass
        if partial is not None:
            try:
                os.unlink(partial)
            except OSError:
                pass


@contextmanager
def _told(path: str, total: int):
    """Errors of the system, said as errors of this file."""
    try:
        yield
    except OSError as e:
        raise _failed(path, total, e) from e


def _append(fd: int, data) -> int:
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += os.write(fd, view[done : done + PIECE])
    return len(view)


def _padded(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def _require_room(path: str, total: int) -> None:
    if _free(path) < total:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _free(path: str) -> int:
    room = os.statvfs(os.path.dirname(path) or ".")
    return room.f_bavail * room.f_frsize


def _mode(path: str) -> int:
    """Permissions of the file that is replaced, or those a new file gets. /proc is asked for the mask because umask() can only
    be asked by changing it, for all threads."""
    try:
        return os.stat(path).st_mode & 0o777
    except OSError:
        pass
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            mask = next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
    except (OSError, StopIteration, ValueError):
        mask = 0o022
    return 0o666 & ~mask


def _sync_folder(folder: str) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:
        return  # it may be written but not read: the name is there, only a power cut could still undo it
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)


def _exists(path: str) -> errors.OutputError:
    return errors.OutputError(f"{path} exists", "Add --force to replace it")


def _failed(path: str, total: int, e: OSError) -> errors.OutputError:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            free = f", {human_bytes(_free(path))} free"
        except OSError:
            free = ""
        what = f"no space left (needs {human_bytes(total)}{free})"
        remedy = "Free some space, or name a file on another disk"
    elif e.errno == errno.EFBIG:
        what, remedy = (
            f"{human_bytes(total)} is larger than files may be here",
            "Name a file on another disk, or raise ulimit -f",
        )
    elif e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what = "no permission to write there" if e.errno != errno.EROFS else "the disk is read-only"
        remedy = "Name a file in another folder"
    else:
        what, remedy = e.strerror or type(e).__name__, "Name a file in another place"
    return errors.OutputError(f"cannot write {path}: {what}; nothing was left behind", remedy)
