"""Frequencies as turns in 0.64 fixed point: exact against integers, and equal to what published models' code computes."""

import math
from fractions import Fraction

import numpy as np
import pytest

# 2 pi to 60 digits (any table).
TWO_PI = Fraction(6283185307179586476925286766559005768394338798750211641949889, 10**60)


def exact_turns(omega: np.ndarray) -> list[int]:
    """round(2^64 * w / 2 pi) of float32 w, in rationals."""
    return [round(Fraction(float(w)) / TWO_PI * 2**64) % 2**64 for w in omega]


def float32_frequencies(n_rot: int, theta: float) -> np.ndarray:
    exponent = np.arange(0, n_rot, 2, dtype=np.float32) / np.float32(n_rot)
    return np.float32(1.0) / (float(theta) ** exponent.astype(np.float64)).astype(np.float32)


@pytest.mark.parametrize("n_rot", [2, 16, 64, 80, 128, 256, 1024])
@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1e6, 1e7, 2.0, 0.9, 1.0])
def test_turns_are_exact(make_table, n_rot, theta):
    assert make_table(n_rot, theta=theta).turns.tolist() == exact_turns(float32_frequencies(n_rot, theta))


def test_turns_of_strange_frequencies(make_table):
    """Subnormal, tiny, above one turn per token: still exact."""
    factors = np.array([1e-9, 1e-3, 0.3, 1e20, 1e30, 3e38, 1, 1e38], np.float32)
    omega = float32_frequencies(16, 10000.0) / factors
    assert make_table(16, factors=factors).turns.tolist() == exact_turns(omega)


def test_shift_is_exact(make_table):
    """phase(p) - phase(q) == phase(p - q), bit for bit, so rows repeat wherever phases do."""
    turns = [int(f) for f in make_table(64).turns]
    for p in (5, 10**9 + 5, 10**15):
        for q in (0, 3, 10**9):
            for f in turns:
                assert (p * f - q * f) % 2**64 == ((p - q) * f) % 2**64


@pytest.mark.parametrize("position", [0, 1, 4095, 131071, 10**6, 2**24 - 3, 2**24 + 5, 2 * 10**8, 10**9, 10**10])
def test_rows(make_table, position):
    """cos and sin of p * w in rationals, turned into an angle at the end."""
    table = make_table(128)
    row = table.row(position)
    angles = [float(Fraction(float(w)) * position % TWO_PI) for w in float32_frequencies(128, 10000.0)]
    expected = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert np.abs(row - expected).max() < 1e-7
    if position >= 10**7:  # the same in float32 is noise
        wrong = np.float32(position) * float32_frequencies(128, 10000.0)
        assert np.abs(np.cos(wrong) - expected[:, 0]).max() > 0.1
    if position == 0:
        assert (row == [1.0, 0.0]).all()


def test_oracle_has_the_same_frequencies(make_table, rope_of):
    for options in (
        {},
        {"theta": 500000.0},
        {"scaling": "linear", "factor": 3.0},
        {"scaling": "yarn", "factor": 4.0, "original_context": 2048.0},
        {
            "scaling": "yarn",
            "factor": 40.0,
            "original_context": 4096.0,
            "attention_factor": 0.7,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
        },
        {"scaling": "yarn", "factor": 4.0, "original_context": 8.0},
        {"scaling": "yarn", "factor": 32.0, "theta": 150000.0, "untruncated": True},
        {"factors": np.linspace(1, 32, 32, dtype=np.float32)},
        {"factors": np.linspace(1, 32, 32, dtype=np.float32), "attention_factor": 1.19},
    ):
        table, rope = make_table(64, **options), rope_of(64, **options)
        omega = table.turns.astype(np.float64) * 2.0**-64 * 2 * math.pi
        assert np.abs(omega / rope.omega - 1).max() < 2e-7, options
        assert table.magnitude == pytest.approx(rope.magnitude, rel=1e-7)


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn", "untruncated"])
def test_equal_to_transformers(make_table, kind):
    """Within one float32 unit of Hugging Face's frequencies, and its magnitude."""
    transformers = pytest.importorskip("transformers")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    scaling = {
        "default": {},
        "linear": {"factor": 4.0},
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 32768},
        "untruncated": {"factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False},
    }[kind]
    theta = {"yarn": 1e6, "untruncated": 150000.0}.get(kind, 500000.0)
    rope_type = "yarn" if kind == "untruncated" else kind
    config = transformers.LlamaConfig(
        hidden_size=1024,
        num_attention_heads=8,
        max_position_embeddings=131072,
        rope_parameters=dict(rope_type=rope_type, rope_theta=theta, **scaling),
    )
    if kind == "default":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        inverse, magnitude = LlamaRotaryEmbedding(config).inv_freq, 1.0
    else:
        inverse, magnitude = rope_utils.ROPE_INIT_FUNCTIONS[rope_type](config, device="cpu")
    options = {}
    if kind == "linear":
        options = {"scaling": "linear", "factor": 4.0}
    elif kind == "yarn":
        options = {"scaling": "yarn", "factor": 4.0, "original_context": 32768.0}
    elif kind == "untruncated":
        options = {"scaling": "yarn", "factor": 32.0, "original_context": 4096.0, "untruncated": True}
    elif kind == "llama3":  # a file brings these as factors, rounded to float32
        plain = float32_frequencies(128, theta).astype(np.float64)
        options = {"factors": (plain / inverse.double().numpy()).astype(np.float32)}
    table = make_table(128, theta=theta, **options)
    omega = table.turns.astype(np.float64) * 2.0**-64 * 2 * math.pi
    assert np.abs(omega / inverse.double().numpy() - 1).max() < 2.5e-7
    assert table.magnitude == pytest.approx(float(magnitude), rel=1e-6)


def test_refused(make_table):
    for n_rot in (1, 3, 0, -2, 1026):
        with pytest.raises(ValueError, match="rotary size"):
            make_table(n_rot)
    with pytest.raises(ValueError, match="rotary base"):
        make_table(64, theta=float("nan"))
    with pytest.raises(ValueError, match="frequency"):
        make_table(4, factors=np.array([1, 0], np.float32))
