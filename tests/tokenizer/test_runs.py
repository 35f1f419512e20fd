"""Long runs of one thing and long texts: linear time, bounded memory, the ids of Hugging Face as far as it goes."""

import random
import time

import pytest
from tokenizer.texts import RUNS, mixture


def anonymous_bytes(tokens) -> int:
    memory = tokens.ffi.new("lmi_memory *")
    tokens.lib.lmi_memory_now(memory)
    return memory.anonymous_bytes


def seconds(tokens, unit: bytes, n_bytes: int) -> float:
    """Processor time, the best of three: other work on the machine does not count."""
    best = 1e9
    for _ in range(3):
        begin = time.thread_time()
        tokens.count(unit, n_bytes // len(unit))
        best = min(best, time.thread_time() - begin)
    return best


@pytest.mark.parametrize("family", ["default", "gpt-4o", "deepseek-llm"])
def test_linear_time(open_vocabulary, trained, family):
    """Four times the text takes some four times as long; squares would take sixteen times."""
    trained.pre = family
    tokens = open_vocabulary(trained)
    for name, unit in RUNS.items():
        short, long = (seconds(tokens, unit.encode(), n) for n in (100_000, 400_000))
        assert long < 6 * short + 0.02, (name, short, long)


def test_linear_time_of_sentencepiece(open_file, data):
    tokens = open_file(data / "vocabs" / "ggml-vocab-llama-spm.gguf")
    for name, unit in RUNS.items():
        short, long = (seconds(tokens, unit.encode(), n) for n in (100_000, 400_000))
        assert long < 6 * short + 0.02, (name, short, long)


def test_bytes_fed_one_by_one(open_vocabulary, trained):
    """A run without a place to cut is held, and must not be looked through again for each byte."""
    trained.pre = "llama-bpe"
    tokens = open_vocabulary(trained)
    ffi, lib = tokens.native
    encoder = tokens._encoder(False)
    for unit in (b"a", b" ", b"\n", b"!"):
        begin = time.thread_time()
        for _ in range(200_000):
            lib.lmi_encoder_feed(encoder, unit, 1, ffi.NULL)
        assert tokens.encode(b"") == tokens.encode(unit * 200_000)
        assert time.thread_time() - begin < 10


def test_any_feed_gives_the_same(open_vocabulary, trained):
    trained.pre = "gpt-4o"
    tokens = open_vocabulary(trained)
    rng = random.Random(3)
    text = "".join(mixture(rng, 200) for _ in range(800))
    data = text.encode()
    expected = tokens.encode(text)
    for size in (1, 7, 4096, 65536):
        assert tokens.encode(text, cuts=list(range(size, len(data), size))) == expected, size


@pytest.mark.parametrize("family", ["default", "llama-bpe", "deepseek-coder", "bloom"])
def test_memory_of_ordinary_text(open_vocabulary, trained, family):
    """Words without any punctuation, 8 MB: what is held stays a word or two."""
    trained.pre = family
    tokens = open_vocabulary(trained)
    tokens.count(b"some words ", 20_000)
    before = anonymous_bytes(tokens)
    tokens.count(b"some words and more of them ", 300_000)
    assert anonymous_bytes(tokens) - before < 1 << 20


def test_memory_of_sentencepiece_text(open_file, data):
    tokens = open_file(data / "vocabs" / "ggml-vocab-llama-spm.gguf")
    tokens.count(b"some words ", 20_000)
    for unit in (b"some words and more of them ", "電子書は無料です。".encode(), b"lorem1ipsum2dolor3sit\n"):
        before = anonymous_bytes(tokens)
        tokens.count(unit, 4_000_000 // len(unit))
        assert anonymous_bytes(tokens) - before < 1 << 20, unit


@pytest.mark.parametrize("name", ["letters", "blanks"])
def test_ten_million(open_file, llama3_file, name):
    """Ten times the tokens of a run of a million, but for its ends."""
    tokens = open_file(llama3_file)
    unit = RUNS[name].encode()
    assert abs(tokens.count(unit, 10_000_000) - 10 * tokens.count(unit, 1_000_000)) < 20
