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


class TokenStream:
    """Gathers tokens from ids and texts in a buffer of `capacity`, and hands it on when it is full.

    Texts that follow each other are one text to the vocabulary. Each is encoded for itself, so that control tokens can be
    recognised in one and not in the other; what joins them is whether a text begins after a control token, where a
    SentencePiece vocabulary puts its space, or goes on from another. `began`: there was text before.
    """

    def __init__(self, model, capacity: int, *, began: bool = False):
        ffi, _ = native()
        self._model = model
        self._capacity = capacity
        self._buffer = ffi.new("int32_t[]", capacity)
        self._n = 0
        self._continues = began
        self.n_taken = 0

    def ids(self, tokens) -> None:
        """Tokens as they are. Control tokens are recognised as such by what follows."""
        token = None
        for token in tokens:
            self._buffer[self._n] = token
            self._advance(1)
        if token is not None:
            self._continues = bool(self._model.token_text(token, special=False))

    def text(self, blocks: Iterator[bytes], special: bool = False) -> None:
        """Blocks of UTF-8. `special`: control tokens are recognised in it."""
        lead, drop = continuation(self._model) if self._continues else (b"", 0)
        last = -1
        with Encoder(self._model, special) as encoder:

            def drain():
                nonlocal drop, last
                while n := encoder.take(self._buffer + self._n, self._capacity - self._n):
                    gone = min(drop, n)
                    drop -= gone
                    if gone and gone < n:
                        native()[0].memmove(self._buffer + self._n, self._buffer + self._n + gone, 4 * (n - gone))
                    if n > gone:
                        last = self._buffer[self._n + n - gone - 1]
                        self._advance(n - gone)

            if lead:
                encoder.feed(lead)
            for block in blocks:
                encoder.feed(block)
                drain()
            encoder.finish()
            drain()
        if last >= 0:
            self._continues = not special or bool(self._model.token_text(last, special=False))

    def _advance(self, n: int) -> None:
        """n tokens were put behind the others in the buffer."""
        self.n_taken += n
        self._n += n
        if self._n == self._capacity:
            self.flush()

    def flush(self) -> None:
        """Hands on what is in the buffer."""
        self._n = 0


class Counter(TokenStream):
    """Only counts: `n_taken`."""

    def __init__(self, model):
        super().__init__(model, BUFFER)


class Reader(TokenStream):
    """Has a session read the tokens in whole chunks, whatever they came from.

    `skip`: tokens at the start that the session has read already. `limit`: the position that reading may not pass, else
    RequireFit. `progress(position)` is called after each chunk. Nothing is read before a chunk is full: call `flush` last.
    """

    def __init__(self, session, *, skip: int = 0, limit: int | None = None, progress: Callable[[int], object] | None = None):
        super().__init__(session.model, session.plan.chunk, began=session.position > skip)
        self._session = session
        self._limit = limit
        self._progress = progress
        self.skip = skip
        self.n_read = 0

    def _advance(self, n: int) -> None:
        if self.skip:
            gone = min(self.skip, n)
            self.skip -= gone
            if n > gone:
                native()[0].memmove(self._buffer + self._n, self._buffer + self._n + gone, 4 * (n - gone))
            self.n_taken += gone
            n -= gone
        if self._limit is not None and self._session.position + self._n + n > self._limit:
            text = f"the prompt does not fit: more than {self._limit:,} tokens, of which the first would go out of view"
            raise RequireFit(text, "Larger window: --window; or leave out --require-fit")
        super()._advance(n)

    def flush(self) -> None:
        if self._n:
            n, self._n = self._n, 0
            self._session._read(self._buffer, n)
            self.n_read += n
            if self._progress:
                self._progress(self._session.position)
