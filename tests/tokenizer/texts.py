"""Texts to tokenize: random mixtures that hit every class of character and the seams between them, and runs of one thing."""

import random

# One entry is drawn at a time, so each class comes up as often as any other.
PARTS = [
    list("abcdefghijklmnopqrstuvwxyz"),
    list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    list("0123456789"),
    [" ", " ", " ", "  ", "   "],
    ["\n", "\r\n", "\r", "\n\n", "\t", "\x0b", "\x0c"],
    list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    ["'s", "'S", "'t", "'re", "'RE", "'vE", "'ll", "'Ll", "'m", "'d", "'ſ", "'", "''", "'r", "'l", "'v", "'x"],
    ["the", " and", " Hello", "World", "don't", " I'LL", "iPhone", "HTTPServer", "naïve", "ÉCOLE", " über", "ǅ", "ﬁ"],
    list("àéîõüßøÿŁœЖжЩщΩωΣςႠᏚԱա"),
    list("中文字汉漢한국어のカタカナ。、「」！？～　，“”‘’…"),
    list("ªºʰˢːˑـ々ゝーᴬ"),  # Lm and Lo
    list("אבגدعربيहिन्दीไทยខ្មែរ"),
    ["\u0301", "\u0308", "e\u0301", "A\u0303", "\u20dd", "\u093f", "\ufe0f", "\u200d"],
    list("²³¼½٣६Ⅷⅷ①一３"),
    ["😀", "👩\u200d👩\u200d👧", "🏳️\u200d🌈", "🇩🇪", "👍🏽", "⚙", "→", "€", "©", "+", "¬"],
    ["\u00a0", "\u2003", "\u2028", "\u2029", "\u0085", "\u202f", "\u3000", "\u1680", "\u200b", "\ufeff", "\u180e"],
    ["\x00", "\x01", "\x1c", "\x1f", "\x7f", "\u0080", "\ufffd", "\uffff", "\U0010ffff", "\ue000", "\u0378", "\U000e0001"],
    ["▁", "▁▁", "<0x0A>", "</s>", "<s>", "<unk>", "<|endoftext|>", "_", "\u2581a"],
    ["http://a.b/c?d=e&f=1", "x_y", "CamelCase", "3.14", "1,234,567", "12:30", "-1", "0x1F", "#include <a>\n", "    return;\n"],
]


def mixture(rng: random.Random, n: int) -> str:
    """About n parts; some texts keep to a few classes so that runs get long."""
    kinds = rng.sample(PARTS, rng.choice([1, 2, 3, 5, len(PARTS)]))
    parts = []
    while len(parts) < n:
        kind = rng.choice(kinds)
        parts += [rng.choice(kind)] * (1 if rng.random() < 0.8 else rng.randint(2, 9))
    return "".join(parts[:n])


def any_text(rng: random.Random, n: int) -> str:
    """Code points of the whole range."""
    points = []
    while len(points) < n:
        point = rng.choice([rng.randrange(0x80), rng.randrange(0x800), rng.randrange(0x10000), rng.randrange(0x110000)])
        if not 0xD800 <= point < 0xE000:
            points.append(chr(point))
    return "".join(points)


# What is repeated in long runs.
RUNS = {
    "letters": "a",
    "capitals": "A",
    "digits": "7",
    "blanks": " ",
    "newlines": "\n",
    "carriage returns": "\r\n",
    "tabs": "\t",
    "marks": "\u0301",
    "punctuation": "!",
    "apostrophes": "'",
    "contractions": "'s",
    "emoji": "👩\u200d👩\u200d👧",
    "cjk": "中",
    "kana": "カ",
    "wide punctuation": "。",
    "nul": "\x00",
    "mixed case": "aB",
    "letter and mark": "e\u0301",
    "blank and newline": " \n",
    "under 0x2581": "▁",
    "words": "word ",
}
