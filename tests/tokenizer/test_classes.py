"""Classes of all characters against the regular expressions of Hugging Face `tokenizers`, whose Unicode version is ours."""

import numpy as np
import pytest

PATTERNS = [
    None,
    r"\p{Lu}",
    r"\p{Ll}",
    r"\p{Lt}",
    r"\p{Lm}",
    r"\p{Lo}",
    r"\p{M}",
    r"\p{N}",
    r"\p{P}",
    r"\p{S}",
    r"\s",
    r"[\r\n]",
]


def matches(pattern: str) -> set[int]:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    found = set()
    for begin in range(0, 0x110000, 4096):
        text = "".join(chr(point) for point in range(begin, begin + 4096) if not 0xD800 <= point < 0xE000)
        for piece, _ in split.pre_tokenize_str(text) if text else ():
            found.update(map(ord, piece))
    return found


@pytest.fixture(scope="module")
def classes(internals) -> np.ndarray:
    ffi, lib = internals
    table = np.zeros(0x110000, np.uint8)
    assert lib.internals_char_classes(ffi.from_buffer("uint8_t[]", table)) == 0
    return table


@pytest.mark.parametrize("number", range(1, len(PATTERNS)))
def test_class(classes, number):
    expected = matches(PATTERNS[number])
    if PATTERNS[number] == r"\s":
        expected -= {0x0A, 0x0D}
    found = set(np.flatnonzero(classes == number).tolist())
    wrong = sorted(found ^ expected)
    assert not wrong, [hex(point) for point in wrong[:20]]
