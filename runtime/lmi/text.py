"""Text as a stream of bytes that are known to be UTF-8. Never holds more than a block."""

from __future__ import annotations

import codecs
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import nullcontext

from lmi.errors import InvalidArgument, PromptError

BLOCK = 4096  # bytes given to the tokenizer at once: about a thousand tokens, so that progress is shown as it is
CHECK_BLOCK = 1 << 20
ANONYMOUS, PIPED, TYPED = "text", "standard input", "the text that was typed"  # what text without a file is called in messages


def blocks_of(source, size: int = BLOCK) -> Iterator[bytes | str]:
    """Pieces of a str, bytes, open file (text or binary) or iterable of str or bytes."""
    if isinstance(source, str):
        for i in range(0, len(source), size):
            yield source[i : i + size]
    elif isinstance(source, (bytes, bytearray, memoryview)):
        view = memoryview(source).cast("B")
        for i in range(0, len(view), size):
            yield bytes(view[i : i + size])
    elif hasattr(source, "read"):
        while block := source.read(size):
            yield block
    elif isinstance(source, Iterable):
        for item in source:
            if not isinstance(item, (str, bytes, bytearray, memoryview)):
                raise InvalidArgument(f"text must come as str or bytes, not {type(item).__name__}")
            yield from blocks_of(item, size)
    else:
        raise InvalidArgument(f"text must be str, bytes, a file object or an iterable of them, not {type(source).__name__}")


def utf8_blocks(source, *, name: str = ANONYMOUS, errors: str = "strict", size: int = BLOCK) -> Iterator[bytes]:
    """The same as blocks of valid UTF-8 (cut anywhere). A UTF-8 byte order mark at the start is left out.

    `errors`: "strict" raises PromptError with the offset and line of the first bad byte, "replace" puts U+FFFD there.
    """
    if errors not in ("strict", "replace"):
        raise InvalidArgument(f"errors must be 'strict' or 'replace', not {errors!r}")
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    offset, line, start = 0, 1, True
    held = b""  # bytes of a code point that the last block cut
    for block in blocks_of(source, size):
        if isinstance(block, str):
            block = _encoded(block, name, errors)
        if start:
            block = held + block
            if len(block) < 3 and block in (b"\xef\xbb", b"\xef", b"\xff", b"\xfe"):
                held = block
                continue
            start, held = False, b""
            if block[:2] in (b"\xff\xfe", b"\xfe\xff") and errors == "strict":
                wide = "32" if block[:4] == b"\xff\xfe\0\0" else "16"
                raise PromptError(f"{name} is UTF-{wide}, not UTF-8", _iconv(name, f"utf-{wide}"))
            if block[:3] == b"\xef\xbb\xbf":
                block, offset = block[3:], 3
        try:
            text = decoder.decode(block)
        except UnicodeDecodeError as e:
            _refuse(e, name, offset - len(held), line)
        if errors == "replace":
            if text:
                yield text.encode()
        elif block:
            yield block
        held = decoder.getstate()[0]
        offset += len(block)
        line += block.count(b"\n")
    if start and held:
        offset, held = 0, held
    try:
        rest = decoder.decode(held if start else b"", True)
    except UnicodeDecodeError as e:
        _refuse(e, name, 0 if start else offset - len(held), line)
    if errors == "replace" and rest:
        yield rest.encode()


def _encoded(block: str, name: str, errors: str) -> bytes:
    try:
        return block.encode("utf-8", "strict")
    except UnicodeEncodeError as e:  # a lone surrogate, which UTF-8 cannot hold
        if errors == "replace":
            return block.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
        where = f"character {e.start:,}"
        raise PromptError(
            f"{name} holds a lone surrogate U+{ord(block[e.start]):04X} ({where})", "Use errors='replace'"
        ) from None


def _refuse(e: UnicodeDecodeError, name: str, base: int, line: int):
    """`base`: offset in the text of the first byte that the decoder saw in e.object; `line`: of the first new byte."""
    bad = e.object[e.start]
    line += e.object[: e.start].count(b"\n")
    what = f"{name} is not UTF-8: byte 0x{bad:02X} at offset {base + e.start:,} (line {line:,})"
    remedy = _iconv(name, "latin1")
    if name == ANONYMOUS:
        remedy = "Pass errors='replace' to read it anyway"
    elif name != TYPED:
        remedy += ", or --errors replace"
    raise PromptError(what, remedy, base + e.start) from None


def _iconv(name: str, encoding: str) -> str:
    convert = f"iconv -f {encoding} -t utf-8"
    if name == TYPED:
        return "Give it as a file, with --prompt"
    return f"Send it through: {convert}" if name in (PIPED, ANONYMOUS) else f"Try: {convert} {shlex.quote(name)}"


def typed(text: str) -> str:
    """What was typed on the command line, as UTF-8 whatever the locale made of it. Raises PromptError."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return b"".join(utf8_blocks(os.fsencode(text), name=TYPED)).decode()


def looks_binary(sample: bytes) -> bool:
    """More than one byte in ten is a control character other than tab, line feed, form feed, return or escape."""
    if not sample:
        return False
    control = sum(sample.count(bytes([c])) for c in range(32) if c not in (9, 10, 12, 13, 27))
    return control * 10 > len(sample)


class TextFile:
    """A file of text, opened to be read once as a stream. `size`: bytes, or None for a pipe; `done`: bytes given so far;
    `waiting`: a context manager entered while a pipe is waited for. Raises PromptError if it cannot be opened."""

    def __init__(
        self, path: str | os.PathLike | None, *, stream=None, errors: str = "strict", waiting=nullcontext, kind: str = "prompt"
    ):
        self.waiting = waiting
        self.name = PIPED if path is None else os.fspath(path)
        self.errors = errors
        self.done = 0
        self.binary = False
        if stream is None:
            stream = _open_text(self.name, kind)
        self._stream = stream
        self.size = _regular_size(stream)

    def check(self) -> int:
        """Reads a regular file through and back to its start, so that a bad byte is found before an hour of work; returns
        its bytes. Of a pipe nothing is read, and None returned."""
        if self.size is None:
            return None
        start = self._stream.tell()
        self.binary = looks_binary(self._stream.read(65536))
        self._stream.seek(start)
        for _ in utf8_blocks(self._stream, name=self.name, errors=self.errors, size=CHECK_BLOCK):
            pass
        self._stream.seek(start)
        return self.size

    def has_bytes(self) -> bool:
        """False for an empty file. Waits for the first bytes of a pipe."""
        if self.size is not None:
            return self.size > 0
        with self.waiting():
            return bool(self._stream.peek(1))

    def blocks(self) -> Iterator[bytes]:
        """Valid UTF-8, block by block."""

        def counted():
            read = getattr(self._stream, "read1", self._stream.read)  # a pipe is read as it comes
            while block := self._next(read):
                self.done += len(block)
                yield block

        return utf8_blocks(counted(), name=self.name, errors=self.errors)

    def _next(self, read) -> bytes:
        if self.size is not None:
            return read(BLOCK)
        with self.waiting():
            return read(BLOCK)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> TextFile:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def _open_text(path: str, kind: str):
    try:
        return open(path, "rb")
    except FileNotFoundError:
        remedy = "For literal text use --text" if kind == "prompt" else ""
        raise PromptError(f"no such {kind} file: {path}", remedy) from None
    except IsADirectoryError:
        raise PromptError(f"{path} is a directory, not a text file") from None
    except OSError as e:
        raise PromptError(f"cannot read {path}: {e.strerror or e}") from None


def _regular_size(stream) -> int | None:
    import stat

    try:
        status = os.fstat(stream.fileno())
        return status.st_size - stream.tell() if stat.S_ISREG(status.st_mode) else None
    except (OSError, ValueError, AttributeError):
        return None
