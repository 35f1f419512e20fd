"""Pre-tokenizers against Hugging Face: the cuts themselves, and the ids of a vocabulary that would show a wrong one."""

import random

import numpy as np
import pytest
from door import DoorError
from tokenizer.families import ALIASES, FAMILIES
from tokenizer.texts import RUNS, any_text, mixture
from tokenizer.vocabularies import SPECIALS, Vocabulary

ROUNDS = 500


def cuts(internals, name: str, data: bytes, step: int = 0) -> list[int]:
    ffi, lib = internals
    ends = ffi.new("int64_t[]", len(data) + 1)
    n = lib.internals_pretokenize(name.encode(), data, len(data), step, ends)
    assert n >= 0, (name, n)
    return ffi.unpack(ends, n) if n else []


def expected_cuts(oracle, text: str) -> list[int]:
    """Ends of pieces, in bytes."""
    sizes = np.cumsum([0] + [len(c.encode()) for c in text])
    return [int(sizes[end]) for _, (_, end) in oracle.pre_tokenize_str(text)]


def texts(seed: int, rounds: int = ROUNDS):
    rng = random.Random(seed)
    for i in range(rounds):
        yield any_text(rng, rng.randint(1, 30)) if i % 5 == 0 else mixture(rng, rng.randint(1, 40))


@pytest.mark.parametrize("family", FAMILIES)
def test_cuts(internals, family):
    oracle = FAMILIES[family]()
    rng = random.Random(3)
    for text in texts(11):
        data = text.encode()
        expected = expected_cuts(oracle, text)
        assert cuts(internals, family, data) == expected, ascii(text)
        assert cuts(internals, family, data, 1) == expected, ascii(text)
        assert cuts(internals, family, data, rng.randint(2, 9)) == expected, ascii(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_cuts_of_runs(internals, family):
    oracle = FAMILIES[family]()
    for name, unit in RUNS.items():
        for text in (unit * 3000, "x" + unit * 700 + "1", unit * 300 + " " + unit * 299 + "\n"):
            assert cuts(internals, family, text.encode()) == expected_cuts(oracle, text), name
            assert cuts(internals, family, text.encode(), 257) == expected_cuts(oracle, text), name


@pytest.mark.parametrize("family", ALIASES)
def test_aliases(internals, family):
    for text in texts(5, 60):
        expected = cuts(internals, family, text.encode())
        for alias in ALIASES[family].split():
            assert cuts(internals, alias, text.encode()) == expected, alias


def test_every_name_is_compared(internals):
    """The list in the error message names what is supported: each name is in FAMILIES or ALIASES, and the other way round."""
    names = {*FAMILIES, *" ".join(ALIASES.values()).split()}
    ffi, lib = internals
    for name in names:
        assert lib.internals_pretokenize(name.encode(), b"", 0, 0, ffi.NULL) == 0, name
    assert lib.internals_pretokenize(b"no-such", b"", 0, 0, ffi.NULL) == -1


def test_invalid_utf8_loses_nothing(internals):
    rng = random.Random(9)
    for _ in range(400):
        data = bytes(rng.choice(b"\x80\xbf\xc0\xc3\xe2\x96\x81\xed\xf0\x9f\xff a1!\n'") for _ in range(rng.randint(1, 30)))
        for family in FAMILIES:
            whole = cuts(internals, family, data)
            assert whole[-1] == len(data) and whole == sorted(set(whole))
            assert cuts(internals, family, data, 1) == whole, data


@pytest.mark.parametrize("family", FAMILIES)
def test_ids(open_vocabulary, trained, family):
    """With merges and special tokens; fed whole, in parts, and byte by byte."""
    trained.pre = family
    tokens = open_vocabulary(trained)
    rng = random.Random(7)
    for special in (False, True):
        oracle = trained.oracle(family, special=special)
        for text in texts(13, 300):
            for _ in range(rng.choice([0, 1, 3])):
                at = rng.randint(0, len(text))
                text = text[:at] + rng.choice(list(SPECIALS)) + text[at:]
            data = text.encode()
            expected = oracle.encode(text).ids
            assert tokens.encode(text, special=special) == expected, ascii(text)
            parts = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(1, 4)))
            assert tokens.encode(text, special=special, cuts=parts) == expected, ascii(text)
            assert tokens.encode(text, special=special, cuts=list(range(1, len(data)))) == expected, ascii(text)
            assert tokens.decode(expected, special=True) == text


def test_real_vocabularies(open_file, llama3_file, qwen_file, data):
    """Llama 3 and Qwen: the same merges in Hugging Face `tokenizers`."""
    from tokenizer import vocabularies

    for file, make, family in ((llama3_file, vocabularies.llama3, "llama-bpe"), (qwen_file, vocabularies.qwen, "qwen2")):
        oracle = make(data / "tokenizers").oracle(family, special=False)
        tokens = open_file(file)
        for text in texts(17, 500):
            assert tokens.encode(text) == oracle.encode(text).ids, ascii(text)
        for name, unit in RUNS.items():
            assert tokens.encode(unit * 20000) == oracle.encode(unit * 20000).ids, name
        files = sorted(path for path in (data / "eval" / "wikitext-2").rglob("*") if path.is_file())
        text = "".join(path.read_text() for path in files)[:400_000]
        assert tokens.encode(text) == oracle.encode(text).ids


def test_name_that_is_not_known(open_vocabulary, trained):
    vocabulary = Vocabulary(trained.tokens, trained.types, trained.merges, pre="kimi-k9")
    expected = r'"kimi-k9" is not supported; known are default, llama-bpe, .* viking, and 5\d more names'
    with pytest.raises(DoorError, match=expected) as caught:
        open_vocabulary(vocabulary)
    assert caught.value.status == -4


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv", "gemma4", "none"])
def test_kind_that_is_not_supported(open_vocabulary, trained, model):
    vocabulary = Vocabulary(trained.tokens, trained.types, trained.merges, model=model)
    with pytest.raises(DoorError, match=f'of kind "{model}"; "llama" .* and "gpt2" .* are supported') as caught:
        open_vocabulary(vocabulary)
    assert caught.value.status == -4
