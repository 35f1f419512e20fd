"""Which tokens end a generation, which texts are special tokens, and the flags of the file."""

import random

import pytest
from tokenizer.texts import mixture
from tokenizer.vocabularies import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary, byte_letters

LETTERS = [byte_letters()[byte] for byte in range(256)]


def bpe(extra: dict[str, int], merges: list[str] = (), **keys) -> Vocabulary:
    """Tokens 0..255 are the bytes; then what merges make, then `extra`, then one more, as no merge at all cannot be written."""
    made, last = [merge.replace(" ", "") for merge in merges], f"{LETTERS[0]} {LETTERS[1]}"
    return Vocabulary(
        LETTERS + made + list(extra) + [last.replace(" ", "")],
        [NORMAL] * (256 + len(made)) + list(extra.values()) + [NORMAL],
        [*merges, last],
        pre="gpt-2",
        keys={f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    )


def names(tokens, ids) -> set[str]:
    return {tokens.text(token, special=True).decode() for token in ids}


@pytest.mark.parametrize(
    "text",
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "[EOS]"]
    + ["<|end_of_text|>", "<｜end▁of▁sentence｜>", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>"],
)
@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, NORMAL])
def test_known_texts_end(open_vocabulary, text, kind):
    """Whatever type the file gives them; then they are control tokens."""
    tokens = open_vocabulary(bpe({"<|other|>": CONTROL, text: kind}))
    assert tokens.ends == {257}
    assert tokens.encode(text, special=True) == [257]
    assert tokens.encode(text) == list(text.encode())
    assert tokens.text(257) == b"" and tokens.text(257, special=True) == text.encode()


def test_text_that_merges_make_is_text(open_vocabulary):
    """</s> as learnt from web pages is no end of text."""
    vocabulary = bpe({}, ["< /", "s >", "</ s>"])
    vocabulary.pre = "bloom"  # which does not cut it apart
    tokens = open_vocabulary(vocabulary)
    assert tokens.ends == set() and tokens.encode("</s>") == [258] and tokens.text(258) == b"</s>"


def test_ids_of_the_file_end(open_vocabulary):
    extra = {"a1": CONTROL, "b1": CONTROL, "c1": CONTROL, "d1": CONTROL}
    tokens = open_vocabulary(bpe(extra, bos_token_id=256, eos_token_id=257, eot_token_id=258, eom_token_id=259))
    assert tokens.ends == {257, 258, 259} and tokens.ids()[:2] == (256, 257)


def test_end_of_a_message_that_goes_on(open_vocabulary):
    """gpt-oss and Solar go on after <|end|>, Gemma 4 after </s>."""
    tokens = open_vocabulary(bpe(dict.fromkeys(["<|end|>", "<|return|>", "<|call|>"], CONTROL)))
    assert names(tokens, tokens.ends) == {"<|return|>", "<|call|>"}
    tokens = open_vocabulary(bpe(dict.fromkeys(["<|end|>", "<|flush|>", "<|calls|>"], CONTROL)))
    assert names(tokens, tokens.ends) == {"<|flush|>", "<|calls|>"}
    tokens = open_vocabulary(bpe(dict.fromkeys(["</s>", "<turn|>", "<|tool_response>"], CONTROL)))
    assert names(tokens, tokens.ends) == {"<turn|>", "<|tool_response>"}
    tokens = open_vocabulary(bpe(dict.fromkeys(["<|end|>", "<|call|>"], CONTROL)))
    assert names(tokens, tokens.ends) == {"<|end|>", "<|call|>"}


@pytest.mark.parametrize(
    "pre, keys, expected",
    [
        ("gpt-2", {}, (0, 0)),
        ("llama-bpe", {}, (1, 0)),
        ("tekken", {}, (1, 0)),
        ("llama-bpe", {"add_bos_token": False}, (0, 0)),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, (1, 1)),
    ],
)
def test_flags(open_vocabulary, pre, keys, expected):
    vocabulary = bpe({"<s>": CONTROL, "</s>": CONTROL}, bos_token_id=256, eos_token_id=257, **keys)
    vocabulary.pre = pre
    assert open_vocabulary(vocabulary).ids()[3:] == expected


def test_bos_that_no_file_names(open_vocabulary):
    """Byte-level BPE has none; the first Falcon files have theirs at 11."""
    assert open_vocabulary(bpe({"x1": CONTROL})).ids() == (-1, -1, -1, 0, 0)
    falcon = bpe({})
    falcon.tokens[11], falcon.types[11] = "<|endoftext|>", CONTROL
    falcon.pre = "falcon"
    assert open_vocabulary(falcon).ids()[:2] == (11, 11)


def test_longest_match_wins(open_vocabulary):
    tokens = open_vocabulary(bpe({"<a>": CONTROL, "<a>b": CONTROL, "<a>bcd": USER_DEFINED, "<a": USER_DEFINED}))
    for text, expected in {
        "<a>": [256],
        "<a>b": [257],
        "<a>bc": [257, 99],
        "<a>bcd": [258],
        "<a>bce": [257, 99, 101],
        "<a<a>": [259, 256],
        "<<a>>": [60, 256, 62],
    }.items():
        assert tokens.encode(text, special=True) == expected, text
        assert tokens.encode(text, special=True, cuts=list(range(1, len(text)))) == expected, text
    assert tokens.encode("<a>b") == [259, 62, 98]  # control tokens are not looked for


def test_texts_of_kinds(open_vocabulary):
    tokens = open_vocabulary(bpe({"Ġx": UNUSED, "Ġy": USER_DEFINED, "<0x41>": BYTE, "日": NORMAL, "Ġz": CONTROL}))
    assert [tokens.text(i) for i in range(256, 261)] == [b"", "Ġy".encode(), b"A", "日".encode(), b""]
    assert [tokens.text(i, special=True) for i in (256, 260)] == ["Ġx".encode(), "Ġz".encode()]
    assert tokens.text(-1) == tokens.text(262) == b""


def test_blanks_after_special_tokens_of_phi3(open_vocabulary):
    """As Hugging Face does with rstrip, which GGUF files cannot say."""
    from tokenizers import AddedToken

    vocabulary = bpe({"<|user|>": CONTROL, "<s>": CONTROL, "<tag>": USER_DEFINED})
    vocabulary.keys["general.name"] = "Phi-3-mini"
    tokens = open_vocabulary(vocabulary)
    oracle = vocabulary.oracle("gpt-2", special=False)
    oracle.add_tokens([AddedToken("<|user|>", normalized=False, rstrip=True, special=True)])
    oracle.add_tokens([AddedToken("<s>", normalized=False, special=True)])
    oracle.add_tokens([AddedToken("<tag>", normalized=False, rstrip=True)])
    rng = random.Random(1)
    for _ in range(400):
        text = mixture(rng, 12)
        for _ in range(4):
            at = rng.randint(0, len(text))
            blanks = rng.choice(["", " ", "\n", " \n\t ", "\u3000", "\u2028 ", "\x85"])
            text = text[:at] + rng.choice(["<|user|>", "<s>", "<tag>"]) + blanks + text[at:]
        expected = oracle.encode(text).ids
        assert tokens.encode(text, special=True) == expected, ascii(text)
        data = text.encode()
        assert tokens.encode(text, special=True, cuts=list(range(1, len(data)))) == expected, ascii(text)


def test_bytes_without_a_token(open_vocabulary):
    """Left out as Hugging Face does where they can occur in text; those that cannot become U+FFFD."""
    vocabulary = bpe({})
    for byte in (0xC0, 0xF5, 0xFF):
        vocabulary.tokens[byte] = f"[gone {byte}]"
    at = vocabulary.tokens.index(byte_letters()[0x41])
    vocabulary.tokens[at] = "[no A]"
    tokens = open_vocabulary(vocabulary)
    assert tokens.encode(b"b\xffc") == [98, 0xEF, 0xBF, 0xBD, 99]
    assert tokens.encode(b"bAc") == [98, 99] == vocabulary.oracle("gpt-2", special=False).encode("bAc").ids
