"""`tokenizer.json`, `vocab.json` with `merges.txt`, `.tiktoken`: vocabularies of byte pairs and their merges."""

from __future__ import annotations

import base64
import binascii
import importlib.util
from pathlib import Path

from lmi.errors import FileFormatError, UnsupportedModel

from lmi_convert import pretokenizers
from lmi_convert.checkpoint import read_bytes, read_json, shown
from lmi_convert.tokens import (
    ADDED_SCORE,
    BYTE,
    CONTROL,
    MOST_TOKENS,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Added,
    Vocabulary,
    placed,
)

BLANK = "\u2581"  # SentencePiece's space
LONGEST_TOKEN = 1000  # bytes of one whose merge has to be found: takes the square of it
UNREACHED_SCORE = -1e9  # of pieces that no merge makes

# ---- tokenizer.json ---------------------------------------------------------------------------------------------


def read_tokenizer_json(tokenizer: dict, added: dict[int, Added], pre: str | None) -> Vocabulary:
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind is None and isinstance(model, dict) and "merges" in model:
        kind = "BPE"
    if kind != "BPE" or not isinstance(model.get("vocab"), dict):
        raise UnsupportedModel(
            f"tokenizer.json holds a vocabulary of the kind {shown(kind)}",
            "Only byte-pair vocabularies can be read (BPE, SentencePiece)",
        )
    texts, types = placed(model["vocab"], added, "tokenizer.json")
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


def _listed(value) -> list:
    return value if isinstance(value, list) else []


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
            todo += _listed(part.get("pretokenizers"))
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
            single = [next(iter(p)) for p in _listed(part.get("single")) if isinstance(p, dict) and p]
            if "Sequence" in single:
                at = single.index("Sequence")
                return "SpecialToken" in single[:at], "SpecialToken" in single[at:]
        todo += _listed(part.get("processors"))
        found = True
    return (False, False) if found else (None, None)


def _identified(tokenizer: dict, ignore_merges: bool) -> str:
    name_it = "or name the pre-tokenizer with --pre NAME"
    if importlib.util.find_spec("tokenizers") is None:
        raise UnsupportedModel(
            "to tell the pre-tokenizer of tokenizer.json apart needs the package tokenizers",
            f"pip install 'lmi[convert]', {name_it}",
        )
    try:
        pieces = pretokenizers.pieces_apart(tokenizer)
    except pretokenizers.NotCut as e:
        raise FileFormatError(
            f"tokenizer.json: the pre-tokenizer cannot be used: {e}", f"Download it again, update tokenizers, {name_it}"
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


def vocab_and_merges(folder: Path) -> tuple[Path, Path] | None:
    for vocab, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (folder / vocab).is_file() and (folder / merges).is_file():
            return folder / vocab, folder / merges
    return None


def read_plain_bpe(vocab: Path, merges: Path, added: dict[int, Added], pre: str | None) -> Vocabulary:
    table = read_json(vocab)
    texts, types = placed(table, added, vocab.name)
    try:
        lines = read_bytes(merges).decode().split("\n")
    except UnicodeDecodeError as e:
        raise FileFormatError(f"{merges} is not UTF-8: {e}", "Download it again") from None
    pairs = _merges([line for i, line in enumerate(lines) if line and not (i == 0 and line.startswith("#version"))], table)
    return Vocabulary("gpt2", texts, types, merges=[f"{a} {b}" for a, b in pairs], pre=pre or _unnamed(vocab.name))


def _unnamed(file: str) -> str:
    names = ", ".join(sorted(set(pretokenizers.KNOWN.values())))
    raise UnsupportedModel(
        f"{file} does not say how texts are cut before merging", f"Add the tokenizer.json, or name it with --pre NAME: {names}"
    )


def is_tiktoken(path: Path) -> bool:
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


def read_tiktoken(path: Path, added: dict[int, Added], pre: str | None) -> Vocabulary:
    """Tokens with ranks. The merge that makes one is the last of joining its bytes by the ranks below its own."""
    ranks: dict[bytes, int] = {}
    try:
        for line in read_bytes(path).splitlines():
            if line:
                text, rank = line.split()
                ranks[base64.b64decode(text, validate=True)] = int(rank) if rank.isdigit() and len(rank) < 10 else -1
    except (ValueError, binascii.Error) as e:
        raise FileFormatError(f"{path} is not a table of ranks: {e}", "Download it again") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(ranks):
        raise FileFormatError(f"{path}: the ranks are not 0, 1, 2, ...", "Download it again")
    if max(map(len, ranks), default=0) > LONGEST_TOKEN:
        raise FileFormatError(f"{path} has a token of more than {LONGEST_TOKEN:,} bytes", "Check where it comes from")
    letters = byte_letters()
    merges, table = [], {}
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        table["".join(letters[b] for b in token)] = rank
        parts = _last_two(token, rank, ranks)
        if parts:
            merges.append(" ".join("".join(letters[b] for b in part) for part in parts))
    texts, types = placed(table, added, path.name)
    return Vocabulary("gpt2", texts, types, merges=merges, pre=pre or _unnamed(path.name))


def _last_two(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes] | None:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best, at = min((ranks.get(a + b, rank), i) for i, (a, b) in enumerate(zip(parts, parts[1:])))
        if best >= rank:
            return None  # no merges lead to it: it stands for itself only
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts if len(parts) == 2 and all(p in ranks for p in parts) else None
