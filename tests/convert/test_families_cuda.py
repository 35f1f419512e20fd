"""Every family on the CUDA backend against the CPU's: on the SIMT emulator, and on a GPU where there is one.

The emulator runs the same kernels and the same host code, thread by thread (tests/native/simt)."""

import lmi
import numpy as np
import pytest
from lmi_convert.requantize import requantize
from oracle import tiny_hf

# Single tokens: row-wise kernels do what the CPU does, float32 activations and sums where the weights are F32. Difference over
# the largest logit.
SINGLE = 1e-4
# Noise over signal, squares. Tiled kernels round activations to binary16: 2^-26 for each product, of which logits collect some
# dozens, enlarged by softmax. Quantized weights: activations are rounded to 8 bits here and there, and where a norm differs in
# its last bit, now and then to the next of 254 steps. A kernel with a mistake is off by 1e-3 and more.
NOISE = 2e-5


def worst(got, expected) -> float:
    got, expected = np.array(got), np.array(expected)
    assert np.isfinite(got).all()
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


def noise(got, expected) -> float:
    got, expected = np.array(got, np.float64), np.array(expected, np.float64)
    assert np.isfinite(got).all()
    return float(np.sum((got - expected) ** 2) / np.sum(expected**2))


def one_by_one(model, tokens, **options) -> list:
    with model.session(**options) as session:
        rows = []
        for token in tokens:
            session.read_token(int(token))
            rows.append(session.logits())
        return rows


def at_once(model, tokens, **options):
    with model.session(**options) as session:
        session.read_tokens([int(t) for t in tokens])
        return session.logits()


def tokens_for(n: int) -> np.ndarray:
    """Of a seed without a near tie between experts, which rounding would decide."""
    return np.random.default_rng(12).integers(1, 250, n)


@pytest.mark.parametrize("name", tiny_hf.BY_NAME)
def test_as_the_cpu(made, cuda, name):
    """Beyond the window, in every placement, token by token and in chunks."""
    _, path = made(name)
    tokens = tokens_for(70)
    with lmi.Model(path, device="cpu") as cpu, cuda(path) as gpu:
        for placement in ("ceiling", "contiguous", "true") if name in ("llama", "gptj") else ("ceiling",):
            options = {"window": 18, "sinks": 3, "chunk": 40, "kv_type": "f32", "placement": placement}
            assert worst(one_by_one(gpu, tokens[:26], **options), one_by_one(cpu, tokens[:26], **options)) < SINGLE
            assert noise(at_once(gpu, tokens, **options), at_once(cpu, tokens, **options)) < NOISE


@pytest.mark.parametrize(("weights", "kv_type"), [("Q8_0", "f16"), ("Q4_K_M", "q8_0")])
def test_quantized(shipped_model, tmp_path_factory, cuda, weights, kv_type):
    """Numbers of real size: the shipped model, as it is and in K-quants, past its window. Only single tokens: in chunks the CPU
    rounds activations to 8 bits, the tiled kernels do not."""
    path = shipped_model
    if weights != "Q8_0":
        path = tmp_path_factory.mktemp("quantized") / f"{weights}.gguf"
        requantize(str(shipped_model), str(path), weights)
    tokens = tokens_for(12)
    options = {"window": 7, "sinks": 2, "chunk": 16, "kv_type": kv_type}
    with lmi.Model(path, device="cpu") as cpu, cuda(path) as gpu:
        assert noise(one_by_one(gpu, tokens, **options), one_by_one(cpu, tokens, **options)) < NOISE


def test_states_move(shipped_model, cuda, tmp_path):
    """CPU to device and back, through memory and through a file, and split in any way: the text goes on as if it had stayed."""
    tokens = [int(t) for t in tokens_for(60)]
    options = {"window": 24, "sinks": 2, "chunk": 16, "kv_type": "q8_0"}
    with lmi.Model(shipped_model, device="cpu") as cpu, cuda(shipped_model) as gpu, cuda(shipped_model, gpu_layers=2) as both:
        with cpu.session(**options) as a, gpu.session(**options) as b, both.session(**options) as c:
            a.read_tokens(tokens[:50])
            b.restore(a.snapshot())
            b.save(tmp_path / "state")
            c.load(tmp_path / "state")
            a.restore(c.snapshot())
            assert b.snapshot()._data == a.snapshot()._data
            for session in (a, b, c):
                session.read_token(tokens[50])
            assert noise(b.logits(), a.logits()) < NOISE
            assert noise(c.logits(), a.logits()) < NOISE


def test_text(shipped_model, cuda):
    """Greedy text is the CPU's; drawn text, which the candidates decide, is the same every time."""
    with lmi.Model(shipped_model, device="cpu") as cpu, cuda(shipped_model) as gpu:
        greedy = [m.complete("Once upon a time", max_tokens=10, temperature=0).text for m in (cpu, gpu)]
        assert greedy[0] == greedy[1]
        drawn = [gpu.complete("Once upon a time", max_tokens=6, seed=3).text for _ in range(2)]
        assert drawn[0] == drawn[1]
