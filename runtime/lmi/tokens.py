"""Text to tokens and back, as streams: thin owners of `lmi_encoder` and `lmi_decoder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lmi._native import Handle, check, native
from lmi.errors import RequireFit

BUFFER = 4096  # tokens taken from an encoder at once when nothing asks for a size


class Encoder(Handle):
    """A text on its way to tokens. `special`: control tokens are recognised by their text."""

    def __init__(self, model, special: bool):
        ffi, lib = native()
        self._error = ffi.new("lmi_error *")
        out = ffi.new("lmi_encoder **")
        with model.use() as pointer:
            check(lib.lmi_encoder_open(pointer, 1 if special else 0, out, self._error), self._error)
            super().__init__(out[0], lib.lmi_encoder_close, "encoder", parent=model, exclusive=True)
        self._feed, self._finish, self._take = lib.lmi_encoder_feed, lib.lmi_encoder_finish, lib.lmi_encoder_take

    def feed(self, block: bytes) -> None:
        with self.use() as e:
            check(self._feed(e, block, len(block), self._error), self._error)

    def finish(self) -> None:
        with self.use() as e:
            check(self._finish(e, self._error), self._error)

    def take(self, tokens, capacity: int) -> int:
        """Writes at most `capacity` ids that are certain by now to an int32_t *; returns how many."""
        with self.use() as e:
            return self._take(e, tokens, capacity)

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


class Decoder(Handle):
    """Tokens on their way to text: what comes out is always complete UTF-8."""

    def __init__(self, model, special: bool = False):
        ffi, lib = native()
        error, out = ffi.new("lmi_error *"), ffi.new("lmi_decoder **")
        with model.use() as pointer:
            check(lib.lmi_decoder_open(pointer, 1 if special else 0, out, error), error)
            super().__init__(out[0], lib.lmi_decoder_close, "decoder", parent=model, exclusive=True)
        self._size = ffi.new("size_t *")
        self._push, self._buffer = lib.lmi_decoder_push, ffi.buffer

    def push(self, token: int) -> str:
        """The text that this token completed; "" while a character is still incomplete. -1: the end."""
        with self.use() as d:
            text = self._push(d, token, self._size)
            n = self._size[0]
            return bytes(self._buffer(text, n)).decode("utf-8", "replace") if n else ""

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def encode_blocks(model, blocks: Iterator[bytes], special: bool) -> Iterator[list[int]]:
    """Ids of a text, in lists of at most BUFFER."""
    ffi, _ = native()
    buffer = ffi.new("int32_t[]", BUFFER)
    with Encoder(model, special) as encoder:

        def taken():
            while n := encoder.take(buffer, BUFFER):
                yield ffi.unpack(buffer, n)

        for block in blocks:
            encoder.feed(block)
            yield from taken()
        encoder.finish()
        yield from taken()


LEAD = b"\x01"  # a byte that is a token of its own in every SentencePiece vocabulary


def continuation(model) -> tuple[bytes, int]:
    """What to put before a text that continues another, and how many tokens of the result to leave out.

    SentencePiece vocabularies put a space before a text. A byte that joins with nothing takes it instead, and goes."""
    if model.vocabulary.kind != "spm":
        return b"", 0
    return LEAD, len(model.tokenize(LEAD, bos=False))


class Reader:
    """Gathers tokens from texts and ids and has a session read them in whole chunks, whatever they came from.

    `skip`: tokens at the start that the session has read already. `limit`: the position that reading may not pass, else
    RequireFit. `progress(position)` is called after each chunk. Nothing is read before a chunk is full: call `flush` last.
    """

    def __init__(self, session, *, skip: int = 0, limit: int | None = None, progress: Callable[[int], object] | None = None):
        ffi, _ = native()
        self._session = session
        self._chunk = session.plan.chunk
        self._buffer = ffi.new("int32_t[]", self._chunk)
        self._n = 0
        self._limit = limit
        self._progress = progress
        self.skip = skip
        self.n_read = 0
        self.n_taken = 0  # tokens seen, skipped ones included

    def ids(self, tokens) -> None:
        for token in tokens:
            self._buffer[self._n] = token
            self._advance(1)

    def text(self, blocks: Iterator[bytes], special: bool = False, continues: bool = False) -> None:
        """`continues`: the text goes on from what was read, so that it does not get the space that a SentencePiece
        vocabulary puts before a text."""
        lead, drop = continuation(self._session.model) if continues else (b"", 0)
        with Encoder(self._session.model, special) as encoder:
            if lead:
                encoder.feed(lead)
            for block in blocks:
                encoder.feed(block)
                drop = self._drain(encoder, drop)
            encoder.finish()
            self._drain(encoder, drop)

    def _drain(self, encoder: Encoder, drop: int) -> int:
        """Takes what is certain, without its first `drop` tokens; returns how many are still to be dropped."""
        while n := encoder.take(self._buffer + self._n, self._chunk - self._n):
            gone = min(drop, n)
            drop -= gone
            if gone and gone < n:
                native()[0].memmove(self._buffer + self._n, self._buffer + self._n + gone, 4 * (n - gone))
            self._advance(n - gone)
        return drop

    def _advance(self, n: int) -> None:
        """n tokens were put behind the others in the buffer."""
        if not n:
            return
        self.n_taken += n
        self._n += n
        if self.skip:
            gone = min(self.skip, self._n)
            self.skip -= gone
            self._n -= gone
            if self._n:
                native()[0].memmove(self._buffer, self._buffer + gone, 4 * self._n)
        if self._limit is not None and self._session.position + self._n > self._limit:
            text = f"the prompt does not fit: more than {self._limit:,} tokens, of which the first would go out of view"
            raise RequireFit(text, "Larger window: --window; or leave out --require-fit")
        if self._n == self._chunk:
            self.flush()

    def flush(self) -> None:
        if self._n:
            n, self._n = self._n, 0
            self._session._read(self._buffer, n)
            self.n_read += n
            if self._progress:
                self._progress(self._session.position)
