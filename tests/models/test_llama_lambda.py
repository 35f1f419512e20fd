"""Λ on a whole model: what must not depend on how the text was cut, where it began, who computed it or what was undone."""

import door
import numpy as np
import pytest
from oracle import tiny_models, transformer64

WINDOW, SINKS = 40, 4
KV_BOUNDS = {"f32": 1e-4, "f16": 5e-3, "q8_0": 6e-2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Heads of 32, so that a q8_0 buffer is possible."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return tiny_models.make_llama(path, n_embd=128, n_heads=4, n_kv_heads=2, n_layers=3, seed=11, rope_theta=10000.0)


@pytest.fixture(scope="module")
def tokens(tiny):
    return tiny.random_tokens(300, seed=1)


@pytest.fixture(scope="module")
def expected(tiny, tokens):
    return transformer64.forward(tiny, tokens, window=WINDOW, sinks=SINKS)


@pytest.fixture(scope="module")
def model(native, tiny):
    with door.open_model(native, tiny.path) as model:
        yield model


def test_first_difference_from_ordinary_attention(model, tokens):
    """Spec test 1: up to and with the query at p = L nothing differs, at L + 1 something does (without sinks, at L)."""
    ordinary = model.rows(tokens[:60], window=60, sinks=0)
    scale = np.std(ordinary)
    for sinks, first in ((4, WINDOW + 1), (1, WINDOW + 1), (0, WINDOW)):
        difference = np.max(np.abs(model.rows(tokens[:60], window=WINDOW, sinks=sinks) - ordinary), axis=1) / scale
        assert difference[:first].max() < 2e-6
        assert difference[first] > 1e-4


@pytest.mark.parametrize("isa", door.ISAS)
@pytest.mark.parametrize("kv", KV_BOUNDS)
def test_every_instruction_set_and_buffer_type(native, tiny, tokens, expected, isa, kv):
    if isa not in door.available_isas(native):
        pytest.skip(f"no {isa} here")
    with door.open_model(native, tiny.path, isa=isa) as model:
        for chunk in (1, 3, 64, 512):
            rows = model.rows(tokens, window=WINDOW, sinks=SINKS, kv=kv, chunk=chunk)
            assert door.relative_error(rows, expected) < KV_BOUNDS[kv], chunk


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_error_of_a_narrow_buffer_does_not_grow(tiny, model, kv):
    """Keys are written once and never turned again (spec test 16): after 10 windows the error is what it was after one."""
    tokens = tiny.random_tokens(10 * WINDOW, seed=5)
    expected = transformer64.forward(tiny, tokens, window=WINDOW, sinks=SINKS)
    error = np.abs(model.rows(tokens, window=WINDOW, sinks=SINKS, kv=kv) - expected).mean(axis=1)
    assert error[-WINDOW:].mean() < 1.5 * error[WINDOW : 2 * WINDOW].mean()


def test_any_cutting_into_chunks(model, tokens, expected):
    """Spec tests 3 and 4: each partition, decoding among them, and reads of uneven sizes."""
    scale = np.std(expected)
    reference = model.rows(tokens, window=WINDOW, sinks=SINKS, chunk=512)
    for chunk in (1, 2, 3, 7, WINDOW - 1, WINDOW, WINDOW + 1, 300):
        rows = model.rows(tokens, window=WINDOW, sinks=SINKS, chunk=chunk)
        assert np.max(np.abs(rows - reference)) < 2e-5 * scale, chunk
    rng = np.random.default_rng(0)
    with model.session(window=WINDOW, sinks=SINKS, chunk=64) as session:
        at = 0
        while at < len(tokens):
            n = int(rng.integers(1, 64))
            session.read(tokens[at : at + n])
            at = min(at + n, len(tokens))
            assert np.max(np.abs(session.logits() - reference[at - 1])) < 2e-5 * scale


@pytest.mark.parametrize("start", [10**6, 2**24 - 3, 2**24 + 5, 2 * 10**8, 2**31 - 64, 2**32 - 64, 10**10, 2**53 - 64])
@pytest.mark.parametrize("placement", door.PLACEMENTS)
def test_any_start_of_the_counter(model, tokens, start, placement):
    """Spec test 5: distances do not depend on where the text begins. Angles in float32 would be noise at 10^7 and beyond."""
    reference = model.rows(tokens, window=WINDOW, sinks=SINKS, placement=placement)
    rows = model.rows(tokens, window=WINDOW, sinks=SINKS, placement=placement, start=start)
    # What is left is the rounding of cos and sin to float32: 2e-7 each.
    assert door.relative_error(rows, reference) < 2e-5


def test_float32_angles_would_fail_the_test_above():
    omega = 10000.0 ** (-np.arange(0, 32, 2) / 32)

    def difference(p: int) -> float:
        narrow = np.float32(p) * omega.astype(np.float32) - np.float32(p - 10) * omega.astype(np.float32)
        return float(np.max(np.abs(np.exp(1j * narrow.astype(np.float64)) - np.exp(1j * 10 * omega))))

    assert difference(1000) < 1e-3 < 0.05 < difference(10**7)


def test_reach_of_depth_without_sinks(model, tiny, tokens):
    """Spec test 7: n layers of windows of L see n * (L - 1) tokens back, not one more."""
    window, reach = 9, tiny.n_layers * 8
    at = 200
    changed = tokens.copy()
    changed[: at - reach] = np.roll(changed[: at - reach], 1)
    with_change = model.rows(changed[: at + 1], window=window, sinks=0)
    without = model.rows(tokens[: at + 1], window=window, sinks=0)
    assert np.array_equal(with_change[at], without[at])
    changed = tokens.copy()
    changed[at - reach] = (changed[at - reach] + 1) % 300 + 3
    assert not np.array_equal(model.rows(changed[: at + 1], window=window, sinks=0)[at], without[at])


@pytest.mark.parametrize("isa", door.ISAS)
@pytest.mark.parametrize("weight_type", ["F32", "F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def test_bit_identical_for_any_number_of_threads(native, tmp_path, isa, weight_type):
    if isa not in door.available_isas(native):
        pytest.skip(f"no {isa} here")
    made = tiny_models.make_llama(
        tmp_path / "t.gguf", n_embd=256, n_heads=4, n_kv_heads=2, n_ff=512, n_layers=2, weight_type=weight_type, seed=2
    )
    tokens = made.random_tokens(200, seed=2)
    for chunk, n in ((1, 80), (64, 200)):
        results = []
        for threads in (1, 2, 3, 5):
            with door.open_model(native, made.path, isa=isa, threads=threads) as model:
                results.append(model.rows(tokens[:n], window=WINDOW, sinks=SINKS, kv="f16", chunk=chunk))
        assert all(np.array_equal(result, results[0]) for result in results)


# ---- edges (spec test 17) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (1, 1), (2, 50), (400, 4), (40, 299), (40, 1000)])
@pytest.mark.parametrize("placement", door.PLACEMENTS)
def test_edges_of_window_and_sinks(model, tiny, tokens, window, sinks, placement):
    rows = model.rows(tokens, window=window, sinks=sinks, placement=placement)
    assert np.all(np.isfinite(rows))
    expected = transformer64.forward(tiny, tokens, window=window, sinks=sinks, placement=placement)
    assert door.relative_error(rows, expected) < 1e-4


def test_reading_nothing_is_refused(model):
    with model.session() as session:
        with pytest.raises(door.DoorError):
            session.read([])
        assert session.position == 0


def test_view_says_what_is_forgotten(model, tokens):
    with model.session(window=WINDOW, sinks=SINKS, chunk=64) as session:
        for n in (1, SINKS, WINDOW, WINDOW + 1, WINDOW + SINKS, WINDOW + SINKS + 1, 250):
            session.read(tokens[session.position : n])
            view = session.view
            seen = set(range(view.sinks_end)) | set(range(view.window_begin, view.position))
            # For the next query, at n: its band begins at n - L + 1, and the last token read is n - 1.
            assert seen >= {j for j in range(n) if n - j < WINDOW or j < SINKS}
            assert view.forgotten == n - len(seen)


# ---- undoing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("rollback", [1, 8, 200])
def test_rewind_within_the_rollback_is_exact(model, tokens, kv, rollback):
    """Spec test 13: other tokens are read, taken back, and the text goes on as if they had never been."""
    other = np.roll(tokens, 17)
    chunk = 4
    with model.session(window=WINDOW, sinks=SINKS, kv=kv, chunk=chunk, rollback=rollback) as session:
        for at in range(0, 260, 13):
            session.read(tokens[session.position : at + 1])
            plain = session.logits()
            back = min(rollback, 23) - 1
            for token in other[:back]:  # as speculation would: one by one
                session.read([token])
            session.rewind(at + 1)
            session.rewind(at)
            session.read(tokens[at : at + 1])
            assert np.array_equal(session.logits(), plain), at
    straight = model.rows(tokens[:248], window=WINDOW, sinks=SINKS, kv=kv, chunk=1)
    # In a narrow buffer a rounding error of float32 can turn into one of the buffer's type.
    assert door.relative_error(plain, straight[-1]) < {"f32": 1e-5, "f16": 1e-3, "q8_0": 2e-2}[kv]


def test_rewind_too_deep_is_refused_and_harmless(model, tokens):
    with model.session(window=WINDOW, sinks=SINKS, chunk=8, rollback=8) as session:
        session.read(tokens[:200])
        with pytest.raises(door.DoorError, match="rewind"):
            session.rewind(200 - 9)
        session.rewind(200 - 8)
        session.read(tokens[192:200])
        after = session.logits()
        session.rewind(0)
        assert session.position == 0
        again = session.read_rows(tokens[:200])
        assert door.relative_error(after, again[-1]) < 1e-5


# ---- saved states -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("at", [1, SINKS, WINDOW, 100, 250])
def test_saved_state_goes_on_bitwise(native, tiny, tokens, tmp_path, kv, at):
    """Spec test 14: in memory and through a file, into a fresh session of a freshly opened model."""
    options = {"window": WINDOW, "sinks": SINKS, "kv": kv, "chunk": 16}
    with door.open_model(native, tiny.path) as model, model.session(**options) as session:
        session.read(tokens[:at])
        logits = session.logits()
        state = session.state()
        session.save(tmp_path / "state")
        size = (tmp_path / "state").stat().st_size
        straight = session.read_rows(tokens[at:])
    with door.open_model(native, tiny.path, threads=1) as model:
        with model.session(**options) as session:
            session.read(tokens[50:77])  # anything: it is replaced
            session.load(tmp_path / "state")
            assert session.position == at
            assert np.array_equal(session.logits(), logits)
            assert np.array_equal(session.read_rows(tokens[at:]), straight)
        with model.session(**options) as session:
            session.load_state(state)
            assert np.array_equal(session.read_rows(tokens[at:]), straight)
            assert len(session.state()) == len(state)
            session.save(tmp_path / "later")
    assert (tmp_path / "later").stat().st_size == size  # whatever was read


def test_state_of_other_options_is_refused(model, tokens):
    with model.session(window=WINDOW, sinks=SINKS) as session:
        session.read(tokens[:50])
        state = session.state()
    placements = ({"placement": "contiguous"}, {"placement": "true"})
    for other in ({"window": WINDOW + 1}, {"sinks": SINKS + 1}, {"kv": "f16"}, *placements, {"chunk": 512}):
        with model.session(**{"window": WINDOW, "sinks": SINKS, **other}) as session:
            session.read(tokens[:20])
            before = session.logits()
            with pytest.raises(door.DoorError):
                session.load_state(state)
            assert session.position == 20
            assert np.array_equal(session.logits(), before)
