"""Every family on the CUDA backend against the CPU's: on the SIMT emulator, and on a GPU where there is one.

The emulator runs the same kernels and the same host code, thread by thread (tests/native/simt)."""

from pathlib import Path

import lmi
import numpy as np
import pytest
from lmi_convert.requantize import requantize
from oracle import tiny_hf, tiny_models

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


def resident(path) -> int:
    """Bytes of a mapped file that this process holds."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if "-" in name.split()[0]:  # of a range: address perms offset device inode path
            ours = line.split(maxsplit=5)[5:] == [str(path)]
        elif ours and name == "Rss":
            found += int(rest.split()[0]) << 10
    return found


def test_copied_weights_leave_memory(shipped_model, cuda):
    """Those that the device has; the CPU's stay, and the map is as it was: what is read from it again is the same."""
    size, tokens = shipped_model.stat().st_size, [int(t) for t in tokens_for(9)]
    options = {"window": 24, "sinks": 2, "chunk": 16}
    with lmi.Model(shipped_model, device="cpu") as cpu, cpu.session(**options) as a:
        a.read_tokens(tokens)
        if resident(shipped_model) < size // 2:
            pytest.skip("this system does not say what is resident")
        expected = a.logits().copy()
        held = resident(shipped_model)
        with cuda(shipped_model) as gpu, gpu.session(**options):
            assert gpu.plan(**options).weight_bytes == 0
            assert resident(shipped_model) - held < size // 8
        with cuda(shipped_model, gpu_layers=2) as both, both.session(**options) as b:
            of_cpu = both.plan(**options).weight_bytes
            b.read_tokens(tokens)
            assert size // 4 < of_cpu < size and 0.8 * of_cpu < resident(shipped_model) - held < of_cpu + size // 8
        a.rewind_to(0)
        a.read_tokens(tokens)
        np.testing.assert_array_equal(a.logits(), expected)


def test_text(shipped_model, cuda):
    """Greedy text is the CPU's; drawn text, which the candidates decide, is the same every time."""
    with lmi.Model(shipped_model, device="cpu") as cpu, cuda(shipped_model) as gpu:
        greedy = [m.complete("Once upon a time", max_tokens=10, temperature=0).text for m in (cpu, gpu)]
        assert greedy[0] == greedy[1]
        drawn = [gpu.complete("Once upon a time", max_tokens=6, seed=3).text for _ in range(2)]
        assert drawn[0] == drawn[1]


def write(session) -> list:
    """Texts in a row, each ended another way."""
    found = []
    for options in (
        {"max_tokens": 110, "temperature": 0},
        {"max_tokens": 95, "temperature": 0.9, "seed": 3},
        {"max_tokens": 30, "seed": 5, "top_k": 0, "top_p": 0.9, "stop": "e"},
        {"max_tokens": 9, "seed": 5, "repeat_penalty": 1.3},
    ):
        found.append(session.generate(**options))
        session.rewind(8)
        session.read_token(7)
    for i, _ in enumerate(session.stream(None, max_tokens=50, seed=6)):
        if i == 6:
            break
    session.cancel()
    with pytest.raises(lmi.Cancelled):
        session.read_token(session.sample().token)
    found.append(session.generate(max_tokens=20, seed=7))
    return found


def test_running_ahead(tmp_path, cuda):
    """What a GPU runs unasked is never seen: texts, how they end, and what a saved state goes on with are the CPU's."""
    tiny_models.make_llama(tmp_path / "m.gguf", n_layers=1, n_embd=32, n_heads=2, n_kv_heads=1, n_ff=32, n_vocab=300)
    options = {"window": 24, "sinks": 3, "chunk": 40, "rollback": 8, "kv_type": "f32"}
    with lmi.Model(tmp_path / "m.gguf", device="cpu") as cpu, cuda(tmp_path / "m.gguf") as gpu:
        with cpu.session(**options) as a, gpu.session(**options) as b, cpu.session(**options) as c:
            found = []
            for session in (a, b):
                for token in tokens_for(10):
                    session.read_token(int(token))
                found.append(write(session))
            for expected, got in zip(*found, strict=True):
                assert (got.text, got.tokens, got.finish_reason) == (expected.text, expected.tokens, expected.finish_reason)
                np.testing.assert_allclose(got.logprobs, expected.logprobs, atol=1e-3)
            assert sum(len(r.tokens) for r in found[0]) >= 200 and b.hot_allocations == 0
            assert a.position == b.position and a.view == b.view
            c.restore(b.snapshot())
            rest = [s.generate(max_tokens=12, seed=8) for s in (a, b, c)]
            assert rest[0].tokens == rest[1].tokens == rest[2].tokens


# ---- steers ----


def make_steer(model, rank: int, seed: int, epsilon: float) -> lmi.Steer:
    p1, p2 = np.random.default_rng(seed).normal(size=(2, model.info.n_embd, rank)).astype(np.float32)
    return lmi.Steer("made", model.info.n_embd, rank, epsilon, model.fingerprint, {}, p1.tobytes(), p2.tobytes())


def rows_of(session, n: int):
    return np.array([session.logits(i) for i in range(n)]), np.array([session.hidden(i) for i in range(n)])


@pytest.mark.parametrize(("name", "layers"), [("llama", None), ("llama", 1), ("gemma2", None), ("gptj", None)])
def test_steers_as_the_cpu(made, cuda, name, layers):
    """A token at a time, a few at once, in a chunk; with room to spare; after a steer of more directions; after none."""
    _, path = made(name)
    tokens = [int(t) for t in tokens_for(90)]
    options = {"window": 24, "sinks": 3, "chunk": 70, "kv_type": "f32", "all_logits": True, "all_hidden": True}
    with lmi.Model(path, device="cpu") as cpu, cuda(path, gpu_layers=layers) as gpu:
        steers = [make_steer(cpu, 5, 1, 4e-3), make_steer(cpu, 14, 2, 0.02)]
        with cpu.session(steer_rank=22, **options) as a, gpu.session(steer_rank=22, **options) as b:
            assert b.plan.device_layers == (layers or cpu.info.n_layers)
            first, parts = [], (1, 5, 66, 1) if name == "llama" else (1, 5, 1)
            for alphas in (1, -0.7), (2, 0), (0, 0):
                found = []
                for session in (a, b):
                    session.rewind_to(0)
                    session.steer([(s, alpha) for s, alpha in zip(steers, alphas, strict=True)])
                    for part in parts:
                        session.read_tokens(tokens[session.position : session.position + part])
                        found.append(rows_of(session, part))
                for i, n in enumerate(parts):
                    for got, expected in zip(found[len(parts) + i], found[i], strict=True):
                        assert noise(got, expected) < NOISE, (alphas, i)
                        if n <= 8 and i < 2:  # nothing was read in a chunk by then
                            assert worst(got, expected) < SINGLE, (alphas, i)
                first.append(found[len(parts)][0])
                parts = (1, 2)
            assert min(worst(first[i], first[2]) for i in (0, 1)) > 0.02 and b.hot_allocations == 0


def test_alpha_zero_is_the_model_bit_for_bit(made, cuda):
    """On the device, too; a token with guesses beside it is what it is alone; candidates are of the steered logits."""
    text = [int(t) for t in tokens_for(9)] * 3
    with cuda(made("llama")[1]) as gpu:
        steer = make_steer(gpu, 6, 3, 5e-3)
        found = {}
        for name, alpha, draft in (("plain", None, 0), ("zero", 0, 0), ("one", 3, 0), ("drafts", 3, 3)):
            options = {} if alpha is None else {"steer": [(steer, alpha)]}
            with gpu.session(window=48, sinks=2, chunk=16, draft=draft, **options) as session:
                session.set_sampling(temperature=0)
                session.read_tokens(text[:18])
                rows, tokens = [], []
                for token in text[18:]:
                    session.read_token(token)
                    tokens.append(session.sample().token)
                    rows.append(session.logits().copy())
                found[name] = np.array(rows)
                assert tokens == [int(np.argmax(row)) for row in rows]
                assert (session.draft_counts.true > 0) == (draft > 0)
        np.testing.assert_array_equal(found["plain"], found["zero"])
        np.testing.assert_array_equal(found["one"], found["drafts"])
        assert not np.array_equal(found["plain"], found["one"])
