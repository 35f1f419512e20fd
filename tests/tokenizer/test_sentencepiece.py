"""SentencePiece vocabularies against the `sentencepiece` package."""

import random

import pytest
from tokenizer.texts import RUNS, any_text, mixture
from tokenizer.vocabularies import USER_DEFINED

from tokenizer import vocabularies

sentencepiece = pytest.importorskip("sentencepiece")


def texts(seed: int, rounds: int):
    rng = random.Random(seed)
    for i in range(rounds):
        yield any_text(rng, rng.randint(1, 40)) if i % 5 == 0 else mixture(rng, rng.randint(1, 60))


def check(tokens, processor, all_texts) -> None:
    rng = random.Random(4)
    for text in all_texts:
        data = text.encode()
        expected = processor.encode(text)
        assert tokens.encode(text) == expected, ascii(text)
        parts = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(1, 4)))
        assert tokens.encode(text, cuts=parts) == expected, ascii(text)
        assert tokens.encode(text, cuts=list(range(1, len(data)))) == expected, ascii(text)


def test_llama2(open_file, data):
    tokens = open_file(data / "vocabs" / "ggml-vocab-llama-spm.gguf")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(data / "tokenizers" / "llama2-tokenizer.model"))
    check(tokens, processor, texts(1, 1500))
    check(tokens, processor, (unit * n for unit in RUNS.values() for n in (2, 50, 700, 5000)))
    assert [tokens.text(i) for i in range(3, 259)] == [bytes([i]) for i in range(256)]
    for text in texts(2, 300):
        ids = tokens.encode(text)
        assert tokens.decode(ids) == " " + text.replace("▁", " ")


def test_tok512(open_vocabulary, data):
    """This one drops blanks at the ends and reads runs of them as one."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(data / "tokenizers" / "tok512.model"))
    vocabulary = vocabularies.from_processor(processor)
    vocabulary.keys["tokenizer.ggml.remove_extra_whitespaces"] = True
    check(open_vocabulary(vocabulary), processor, (text.replace("▁", "_") for text in texts(3, 1000)))


@pytest.mark.parametrize(
    "options",
    [
        {"byte_fallback": True, "remove_extra_whitespaces": False},
        {"byte_fallback": False, "remove_extra_whitespaces": False},  # unknown text is one <unk>
        {"byte_fallback": True, "remove_extra_whitespaces": False, "add_dummy_prefix": False},
        {"byte_fallback": True, "remove_extra_whitespaces": False, "split_by_whitespace": False},  # tokens of several words
        {"byte_fallback": True, "remove_extra_whitespaces": False, "treat_whitespace_as_suffix": False, "split_digits": True},
        {"byte_fallback": True, "remove_extra_whitespaces": True},
    ],
    ids=["bytes", "unknown", "no prefix", "words together", "digits apart", "single blanks"],
)
def test_trained(open_vocabulary, options):
    vocabulary, processor = vocabularies.trained_spm(**options)
    if options.get("add_dummy_prefix") is False:
        vocabulary.keys["tokenizer.ggml.add_space_prefix"] = False
    vocabulary.keys["tokenizer.ggml.remove_extra_whitespaces"] = options["remove_extra_whitespaces"]
    if options.get("split_by_whitespace") is False:
        assert any("▁" in token.strip("▁") for token in vocabulary.tokens)
    # With single blanks the package also drops U+2581 at the end of a text, as it takes it for a blank of its own.
    under = "_" if options["remove_extra_whitespaces"] else "▁"
    check(open_vocabulary(vocabulary), processor, (text.replace("\x00", "").replace("▁", under) for text in texts(5, 800)))


def test_user_defined(open_vocabulary):
    """Found before anything is merged, the longest of those that begin first."""
    symbols = ["<tag>", "<tag>s", "ab", "▁▁", "▁▁▁", "é"]
    vocabulary, processor = vocabularies.trained_spm(
        byte_fallback=True, remove_extra_whitespaces=False, add_dummy_prefix=False, user_defined_symbols=symbols
    )
    for symbol in symbols:
        vocabulary.types[vocabulary.tokens.index(symbol)] = USER_DEFINED
    vocabulary.keys["tokenizer.ggml.add_space_prefix"] = False
    rng = random.Random(6)

    def seeded():
        for text in texts(7, 600):
            for _ in range(rng.choice([0, 1, 4])):
                at = rng.randint(0, len(text))
                text = text[:at] + rng.choice(symbols).replace("▁", " ") + text[at:]
            yield text.replace("\x00", "")

    check(open_vocabulary(vocabulary), processor, seeded())


def test_invalid_utf8(open_file, data):
    tokens = open_file(data / "vocabs" / "ggml-vocab-llama-spm.gguf")
    rng = random.Random(8)
    for _ in range(500):
        text = bytes(rng.choice(b"\x80\xbf\xc3\xe2\x96\x81\xed\xa0\xf0\x9f\x98 ab") for _ in range(rng.randint(1, 30)))
        ids = tokens.encode(text)
        assert tokens.encode(text, cuts=list(range(1, len(text)))) == ids
        assert b"".join(map(tokens.text, ids)) == b" " + text.replace("▁".encode(), b" ")
        assert tokens.decode(ids) == (b" " + text.replace("▁".encode(), b" ")).decode(errors="replace")
