"""The tensors of a checkpoint folder: where each lies, and reading a range of its rows.

A folder holds `model.safetensors`, or shards named by `model.safetensors.index.json`, or (only with `allow_pickle`) PyTorch's
`.bin` files. Nothing is read before it is asked for, and then only the rows that are asked for: what a tensor needs in memory
is the caller's to choose.

Headers are checked as strictly as a GGUF file's: sizes against the file, ranges against each other, every dtype known.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lmi.errors import FileFormatError, UnsupportedModel

LARGEST_HEADER = 100_000_000  # bytes; as the safetensors library has it
LARGEST_JSON = 256 << 20
LONGEST_NAME = 500  # of a tensor, in characters
DEEPEST_JSON = 64
SCALE_BLOCK = 128  # F8 weights come with one scale for so many rows and columns

# dtype of a safetensors header -> (how numpy holds it, bytes). BF16 and F8 stay bits: numpy has no such numbers.
DTYPES = {
    "F64": ("<f8", 8),
    "F32": ("<f4", 4),
    "F16": ("<f2", 2),
    "BF16": ("<u2", 2),
    "F8_E4M3": ("u1", 1),
    "I64": ("<i8", 8),
    "I32": ("<i4", 4),
    "I16": ("<i2", 2),
    "I8": ("i1", 1),
    "U64": ("<u8", 8),
    "U32": ("<u4", 4),
    "U16": ("<u2", 2),
    "U8": ("u1", 1),
    "BOOL": ("u1", 1),
    "F8_E5M2": ("u1", 1),
}
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3"}


@dataclass(frozen=True)
class Source:
    """A tensor as it lies in the checkpoint. `read(begin, end)`: those rows (of the first dimension) as `dtype`'s numpy
    form."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]

    @property
    def n_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * DTYPES[self.dtype][1]


class Checkpoint:
    """`sources`: tensors by name. `files`: what they come from. Use as a context manager: it keeps files open."""

    def __init__(self, folder: str | os.PathLike, *, allow_pickle: bool = False):
        self.folder = Path(folder)
        self.sources: dict[str, Source] = {}
        self.files: list[str] = []
        self._open: list[int] = []
        self._pickles: list = []
        try:
            self._read_folder(allow_pickle)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def close(self) -> None:
        self.sources = {}
        self._pickles = []
        while self._open:
            os.close(self._open.pop())

    # ---- which files ----

    def _read_folder(self, allow_pickle: bool) -> None:
        require_folder(self.folder)
        for index, single, read in (
            ("model.safetensors.index.json", "model.safetensors", self._read_safetensors),
            ("pytorch_model.bin.index.json", "pytorch_model.bin", self._read_pickle),
        ):
            pickled = read == self._read_pickle
            if (self.folder / index).is_file():
                files, listed = self._shards(index)
            elif (self.folder / single).is_file():
                files, listed = [single], None
            else:
                continue
            if pickled and not allow_pickle:
                raise UnsupportedModel(
                    f"{self.folder} holds pickled weights ({files[0]}), which can run code when they are read",
                    "Convert them to safetensors first, or trust them with --allow-pickle",
                )
            for name in files:
                read(name)
            self.files = files
            if listed is not None:
                self._require_listed(index, listed)
            return
        found = sorted(p.name for p in self.folder.iterdir() if p.suffix == ".safetensors")
        if len(found) == 1 and "-of-" not in found[0]:
            self.files = found
            return self._read_safetensors(found[0])
        if found:
            raise FileFormatError(
                f"{self.folder} has {found[0]} but no model.safetensors.index.json", "Download the whole folder again"
            )
        raise FileFormatError(
            f"{self.folder} has no model.safetensors and no model.safetensors.index.json",
            "Give the folder of a Hugging Face checkpoint, with its weights downloaded",
        )

    def _shards(self, index: str) -> tuple[list[str], dict[str, str]]:
        listed = read_json(self.folder / index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()) or not listed:
            raise FileFormatError(f"{index}: weight_map is not a table of names", "Download the folder again")
        for name in listed:
            require_name(name, index)
        files = sorted(set(listed.values()))
        for name in files:
            self._inside(index, name)
        missing = [name for name in files if not (self.folder / name).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FileFormatError(f"shard {missing[0]} is missing{more} (of {len(files)})", "Download the folder again")
        return files, listed

    def _inside(self, index: str, name: str) -> None:
        """A shard is a plain name in the folder. What the name links to may lie elsewhere: caches of downloads are made so."""
        if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
            raise FileFormatError(f"{index} names a file outside the folder: {shown(name)}", "Do not use this checkpoint")

    def _require_listed(self, index: str, listed: dict[str, str]) -> None:
        missing = sorted(set(listed) - set(self.sources))
        if missing:
            raise FileFormatError(f"tensor {missing[0]} is listed in {index} but not in its shard", "Download the folder again")
        extra = sorted(set(self.sources) - set(listed))
        if extra:
            raise FileFormatError(f"tensor {extra[0]} is in a shard but not listed in {index}", "Download the folder again")

    def _add(self, source: Source, file: str) -> None:
        if source.name in self.sources:
            raise FileFormatError(f"tensor {source.name} is in {file} and in another file too", "Download the folder again")
        self.sources[source.name] = source

    # ---- safetensors ----

    def _read_safetensors(self, file: str) -> None:
        path = self.folder / file
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise FileFormatError(f"cannot read {path}: {e.strerror}", "Make it readable for this user") from None
        self._open.append(fd)
        size = os.fstat(fd).st_size
        for name, dtype, shape, begin, end in safetensors_header(fd, size, file):
            self._add(_lying_at(fd, path, name, dtype, shape, begin, end), file)

    # ---- pickles ----

    def _read_pickle(self, file: str) -> None:
        try:
            import torch
        except ImportError:
            raise UnsupportedModel("reading pickled weights needs PyTorch", "pip install 'lmi[torch]'") from None
        version = tuple(
            int("".join(c for c in part if c.isdigit()) or 0) for part in torch.__version__.split("+")[0].split(".")[:2]
        )
        if version < (2, 10):
            raise UnsupportedModel(
                f"PyTorch {torch.__version__} can be made to run code by a pickle (fixed in 2.10)",
                "pip install -U 'torch>=2.10'",
            )
        try:
            loaded = torch.load(self.folder / file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as e:  # whatever it is, it is not tried again with fewer checks
            why = " ".join(str(e).split())[:200]
            raise FileFormatError(f"{file} cannot be read as plain weights: {why}", "Convert it to safetensors first") from None
        if not isinstance(loaded, dict):
            raise FileFormatError(f"{file} holds no table of tensors", "Convert it to safetensors first")
        names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
        names |= {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL", torch.int8: "I8"}
        for name, t in loaded.items():
            require_name(name, file)
            if not isinstance(t, torch.Tensor) or t.dtype not in names:
                raise FileFormatError(
                    f"{file}: {shown(name)} is not a tensor of a known type", "Convert it to safetensors first"
                )
            self._add(_of_torch(name, names[t.dtype], t), file)


def require_folder(folder: Path) -> None:
    if not folder.exists():
        hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder))
        raise FileFormatError(
            f"no such folder: {folder}",
            f"If it is a name on the Hub, download it first: hf download {folder} --local-dir {folder.name}"
            if hub
            else "Give the folder of a Hugging Face checkpoint",
        )
    if not folder.is_dir():
        gguf = folder.suffix.lower() == ".gguf"
        raise FileFormatError(
            f"{folder} is not a folder",
            "To give a GGUF file other types: lmi quantize"
            if gguf
            else "Give the folder that holds config.json and the .safetensors files",
        )


def require_name(name, file: str) -> None:
    """Names of tensors go into messages, which go to terminals."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise FileFormatError(f"{file}: {shown(name)} is not the name of a tensor", "Do not use this checkpoint")


def safetensors_header(fd: int, size: int, file: str) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """(name, dtype, shape, first byte, byte behind the last) of every tensor, in the order of the file; all checked."""
    remedy = "Download it again"
    if size < 8:
        raise FileFormatError(f"{file} is too short for a safetensors file ({size} bytes)", remedy)
    n = int.from_bytes(os.pread(fd, 8, 0), "little")
    if n > LARGEST_HEADER:
        raise FileFormatError(f"{file} is not a safetensors file: its header would have {n:,} bytes", remedy)
    if n > size - 8:
        raise FileFormatError(
            f"{file} is incomplete: its header needs {n + 8:,} bytes, the file has {size:,}", remedy, offset=size
        )
    table = parse_json(os.pread(fd, n, 8), file)
    table.pop("__metadata__", None)
    found = []
    for name, entry in table.items():
        require_name(name, file)
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or kind not in DTYPES:
            raise UnsupportedModel(f"{file}: tensor {name} is of the type {shown(kind)}", f"Readable: {', '.join(DTYPES)}")
        shape, range_ = entry.get("shape"), entry.get("data_offsets")
        if not _naturals(shape) or not _naturals(range_) or len(range_) != 2 or len(shape) > 8:
            raise FileFormatError(f"{file}: the place of tensor {name} makes no sense", remedy)
        count = 1
        for d in shape:
            count *= d
        begin, end = range_
        if begin > end or end - begin != count * DTYPES[entry["dtype"]][1]:
            raise FileFormatError(
                f"{file}: tensor {name} of shape {shape} and type {entry['dtype']} cannot take {end - begin:,} bytes", remedy
            )
        found.append((name, entry["dtype"], tuple(shape), begin, end))
    found.sort(key=lambda entry: entry[3:])
    at = 0
    for name, _, _, begin, end in found:
        if begin != at:
            raise FileFormatError(
                f"{file}: tensor {name} does not begin where the one before it ends", remedy, offset=8 + n + begin
            )
        at = end
    if 8 + n + at > size:
        raise FileFormatError(
            f"{file} is incomplete: its tensors need {8 + n + at:,} bytes, the file has {size:,} "
            f"({100 * size // (8 + n + at)} %)",
            remedy,
            offset=size,
        )
    if 8 + n + at < size:
        raise FileFormatError(f"{file} has {size - 8 - n - at:,} bytes behind its last tensor", remedy, offset=8 + n + at)
    return [(name, dtype, shape, 8 + n + begin, 8 + n + end) for name, dtype, shape, begin, end in found]


def _naturals(value) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in value)


def _lying_at(fd: int, path: Path, name: str, dtype: str, shape: tuple[int, ...], begin: int, end: int) -> Source:
    form, _ = DTYPES[dtype]
    rows = shape[0] if shape else 1
    row_bytes = (end - begin) // rows if rows else 0

    def read(first: int, last: int) -> np.ndarray:
        data = np.empty((last - first) * row_bytes, np.uint8)
        view, at = memoryview(data), begin + first * row_bytes
        while view:
            got = os.preadv(fd, [view], at)
            if got <= 0:
                raise FileFormatError(
                    f"{path} became shorter while it was read", "Wait until whatever writes it is done", offset=at
                )
            view, at = view[got:], at + got
        return data.view(form).reshape(last - first, *shape[1:])

    return Source(name, dtype, shape, read)


def _of_torch(name: str, dtype: str, tensor) -> Source:
    def read(first: int, last: int) -> np.ndarray:
        import torch

        part = (tensor if tensor.ndim else tensor.reshape(1))[first:last].contiguous()
        if part.dtype == torch.bfloat16:
            part = part.view(torch.int16)
        return part.numpy().view(DTYPES[dtype][0]).copy()

    return Source(name, dtype, tuple(tensor.shape), read)


# ---- numbers ----------------------------------------------------------------------------------------------------


def to_float32(data: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as float32, exactly (float64: rounded)."""
    if dtype == "BF16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return _E4M3[data]
    return data.astype(np.float32, copy=False)


def _e4m3_values() -> np.ndarray:
    """All 256: sign, 4 bits of exponent with bias 7, 3 bits of mantissa; no infinities, NaN where all bits are set."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    values[(bits & 127) == 127] = np.nan
    return np.where(bits & 128, -values, values).astype(np.float32)


_E4M3 = _e4m3_values()


# ---- JSON -------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict:
    """A JSON object from a file that may be hostile: bounded in size and depth, no name twice."""
    return parse_json(read_bytes(path), path.name)


def read_bytes(path: Path) -> bytes:
    """A small file, whole."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise FileFormatError(f"{path} is not a regular file", "Give the folder of a Hugging Face checkpoint")
        if found.st_size > LARGEST_JSON:
            raise FileFormatError(
                f"{path} has {found.st_size:,} bytes, more than {LARGEST_JSON:,}", "Check where it comes from"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise FileFormatError(f"{path} is missing", "Give the folder of a Hugging Face checkpoint, downloaded whole") from None
    except OSError as e:
        raise FileFormatError(f"cannot read {path}: {e.strerror}", "Make it readable for this user") from None


def parse_json(data: bytes, file: str) -> dict:
    def once(pairs: list) -> dict:
        table = dict(pairs)
        if len(table) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1) if len(names) < 10_000 else "a name"
            raise FileFormatError(f"{file}: {shown(twice)} stands in it twice", "Download it again")
        return table

    if _too_deep(data):
        raise FileFormatError(f"{file} is nested deeper than {DEEPEST_JSON}", "Check where it comes from")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=once)
    except (UnicodeDecodeError, ValueError, RecursionError) as e:
        raise FileFormatError(f"{file} is not JSON: {' '.join(str(e).split())[:200]}", "Download it again") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"{file} is not a JSON object", "Download it again")
    if _SURROGATE.search(data):  # one half of a pair is no character, and cannot be written
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise FileFormatError(f"{file} has half a character in a text (\\ud800 to \\udfff)", "Download it again") from None
    return value


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


_BRACKETS = np.zeros(256, np.int8)
_BRACKETS[[ord("{"), ord("[")]] = 1
_BRACKETS[[ord("}"), ord("]")]] = -1


def _too_deep(data: bytes) -> bool:
    """Whether brackets open deeper than allowed. Those inside strings count too, so it may say yes wrongly; then the text is
    looked at again without its strings."""
    if not _depth_exceeds(data):
        return False
    kept, inside, escaped = bytearray(), False, False
    for byte in data:
        if inside:
            inside = escaped or byte != 0x22
            escaped = byte == 0x5C and not escaped
        elif byte == 0x22:
            inside, escaped = True, False
        else:
            kept.append(byte)
    return _depth_exceeds(bytes(kept))


def _depth_exceeds(data: bytes) -> bool:
    depth = 0
    for begin in range(0, len(data), 1 << 22):
        steps = np.cumsum(_BRACKETS[np.frombuffer(data, np.uint8, min(1 << 22, len(data) - begin), begin)], dtype=np.int64)
        if depth + int(steps.max(initial=0)) > DEEPEST_JSON:
            return True
        depth += int(steps[-1]) if len(steps) else 0
    return False


def shown(value, most: int = 60) -> str:
    """A value of a file in a message: on one line, not too long."""
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."
