"""Vocabularies of checkpoint folders become keys of a file, and the file tokenizes as published, or as Hugging Face does."""

import base64
import json
import shutil
from pathlib import Path

import gguf
import lmi
import pytest
from lmi.errors import FileFormatError, UnsupportedModel
from lmi_convert import pretokenizers
from lmi_convert.config import Config
from lmi_convert.tokens import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED
from lmi_convert.vocab import read_vocabulary
from lmi_convert.writer import string, write
from tokenizer.families import FAMILIES, IGNORE_MERGES
from tokenizer.texts import mixture


def cases(stem: Path) -> list[tuple[str, list[int]]]:
    texts = Path(f"{stem}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{stem}.gguf.out").read_text().split("\n")
    return [(text, [int(word) for word in line.split()]) for text, line in zip(texts, lines)]


def written(folder: Path, out: Path, *, pre: str | None = None, config: dict | None = None, pad: int = 0) -> Path:
    v = read_vocabulary(folder, Config(config or {}), pre=pre)
    if pad:
        v.pad(pad)
    write(
        out, {"general.architecture": string("llama"), **v.keys()}, [], verify=lambda p: lmi.Model(p, vocab_only=True).close()
    )
    return out


def check(path: Path, expected: list[tuple[str, list[int]]]) -> None:
    assert len(expected) > 40
    with lmi.Model(path, vocab_only=True) as m:
        for text, ids in expected:
            assert list(m.tokenize(text, bos=False)) == ids, text


def folder_with(tmp_path: Path, **files: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, source in files.items():
        shutil.copy(source, folder / name.replace("__", "."))
    return folder


# ---- real ones --------------------------------------------------------------------------------------------------


def test_llama2(data, tmp_path):
    folder = folder_with(tmp_path, tokenizer__model=data / "tokenizers" / "llama2-tokenizer.model")
    path = written(folder, tmp_path / "v.gguf")
    check(path, cases(data / "vocabs" / "ggml-vocab-llama-spm"))
    with lmi.Model(path, vocab_only=True) as m:
        v = m.vocabulary
        assert (v.kind, v.bos, v.eos, v.unk, v.add_bos, v.n_vocab) == ("spm", 1, 2, 0, True, 32000)


def test_llama2_as_tokenizer_json(data, tmp_path):
    """The same vocabulary as Hugging Face's fast tokenizers have it: merges instead of scores."""
    source = folder_with(tmp_path, tokenizer__model=data / "tokenizers" / "llama2-tokenizer.model")
    spm = read_vocabulary(source, Config({}))
    ids = {text: i for i, text in enumerate(spm.texts)}
    score = dict(zip(spm.texts, spm.scores))
    merges = [
        (piece[:i], piece[i:])
        for piece, kind in zip(spm.texts, spm.types)
        if kind == NORMAL
        for i in range(1, len(piece))
        if piece[:i] in ids and piece[i:] in ids and spm.types[ids[piece[:i]]] == NORMAL == spm.types[ids[piece[i:]]]
    ]
    merges.sort(key=lambda m: -score[m[0] + m[1]])
    special = [{"id": i, "content": spm.texts[i], "special": True} for i in range(3)]
    table = {
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": ids,
            "merges": [list(m) for m in merges],
        },
    }
    folder = tmp_path / "json"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(table))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    path = written(folder, tmp_path / "v.gguf")
    check(path, cases(data / "vocabs" / "ggml-vocab-llama-spm"))
    with lmi.Model(path, vocab_only=True) as m:
        v = m.vocabulary
        assert (v.kind, v.bos, v.eos, v.unk, v.add_bos) == ("spm", 1, 2, 0, True)


def test_llama3(data, tmp_path):
    source = data / "tokenizers" / "llama3.2"
    folder = folder_with(tmp_path, vocab__json=source / "encoder.json", merges__txt=source / "vocab.bpe")
    check(written(folder, tmp_path / "v.gguf", pre="llama-bpe"), cases(data / "vocabs" / "ggml-vocab-llama-bpe"))


def test_qwen(data, tmp_path):
    folder = folder_with(tmp_path, qwen__tiktoken=data / "tokenizers" / "qwen.tiktoken")
    config = {
        "added_tokens_decoder": {
            str(151643 + i): {"content": t, "special": True}
            for i, t in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
        }
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|im_end|>"}))
    path = written(folder, tmp_path / "v.gguf", pre="qwen2", pad=151936)
    for published in ("qwen2", "deepseek-r1-qwen"):
        check(path, cases(data / "vocabs" / f"ggml-vocab-{published}"))
    with lmi.Model(path, vocab_only=True) as m:
        assert (m.vocabulary.eos, m.vocabulary.add_bos, m.vocabulary.n_vocab) == (151645, False, 151936)


FROM_FILES = {
    "gpt-2": "gpt-2",
    "refact": "starcoder",
    "deepseek-coder": "deepseek-coder",
    "deepseek-llm": "deepseek-llm",
}


@pytest.mark.parametrize("published", FROM_FILES)
def test_published_as_tokenizer_json(data, tmp_path, published):
    """Published vocabularies with their pre-tokenizer as published, in a folder that has no name for it."""
    field = gguf.GGUFReader(data / "vocabs" / f"ggml-vocab-{published}.gguf").fields
    tokens, types = (field[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    added = [
        {"id": i, "content": text, "special": type_ == CONTROL}
        for i, (text, type_) in enumerate(zip(tokens, types))
        if type_ in (CONTROL, USER_DEFINED)
    ]
    table = {
        "added_tokens": added,
        "pre_tokenizer": json.loads(FAMILIES[FROM_FILES[published]]().__getstate__()),
        "model": {
            "type": "BPE",
            "vocab": {text: i for i, (text, type_) in enumerate(zip(tokens, types)) if type_ == NORMAL},
            "merges": field["tokenizer.ggml.merges"].contents(),
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    assert read_vocabulary(tmp_path, Config({})).pre == FROM_FILES[published]
    check(written(tmp_path, tmp_path / "v.gguf"), cases(data / "vocabs" / f"ggml-vocab-{published}"))


def test_phi3(data, tmp_path):
    """Llama 2's model with tokens added."""
    folder = folder_with(tmp_path, tokenizer__model=data / "tokenizers" / "llama2-tokenizer.model")
    field = gguf.GGUFReader(data / "vocabs" / "ggml-vocab-phi-3.gguf").fields
    tokens = field["tokenizer.ggml.tokens"].contents()
    added = {str(i): {"content": text, "special": True} for i, text in enumerate(tokens) if i >= 32000}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    check(written(folder, tmp_path / "v.gguf"), cases(data / "vocabs" / "ggml-vocab-phi-3"))


def test_gpt_neox(data, tmp_path):
    """Its pre-tokenizer is told by what it does; ids as Hugging Face's own library gives them."""
    from tokenizers import Tokenizer

    source = data / "tokenizers" / "gpt-neox-20B_tokenizer.json"
    folder = folder_with(tmp_path, tokenizer__json=source)
    path = written(folder, tmp_path / "v.gguf", pad=50432)
    oracle = Tokenizer.from_file(str(source))
    texts = [text for text, _ in cases(data / "vocabs" / "ggml-vocab-gpt-2")]
    check(path, [(text, oracle.encode(text, add_special_tokens=False).ids) for text in texts])
    with lmi.Model(path, vocab_only=True) as m:
        assert m.vocabulary.pretokenizer in ("gpt-2", "gpt2")


def test_tok512(data, tmp_path):
    import sentencepiece

    source = data / "tokenizers" / "tok512.model"
    folder = folder_with(tmp_path, tokenizer__model=source)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(source))
    texts = [text for text, _ in cases(data / "vocabs" / "ggml-vocab-llama-spm")]
    check(written(folder, tmp_path / "v.gguf"), [(text, oracle.encode(text)) for text in texts])


# ---- made here --------------------------------------------------------------------------------------------------


def test_fingerprints_are_those_of_the_published_definitions():
    """Each known pre-tokenizer, made from its published definition, has the fingerprint that is written down."""
    seen = {}
    for name, make in FAMILIES.items():
        mark = pretokenizers.fingerprint(pretokenizers.pieces_of(make()))
        known = pretokenizers.KNOWN[(mark, name in IGNORE_MERGES)]
        seen.setdefault(known, []).append(name)
    assert seen.pop("qwen2") == ["qwen2", "bailingmoe"]  # the same cuts, written differently
    assert all(names == [known] for known, names in seen.items())
    assert set(pretokenizers.KNOWN.values()) == {*seen, "qwen2", "dbrx"}


def trained_json(pre_tokenizer, **model) -> dict:
    import random

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=["<|begin|>", "<|end|>"],
    )
    rng = random.Random(3)
    tokenizer.train_from_iterator((mixture(rng, 60) for _ in range(1500)), trainer)
    table = json.loads(tokenizer.to_str())
    table["model"].update(model)
    return table


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "starcoder", "tekken", "gpt-4o", "deepseek-v3"])
def test_trained_here(tmp_path, name):
    """Folders without a name anywhere: identified, and tokenized as Hugging Face does."""
    import random

    from tokenizers import Tokenizer

    table = trained_json(FAMILIES[name](), ignore_merges=name in IGNORE_MERGES)
    table["added_tokens"].append(
        {
            "id": 700,
            "content": "[[user]]",
            "special": False,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    path = written(tmp_path, tmp_path / "v.gguf")
    oracle = Tokenizer.from_str(json.dumps(table))
    rng = random.Random(9)
    texts = [mixture(rng, 80) for _ in range(60)] + ["a [[user]] b"]
    with lmi.Model(path, vocab_only=True) as m:
        assert m.vocabulary.pretokenizer == name
        for text in texts:
            assert list(m.tokenize(text, bos=False)) == oracle.encode(text, add_special_tokens=False).ids, text
    v = read_vocabulary(tmp_path, Config({}))
    assert (v.types[0], v.types[2], v.types[700]) == (CONTROL, NORMAL, USER_DEFINED)


def test_unknown_pretokenizer_says_how_to_proceed(tmp_path):
    from tokenizers import pre_tokenizers

    table = trained_json(
        pre_tokenizers.Sequence([pre_tokenizers.CharDelimiterSplit("e"), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(UnsupportedModel, match="not a known one") as caught:
        read_vocabulary(tmp_path, Config({}))
    assert "--pre NAME" in caught.value.remedy and "llama-bpe" in caught.value.remedy
    assert read_vocabulary(tmp_path, Config({}), pre="gpt-2").pre == "gpt-2"


def test_special_ids_and_templates(tmp_path):
    table = trained_json(FAMILIES["gpt-2"]())
    table["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    listed = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    settings = {"bos_token": {"content": "<|begin|>"}, "chat_template": listed, "pad_token": "<|missing|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 1], "pad_token_id": 9}))
    v = read_vocabulary(tmp_path, Config({"eos_token_id": 7, "vocab_size": 800}))
    assert v.special == {"bos": 0, "eos": 5, "pad": 9, "eot": 1}
    assert v.add_bos is True and v.add_eos is False
    assert (v.template, v.templates) == ("D", {"tool_use": "T"})
    (tmp_path / "chat_template.jinja").write_text("FILE")
    assert read_vocabulary(tmp_path, Config({})).template == "FILE"
    v.pad(800)
    assert v.types[799] == UNUSED and v.texts[799] == "[PAD799]"
    with pytest.raises(FileFormatError, match="800 tokens"):
        v.pad(10)


def test_tiktoken_made_here(tmp_path):
    """Ranks without merges: the merges that come out make every token."""
    ranks = [bytes([b]) for b in range(256)] + [b"ab", b"abc", b"cd", b"abcd", b"the", b"th", b"zz zz"]
    (tmp_path / "x.tiktoken").write_bytes(b"\n".join(base64.b64encode(t) + b" %d" % i for i, t in enumerate(ranks)))
    v = read_vocabulary(tmp_path, Config({}), pre="gpt-2")
    assert v.merges == ["a b", "ab c", "c d", "abc d", "t h"]  # "the" has no rank below its own for "th"
    with pytest.raises(UnsupportedModel, match="does not say how texts are cut"):
        read_vocabulary(tmp_path, Config({}))


@pytest.mark.parametrize(
    "files, match",
    [
        ({}, "has no vocabulary"),
        ({"tokenizer.model": b"\x0a\xff\xff\xff\xff\x7f"}, "not a SentencePiece model"),
        ({"tokenizer.model": b"\x80" * 40}, "not a SentencePiece model"),
        ({"tokenizer.json": b"{"}, "not JSON"),
        ({"tokenizer.json": b"[" * 100_000}, "nested deeper"),
        ({"tokenizer.json": b'{"model": {"type": "Unigram", "vocab": []}}'}, "of the kind 'Unigram'"),
        ({"tokenizer.json": b'{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}'}, "have the id 0"),
        ({"tokenizer.json": b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}'}, "merge 0 speaks of"),
        ({"tokenizer.json": b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}'}, "merge 0 is not two"),
        ({"tokenizer.json": b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'}, "not the id of a token"),
        ({"tokenizer.json": b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'}, "neither byte-level"),
        ({"x.tiktoken": b"YQ== 0\nYg== 2\n"}, "ranks are not"),
        ({"x.tiktoken": b"hello"}, "not a table of ranks"),
    ],
)
def test_refused(tmp_path, files, match):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises((FileFormatError, UnsupportedModel), match=match):
        read_vocabulary(tmp_path, Config({}))


def test_byte_tokens_of_a_json(tmp_path):
    vocabulary = {"<unk>": 0, **{f"<0x{b:02X}>": b + 1 for b in range(256)}, "\u2581": 257, "a": 258, "\u2581a": 259}
    table = {
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True}],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": vocabulary, "merges": ["\u2581 a"]},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    v = read_vocabulary(tmp_path, Config({}))
    assert v.types[1:257] == [BYTE] * 256 and v.kind == "llama" and v.space_prefix is False
    assert v.scores[259] == -1.0 and v.scores[258] < -1e6
