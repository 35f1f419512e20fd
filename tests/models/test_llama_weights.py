"""Every tensor type as the weights of a whole model, with each instruction set, against float64 on the decoded weights.

Float weights leave rounding only. Blocks are multiplied with activations rounded to 8 bits (a block of 32 or 256 keeps
max / 127 steps), which is the error seen here; a wrong scale, minimum or order of codes is tens of times larger.
"""

import door
import numpy as np
import pytest
from oracle import tiny_models, transformer64

TYPES = [
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
]  # fmt: skip
# Largest root mean square of the logits' error, relative to that of the logits.
BOUNDS = {"F32": 2e-6, "F16": 2e-6, "BF16": 2e-6}
BLOCK_BOUND = 2e-2


@pytest.fixture(scope="module", params=TYPES)
def tiny(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    made = tiny_models.make_llama(
        path, n_embd=256, n_heads=4, n_kv_heads=2, n_ff=512, n_layers=2, weight_type=request.param, seed=3
    )
    tokens = made.random_tokens(70, seed=3)
    return request.param, made, tokens, transformer64.forward(made, tokens, window=48, sinks=4)


@pytest.mark.parametrize("isa", door.ISAS)
def test_logits(native, tiny, isa):
    kind, made, tokens, expected = tiny
    if isa not in door.available_isas(native):
        pytest.skip(f"no {isa} here")
    with door.open_model(native, made.path, isa=isa) as model:
        for chunk in (1, 64):  # the row-wise and the tiled kernels
            rows = model.rows(tokens, window=48, sinks=4, chunk=chunk)
            error = np.sqrt(np.mean((rows - expected) ** 2)) / np.std(expected)
            print("ERR", kind, isa, chunk, error)
            assert error < BOUNDS.get(kind, BLOCK_BOUND), (chunk, error)


def test_weights_are_what_the_bytes_say(tiny):
    """Guards the bounds: another float16 rounding of one scale in a hundred would already be seen with float weights."""
    kind, made, tokens, expected = tiny
    name = "blk.1.ffn_down.weight"
    kept = made.weights[name]
    made.weights[name] = kept * np.where(np.arange(kept.shape[1]) < kept.shape[1] // 8, 1.25, 1.0)
    try:
        other = transformer64.forward(made, tokens, window=48, sinks=4)
    finally:
        made.weights[name] = kept
    assert np.sqrt(np.mean((other - expected) ** 2)) / np.std(expected) > BOUNDS.get(kind, BLOCK_BOUND)
