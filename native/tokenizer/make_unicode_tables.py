"""Writes unicode_tables.h: the character classes that the pre-tokenizers' patterns speak of, as ranges.

    python make_unicode_tables.py > unicode_tables.h

The classes are general categories, folded as the patterns need them. They come from `unicodedata2` if that is installed
(version 16.0.0 was used: the Unicode version of Hugging Face `tokenizers` 0.22 and 0.23), else from Python's own
`unicodedata`. The header names the version.
"""

import sys

try:
    import unicodedata2 as unicodedata
except ImportError:
    import unicodedata

CLASSES = ["OTHER", "LU", "LL", "LT", "LM", "LO", "M", "N", "P", "S", "SPACE", "NEWLINE"]
# White_Space of PropList.txt, which is what \s means in the patterns; U+001C..U+001F are not among it.
SPACES = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}


def class_of(point: int) -> str:
    if point in (0x0A, 0x0D):
        return "NEWLINE"
    if point in SPACES:
        return "SPACE"
    category = unicodedata.category(chr(point))
    if category[0] == "L":
        return category.upper()
    if category[0] in "MNPS":
        return category[0]
    assert category[0] == "C", (hex(point), category)  # every Z is white space
    return "OTHER"


def main() -> None:
    ranges = []
    for point in range(0x110000):
        name = class_of(point)
        if not ranges or ranges[-1][1] != name:
            ranges.append((point, name))
    words = [f"0x{first << 4 | CLASSES.index(name):07x}u" for first, name in ranges]
    lines = [
        f"/* Made by make_unicode_tables.py from Unicode {unicodedata.unidata_version}; do not edit.",
        " *",
        " * Where a class begins: code point << 4 | class. It holds up to the next entry. */",
        "#ifndef LMI_TOKENIZER_UNICODE_TABLES_H",
        "#define LMI_TOKENIZER_UNICODE_TABLES_H",
        "",
        "#include <stdint.h>",
        "",
        f'#define UNICODE_VERSION "{unicodedata.unidata_version}"',
        f"#define UNICODE_N_RANGES {len(words)}",
        "",
        "/* clang-format off */",
        "static const uint32_t unicode_ranges[UNICODE_N_RANGES] = {",
    ]
    for i in range(0, len(words), 10):
        lines.append("    " + ", ".join(words[i : i + 10]) + ",")
    lines += ["};", "/* clang-format on */", "", "#endif"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
