"""The oracle against itself: what must be equal on paper is equal in float64."""

import numpy as np
import pytest
from oracle import lambda64
from oracle.lambda64 import ADJACENT, HALVES


@pytest.mark.parametrize("pairing", [ADJACENT, HALVES])
@pytest.mark.parametrize("n_rot", [8, 16, 32])
def test_distance_form_is_rotation_of_both(text, rope_of, pairing, n_rot):
    """<R(p - j) q, k> is <R(p) q, R(j) k>: ordinary attention written with turned queries and keys."""
    q, k, v = (x.astype(np.float64) for x in text(25))
    rope = lambda64.Rope(rope_of(n_rot).omega, pairing, 1.25)
    at = np.arange(25)
    turned_q, turned_k = lambda64.rotate(q, at, rope), lambda64.rotate(k, at, rope)
    logits = np.einsum("phd,jd->hpj", turned_q, turned_k[:, 0]) / np.sqrt(32)
    logits = np.where(at[:, None] >= at, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    expected = np.einsum("hpj,jd->phd", weights / weights.sum(axis=2, keepdims=True), v[:, 0])
    assert np.abs(lambda64.attend_all(q, k, v, rope) - expected).max() < 1e-12


def test_pairs_by_hand():
    rope = lambda64.Rope(np.array([np.pi / 2, np.pi]), ADJACENT)
    x = np.array([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert np.allclose(lambda64.rotate(x, np.array([1]), rope), [[-2, 1, -3, -4, 5]])
    halves = lambda64.Rope(rope.omega, HALVES)
    assert np.allclose(lambda64.rotate(x, np.array([1]), halves), [[-3, -2, 1, -4, 5]])


def test_set_of_a_query():
    """L = 4, G = 2 by hand."""
    d = lambda64.distances(8, 4, 2, "ceiling")
    assert d[3].tolist() == [3, 2, 1, 0, -1, -1, -1, -1]
    assert d[4].tolist() == [4, 3, 2, 1, 0, -1, -1, -1]
    assert d[5].tolist() == [4, 4, 3, 2, 1, 0, -1, -1]
    assert d[7].tolist() == [4, 4, -1, -1, 3, 2, 1, 0]
    c = lambda64.distances(8, 4, 2, "contiguous")
    assert c[5].tolist() == [5, 4, 3, 2, 1, 0, -1, -1]
    assert c[7].tolist() == [5, 4, -1, -1, 3, 2, 1, 0]
    t = lambda64.distances(8, 4, 2, "true")
    assert t[7].tolist() == [7, 6, -1, -1, 3, 2, 1, 0]


@pytest.mark.parametrize("start_size, recent_size", [(1, 4), (4, 7), (3, 1), (9, 3)])
def test_contiguous_is_streaming_llm(text, rope_of, start_size, recent_size):
    q, k, v = text(50, n_heads=4, n_kv_heads=2)
    one = lambda64.streaming(q, k, v, rope_of(), start_size, recent_size)
    other = lambda64.attend(q, k, v, rope_of(), recent_size + 1, start_size, "contiguous")
    assert np.abs(one - other).max() < 1e-12
    wrong = lambda64.attend(q, k, v, rope_of(), recent_size, start_size, "contiguous")
    assert np.abs(one - wrong).max() > 1e-3


def test_identity(text, rope_of):
    q, k, v = text(30)
    vanilla = lambda64.attend_all(q, k, v, rope_of())
    for placement in ("ceiling", "contiguous"):
        out = lambda64.attend(q, k, v, rope_of(), 20, 3, placement)
        differs = np.abs(out - vanilla).max(axis=(1, 2)) > 1e-12
        first = 21 if placement == "ceiling" else 23  # contiguous: all sinks still at their distances until one is skipped
        assert not differs[:first].any() and differs[first]


def test_slopes_by_hand():
    """ALiBi, section 3; MPT and BLOOM for counts that are no power of two."""
    assert lambda64.alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert lambda64.alibi_slopes(4).tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]
    assert np.allclose(lambda64.alibi_slopes(6), [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])


def test_cap_bias_and_sink_by_hand():
    """One query, two keys: logits 6 and 0 at distances 1 and 0, cap 2, slope 1/2, sink logit 1."""
    q, k, v = np.full((2, 1, 1), 3.0), np.array([[[2.0]], [[0.0]]]), np.array([[[1.0]], [[10.0]]])
    options = {"softcap": 2.0, "slopes": np.array([0.5]), "sink_logits": np.array([1.0])}
    a, b = np.exp(2 * np.tanh(3.0) - 0.5), np.exp(0.0)
    out = lambda64.attend_all(q, k, v, lambda64.NO_ROPE, **options)
    assert np.allclose(out[1], (a * 1 + b * 10) / (a + b + np.e))
