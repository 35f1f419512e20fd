"""Numbers as people read them."""

import math

import pytest
from lmi.formats import duration, human_bytes, human_count, rate, span


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1 MiB"),
        (1048575, "1 MiB"),  # never "1024.0 KiB"
        (578 << 20, "578 MiB"),
        (int(4.7 * 2**30), "4.7 GiB"),
        (2**60, "1 EiB"),
    ],
)
def test_bytes(n, text):
    assert human_bytes(n) == text


def test_bytes_are_within_a_twentieth():
    units = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    for e in range(400):
        n = int(1.07**e)
        if n < 2**49:
            value, unit = human_bytes(n).split()
            assert math.isclose(float(value) * units[unit], n, rel_tol=0.05)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0314, "31 ms"), (24.93, "24.9 s"), (59.96, "1:00"), (3492, "58:12"), (7384, "2:03:04"), (3599.6, "1:00:00")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_counts_and_rates():
    assert human_count(8_030_261_248) == "8.0 B"
    assert human_count(260_032) == "260 K"
    assert human_count(12) == "12"
    assert rate(412_807, 3492) == "118.2"
    assert rate(1, 0) == "–"
    assert span(0, 16) == "0–15"
    assert span(408_911, 413_007) == "408,911–413,006"
    assert span(7, 8) == "7"
