"""Pre-tokenizers as Hugging Face `tokenizers` builds them: the oracle for those written by hand.

The patterns are those of the models' tokenizer.json files.
"""

from tokenizers import Regex, pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(digits: str, letters: str = r"\p{L}", marks: str = r"[^\s\p{L}\p{N}]+[\r\n]*") -> str:
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?{marks}|{_BLANKS}"


def _cased(digits: str, suffix: str) -> str:
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{lead}{_UPPER}*{_LOWER}+{suffix}|{lead}{_UPPER}+{_LOWER}*{suffix}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
    )


_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3"
    "ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_CJK = "[一-龥ࠀ-一가-퟿]+"


def _split(pattern: str):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def _sequence(*parts):
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _default(punctuation: str):
    return _sequence(_split(punctuation), _split(GPT2), _split(r"\p{N}+"), _split("[0-9][0-9][0-9]"))


# One name of each family; make() gives the oracle. Names that share a family are listed in ALIASES.
FAMILIES = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "starcoder": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    ),
    "default": lambda: _default(r"[\p{P}\$\+<=>\^~\|]+"),
    # Falcon's own first part is Punctuation("contiguous"): these characters, but for punctuation that Unicode got after 2015.
    "falcon": lambda: _sequence(
        _split(r"[\p{P}\$\+<=>\^~\|`]+"),
        _split(GPT2),
        pre_tokenizers.Digits(individual_digits=False),
        _split("[0-9][0-9][0-9]"),
    ),
    "llama-bpe": lambda: _sequence(_split(_words(r"\p{N}{1,3}"))),
    "qwen2": lambda: _sequence(_split(_words(r"\p{N}"))),
    "qwen35": lambda: _sequence(
        _split(
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
        )
    ),
    "bailingmoe": lambda: _sequence(
        _split(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
    ),
    "seed-coder": lambda: _sequence(
        _split(rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BLANKS}")
    ),
    "minicpm5": lambda: _sequence(_split(r"\p{N}{1,3}"), _split(_words(r"\p{N}+"))),
    "tekken": lambda: _sequence(_split(_cased(r"\p{N}", ""))),
    "gpt-4o": lambda: _sequence(_split(_cased(r"\p{N}{1,3}", _CONTRACTION + "?"))),
    "deepseek-llm": lambda: _sequence(
        _split("[\r\n]"),
        _split(rf"\s?[{_CASED_LETTERS}]+"),
        _split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
        _split(r"\s+$"),
        _split(_CJK),
        pre_tokenizers.Digits(individual_digits=True),
    ),
    "deepseek-coder": lambda: _sequence(
        _split("[\r\n]"),
        _split(r"\s?\p{L}+"),
        _split(r"\s?\p{P}+"),
        _split(_CJK),
        pre_tokenizers.Digits(individual_digits=True),
    ),
    "deepseek-v3": lambda: _sequence(
        _split(r"\p{N}{1,3}"),
        _split("[一-龥぀-ゟ゠-ヿ]+"),
        _split(
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            rf"|{_BLANKS}"
        ),
    ),
    "bloom": lambda: _sequence(_split(r" ?[^(\s|.,!?…。，、।۔،)]+")),
    "viking": lambda: _sequence(_split(r" ?[^(\s|.,!?…。，、।۔،)]+"), _split(r"\p{N}")),
}

ALIASES = {
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe chatglm-bpe glm4",
    "qwen2": "deepseek-r1-qwen megrez stablelm2 hunyuan solar-open grok-2 kormo f2llmv2",
    "bailingmoe": "bailingmoe2 llada-moe",
    "gpt-2": "gpt2 mpt olmo phi-2 jais trillion granite-docling gigachat a.x-4.0 mellum exaone4 modern-bert jina-es jina-de"
    " jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe",
    "starcoder": "refact command-r smollm codeshell exaone minerva-7b mellum2",
    "gpt-4o": "llama4 kanana2 minimax-m2",
    "deepseek-v3": "hunyuan-dense joyai-llm",
    "bloom": "poro-chat gpt3-finnish",
}
IGNORE_MERGES = {"llama-bpe", "tekken", "minicpm5"}
