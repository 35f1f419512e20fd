"""Recall on a whole model: what is seen of the middle against brute force in float64, for every policy, cutting and budget."""

import door
import numpy as np
import pytest
from oracle import recall64, tiny_models

WINDOW, SINKS, BLOCK = 24, 3, 16
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Models by number of kv heads, of 4 heads."""
    folder = tmp_path_factory.mktemp("recall")
    return {
        n: tiny_models.make_llama(folder / f"{n}.gguf", n_embd=64, n_heads=4, n_kv_heads=n, n_layers=2, seed=n)
        for n in (1, 2, 4)
    }


@pytest.fixture(scope="module")
def models(native, tiny):
    opened = {n: door.open_model(native, made.path) for n, made in tiny.items()}
    yield {n: model.__enter__() for n, model in opened.items()}
    for model in opened.values():
        model.__exit__(None, None, None)


def cut(n: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def oracle_rows(made, tokens, size: int, shape: recall64.Shape):
    reader = recall64.Reader(made, shape)
    return np.concatenate([reader.read(tokens[part]) for part in cut(len(tokens), size)]), reader


def agree(rows, expected, reader, least: float = 0.9) -> None:
    """Up to the first choice that float32 may make otherwise; that most of the text comes before."""
    n = len(expected) if reader.close_call is None else reader.close_call
    assert n > least * len(expected), f"the oracle is sure of {n} rows only: take another seed"
    assert door.relative_error(rows[:n], expected[:n]) < TOLERANCE


CASES = [  # kind, n, distance, window, sinks, chunk, kv heads, placement, layer, seed
    ("blocks", 2, 12, 24, 3, 1, 2, "ceiling", 0, 5),
    ("blocks", 2, 24, 24, 0, 3, 4, "ceiling", 0, 5),
    ("blocks", 1, 5, 17, 40, 64, 1, "ceiling", 0, 5),
    ("blocks", 3, 12, 24, 3, 100, 2, "contiguous", 0, 5),
    ("blocks", 2, 1, 9, 5, 100, 1, "ceiling", 1, 5),
    ("blocks", 4, 40, 64, 16, 7, 4, "contiguous", 1, 5),
    ("surprise", 9, 12, 24, 3, 1, 2, "ceiling", 0, 5),
    ("surprise", 20, 24, 24, 0, 3, 4, "ceiling", 1, 6),
    ("surprise", 1, 7, 30, 5, 30, 1, "contiguous", 0, 5),
    ("surprise", 40, 50, 100, 5, 100, 2, "ceiling", 0, 5),
    ("surprise", 33, 64, 64, 1, 64, 1, "contiguous", 0, 5),
    ("topk", 5, 12, 24, 3, 1, 2, "ceiling", 0, 5),
    ("topk", 1, 24, 24, 0, 1, 4, "contiguous", 1, 5),
    ("topk", 30, 3, 17, 40, 1, 1, "ceiling", 0, 5),
    ("topk", 5, 12, 24, 3, 3, 2, "ceiling", 0, 5),  # of 260 tokens in threes the last chunk has two: none is read alone
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_as_brute_force(tiny, models, case):
    kind, n, distance, window, sinks, chunk, kv_heads, placement, layer, seed = case
    made, tokens = tiny[kv_heads], tiny[kv_heads].random_tokens(260, seed=seed)
    block = BLOCK if kind == "blocks" else 1
    shape = recall64.Shape(window, sinks, kind, n, distance, block, layer, placement=placement)
    expected, reader = oracle_rows(made, tokens, chunk, shape)
    options = {"window": window, "sinks": sinks, "placement": placement, "chunk": chunk}
    recall = {"kind": kind, "n": n, "distance": distance, "block": block if kind == "blocks" else 0, "layer": layer}
    rows = models[kv_heads].rows(tokens, **options, recall=recall)
    agree(rows, expected, reader)
    # And it matters: without recall the text is another one.
    without = models[kv_heads].rows(tokens, **options)
    assert (kind == "topk" and chunk > 1) == (door.relative_error(rows, without) < 0.01)
