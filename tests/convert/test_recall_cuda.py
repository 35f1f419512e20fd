"""Recall on the CUDA backend against the CPU's, which other tests hold against brute force: on the SIMT emulator, and on a GPU
where there is one."""

import lmi
import numpy as np
import pytest
from oracle import tiny_models

# Over the largest logit: single tokens, and few, do in float32 what the CPU does.
SINGLE = 1e-4
# Noise over signal, squares: see test_families_cuda.
NOISE = 2e-5


def worst(got, expected) -> float:
    got, expected = np.array(got), np.array(expected)
    assert np.isfinite(got).all()
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


def noise(got, expected) -> float:
    got, expected = np.array(got, np.float64), np.array(expected, np.float64)
    assert np.isfinite(got).all()
    return float(np.sum((got - expected) ** 2) / np.sum(expected**2))


def options(**more) -> dict:
    common = {"window": 18, "sinks": 3, "chunk": 15, "rollback": 15, "kv_type": "f32"}
    return {**common, "recall": "blocks:2x16", "recall_distance": 9, "recall_budget": "1M", **more}


def with_room_for(model, slots: int, **more) -> dict:
    """A budget of so many blocks, and no more: others give way."""
    o = options(**more)
    per_slot = -(-(1 << 20) // (model.plan(**o).recall_tokens // 16))
    return {**o, "recall_budget": slots * per_slot + per_slot // 2}


def read_on(session, tokens) -> list:
    rows = []
    for token in tokens:
        session.read_token(int(token))
        rows.append(session.logits())
    return rows


def tokens_for(n: int) -> list[int]:
    """Of a seed without a close choice between blocks, which the rounding of tiled kernels would decide."""
    return [int(t) for t in np.random.default_rng(9).integers(1, 250, n)]


# llama: rows that turn with their neighbours, two heads a kv head; mpt: ALiBi; qwen3: halves that turn, heads with a norm;
# gemma2: capped logits, and layers with a window of their own, which do not recall; gpt-oss: such layers, and sink logits.
@pytest.mark.parametrize(
    ("name", "kv_type"),
    [
        ("llama", "f16"),
        ("llama-head-dim", "q8_0"),
        ("mpt", "f16"),
        ("qwen3", "f16"),
        ("gemma2", "f16"),
        ("gpt-oss", "f32"),
    ],
)
def test_as_the_cpu(made, cuda, name, kv_type):
    """States that move both ways, a chunk, then few at a time, going back, and on: with blocks that gave way."""
    _, path = made(name)
    tokens = tokens_for(120)
    with lmi.Model(path, device="cpu") as cpu, cuda(path) as gpu:
        o = with_room_for(cpu, 5, kv_type=kv_type)
        with cpu.session(**o) as a, gpu.session(**o) as b:
            a.read_tokens(tokens[:90])
            b.restore(a.snapshot())
            for session in (a, b):
                session.read_tokens(tokens[90:106])  # a chunk, and one
            if kv_type != "q8_0":
                assert noise(b.logits(), a.logits()) < NOISE
            assert a.view == b.view and a.view.dropped > 0
            a.restore(b.snapshot())  # the same keys from here on
            assert bytes(a.snapshot()._data) == bytes(b.snapshot()._data)
            for session in (a, b):
                session.read_tokens(tokens[106:112])  # five together, and one
            # In q8_0 a value that differs in its last bits is now and then stored as the next of 254 levels.
            far, most = (noise, NOISE) if kv_type == "q8_0" else (worst, SINGLE)
            assert far(b.logits(), a.logits()) < most
            for session in (a, b):
                session.rewind_to(100)
            assert far(read_on(b, tokens[20:24]), read_on(a, tokens[20:24])) < most
            assert a.view == b.view


def test_a_whole_prompt(made, cuda):
    """From its first token on in chunks that are longer than the window."""
    _, path = made("llama")
    tokens = tokens_for(130)
    with lmi.Model(path, device="cpu") as cpu, cuda(path) as gpu:
        o = with_room_for(cpu, 9, window=11, chunk=66, kv_type="f16")
        with cpu.session(**o) as a, gpu.session(**o) as b:
            for session in (a, b):
                session.read_tokens(tokens)
            assert noise(b.logits(), a.logits()) < NOISE
            assert a.view == b.view and a.view.kept > 100


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_from_the_first_token_on(cuda, tmp_path, kv_type):
    """One by one: every choice is the CPU's, and so are the blocks that give way; of another text nothing is left."""
    made = tiny_models.make_llama(
        tmp_path / "t.gguf", n_embd=64, n_heads=2, n_kv_heads=1, n_layers=1, n_ff=32, n_vocab=288, seed=2
    )
    tokens = [int(t) for t in made.random_tokens(72, seed=8)]
    with lmi.Model(made.path, device="cpu") as cpu, cuda(made.path) as gpu:
        o = options(window=4, sinks=1, chunk=8, rollback=1, recall="blocks:1x16", recall_distance=2, kv_type=kv_type)
        o = with_room_for(cpu, 4, **o)
        with cpu.session(**o) as a, gpu.session(**o) as b:
            assert worst(read_on(b, tokens), read_on(a, tokens)) < SINGLE
            assert a.view == b.view and a.view.dropped > 0
            if kv_type == "f16":
                b.rewind_to(0)
                assert b.view.dropped == 0
                again = read_on(b, tokens[10:34])
                with gpu.session(**o) as fresh:
                    assert np.array_equal(again, read_on(fresh, tokens[10:34]))


def test_plan_is_exact(made, cuda):
    """What a session takes, on the device and of the host, is what the plan said."""
    _, path = made("llama")
    with cuda(path) as gpu, lmi.Model(path, device="cpu") as cpu:
        plan, host = gpu.plan(**options()), cpu.plan(**options())
        assert plan.device_layers == 3 and plan.fits
        assert plan.recall_bytes == host.recall_bytes > 0 and plan.recall_tokens == host.recall_tokens
        assert plan.context_bytes == plan.recall_bytes and plan.recall_file_bytes == 0
        assert plan.keys_and_values_bytes == host.keys_and_values_bytes
        with gpu.session(**options()) as session:
            assert session.plan.recall_bytes == plan.recall_bytes
            if gpu.info.device == "SIMT emulator":  # which gives out bytes, not pages
                after = gpu.plan(**options())
                assert plan.device_available_bytes - after.device_available_bytes == plan.device_needed_bytes


def test_what_a_gpu_refuses(made, cuda, tmp_path):
    _, path = made("llama")
    with cuda(path) as gpu:
        for recall in ("surprise:8", "topk:5"):
            with pytest.raises(lmi.DeviceError, match=f"recalls blocks; {recall[:4]}.* is the CPU's only") as e:
                gpu.session(**options(recall=recall, recall_budget=None))
            assert "--recall blocks" in e.value.remedy and "--device cpu" in e.value.remedy
        with pytest.raises(lmi.DeviceError, match="in memory, not in a folder") as e:
            gpu.session(**options(recall_folder=tmp_path))
        assert "--recall-folder" in e.value.remedy
        with pytest.raises(lmi.Error, match="budget of .* has room for"):
            gpu.session(**options(recall_budget=4096))
