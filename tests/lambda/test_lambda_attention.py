"""One layer of Λ attention against float64, on every instruction set. Each test also runs something broken and sees it fail."""

import math

import numpy as np
import pytest
from oracle import lambda64
from oracle.lambda64 import ADJACENT, HALVES

TOLERANCE = {"f32": 1e-5, "f16": 2e-3, "q8_0": 2e-2}  # of the largest output
BROKEN = 1e-3  # what is wrong is at least this far off


def error(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, by the largest expected value; infinite if something is not a number."""
    difference = np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()
    return float(difference) if np.isfinite(difference) else math.inf


# ---- 1 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sinks", [0, 1, 2, 5])
@pytest.mark.parametrize("cuts", [1, 4])
def test_identity_inside_the_window(make_layer, text, rope_of, sinks, cuts):
    """Up to L tokens this is ordinary attention, bit for bit; the first query that can differ is L + 1 (L without sinks)."""
    window, n = 12, 20
    q, k, v = text(n)
    chunk = 40  # one capacity for both, and room for all
    out = make_layer(window=window, sinks=sinks, chunk=chunk).run(q, k, v, cuts)
    plain = make_layer(window=n, sinks=0, chunk=chunk, capacity=window - 1 + chunk).run(q, k, v, cuts)
    vanilla = lambda64.attend_all(q, k, v, rope_of())
    assert out[:window].tobytes() == plain[:window].tobytes()
    assert error(plain, vanilla) < 1e-5
    differs = [error(out[p], vanilla[p]) > BROKEN for p in range(n)]
    first = window if sinks == 0 else window + 1
    assert not any(differs[:first]) and differs[first]


# ---- 2 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("placement", ["ceiling", "contiguous"])
@pytest.mark.parametrize("window", [1, 5, 8])
def test_oracle_grid(make_layer, text, rope_of, window, placement, kv):
    n = 5 * window + 3
    for sinks in (0, 1, 3, window, window + 4):
        q, k, v = text(n, n_heads=4, n_kv_heads=2, seed=sinks)
        shape = {"window": window, "sinks": sinks, "placement": placement, "n_heads": 4, "n_kv_heads": 2, "kv": kv, "chunk": 8}
        expected = lambda64.attend(q, k, v, rope_of(), window, sinks, placement)
        for cuts in (1, 8, [3, 1, 7, 2]):
            assert error(make_layer(**shape).run(q, k, v, cuts), expected) < TOLERANCE[kv], (sinks, cuts)
        if sinks > 1:  # one position off the ceiling shows
            wrong = make_layer(**shape, sink_position=window + 1).run(q, k, v, 8)
            assert error(wrong, expected) > max(BROKEN, TOLERANCE[kv])


def test_larger_shapes(make_layer, text, rope_of):
    """More rows than a group, more slots than a block, several segments."""
    q, k, v = text(700, n_heads=3, n_kv_heads=1, head_dim=64, seed=1)
    shape = {"window": 600, "sinks": 7, "n_heads": 3, "n_kv_heads": 1, "head_dim": 64, "chunk": 100}
    expected = lambda64.attend(q, k, v, rope_of(64), 600, 7)
    layer = make_layer(**shape)
    out = np.concatenate([layer.run(q[:690], k[:690], v[:690], 100), layer.run(q[690:], k[690:], v[690:], 1)])
    assert error(out, expected) < TOLERANCE["f32"]


# ---- 3, 4 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
def test_chunks_do_not_matter(make_layer, text, kv):
    """Any partition gives the same outputs and, byte for byte, the same cache."""
    window, n = 9, 40
    q, k, v = text(n)
    shape = {"window": window, "sinks": 3, "chunk": n, "kv": kv}
    whole = make_layer(**shape)
    expected = whole.run(q, k, v, n)
    for cuts in (1, 2, 3, 7, window, window + 1):
        layer = make_layer(**shape)
        assert error(layer.run(q, k, v, cuts), expected) < 1e-5, cuts
        assert layer.bytes() == whole.bytes()
    # A ring of exactly L slots loses what the chunk overwrites before it is attended.
    small = make_layer(window=window, sinks=3, chunk=7, kv=kv, capacity=window)
    assert error(small.run(q, k, v, 7), expected) > BROKEN


@pytest.mark.parametrize("placement", ["ceiling", "contiguous"])
def test_decode_equals_prefill(make_layer, text, placement):
    q, k, v = text(60, n_heads=6, n_kv_heads=2)
    shape = {"window": 16, "sinks": 4, "chunk": 60, "n_heads": 6, "n_kv_heads": 2, "placement": placement}
    assert error(make_layer(**shape).run(q, k, v, 1), make_layer(**shape).run(q, k, v, 60)) < 1e-5


# ---- 5 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["ceiling", "contiguous"])
@pytest.mark.parametrize("start", [0, 10**6, 2**24 - 3, 2**24 + 5, 2 * 10**8, 10**10])
def test_position_does_not_matter(make_layer, text, rope_of, placement, start):
    q, k, v = text(40)
    out = make_layer(window=12, sinks=3, placement=placement, start=start).run(q, k, v, [8, 1, 3])
    assert error(out, lambda64.attend(q, k, v, rope_of(), 12, 3, placement)) < 1e-5


def test_float32_angles_fail_the_position_test(make_layer, make_float_table, text, rope_of):
    q, k, v = text(40)
    expected = lambda64.attend(q, k, v, rope_of(), 12, 3)
    assert error(make_layer(make_float_table(), window=12, sinks=3).run(q, k, v, 8), expected) < 1e-5
    far = make_layer(make_float_table(), window=12, sinks=3, start=10**7).run(q, k, v, 8)
    assert error(far, expected) > 1e-2


# ---- 6, 7 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [1, 6])
@pytest.mark.parametrize("kv", ["f32", "q8_0"])
def test_locality(make_layer, text, cuts, kv):
    """A token outside a query's set changes nothing, not one bit, even if it is not a number; one inside does."""
    window, sinks, n = 7, 2, 30
    q, k, v = text(n)
    shape = {"window": window, "sinks": sinks, "chunk": 6, "kv": kv}
    base = make_layer(**shape).run(q, k, v, cuts)
    seen = lambda64.distances(n, window, sinks, "ceiling") >= 0
    for j in range(n):
        for value in (5.0, np.nan):
            k2, v2 = k.copy(), v.copy()
            k2[j] += value
            v2[j] -= value
            out = make_layer(**shape).run(q, k2, v2, cuts)
            for p in range(n):
                assert (out[p].tobytes() != base[p].tobytes()) == seen[p, j], (p, j, value)


def test_depth_reach(make_layer, text):
    """Without sinks, n layers reach back n (L - 1) tokens and not one more."""
    window, n_layers, n, d = 5, 3, 40, 32
    random = np.random.default_rng(3)
    weights = [[random.standard_normal((d, d)) / math.sqrt(d) for _ in range(3)] for _ in range(n_layers)]

    def model(x: np.ndarray) -> np.ndarray:
        for wq, wk, wv in weights:
            q, k, v = (np.ascontiguousarray((x @ w)[:, None, :], np.float32) for w in (wq, wk, wv))
            x = x + make_layer(window=window, sinks=0, n_heads=1, chunk=7).run(q, k, v, 7)[:, 0].astype(np.float64)
        return x

    x = random.standard_normal((n, d))
    base = model(x)
    p = n - 1
    for back, changes in ((n_layers * (window - 1), True), (n_layers * (window - 1) + 1, False), (n - 1, False)):
        x2 = x.copy()
        x2[p - back] += 3.0
        assert (model(x2)[p].tobytes() != base[p].tobytes()) == changes, back


# ---- 8 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["ceiling", "contiguous"])
@pytest.mark.parametrize("pairing", [ADJACENT, HALVES])
@pytest.mark.parametrize(
    "n_rot, options",
    [
        (64, {}),
        (32, {}),
        (16, {}),
        (64, {"theta": 500000.0}),
        (64, {"scaling": "linear", "factor": 4.0}),
        (64, {"factors": np.linspace(1, 8, 32, dtype=np.float32)}),
        (64, {"scaling": "yarn", "factor": 8.0, "original_context": 64.0}),
        (32, {"scaling": "yarn", "factor": 32.0, "original_context": 64.0, "attention_factor": 1.5}),
    ],
)
def test_rope_families(make_layer, make_table, text, rope_of, n_rot, options, pairing, placement):
    window, sinks = 10, 4
    q, k, v = text(35, n_heads=4, n_kv_heads=2, head_dim=64)
    rope = rope_of(n_rot, pairing, **options)
    table = make_table(n_rot, **options)
    shape = {
        "window": window,
        "sinks": sinks,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 64,
        "pairing": pairing,
        "placement": placement,
    }
    expected = lambda64.attend(q, k, v, rope, window, sinks, placement)
    assert error(make_layer(table, **shape).run(q, k, v, [8, 1]), expected) < 1e-5
    other = make_layer(table, **{**shape, "pairing": 1 - pairing}).run(q, k, v, 8)
    assert error(other, expected) > BROKEN


def test_sinks_carry_the_magnitude(make_layer, make_table, text, rope_of):
    """With YaRN "not turned" still means multiplied: a sink store of bare keys is wrong."""
    options = {"scaling": "yarn", "factor": 32.0, "original_context": 64.0}
    q, k, v = text(40)
    layer = make_layer(make_table(**options), window=10, sinks=4)
    assert layer.table.magnitude == pytest.approx(0.1 * math.log(32) + 1)
    expected = lambda64.attend(q, k, v, rope_of(**options), 10, 4)
    assert error(layer.run(q, k, v, 8), expected) < 1e-5
    bare = make_layer(make_table(**options), window=10, sinks=4)
    bare.sink_key = lambda x, index: x
    assert error(bare.run(q, k, v, 8), expected) > BROKEN


# ---- 9 ----------------------------------------------------------------------------------------------------------------


def clipped_bias(q, k, v, slopes: np.ndarray, window: int, sinks: int) -> np.ndarray:
    """The paper's words (section 4): the full matrix of offsets, clipped from below at -|m L|, under the Λ mask."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    n, n_heads, d = q.shape
    p, j = np.arange(n)[:, None], np.arange(n)
    mask = (p >= j) & ((p - j < window) | (j < sinks))
    out = np.empty_like(q)
    for h in range(n_heads):
        kv = h // (n_heads // k.shape[1])
        bias = np.maximum(-slopes[h] * (p - j), -abs(slopes[h] * window))
        logits = np.where(mask, q[:, h] @ k[:, kv].T / math.sqrt(d) + bias, -np.inf)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[:, h] = weights / weights.sum(axis=1, keepdims=True) @ v[:, kv]
    return out


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("n_heads, n_kv_heads", [(8, 8), (6, 2)])
def test_alibi(make_layer, text, kv, n_heads, n_kv_heads):
    window, sinks = 12, 3
    q, k, v = text(60, n_heads=n_heads, n_kv_heads=n_kv_heads)
    slopes = lambda64.alibi_slopes(n_heads)
    shape = {"window": window, "sinks": sinks, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "kv": kv, "rope": False}
    expected = clipped_bias(q, k, v, slopes, window, sinks)
    direct = lambda64.attend(q, k, v, lambda64.NO_ROPE, window, sinks, slopes=slopes)
    assert error(direct, expected) < 1e-12
    for cuts in (1, 8, [3, 1, 7, 2]):
        assert error(make_layer(**shape, slopes=slopes).run(q, k, v, cuts), expected) < TOLERANCE[kv], cuts
    for wrong in (slopes * 1.05, slopes[::-1], np.zeros(n_heads)):
        assert error(make_layer(**shape, slopes=wrong).run(q, k, v, 8), expected) > max(BROKEN, TOLERANCE[kv])
    one_off = lambda64.distances(60, window, sinks, "ceiling")
    one_off[one_off == window] = window + 1
    other = lambda64.attend_at(q, k, v, lambda64.NO_ROPE, one_off, slopes=slopes)
    assert error(make_layer(**{**shape, "kv": "f32"}, slopes=slopes).run(q, k, v, 8), other) > BROKEN


def test_alibi_inside_the_window(make_layer, text):
    """Up to L + 1 tokens this is the model as it was trained."""
    q, k, v = text(40)
    slopes = lambda64.alibi_slopes(2)
    out = make_layer(window=20, sinks=4, slopes=slopes, rope=False).run(q, k, v, 8)
    vanilla = lambda64.attend_all(q, k, v, lambda64.NO_ROPE, slopes=slopes)
    assert error(out[:21], vanilla[:21]) < TOLERANCE["f32"]


# ---- soft caps and sink logits ----------------------------------------------------------------------------------------


SIZES = [(d, kv) for d in (64, 80, 96, 128, 256) for kv in TOLERANCE if kv != "q8_0" or d % 32 == 0]


@pytest.mark.parametrize("head_dim, kv", SIZES)
def test_softcap(make_layer, text, rope_of, head_dim, kv):
    """Before the bias, if there is one too; on the ring and on the sinks."""
    window, sinks = 10, 4
    q, k, v = text(45, n_heads=4, n_kv_heads=2, head_dim=head_dim)
    shape = {"window": window, "sinks": sinks, "n_heads": 4, "n_kv_heads": 2, "head_dim": head_dim, "kv": kv}
    for slopes in (None, lambda64.alibi_slopes(4)):
        options = {"softcap": 2.5, "slopes": slopes}
        expected = lambda64.attend(q, k, v, rope_of(head_dim), window, sinks, **options)
        for cuts in (1, 8):
            assert error(make_layer(**shape, **options).run(q, k, v, cuts), expected) < TOLERANCE[kv]
        for wrong in ({"slopes": slopes}, {**options, "softcap": 2.7}):
            assert error(make_layer(**shape, **wrong).run(q, k, v, 8), expected) > max(BROKEN, TOLERANCE[kv])


@pytest.mark.parametrize("level", [-60.0, 0.0, 3.0, 60.0])
def test_sink_logits(make_layer, text, rope_of, level):
    window, sinks = 10, 4
    q, k, v = text(45, n_heads=4, n_kv_heads=2)
    logits = level + np.array([-1.0, 0.5, 2.0, 0.0])
    expected = lambda64.attend(q, k, v, rope_of(), window, sinks, sink_logits=logits)
    plain = lambda64.attend(q, k, v, rope_of(), window, sinks)
    shape = {"window": window, "sinks": sinks, "n_heads": 4, "n_kv_heads": 2}
    for cuts in (1, 8):
        assert error(make_layer(**shape, sink_logits=logits).run(q, k, v, cuts), expected) < 1e-5
    assert (error(plain, expected) > BROKEN) == (level > -60)


# ---- 10 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12])
def test_shared_heads_equal_repeated_heads(make_layer, text, group):
    """Query heads that share a kv head get, bit for bit, what they get with copies of their own."""
    n_kv_heads = 2
    n_heads = group * n_kv_heads
    q, k, v = text(40, n_heads=n_heads, n_kv_heads=n_kv_heads)
    shape = {"window": 12, "sinks": 3, "n_heads": n_heads}
    for cuts in (1, 8):
        shared = make_layer(**shape, n_kv_heads=n_kv_heads).run(q, k, v, cuts)
        repeated = make_layer(**shape, n_kv_heads=n_heads).run(q, k.repeat(group, axis=1), v.repeat(group, axis=1), cuts)
        assert shared.tobytes() == repeated.tobytes()
        if group > 1:
            wrong = make_layer(**shape, n_kv_heads=n_heads).run(q, np.tile(k, (1, group, 1)), np.tile(v, (1, group, 1)), cuts)
            assert error(wrong, repeated) > BROKEN


# ---- 13 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window, chunk, rollback", [(8, 1, 0), (8, 5, 0), (8, 5, 3), (1, 4, 0), (13, 6, 6), (5, 16, 2)])
def test_ring_is_exactly_large_enough(make_layer, text, rope_of, window, chunk, rollback):
    n = 5 * (window + chunk)
    q, k, v = text(n)
    expected = lambda64.attend(q, k, v, rope_of(), window, 2)
    shape = {"window": window, "sinks": 2, "chunk": chunk, "rollback": rollback}
    layer = make_layer(**shape)
    assert layer.capacity == window - 1 + max(chunk, rollback)
    assert error(layer.run(q, k, v, chunk), expected) < 1e-5
    if window > 1:
        small = make_layer(**shape, capacity=window - 1 + chunk - 1)
        assert error(small.run(q, k, v, chunk), expected) > BROKEN


def test_wrap_at_every_residue(make_layer, text, rope_of):
    window, chunk = 6, 4
    capacity = window - 1 + chunk
    q, k, v = text(8 * capacity)
    expected = lambda64.attend(q, k, v, rope_of(), window, 2)
    for residue in range(capacity):
        layer = make_layer(window=window, sinks=2, chunk=chunk)
        out = np.concatenate([layer.run(q[:residue], k[:residue], v[:residue], 1)] if residue else [np.zeros((0, 2, 32))])
        rest = layer.run(q[residue:], k[residue:], v[residue:], chunk)
        assert error(np.concatenate([out, rest]), expected) < 1e-5, residue


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_rollback(make_layer, text, chunk):
    """Up to B tokens are taken back exactly; a ring with one slot less gives something else; more is refused."""
    window, rollback, n = 7, 5, 33
    q, k, v = text(n + 20)
    other_q, other_k, other_v = text(n + 20, seed=9)
    shape = {"window": window, "sinks": 3, "chunk": chunk, "rollback": rollback}

    def rolled(take_back: int, **changes) -> np.ndarray:
        layer = make_layer(**{**shape, **changes})
        layer.run(q[: n - take_back], k[: n - take_back], v[: n - take_back], chunk)
        layer.run(other_q[:take_back], other_k[:take_back], other_v[:take_back], chunk)
        layer.rollback(take_back)
        at = slice(n - take_back, n + 15)
        return layer.run(q[at], k[at], v[at], chunk)

    straight = make_layer(**shape).run(q[: n + 15], k[: n + 15], v[: n + 15], chunk)
    for take_back in range(1, rollback + 1):
        assert error(rolled(take_back), straight[n - take_back :]) < 1e-5
    if chunk < rollback:
        assert error(rolled(rollback, capacity=window - 1 + rollback - 1), straight[n - rollback :]) > BROKEN
    with pytest.raises(ValueError):
        rolled(rollback + 1)


# ---- 16 ---------------------------------------------------------------------------------------------------------------


def rounded_q8(x: np.ndarray) -> np.ndarray:
    """What a Q8_0 slot gives back."""
    blocks = np.asarray(x, np.float32).reshape(-1, 32)
    step = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    return (np.clip(np.rint(blocks / step), -127, 127) * step).reshape(np.shape(x))


def test_quantised_error_does_not_grow(make_layer, text, rope_of):
    """Keys are written once: after 10 windows the error is what it was after one. Turning stored keys by steps is not so."""
    window, sinks, n = 64, 8, 640
    q, k, v = text(n)
    k[:sinks] *= 2.0  # sinks that matter, as they do in models
    expected = lambda64.attend(q, k, v, rope_of(), window, sinks)
    shape = {"window": window, "sinks": sinks, "kv": "q8_0", "chunk": window}

    def growth(out: np.ndarray) -> float:
        errors = np.sqrt(((out - expected) ** 2).mean(axis=(1, 2)))
        return errors[-2 * window :].mean() / errors[window : 3 * window].mean()

    out = make_layer(**shape).run(q, k, v, window)
    assert error(out, expected) < TOLERANCE["q8_0"]
    assert growth(out) < 1.2

    drifting = make_layer(**{**shape, "chunk": 1})
    turn = drifting.turned
    held = rounded_q8(k[:sinks])  # at position 0 while the query is at L, then one step with every token

    def run() -> np.ndarray:
        nonlocal held
        out = []
        for p in range(n):
            if p > window:
                held = rounded_q8(np.stack([turn(x, 1) for x in held]))
                for j in range(sinks):
                    drifting.store(drifting.sink_banks[0], j, held[j, 0], v[j, 0])
            drifting.sink_position = p
            out.append(drifting.push(q[p : p + 1], k[p : p + 1], v[p : p + 1]))
        return np.concatenate(out)

    assert growth(run()) > 2.0


# ---- 17 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("window, sinks", [(1, 0), (1, 1), (1, 9), (2, 0), (50, 60), (3, 100), (64, 64)])
def test_edges(make_layer, text, rope_of, window, sinks, kv):
    """L = 1, G = 0, more sinks than tokens: the oracle's values, and nothing that is not a number from the unused slots."""
    q, k, v = text(45)
    expected = lambda64.attend(q, k, v, rope_of(), window, sinks)
    for cuts in (1, 9):
        out = make_layer(window=window, sinks=sinks, kv=kv, chunk=9).run(q, k, v, cuts)
        assert np.isfinite(out).all()
        assert error(out, expected) < TOLERANCE[kv]
    if window == 1 and sinks == 0 and kv == "f32":
        assert out.tobytes() == np.repeat(v, 2, axis=1).tobytes()  # each token sees itself alone


def test_sinks_come_into_view_one_by_one(internals):
    for window in (1, 4, 9):
        for sinks in (0, 1, 5):
            for p in range(30):
                expected = min(max(p - window + 1, 0), sinks)
                assert internals.lib.internals_active_sinks(p, window, sinks) == expected


# ---- 18 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start_size, recent_size", [(1, 4), (4, 7), (4, 20), (9, 3)])
def test_contiguous_is_streaming_llm(make_layer, text, rope_of, start_size, recent_size):
    """At every step, warm-up and the recent + 1 of its eviction after the forward pass included."""
    n = 3 * (start_size + recent_size) + 5
    q, k, v = text(n, n_heads=4, n_kv_heads=2)
    simulated = lambda64.streaming(q, k, v, rope_of(), start_size, recent_size)
    shape = {"sinks": start_size, "n_heads": 4, "n_kv_heads": 2, "placement": "contiguous"}
    for cuts in (1, 8):
        assert error(make_layer(**shape, window=recent_size + 1).run(q, k, v, cuts), simulated) < 1e-5
        assert error(make_layer(**shape, window=recent_size).run(q, k, v, cuts), simulated) > BROKEN
        assert error(make_layer(**{**shape, "placement": "ceiling"}, window=recent_size + 1).run(q, k, v, cuts), simulated) > (
            BROKEN if start_size > 1 else 0
        )
