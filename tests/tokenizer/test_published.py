"""Ids that others publish for their vocabularies."""

from pathlib import Path

import pytest

FILES = ["deepseek-coder", "deepseek-llm", "gpt-2", "llama-spm", "mpt", "phi-3", "refact"]


def cases(stem: Path) -> list[tuple[str, list[int]]]:
    texts = Path(f"{stem}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{stem}.gguf.out").read_text().split("\n")
    assert len(texts) == len(lines) > 40
    return [(text, [int(word) for word in line.split()]) for text, line in zip(texts, lines)]


def check(tokens, stem: Path) -> None:
    for text, expected in cases(stem):
        assert tokens.encode(text) == expected, text
        data = text.encode()
        assert tokens.encode(text, cuts=list(range(1, len(data)))) == expected, text
        space = " " if tokens.ffi.string(tokens.info.kind) == b"spm" and text else ""
        assert tokens.decode(expected) == space + text


@pytest.mark.parametrize("name", FILES)
def test_file(open_file, data, name):
    stem = data / "vocabs" / f"ggml-vocab-{name}"
    check(open_file(Path(f"{stem}.gguf")), stem)


def test_llama3(open_file, llama3_file, data):
    check(open_file(llama3_file), data / "vocabs" / "ggml-vocab-llama-bpe")


@pytest.mark.parametrize("name", ["qwen2", "deepseek-r1-qwen"])
def test_qwen(open_file, qwen_file, data, name):
    check(open_file(qwen_file), data / "vocabs" / f"ggml-vocab-{name}")


# Read off the files with another reader: bos, eos, unk, add_bos, add_eos, and what ends a generation.
IDS = {
    "deepseek-coder": ((32013, 32014, -1, 1, 0), {32014}),
    "gpt-2": ((50256, 50256, -1, 0, 0), {50256}),
    "gpt-neox": ((0, 0, 0, 0, 0), {0}),
    "llama-spm": ((1, 2, 0, 1, 0), {2}),
    "phi-3": ((1, 32000, 0, 1, 0), {2, 32000, 32007}),  # </s> <|endoftext|> <|end|>
}


@pytest.mark.parametrize("name", IDS)
def test_special_ids(open_file, data, name):
    tokens = open_file(data / "vocabs" / f"ggml-vocab-{name}.gguf")
    assert (tokens.ids(), tokens.ends) == IDS[name]


def test_every_token_comes_back(open_file, data):
    """The text of an ordinary token, without merges across it, gives tokens of the same text; a byte token gives its byte."""
    for name in ("gpt-2", "llama-spm"):
        tokens = open_file(data / "vocabs" / f"ggml-vocab-{name}.gguf")
        for token in range(0, tokens.n_vocab, 7):
            text = tokens.text(token)
            ids = tokens.encode(text)
            assert b"".join(map(tokens.text, ids)) == (b" " if name == "llama-spm" and text else b"") + text
