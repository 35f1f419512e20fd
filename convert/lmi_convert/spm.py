"""`tokenizer.model`: a SentencePiece model, read as the protocol buffer that it is."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from lmi.errors import FileFormatError, UnsupportedModel

from lmi_convert.checkpoint import read_bytes, shown
from lmi_convert.tokens import ADDED_SCORE, BYTE, CONTROL, MOST_TOKENS, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Added, Vocabulary


def read_sentencepiece(path: Path, added: dict[int, Added]) -> Vocabulary:
    pieces, trainer, normalizer = _proto(path)
    kind = trainer.get(3, 1)
    if kind != 2:
        name = {1: "Unigram", 3: "word", 4: "character"}.get(kind, str(kind))
        raise UnsupportedModel(
            f"{path.name} is a {name} vocabulary", "Only byte-pair vocabularies of SentencePiece can be read"
        )
    texts: list[str | bytes] = [text for text, _, _ in pieces]
    scores = [score for _, score, _ in pieces]
    types = [type_ for _, _, type_ in pieces]
    for token in sorted(added):
        a = added[token]
        while token >= len(texts):
            texts.append(f"[PAD{len(texts)}]")
            scores.append(ADDED_SCORE)
            types.append(UNUSED)
        if types[token] == NORMAL and texts[token] != a.text and not a.special:
            raise FileFormatError(
                f"token {token} is {shown(texts[token])} in {path.name}, {shown(a.text)} as an added one",
                "Download the folder again",
            )
        if types[token] in (UNKNOWN, BYTE) and texts[token] == a.text:
            continue
        texts[token] = a.text
        if types[token] == UNUSED or token >= len(pieces):
            scores[token] = ADDED_SCORE
        types[token] = CONTROL if a.special else USER_DEFINED
    v = Vocabulary("llama", texts, types, scores)
    v.space_prefix = bool(normalizer.get(3, 1))
    v.single_blanks = bool(normalizer.get(4, 1))
    for name, number in (("unk", 40), ("bos", 41), ("eos", 42), ("pad", 43)):
        token = trainer.get(number, {"unk": 0, "bos": 1, "eos": 2, "pad": -1}[name])
        if 0 <= token < len(texts):
            v.special[name] = token
    v.add_bos, v.add_eos = True, False
    return v


def _proto(path: Path) -> tuple[list[tuple[str, float, int]], dict[int, int], dict[int, int]]:
    """Pieces (text, score, type) and the numbers of trainer and normalizer, by field, of a SentencePiece model. Its format is
    that of protocol buffers: (field << 3 | form, value) after one another."""
    try:
        data = memoryview(read_bytes(path))
        pieces: list[tuple[str, float, int]] = []
        numbers: dict[int, dict[int, int]] = {2: {}, 3: {}}
        for number, value in _fields(data):
            if number == 1 and isinstance(value, memoryview):
                text, score, type_ = "", 0.0, NORMAL
                for inner, v in _fields(value):
                    if inner == 1 and isinstance(v, memoryview):
                        text = bytes(v).decode()
                    elif inner == 2 and isinstance(v, bytes):
                        (score,) = struct.unpack("<f", v)
                    elif inner == 3 and isinstance(v, int):
                        type_ = v
                if type_ not in range(1, 7) or not math.isfinite(score):
                    raise ValueError(f"piece {len(pieces)}")
                pieces.append((text, score, type_))
            elif number in numbers and isinstance(value, memoryview):
                numbers[number] |= {inner: _signed(v) for inner, v in _fields(value) if isinstance(v, int)}
    except (ValueError, IndexError, struct.error, UnicodeDecodeError) as e:
        raise FileFormatError(f"{path} is not a SentencePiece model ({e})", "Download it again") from None
    if not 1 < len(pieces) <= MOST_TOKENS:
        raise FileFormatError(f"{path} holds {len(pieces):,} pieces", "Download it again")
    return pieces, numbers[2], numbers[3]


def _signed(v: int) -> int:
    return v - (1 << 64) if v >> 63 else v


def _fields(data: memoryview):
    """(field, value): int for a varint, bytes for 4 or 8 fixed bytes, a view for what has a length."""
    at, n = 0, len(data)

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                return value & (1 << 64) - 1
            if shift > 63:
                raise ValueError(f"a number at byte {at} is too long")

    while at < n:
        tag = varint()
        form = tag & 7
        if form == 0:
            yield tag >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(form) or (varint() if form == 2 else -1)
        if size < 0 or size > n - at:
            raise ValueError(f"a field at byte {at} does not end")
        part = data[at : at + size]
        at += size
        yield tag >> 3, part if form == 2 else bytes(part)
