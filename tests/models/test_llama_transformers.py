"""Random llamas of every shape against transformers, and against the float64 definition of Λ attention beyond the window.

Weights and keys are float32 here, so what is left are rounding errors: a wrong pair, head, factor or distance is thousands of
times larger than the bounds.
"""

import door
import numpy as np
import pytest
from oracle import tiny_models, transformer64

GQA = {"n_heads": 4, "n_kv_heads": 2}
MHA = {"n_heads": 4, "n_kv_heads": 4}
SHAPES = {
    "gqa": GQA,
    "mha": MHA,
    "mqa": {"n_heads": 8, "n_kv_heads": 1, "n_embd": 128},
    "tied": {**GQA, "tied": True},
    "wide heads": {**GQA, "head_dim": 32},
    "llama 3 factors": {**GQA, "rope_theta": 500000.0, "rope_factors": tiny_models.llama3_factors(16, 500000.0)},
    "linear scaling": {**GQA, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "yarn": {**GQA, "rope_scaling": {"type": "yarn", "factor": 4.0, "original": 32}},
    "odd sizes": {"n_heads": 3, "n_kv_heads": 1, "n_embd": 72, "head_dim": 24, "n_ff": 104, "n_vocab": 331},
    "five layers": {**MHA, "n_layers": 5, "eps": 1e-6},
    "sliding window": {**GQA, "native_window": 12, "context": 512},
}
CONTEXT = 48  # tokens that are compared with ordinary attention


@pytest.fixture(scope="module", params=SHAPES, ids=lambda name: name.replace(" ", "-"))
def tiny(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return tiny_models.make_llama(path, **SHAPES[request.param], seed=len(request.param))


@pytest.fixture(scope="module")
def model(native, tiny):
    with door.open_model(native, tiny.path) as model:
        yield model


def halves(matrix: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of adjacent pairs (2i, 2i+1), as GGUF `llama` has them, to transformers' pairs (i, i + d/2)."""
    rows, cols = matrix.shape
    return matrix.reshape(n_heads, rows // n_heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def transformers_logits(tiny: tiny_models.TinyModel, tokens: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    rope = {"rope_type": "default", "rope_theta": tiny.rope_theta}
    if tiny.rope_factors is not None:
        rope = {
            "rope_type": "llama3",
            "rope_theta": tiny.rope_theta,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    elif tiny.rope_scaling is not None:
        rope = {"rope_type": tiny.rope_scaling["type"], "rope_theta": tiny.rope_theta, "factor": tiny.rope_scaling["factor"]}
        if "original" in tiny.rope_scaling:
            rope["original_max_position_embeddings"] = tiny.rope_scaling["original"]
    sizes = {
        "vocab_size": tiny.n_vocab,
        "hidden_size": tiny.n_embd,
        "intermediate_size": tiny.n_ff,
        "num_hidden_layers": tiny.n_layers,
        "num_attention_heads": tiny.n_heads,
        "num_key_value_heads": tiny.n_kv_heads,
        "head_dim": tiny.head_dim,
        "rms_norm_eps": tiny.eps,
        "rope_parameters": rope,
        "tie_word_embeddings": tiny.tied,
        "max_position_embeddings": 4096,
        "attn_implementation": "eager",
    }
    if tiny.native_window is not None:
        network = MistralForCausalLM(MistralConfig(**sizes, sliding_window=tiny.native_window))
    else:
        network = LlamaForCausalLM(LlamaConfig(**sizes))
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for i in range(tiny.n_layers):
        ours, theirs = f"blk.{i}.", f"model.layers.{i}."
        names |= {
            theirs + "input_layernorm.weight": ours + "attn_norm.weight",
            theirs + "self_attn.q_proj.weight": ours + "attn_q.weight",
            theirs + "self_attn.k_proj.weight": ours + "attn_k.weight",
            theirs + "self_attn.v_proj.weight": ours + "attn_v.weight",
            theirs + "self_attn.o_proj.weight": ours + "attn_output.weight",
            theirs + "post_attention_layernorm.weight": ours + "ffn_norm.weight",
            theirs + "mlp.gate_proj.weight": ours + "ffn_gate.weight",
            theirs + "mlp.up_proj.weight": ours + "ffn_up.weight",
            theirs + "mlp.down_proj.weight": ours + "ffn_down.weight",
        }
    names["lm_head.weight"] = "token_embd.weight" if tiny.tied else "output.weight"
    state = {}
    for theirs, ours in names.items():
        values = tiny.weights[ours]
        if "q_proj" in theirs:
            values = halves(values, tiny.n_heads)
        elif "k_proj" in theirs:
            values = halves(values, tiny.n_kv_heads)
        state[theirs] = torch.from_numpy(values.copy())
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        network(ids)  # torch 2.13's first pass in a process is now and then off by 0.005
        return network(ids).logits[0].numpy()


def test_equals_transformers_inside_the_window(model, tiny):
    tokens = tiny.random_tokens(CONTEXT, seed=3)
    expected = transformers_logits(tiny, tokens)
    assert door.relative_error(transformer64.forward(tiny, tokens), expected) < 1e-4  # the oracle itself
    for chunk in (1, 7, 64):
        assert door.relative_error(model.rows(tokens, window=CONTEXT, sinks=4, chunk=chunk), expected) < 1e-4


@pytest.mark.parametrize("placement", door.PLACEMENTS)
def test_equals_the_definition_beyond_the_window(model, tiny, placement):
    tokens = tiny.random_tokens(150, seed=4)
    for window, sinks in ((16, 4), (16, 0), (5, 16), (1, 1), (33, 3)):
        expected = transformer64.forward(tiny, tokens, window=window, sinks=sinks, placement=placement)
        for chunk in (1, 3, 64, 512):
            got = model.rows(tokens, window=window, sinks=sinks, placement=placement, chunk=chunk)
            assert door.relative_error(got, expected) < 1e-4, (window, sinks, chunk)


def test_ordinary_attention_would_differ(tiny):
    """Guards the two tests above: without Λ, or with another ceiling, the numbers are not within any such bound."""
    tokens = tiny.random_tokens(150, seed=4)
    expected = transformer64.forward(tiny, tokens, window=9, sinks=4)
    others = [
        transformer64.forward(tiny, tokens),
        transformer64.forward(tiny, tokens, window=10, sinks=4),
        transformer64.forward(tiny, tokens, window=9, sinks=4, placement="contiguous"),
        transformer64.forward(tiny, tokens, window=9, sinks=4, placement="true"),
        transformer64.forward(tiny, tokens, window=9, sinks=5),
    ]
    if tiny.native_window is not None:
        others = others[:2]  # such layers have no sinks
    for other in others:
        assert door.relative_error(other, expected) > 1e-2
