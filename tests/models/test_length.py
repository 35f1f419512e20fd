"""What length costs and does: memory over a million tokens, and how well a real model predicts far beyond its training."""

import json
import subprocess
import sys

import door
import numpy as np
import psutil
import pytest
from oracle import tiny_models


def test_memory_is_constant_over_a_million_tokens(native, tmp_path):
    """Spec test 15."""
    tiny = tiny_models.make_llama(tmp_path / "t.gguf", n_layers=1, n_embd=32, n_heads=1, n_kv_heads=1, n_ff=32, seed=1)
    tokens = tiny.random_tokens(20_000)
    process = psutil.Process()
    with door.open_model(native, tiny.path) as model:
        with model.session(window=32, sinks=4, kv="f16", chunk=512, all_logits=False) as session:
            session.read(tokens)
            before = process.memory_info().rss
            for _ in range(49):
                session.read(tokens)
            assert session.position == 1_000_000
            assert process.memory_info().rss - before <= 1 << 20
            assert session.hot_allocations == 0
            assert np.all(np.isfinite(session.logits()))


MEASURE = """
import json, sys, psutil, lmi
from lmi import _native
_native.native()
window, n_vocab = 8000, 1000
memory = psutil.Process().memory_info
before = memory().rss
with lmi.Model(sys.argv[1], threads=2) as model:
    plan = model.plan(window=window, sinks=16, kv_type="f32", rollback=64)
    with model.session(window=window, sinks=16, kv_type="f32", rollback=64) as session:
        session.set_sampling(temperature=0.8, seed=1)
        session.read_tokens([i * 7 % n_vocab for i in range(window + 600)])
        model.tokenize("a")
        session.sample()
        print(json.dumps([plan.total_bytes, memory().rss - before]))
"""


def test_the_plan_is_what_will_be_used(tmp_path):
    """Within 3 %, in a process of its own, once every weight was used and the buffer is full."""
    tiny = tiny_models.make_llama(
        tmp_path / "t.gguf", n_layers=4, n_embd=256, n_heads=4, n_kv_heads=4, n_ff=512, n_vocab=1000, context=8192
    )
    done = subprocess.run([sys.executable, "-c", MEASURE, tiny.path], capture_output=True, text=True, check=True)
    planned, measured = json.loads(done.stdout)
    assert abs(planned / measured - 1) <= 0.03


def mean_nll(model, tokens, **options) -> np.ndarray:
    """Minus log probability of every token but the first, [T - 1]."""
    result = []
    with model.session(chunk=256, **options) as session:
        for begin in range(0, len(tokens), 256):
            part = tokens[begin : begin + 257]
            rows = session.read_rows(part[:256]).astype(np.float64)[: len(part) - 1]
            top = rows.max(axis=1, keepdims=True)
            result.append(np.log(np.exp(rows - top).sum(axis=1)) + top[:, 0] - rows[np.arange(len(rows)), part[1:]])
        assert session.hot_allocations == 0
    return np.concatenate(result)


def story_text(model, n: int) -> list[int]:
    """Stories that the model itself tells at temperature 1, each begun anew inside its trained context, joined to one text."""
    rng = np.random.default_rng(7)
    tokens = [1]
    with model.session(window=512, sinks=0, chunk=1) as session:
        while len(tokens) < n:
            session.rewind(0)
            token = 1
            for _ in range(300):
                session.read([token])
                row = session.logits().astype(np.float64)
                weights = np.exp(row - row.max())
                token = int(rng.choice(len(row), p=weights / weights.sum()))
                if token in (1, 2):
                    break
                tokens.append(token)
    return tokens[:n]


@pytest.fixture(scope="module")
def told(native, stories):
    """(model, text of 4096 tokens): it trained on 512."""
    with door.open_model(native, stories.path) as model:
        yield model, story_text(model, 4096)


def test_a_trained_model_stays_fluent_far_beyond_its_context(told):
    """Spec test 19: Λ is flat, ordinary attention is not."""
    model, text = told
    inside = mean_nll(model, text[:513], window=512, sinks=0)[64:].mean()
    lambda_nll = mean_nll(model, text, window=496, sinks=16)
    for begin in (512, 1024, 2048, 3072):
        assert lambda_nll[begin : begin + 1024].mean() < inside + 0.35, begin
    ordinary = mean_nll(model, text, window=4096, sinks=0)
    assert ordinary[3071:].mean() > lambda_nll[3071:].mean() + 1.0


def test_few_or_many_sinks_are_alike_and_contiguous_equals_ceiling(told):
    """Spec tests 19 (G of 1, 10, 100) and 20."""
    model, text = told
    means = [mean_nll(model, text, window=400, sinks=sinks)[1024:].mean() for sinks in (1, 10, 100)]
    means.append(mean_nll(model, text, window=400, sinks=10, placement="contiguous")[1024:].mean())
    assert max(means) - min(means) < 0.15
