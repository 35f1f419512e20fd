"""The vocabulary of a checkpoint as the keys of a GGUF file.

Read is, in this order: `tokenizer.model` (SentencePiece), `tokenizer.json`, `vocab.json` with `merges.txt`, a `.tiktoken` file.
Two kinds come out: "llama" (SentencePiece: pieces with scores) and "gpt2" (byte-level BPE: tokens, merges, a pre-tokenizer).
Added tokens, special ids and the chat template come from whichever files have them.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

from lmi.errors import FileFormatError, InvalidArgument, UnsupportedModel

from lmi_convert import pretokenizers
from lmi_convert.checkpoint import read_json
from lmi_convert.config import Config
from lmi_convert.writer import Value, boolean, f32s, i32s, string, strings, u32

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MOST_TOKENS = 4_194_304
LARGEST_TEMPLATE = 256 << 10
BLANK = "\u2581"  # SentencePiece's space
ADDED_SCORE = -1000.0
UNREACHED_SCORE = -1e9  # of pieces that no merge makes


@dataclass
class Vocabulary:
    """`kind`: "llama" or "gpt2". `texts`, `types` (and `scores`) by id; `merges` as "left right"."""

    kind: str
    texts: list[str | bytes]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    pre: str | None = None
    space_prefix: bool = True
    single_blanks: bool = False
    special: dict[str, int] = field(default_factory=dict)  # "bos", "eos", "unk", "pad", "eot", ...
    add_bos: bool | None = None
    add_eos: bool | None = None
    template: str | None = None
    templates: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def pad(self, n: int) -> None:
        """To the number of rows of the embedding, with tokens that no text becomes."""
        if len(self.texts) > n:
            raise FileFormatError(
                f"the vocabulary has {len(self.texts):,} tokens, config.json says {n:,} (vocab_size)",
                "Check that config.json, the tokenizer and the weights belong together",
            )
        for i in range(len(self.texts), n):
            self.texts.append(f"[PAD{i}]")
            self.types.append(UNUSED)
            if self.scores is not None:
                self.scores.append(ADDED_SCORE)

    def keys(self) -> dict[str, Value]:
        k: dict[str, Value] = {"tokenizer.ggml.model": string(self.kind)}
        if self.kind == "gpt2" or self.pre:
            k["tokenizer.ggml.pre"] = string(self.pre or "default")
        elif self.kind == "llama":
            k["tokenizer.ggml.pre"] = string("default")
        k["tokenizer.ggml.tokens"] = strings(self.texts)
        if self.scores is not None:
            k["tokenizer.ggml.scores"] = f32s(self.scores)
        k["tokenizer.ggml.token_type"] = i32s(self.types)
        if self.merges is not None:
            k["tokenizer.ggml.merges"] = strings(self.merges)
        names = {"unk": "unknown", "pad": "padding", "sep": "seperator"}  # as the format spells it
        for name, token in self.special.items():
            k[f"tokenizer.ggml.{names.get(name, name)}_token_id"] = u32(token)
        if self.add_bos is not None:
            k["tokenizer.ggml.add_bos_token"] = boolean(self.add_bos)
        if self.add_eos is not None:
            k["tokenizer.ggml.add_eos_token"] = boolean(self.add_eos)
        if self.kind == "llama":
            k["tokenizer.ggml.add_space_prefix"] = boolean(self.space_prefix)
            k["tokenizer.ggml.remove_extra_whitespaces"] = boolean(self.single_blanks)
        if self.template is not None:
            k["tokenizer.chat_template"] = string(self.template)
        if self.templates:
            k["tokenizer.chat_templates"] = strings(sorted(self.templates))
            for name in sorted(self.templates):
                k[f"tokenizer.chat_template.{name}"] = string(self.templates[name])
        return k


@dataclass
class Added:
    """A token beside the vocabulary proper."""

    text: str
    special: bool


def read_vocabulary(folder: Path, config: Config, *, pre: str | None = None) -> Vocabulary:
    """`pre`: the pre-tokenizer's name, where the files do not tell it or it is to be another."""
    folder = Path(folder)
    settings = Config(
        read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {},
        "tokenizer_config.json",
    )
    tokenizer = read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else None
    added = _added_tokens(folder, settings, tokenizer)
    ranks = sorted(folder.glob("*.tiktoken"))
    model = folder / "tokenizer.model"
    if model.is_file() and _is_tiktoken(model):
        ranks, model = ranks or [model], None
    if model is not None and model.is_file():
        v = _sentencepiece(model, added)
    elif tokenizer is not None:
        v = _tokenizer_json(tokenizer, added, pre)
    elif (names := _vocab_and_merges(folder)) is not None:
        v = _plain_bpe(*names, added, pre)
    elif ranks:
        v = _tiktoken(ranks[0], added, pre)
    else:
        raise FileFormatError(
            f"{folder} has no vocabulary: no tokenizer.model, tokenizer.json, vocab.json with merges.txt or .tiktoken",
            "Download the whole folder again",
        )
    _special_ids(v, folder, config, settings, tokenizer)
    _chat_template(v, folder, settings)
    return v


# ---- added tokens -----------------------------------------------------------------------------------------------


def _added_tokens(folder: Path, settings: Config, tokenizer: dict | None) -> dict[int, Added]:
    found: dict[int, Added] = {}
    if (folder / "added_tokens.json").is_file():
        for text, token in read_json(folder / "added_tokens.json").items():
            found[_id(token, "added_tokens.json")] = Added(text, _looks_special(text))
    for token, entry in settings.table("added_tokens_decoder").values.items():
        if (
            not token.isascii()
            or not token.isdigit()
            or not isinstance(entry, dict)
            or not isinstance(entry.get("content"), str)
        ):
            raise FileFormatError(
                f"tokenizer_config.json: added_tokens_decoder has a strange entry {token[:40]!r}", "Download it again"
            )
        found[_id(int(token), "tokenizer_config.json")] = Added(entry["content"], bool(entry.get("special")))
    for entry in (tokenizer or {}).get("added_tokens") or []:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise FileFormatError("tokenizer.json: added_tokens has a strange entry", "Download it again")
        found[_id(entry.get("id"), "tokenizer.json")] = Added(entry["content"], bool(entry.get("special")))
    return {token: a for token, a in found.items() if a.text}


def _looks_special(text: str) -> bool:
    return (text.startswith("<|") and text.endswith("|>")) or text in ("<s>", "</s>", "<pad>", "<unk>", "[PAD]")


def _id(token, file: str) -> int:
    if type(token) is not int or not 0 <= token < MOST_TOKENS:
        raise FileFormatError(f"{file}: {str(token)[:40]!r} is not the id of a token", "Download it again")
    return token


def _placed(vocabulary: dict[str, int], added: dict[int, Added], file: str) -> tuple[list[str], list[int]]:
    """Texts and types by id; ids that nothing has become unused tokens."""
    by_id: dict[int, str] = {}
    for text, token in vocabulary.items():
        if by_id.setdefault(_id(token, file), text) != text:
            raise FileFormatError(f"{file}: two tokens have the id {token}", "Download it again")
    n = max((*by_id, *added), default=-1) + 1
    texts = [by_id.get(i, f"[PAD{i}]") for i in range(n)]
    types = [NORMAL if i in by_id else UNUSED for i in range(n)]
    for token, a in added.items():
        if token in by_id and by_id[token] != a.text:
            raise FileFormatError(
                f"{file}: token {token} is {by_id[token]!r} and, as an added one, {a.text!r}", "Download it again"
            )
        texts[token] = a.text
        types[token] = CONTROL if a.special else USER_DEFINED
    return texts, types


# ---- SentencePiece ----------------------------------------------------------------------------------------------


def _sentencepiece(path: Path, added: dict[int, Added]) -> Vocabulary:
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
        if (
            types[token] != UNUSED
            and texts[token] not in (a.text, a.text.encode())
            and types[token] == NORMAL
            and not a.special
        ):
            raise FileFormatError(
                f"token {token} is {texts[token]!r} in {path.name}, {a.text!r} as an added one", "Download the folder again"
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
        data = memoryview(path.read_bytes())
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
    except OSError as e:
        raise FileFormatError(f"cannot read {path}: {e.strerror}", "Make it readable for this user") from None
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


# ---- tokenizer.json ---------------------------------------------------------------------------------------------


def _tokenizer_json(tokenizer: dict, added: dict[int, Added], pre: str | None) -> Vocabulary:
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind is None and isinstance(model, dict) and "merges" in model:
        kind = "BPE"
    if kind != "BPE" or not isinstance(model.get("vocab"), dict):
        raise UnsupportedModel(
            f"tokenizer.json holds a vocabulary of the kind {kind!r}",
            "Only byte-pair vocabularies can be read (BPE, SentencePiece)",
        )
    texts, types = _placed(model["vocab"], added, "tokenizer.json")
    merges = _merges(model.get("merges"), model["vocab"])
    if _has(tokenizer.get("pre_tokenizer"), "ByteLevel") or _has(tokenizer.get("decoder"), "ByteLevel"):
        v = Vocabulary("gpt2", texts, types, merges=[f"{a} {b}" for a, b in merges])
        if _has(tokenizer.get("normalizer"), "NFC") or _has(tokenizer.get("normalizer"), "NFKC"):
            v.notes.append("texts are read as they are: the tokenizer's Unicode normalisation is left out")
        v.pre = pre or _identified(tokenizer, bool(model.get("ignore_merges")))
    elif model.get("byte_fallback") or _spm_like(tokenizer):
        v = _spm_from_merges(texts, types, merges)
        v.space_prefix = _prepends(tokenizer)
    else:
        raise UnsupportedModel(
            "tokenizer.json is neither byte-level nor SentencePiece's kind", "It cannot be written to a GGUF file"
        )
    unk = model.get("unk_token")
    if isinstance(unk, str) and unk in model["vocab"]:
        v.special["unk"] = model["vocab"][unk]
        if v.kind == "llama":
            v.types[v.special["unk"]] = UNKNOWN
    v.add_bos, v.add_eos = _added_around(tokenizer)
    return v


def _has(node, kind: str) -> bool:
    """Whether a part of a tokenizer.json is, or has in its list, one of this type."""
    todo = [node]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            if part.get("type") == kind:
                return True
            todo += [v for k, v in part.items() if k in ("pretokenizers", "normalizers", "decoders", "processors")]
        elif isinstance(part, list):
            todo += part
    return False


def _spm_like(tokenizer: dict) -> bool:
    return BLANK in str(tokenizer.get("normalizer")) or _has(tokenizer.get("pre_tokenizer"), "Metaspace")


def _prepends(tokenizer: dict) -> bool:
    if _has(tokenizer.get("normalizer"), "Prepend"):
        return True
    todo = [tokenizer.get("pre_tokenizer")]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            if part.get("type") == "Metaspace":
                return part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never") != "never"
            todo += part.get("pretokenizers") or []
    return False


def _merges(listed, vocabulary: dict) -> list[tuple[str, str]]:
    """Pairs, from "a b" or ["a", "b"]."""
    if not isinstance(listed, list) or len(listed) > MOST_TOKENS:
        raise FileFormatError("tokenizer.json has no list of merges", "Download it again")
    found = []
    for i, merge in enumerate(listed):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
            raise FileFormatError(f"tokenizer.json: merge {i} is not two tokens", "Download it again")
        a, b = pair
        if a not in vocabulary or b not in vocabulary or a + b not in vocabulary:
            raise FileFormatError(
                f"tokenizer.json: merge {i} speaks of a token that is not in the vocabulary", "Download it again"
            )
        found.append((a, b))
    return found


def _spm_from_merges(texts: list[str], types: list[int], merges: list[tuple[str, str]]) -> Vocabulary:
    """SentencePiece joins the pair whose piece has the highest score: earlier merges get higher ones. It knows no pairs, only
    pieces; where those of a tokenizer.json come from a SentencePiece model, as they do, that is the same."""
    first: dict[str, int] = {}
    for a, b in merges:
        first.setdefault(a + b, len(first))
    scores = []
    for i, text in enumerate(texts):
        if types[i] == NORMAL and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types[i] = BYTE
            scores.append(0.0)
        elif types[i] in (CONTROL, USER_DEFINED, UNUSED):
            scores.append(ADDED_SCORE)
        else:
            scores.append(-1.0 - first[text] if text in first else UNREACHED_SCORE)
    return Vocabulary("llama", texts, types, scores)


def _added_around(tokenizer: dict) -> tuple[bool | None, bool | None]:
    """Whether texts get BOS and EOS, by what the post-processor puts around a single sequence."""
    todo, found = [tokenizer.get("post_processor")], False
    while todo:
        part = todo.pop()
        if not isinstance(part, dict):
            continue
        if part.get("type") == "TemplateProcessing":
            single = [next(iter(p)) for p in part.get("single") or [] if isinstance(p, dict) and p]
            if "Sequence" in single:
                at = single.index("Sequence")
                return "SpecialToken" in single[:at], "SpecialToken" in single[at:]
        todo += part.get("processors") or []
        found = True
    return (False, False) if found else (None, None)


def _identified(tokenizer: dict, ignore_merges: bool) -> str:
    try:
        import json

        from tokenizers import Tokenizer
    except ImportError:
        raise UnsupportedModel(
            "to tell the pre-tokenizer of tokenizer.json apart needs the package tokenizers",
            "pip install 'lmi[convert]', or name it with --pre NAME",
        ) from None
    # Its vocabulary is left out: what cuts a text does not need it, and large ones take seconds.
    small = {k: v for k, v in tokenizer.items() if k in ("version", "normalizer", "pre_tokenizer")}
    small |= {"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    try:
        cutter = Tokenizer.from_str(json.dumps(small)).pre_tokenizer
        pieces = pretokenizers.pieces_of(cutter) if cutter is not None else [pretokenizers.TEXT]
    except Exception as e:
        raise FileFormatError(
            f"tokenizer.json: {' '.join(str(e).split())[:200]}", "Download it again, or update tokenizers"
        ) from None
    name = pretokenizers.identify(pieces, ignore_merges)
    if name is None:
        names = ", ".join(sorted(set(pretokenizers.KNOWN.values())))
        raise UnsupportedModel(
            f"the pre-tokenizer of tokenizer.json is not a known one (fingerprint {pretokenizers.fingerprint(pieces)})",
            f"If it does the same as one of these, name it with --pre NAME: {names}",
        )
    return name


# ---- other files of byte-level BPE ------------------------------------------------------------------------------


def _vocab_and_merges(folder: Path) -> tuple[Path, Path] | None:
    for vocab, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (folder / vocab).is_file() and (folder / merges).is_file():
            return folder / vocab, folder / merges
    return None


def _plain_bpe(vocab: Path, merges: Path, added: dict[int, Added], pre: str | None) -> Vocabulary:
    table = read_json(vocab)
    texts, types = _placed(table, added, vocab.name)
    try:
        lines = merges.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise FileFormatError(f"cannot read {merges}: {e}", "Download it again") from None
    pairs = _merges([line for i, line in enumerate(lines) if line and not (i == 0 and line.startswith("#version"))], table)
    return Vocabulary("gpt2", texts, types, merges=[f"{a} {b}" for a, b in pairs], pre=pre or _unnamed(vocab.name))


def _unnamed(file: str) -> str:
    names = ", ".join(sorted(set(pretokenizers.KNOWN.values())))
    raise UnsupportedModel(
        f"{file} does not say how texts are cut before merging", f"Add the tokenizer.json, or name it with --pre NAME: {names}"
    )


def _is_tiktoken(path: Path) -> bool:
    """Llama 3's tokenizer.model is a table of ranks, although of SentencePiece's name."""
    try:
        with open(path, "rb") as file:
            line = file.readline(4096).split()
        return len(line) == 2 and line[1].isdigit() and bool(base64.b64decode(line[0], validate=True))
    except (OSError, binascii.Error):
        return False


def byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, more = [], 256
    for byte in range(256):
        letters.append(chr(byte if byte in plain else more))
        more += byte not in plain
    return letters


def _tiktoken(path: Path, added: dict[int, Added], pre: str | None) -> Vocabulary:
    """Tokens with ranks. The merge that makes one is the last of joining its bytes by the ranks below its own."""
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            if line:
                text, rank = line.split()
                ranks[base64.b64decode(text, validate=True)] = int(rank) if rank.isdigit() else -1
    except (OSError, ValueError, binascii.Error) as e:
        raise FileFormatError(f"{path} is not a table of ranks: {e}", "Download it again") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(ranks):
        raise FileFormatError(f"{path}: the ranks are not 0, 1, 2, ...", "Download it again")
    letters = byte_letters()
    merges, table = [], {}
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        table["".join(letters[b] for b in token)] = rank
        parts = _last_two(token, rank, ranks)
        if parts:
            merges.append(" ".join("".join(letters[b] for b in part) for part in parts))
    texts, types = _placed(table, added, path.name)
    return Vocabulary("gpt2", texts, types, merges=merges, pre=pre or _unnamed(path.name))


def _last_two(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes] | None:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best, at = min((ranks.get(a + b, rank), i) for i, (a, b) in enumerate(zip(parts, parts[1:])))
        if best >= rank:
            return None  # no merges lead to it: it stands for itself only
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts if len(parts) == 2 and all(p in ranks for p in parts) else None


# ---- special ids and templates ----------------------------------------------------------------------------------


# Texts that end a turn, where no file says so.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|return|>")


def _special_ids(v: Vocabulary, folder: Path, config: Config, settings: Config, tokenizer: dict | None) -> None:
    ids = {
        text if isinstance(text, str) else text.decode("utf-8", "replace"): i
        for i, text in enumerate(v.texts)
        if v.types[i] != UNUSED
    }
    generation = Config(read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {})
    named = read_json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").is_file() else {}
    n = max(len(v.texts), config.integer("vocab_size", default=0, low=0, high=MOST_TOKENS))
    for name in ("bos", "eos", "unk", "pad", "sep"):
        for table in (settings.values, named):
            text = table.get(f"{name}_token")
            text = text.get("content") if isinstance(text, dict) else text
            if isinstance(text, str) and text in ids:
                v.special[name] = ids[text]
                break
        else:
            for source in (generation, config):
                token = source.get(f"{name}_token_id")
                token = token[0] if isinstance(token, list) and token else token
                if type(token) is int and 0 <= token < n and name not in ("unk",):
                    v.special[name] = token
                    break
    for text in TURN_ENDS:
        if text in ids and v.types[ids[text]] in (CONTROL, USER_DEFINED) and ids[text] != v.special.get("eos"):
            v.special["eot"] = ids[text]
            break
    v.special = {name: token for name, token in v.special.items() if token < n}
    for name, part in (("add_bos", "bos"), ("add_eos", "eos")):
        said = settings.get(f"{name}_token")
        if tokenizer is None or getattr(v, name) is None:
            if type(said) is bool:
                setattr(v, name, said)
            elif v.kind == "gpt2":
                setattr(v, name, False)
        elif v.kind == "llama" and type(said) is bool:
            setattr(v, name, said)
        if getattr(v, name) and part not in v.special:
            setattr(v, name, False)


def _chat_template(v: Vocabulary, folder: Path, settings: Config) -> None:
    found: dict[str, str] = {}
    listed = settings.get("chat_template")
    if (folder / "chat_template.json").is_file():
        listed = read_json(folder / "chat_template.json").get("chat_template", listed)
    if isinstance(listed, str):
        found["default"] = listed
    elif isinstance(listed, list):
        for entry in listed:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str):
                found[entry["name"]] = entry["template"]
    if (folder / "chat_template.jinja").is_file():
        try:
            found["default"] = (folder / "chat_template.jinja").read_bytes()[: LARGEST_TEMPLATE + 1].decode()
        except (OSError, UnicodeDecodeError) as e:
            raise FileFormatError(f"cannot read {folder / 'chat_template.jinja'}: {e}", "Download it again") from None
    for name in [n for n, text in found.items() if len(text.encode()) > LARGEST_TEMPLATE]:
        v.notes.append(f"the chat template {name!r} is larger than {LARGEST_TEMPLATE >> 10} KiB and was left out")
        del found[name]
    v.template = found.pop("default", None)
    v.templates = {n: t for n, t in found.items() if n and n.isascii() and n.replace("_", "").replace("-", "").isalnum()}


def check_pre(name: str) -> None:
    """Raises InvalidArgument for a pre-tokenizer that the library does not know, before any work is done."""
    if not name or not name.isascii() or len(name) > 64:
        raise InvalidArgument(f"{name!r} is not the name of a pre-tokenizer", "For example: --pre llama-bpe")
