"""Stop texts and sampling options."""

import math

import lmi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmi.generate import _MORE_THAN_0, _RANGES, Sampling, StopTexts
from lmi.selftest import F32, I32, U32


def through(stops, pieces) -> tuple[str, bool]:
    s, out = StopTexts(stops), ""
    for piece in pieces:
        text, stopped = s.push(piece)
        out += text
        if stopped:
            return out, True
    return out + s.rest(), False


@settings(deadline=None, max_examples=300)
@given(
    st.text("ab\n", max_size=30),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 4), max_size=20),
)
def test_stops_at_the_first_stop_text_however_it_is_cut(text, stops, sizes):
    pieces, at = [], 0
    for n in sizes:
        pieces.append(text[at : at + n])
        at += n
    pieces.append(text[at:])
    out, stopped = through(stops, pieces)
    ends = [i + len(s) for s in stops for i in [text.find(s)] if i >= 0]
    assert stopped == bool(ends)
    if not stopped:
        assert out == text
    else:
        assert text.startswith(out)
        assert not any(s in out for s in stops)
        assert any(text[len(out) :].startswith(s) for s in stops)


def test_nothing_is_held_longer_than_needed():
    s = StopTexts(["</end>"])
    assert s.push("abc<") == ("abc", False)
    assert s.push("b") == ("<b", False)
    assert s.push("</en") == ("", False)
    assert s.rest() == "</en"


@pytest.mark.parametrize("bad", [[""], [1], ["a"] * 65])
def test_bad_stops(bad):
    with pytest.raises(lmi.InvalidArgument):
        StopTexts(bad)


def test_defaults_are_the_librarys(model):
    s = lmi.Sampling.for_model(model)
    assert s == lmi.Sampling()  # what the docstring says is what lmi_sampling_default gives
    assert (s.temperature, s.top_k, s.top_p, s.min_p) == (0.8, 40, 0.95, 0.05)


def test_the_files_own_values_are_honoured(chat):
    path = chat(
        None, ("general.sampling.temp", F32, 0.25), ("general.sampling.top_k", I32, 7), ("general.sampling.top_p", F32, 9.0)
    )
    with lmi.Model(path) as m:
        s = lmi.Sampling.for_model(m)
    assert (s.temperature, s.top_k) == (0.25, 7)
    assert s.top_p == 0.95  # 9 is out of range and not the user's doing
    path = chat(None, ("general.sampling.penalty_last_n", U32, 32))
    with lmi.Model(path) as m:
        assert lmi.Sampling.for_model(m).penalty_last == 32


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_k": True},
        {"top_p": 1.1},
        {"min_p": float("inf")},
        {"penalty_last": 4097},
        {"seed": 2**64},
        {"seed": -1},
        {"temprature": 1},
    ],
)
def test_values_out_of_range(bad, session):
    with pytest.raises(lmi.InvalidArgument):
        session.set_sampling(**bad)


def test_seed_is_told_and_repeats(session):
    used = session.set_sampling()
    assert used.seed is not None and session.seed == used.seed
    session.feed("abc")
    snapshot = session.snapshot()
    one = session.generate(max_tokens=12, seed=used.seed)
    session.restore(snapshot)
    two = session.generate(max_tokens=12, seed=used.seed)
    session.restore(snapshot)
    other = session.generate(max_tokens=12, seed=used.seed + 1)
    assert one.tokens == two.tokens != other.tokens
    assert one.stats.seed == used.seed


def test_a_file_with_values_out_of_range_can_be_used(chat):
    """What the library would refuse is passed over, not only what Python would."""
    odd = [("temp", 500.0), ("top_p", 0.0), ("penalty_repeat", 50.0), ("min_p", math.nan)]
    path = chat(None, *((f"general.sampling.{key}", F32, value) for key, value in odd))
    with lmi.Model(path) as m:
        assert Sampling.for_model(m) == Sampling()
        assert m.complete("the", max_tokens=2).stats.written == 2


@pytest.mark.parametrize(
    "option", [{"temperature": 100.5}, {"top_p": 0}, {"typical_p": 0}, {"repeat_penalty": 11}, {"repeat_penalty": 0}]
)
def test_ranges_are_the_library_s(session, option):
    with pytest.raises(lmi.InvalidArgument):
        Sampling().but(**option)
    name = next(iter(option))
    for value in _RANGES[name]:
        session.set_sampling(Sampling().but(**{name: max(value, 1e-30) if name in _MORE_THAN_0 else value}))
