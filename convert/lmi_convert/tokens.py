"""A vocabulary on its way into a GGUF file: what the readers of the different files fill in.

Two kinds come out: "llama" (SentencePiece: pieces with scores) and "gpt2" (byte-level BPE: tokens, merges, a pre-tokenizer).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lmi.errors import FileFormatError

from lmi_convert.checkpoint import shown
from lmi_convert.writer import Value, boolean, f32s, i32s, string, strings, u32

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MOST_TOKENS = 4_194_304
MOST_LEFT_OUT = 65536  # ids without a token
ADDED_SCORE = -1000.0  # of pieces beside those of a model


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


def token_id(token, file: str) -> int:
    if type(token) is not int or not 0 <= token < MOST_TOKENS:
        raise FileFormatError(f"{file}: {shown(token)} is not the id of a token", "Download it again")
    return token


def placed(vocabulary: dict[str, int], added: dict[int, Added], file: str) -> tuple[list[str], list[int]]:
    """Texts and types by id; ids that nothing has become unused tokens."""
    by_id: dict[int, str] = {}
    for text, token in vocabulary.items():
        if by_id.setdefault(token_id(token, file), text) != text:
            raise FileFormatError(f"{file}: two tokens have the id {token}", "Download it again")
    n = max((*by_id, *added), default=-1) + 1
    if n > 2 * (len(by_id) + len(added)) + MOST_LEFT_OUT:
        raise FileFormatError(f"{file}: the ids of {len(by_id):,} tokens reach up to {n - 1:,}", "Download it again")
    texts = [by_id.get(i, f"[PAD{i}]") for i in range(n)]
    types = [NORMAL if i in by_id else UNUSED for i in range(n)]
    for token, a in added.items():
        if token in by_id and by_id[token] != a.text:
            raise FileFormatError(
                f"{file}: token {token} is {shown(by_id[token])} and, as an added one, {shown(a.text)}", "Download it again"
            )
        texts[token] = a.text
        types[token] = CONTROL if a.special else USER_DEFINED
    return texts, types
