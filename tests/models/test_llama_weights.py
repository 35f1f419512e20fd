"""Every tensor type as the weights of a whole model, with each instruction set, against float64 on the decoded weights.

Blocks are multiplied with activations rounded to 8 bits, which alone moves these logits by 1 to 2 % (root mean square). The
oracle rounds as kernels/activation.h says. What is left are rounding errors of float32, 1e-7, but for texts in which a value
lay between two steps and fell to the other side: that moves its token, and may move those after it, by less than the
rounding itself. So many tokens must be exact, and all of them near.
"""

import door
import numpy as np
import pytest
from oracle import tiny_models, transformer64

FLOATS = {"F32", "F16", "BF16"}
LONG_BLOCKS = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"}
TYPES = sorted(FLOATS | LONG_BLOCKS | {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"})
EXACT, NEAR = 2e-6, 2e-2


@pytest.fixture(scope="module", params=TYPES)
def tiny(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    made = tiny_models.make_llama(
        path, n_embd=256, n_heads=4, n_kv_heads=2, n_ff=512, n_layers=1, weight_type=request.param, seed=3
    )
    tokens = made.random_tokens(40, seed=3)
    block = None if request.param in FLOATS else 256 if request.param in LONG_BLOCKS else 32
    return request.param, made, tokens, transformer64.forward(made, tokens, window=14, sinks=4, activation_block=block)


@pytest.mark.parametrize("isa", door.ISAS)
def test_logits(native, tiny, isa):
    kind, made, tokens, expected = tiny
    if isa not in door.available_isas(native):
        pytest.skip(f"no {isa} here")
    with door.open_model(native, made.path, isa=isa) as model:
        for chunk in (1, 20):  # the row-wise and the tiled kernels
            rows = model.rows(tokens, window=14, sinks=4, chunk=chunk)
            errors = np.sqrt(np.mean((rows - expected) ** 2, axis=1)) / np.std(expected)
            assert errors.max() < (EXACT if kind in FLOATS else NEAR), chunk
            assert np.median(errors) < EXACT, chunk
