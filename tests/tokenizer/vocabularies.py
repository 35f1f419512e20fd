"""Vocabularies as GGUF files: trained here, made from published ones, or wrong in one way."""

import base64
import io
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import gguf
from tokenizer.families import FAMILIES, IGNORE_MERGES
from tokenizer.texts import mixture

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass
class Vocabulary:
    tokens: list[str | bytes]
    types: list[int] | None
    merges: list[str] | None = None
    scores: list[float] | None = None
    model: str = "gpt2"
    pre: str | None = None
    keys: dict[str, object] = field(default_factory=dict)  # bool, int or str

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model(self.model)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.types is not None:
            writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for key, value in self.keys.items():
            add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
            add(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path

    def oracle(self, family: str, *, special: bool):
        """The same in Hugging Face `tokenizers`; `special`: control tokens are found in text."""
        from tokenizers import AddedToken, Tokenizer, models

        ids = {token: i for i, token in enumerate(self.tokens)}
        assert len(ids) == len(self.tokens)
        merges = [tuple(merge.split(" ")) for merge in self.merges]
        tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=family in IGNORE_MERGES))
        tokenizer.pre_tokenizer = FAMILIES[family]()
        found = {USER_DEFINED, CONTROL, UNKNOWN} if special else {USER_DEFINED}
        added = [AddedToken(t, special=False, normalized=False) for t, kind in zip(self.tokens, self.types) if kind in found]
        tokenizer.add_tokens(added)
        return tokenizer


SPECIALS = {
    "<|a|>": CONTROL,
    "<|a|>b": CONTROL,
    "<|ab": USER_DEFINED,
    "   ": USER_DEFINED,
    "\n\n": USER_DEFINED,
    "éé": USER_DEFINED,
}


def trained_bpe(size: int = 4000) -> Vocabulary:
    """Trained without any pre-tokenizer, so that tokens reach across whatever should be cut: a wrong cut shows in the ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    rng = random.Random(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator((mixture(rng, 60) for _ in range(6000)), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    assert not set(SPECIALS) & set(tokens)
    return Vocabulary(tokens + list(SPECIALS), [NORMAL] * len(tokens) + list(SPECIALS.values()), merges)


def trained_spm(**options) -> tuple[Vocabulary, object]:
    """A SentencePiece model and the processor that it came from."""
    import sentencepiece

    rng = random.Random(2)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(mixture(rng, 40).replace("\x00", "") for _ in range(4000)),
        model_writer=model,
        model_type="bpe",
        vocab_size=options.pop("vocab_size", 1200),
        character_coverage=0.98,
        normalization_rule_name="identity",
        max_sentencepiece_length=12,
        minloglevel=2,
        **options,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return from_processor(processor), processor


def from_processor(processor) -> Vocabulary:
    tokens, scores, types = [], [], []
    for i in range(processor.get_piece_size()):
        tokens.append(processor.id_to_piece(i))
        scores.append(processor.get_score(i))
        kinds = {
            UNKNOWN: processor.is_unknown,
            CONTROL: processor.is_control,
            UNUSED: processor.is_unused,
            BYTE: processor.is_byte,
        }
        types.append(next((kind for kind, test in kinds.items() if test(i)), NORMAL))
    return Vocabulary(tokens, types, scores=scores, model="llama")


def llama3(folder: Path) -> Vocabulary:
    ids = json.loads((folder / "llama3.2" / "encoder.json").read_text())
    merges = [line for line in (folder / "llama3.2" / "vocab.bpe").read_text().split("\n") if line]
    tokens = sorted(ids, key=ids.get)
    specials = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(7)), "<|eot_id|>"]
    keys = {"tokenizer.ggml.bos_token_id": len(tokens), "tokenizer.ggml.eos_token_id": len(tokens) + 1}
    return Vocabulary(tokens + specials, [NORMAL] * len(tokens) + [CONTROL] * len(specials), merges, pre="llama-bpe", keys=keys)


def byte_letters() -> dict[int, str]:
    """GPT-2's characters for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def qwen(folder: Path) -> Vocabulary:
    """Qwen's file has tokens only: the merge that makes one is the last of byte pair encoding with the ranks below it."""
    lines = (line.split() for line in (folder / "qwen.tiktoken").read_text().splitlines())
    ranks = {base64.b64decode(text): int(rank) for text, rank in lines}
    letters = byte_letters()

    def letters_of(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            options = [(ranks.get(a + b, rank), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
            best, i = min(options)
            assert best < rank
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append(f"{letters_of(parts[0])} {letters_of(parts[1])}")
    tokens = [letters_of(token) for token in ranks]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    padding = [f"[PAD{i}]" for i in range(len(tokens) + len(specials), 151936)]
    types = [NORMAL] * len(tokens) + [CONTROL] * len(specials) + [UNUSED] * len(padding)
    keys = {"tokenizer.ggml.bos_token_id": len(tokens), "tokenizer.ggml.eos_token_id": len(tokens) + 2}
    keys["tokenizer.ggml.add_bos_token"] = False
    return Vocabulary(tokens + specials + padding, types, merges, pre="qwen2", keys=keys)
