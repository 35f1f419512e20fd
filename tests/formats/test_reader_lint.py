"""Sizes from a file are added and multiplied through base/checked.h alone: a bare operator in the reader needs a reason here.

Published readers were patched again and again along one path, each fix leaving the neighbouring expression as it was.
"""

import re
from pathlib import Path

import pytest

ROOM = Path(__file__).resolve().parent.parent.parent / "native" / "gguf"

# What may stand in a line with an operator, and why it cannot wrap.
ALLOWED = {
    "gguf.c": {
        "s->bytes[begin + i]": "i < count, and begin + count was skipped over",
        "scan_damaged(s, begin + i,": "the same",
        "N_TYPES - 1": "a constant",
        "name.data - file->bytes": "a view into the file",
        "s->number = (uint64_t)i + 1": "i < 65,536",
        "(value & (value - 1))": "bits of an alignment, not a size",
        "file->n_tensors - 1": "n_tensors > 0",
        "n_tensors += parts[i]->n_tensors": "at most 1,024 files, each within the limit of one file",
        "(size_t)n_tensors + 1": "within the limit of one file",
        "* sizeof *tensors": "the same; calloc gave that many",
        "tensors + at": "a pointer into what calloc gave",
        "at += parts[i]->n_tensors": "up to the sum above",
        "file->bytes + file->tensors[i].offset": "the file's size was compared with the end of all tensors",
    },
    "scan.c": {
        "memcpy(text + out,": "out <= 256 in a buffer of 260",
        "100.0 *": "floating point",
        "s->at += n": "n <= end - at was tested in the line before",
        "s->bytes + begin": "a pointer to bytes that were skipped over",
        "s->bytes + s->at": "the same",
    },
    "foreign.c": {
        "sizeof(bytes) - 1": "a constant",
        "size - i < 2": "i <= size",
        "bytes[i + 1]": "size - i >= 2",
        "bytes + 257": "size > 262",
        "4 + sizeof version": "a constant",
        "bytes + 4": "size >= 8",
    },
}
OPERATOR = re.compile(r"[\w)\]] (\+|\*|<<|-) [\w(&]|[+*-]=|<<=")


def code_of(text: str) -> str:
    """The text with comments and strings emptied; lines stay where they are."""

    def blank(match: re.Match) -> str:
        return re.sub(r"[^\n]", "", match.group()) or '""'

    return re.sub(r"/\*.*?\*/|'(?:\\.|[^'\\])'|\"(?:\\.|[^\"\\])*\"", blank, text, flags=re.S)


@pytest.mark.parametrize("name", ALLOWED)
def test_no_bare_arithmetic(name: str) -> None:
    code = code_of((ROOM / name).read_text(encoding="utf-8"))
    allowed, used = ALLOWED[name], set()
    for number, line in enumerate(code.splitlines(), 1):
        rest = line
        for fragment in allowed:
            if fragment in rest:
                used.add(fragment)
                rest = rest.replace(fragment, "")
        assert not OPERATOR.search(rest), f"{name}:{number}: use ck_add, ck_mul or ck_align: {line.strip()}"
    assert used == set(allowed), f"no longer in {name}: {set(allowed) - used}"


def test_the_rule_can_fail() -> None:
    for line in ["size = count * 8;", "end = offset + size;", "total += padded;", "n = 1 << dims;", "left = size - at;"]:
        assert OPERATOR.search(line), line
    for line in ["const uint8_t *at = x;", "i++", "-1", "a->b", "/* a + b */"]:
        assert not OPERATOR.search(code_of(line)), line
