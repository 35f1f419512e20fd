"""A vocabulary opened through lmi.h: encode, decode, look at tokens."""

from contextlib import contextmanager
from pathlib import Path

from door import call


class Tokens:
    def __init__(self, native, pointer) -> None:
        self.native, self.pointer = native, pointer
        self.ffi, self.lib = native
        self.info = self.ffi.new("lmi_vocab_info *")
        call(native, "lmi_model_get_vocab", pointer, self.info)
        self.n_vocab = self.info.n_vocab
        self.encoders = {}

    def close(self) -> None:
        for encoder in self.encoders.values():
            self.lib.lmi_encoder_close(encoder)

    def _encoder(self, special: bool):
        if special not in self.encoders:
            place = self.ffi.new("lmi_encoder **")
            call(self.native, "lmi_encoder_open", self.pointer, special, place)
            self.encoders[special] = place[0]
        return self.encoders[special]

    def _take(self, encoder) -> list[int]:
        ids, buffer = [], self.ffi.new("int32_t[]", 4096)
        while n := self.lib.lmi_encoder_take(encoder, buffer, 4096):
            ids += self.ffi.unpack(buffer, n)
        return ids

    def encode(self, text: str | bytes, *, special: bool = False, cuts: list[int] | None = None) -> list[int]:
        """`cuts`: bytes at which the text is fed in parts; what is certain is taken after each part."""
        data = text.encode() if isinstance(text, str) else text
        encoder, ids, at = self._encoder(special), [], 0
        for cut in [*(cuts or []), len(data)]:
            call(self.native, "lmi_encoder_feed", encoder, data[at:cut], cut - at)
            at = cut
            if cuts:
                ids += self._take(encoder)
        call(self.native, "lmi_encoder_finish", encoder)
        return ids + self._take(encoder)

    def count(self, unit: bytes, n: int, feed: int = 65536) -> int:
        """Number of tokens of `unit` repeated n times, fed in parts: for texts too long for lists."""
        encoder, buffer = self._encoder(False), self.ffi.new("int32_t[]", 1 << 16)
        part = unit * max(1, feed // len(unit))
        total = 0
        left = unit * n if len(unit) * n <= len(part) else None
        for at in range(0, len(unit) * n, len(part)):
            size = min(len(part), len(unit) * n - at)
            call(self.native, "lmi_encoder_feed", encoder, left if left is not None else part, size)
            while taken := self.lib.lmi_encoder_take(encoder, buffer, 1 << 16):
                total += taken
        call(self.native, "lmi_encoder_finish", encoder)
        while taken := self.lib.lmi_encoder_take(encoder, buffer, 1 << 16):
            total += taken
        return total

    def text(self, token: int, *, special: bool = False) -> bytes:
        size = self.lib.lmi_model_token_text(self.pointer, token, special, self.ffi.NULL, 0)
        text = self.ffi.new("char[]", size + 1)
        assert self.lib.lmi_model_token_text(self.pointer, token, special, text, size) == size
        return self.ffi.buffer(text, size)[:]

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """Through the decoder, one token at a time: each step must give whole UTF-8."""
        place, size = self.ffi.new("lmi_decoder **"), self.ffi.new("size_t *")
        call(self.native, "lmi_decoder_open", self.pointer, special, place)
        try:
            parts = []
            for token in [*ids, -1]:
                text = self.lib.lmi_decoder_push(place[0], token, size)
                parts.append(self.ffi.buffer(text, size[0])[:].decode("utf-8"))
            return "".join(parts)
        finally:
            self.lib.lmi_decoder_close(place[0])

    @property
    def ends(self) -> set[int]:
        return {token for token in range(self.n_vocab) if self.lib.lmi_model_is_end_token(self.pointer, token)}

    def ids(self) -> tuple[int, int, int, int, int]:
        return self.info.bos, self.info.eos, self.info.unk, self.info.add_bos, self.info.add_eos


@contextmanager
def open_tokens(native, path: Path):
    ffi, lib = native
    options = ffi.new("lmi_model_options *")
    lib.lmi_model_options_default(options)
    options.vocab_only = 1
    options.n_threads = 1
    place = ffi.new("lmi_model **")
    call(native, "lmi_model_open", str(path).encode(), options, place)
    tokens = None
    try:
        tokens = Tokens(native, place[0])
        yield tokens
    finally:
        if tokens is not None:
            tokens.close()
        lib.lmi_model_close(place[0])
