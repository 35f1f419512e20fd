"""Every family: what is recalled is turned back, placed and weighed as sinks are. A session that recalls everything at the
window's distance is one whose sinks are the whole text, a path that other tests prove (test_families)."""

import numpy as np
import pytest
from door import open_model
from oracle import tiny_hf

WINDOW, SINKS, N = 50, 6, 180
EVERYTHING = {
    "blocks in chunks": (32, {"kind": "blocks", "n": 64, "block": 16, "distance": WINDOW}),
    "blocks one by one": (1, {"kind": "blocks", "n": 64, "block": 16, "distance": WINDOW}),
    "surprise": (1, {"kind": "surprise", "n": 256, "distance": WINDOW}),
}


@pytest.mark.parametrize("name", tiny_hf.BY_NAME)
def test_all_of_the_middle_is_as_sinks(native, made, name):
    tokens = np.random.default_rng(7).integers(1, 250, N).astype(np.int32)
    _, path = made(name)
    window = 88 if name == "phi3-longrope" else WINDOW
    everywhere = name == "mistral-window" or name in ("starcoder2", "phi3")  # windows of their own in all layers
    with open_model(native, path) as opened:
        expected = opened.rows(tokens, window=window, sinks=N, chunk=32)
        scale = np.max(np.abs(expected))
        without = opened.rows(tokens, window=window, sinks=SINKS, chunk=32)
        assert (np.max(np.abs(without - expected)) < 1e-4 * scale) == everywhere
        for what, (chunk, recall) in EVERYTHING.items():
            recall = {**recall, "distance": window}
            if everywhere:
                with pytest.raises(Exception, match="nothing can be recalled"):
                    opened.rows(tokens, window=window, sinks=SINKS, recall=recall)
                continue
            got = opened.rows(tokens, window=window, sinks=SINKS, chunk=chunk, recall=recall)
            assert np.max(np.abs(got - expected)) < 1e-5 * scale, what
