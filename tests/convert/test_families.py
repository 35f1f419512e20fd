"""Every family: transformers model -> safetensors -> convert -> run, logits against transformers."""

import numpy as np
import pytest
from door import DoorError, open_model
from oracle import tiny_hf
from oracle.lambda_hf import lambda_attention

TOLERANCE = 1e-4  # of the largest logit


def tokens_of(case, n: int) -> np.ndarray:
    return np.random.default_rng(7).integers(1, 250, n).astype(np.int32)


def hf_logits(model, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens[None].astype(np.int64)), use_cache=False).logits[0].numpy()


def error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize("name", tiny_hf.BY_NAME)
def test_as_transformers(native, made, name):
    """Up to the trained context, which is over three times a family's own window, in several chunks."""
    case = tiny_hf.BY_NAME[name]
    model, path = made(name)
    n = case.reach - 16
    assert not case.window or n >= 3 * case.window
    tokens = tokens_of(case, n)
    expected = hf_logits(model, tokens)
    with open_model(native, path) as opened:
        got = opened.rows(tokens, window=n, sinks=16, kv="f32", chunk=48)
    assert np.isfinite(got).all()
    # Gemma 3 has rows of the embedding without a token; they are left out of the file.
    assert got.shape[1] == expected.shape[1] or (name == "gemma3" and 256 < got.shape[1] < expected.shape[1])
    assert error(got, expected[:, : got.shape[1]]) < TOLERANCE


@pytest.mark.parametrize("name", tiny_hf.BY_NAME)
def test_as_lambda_beyond_the_window(native, made, name):
    """Three times the window and more: transformers' own code with Λ in the layers that see everything."""
    case = tiny_hf.BY_NAME[name]
    model, path = made(name)
    window, sinks = 88 if name == "phi3-longrope" else 50, 6
    tokens = tokens_of(case, 188)
    plain = hf_logits(model, tokens)
    with lambda_attention(model, len(tokens) - 1, 1):  # so wide that it forgets nothing: the oracle is the model
        assert error(hf_logits(model, tokens), plain) < 1e-5
    with lambda_attention(model, window, sinks):
        expected = hf_logits(model, tokens)
    with open_model(native, path) as opened:
        got = opened.rows(tokens, window=window, sinks=sinks, kv="f32", chunk=32)
    assert error(got, expected[:, : got.shape[1]]) < TOLERANCE
    everywhere = name == "mistral-window" or name in ("starcoder2", "phi3")  # windows of their own in all layers: no Λ
    assert everywhere == (error(expected, plain) < 10 * TOLERANCE)


@pytest.mark.parametrize("name", tiny_hf.BY_NAME)
def test_one_by_one(native, made, name):
    """Tokens read singly, as when text is written: attention in parts that are merged, experts for one row."""
    tokens = tokens_of(tiny_hf.BY_NAME[name], 120)
    with open_model(native, made(name)[1]) as opened:
        many = opened.rows(tokens, window=50, sinks=6, kv="f32", chunk=32)
        single = opened.rows(tokens, window=50, sinks=6, kv="f32", chunk=1)
    assert error(single, many) < 1e-5


@pytest.mark.parametrize("name", tiny_hf.BY_NAME)
def test_reading_ahead_changes_no_bit(native, made, name):
    from lmi import Model

    tokens = np.tile(tokens_of(tiny_hf.BY_NAME[name], 9), 9)
    tokens[40:60] += 1
    found = {}
    with Model(made(name)[1], threads=2) as model:
        for draft in (0, 7):
            with model.session(window=30, sinks=4, draft=draft) as session:
                rows = []
                for token in tokens.tolist():
                    session.read_token(token)
                    rows.append(session.logits().copy())
                found[draft] = np.array(rows)
                assert (session.draft_counts.true > 0) == (draft > 0)
    np.testing.assert_array_equal(found[7], found[0])


@pytest.mark.parametrize("name", ["mixtral", "qwen2moe", "qwen3moe", "gpt-oss"])
def test_experts_that_are_not_chosen_are_not_touched(native, made, tmp_path, name):
    """Their weights may be anything: here they are NaN, and the logits are the same."""
    import gguf
    from lmi import Model

    case = tiny_hf.BY_NAME[name]
    _, path = made(name)
    tokens = tokens_of(case, 2)
    with Model(path) as model, model.session(window=32, kv_type="f32", importance=True) as session:
        session.read_tokens(tokens.tolist())
        reached = {tensor: counts for tensor, (_, counts) in session.importance().items() if "_exps" in tensor}
        expected = session.logits().copy()
    data, spoilt = bytearray(path.read_bytes()), 0
    for t in gguf.GGUFReader(path).tensors:
        if t.name in reached:
            n_bytes = t.n_bytes // len(reached[t.name])
            for expert in np.flatnonzero(reached[t.name] == 0):
                at = t.data_offset + int(expert) * n_bytes
                data[at : at + n_bytes] = np.full(n_bytes // 4, np.nan, np.float32).tobytes()
                spoilt += 1
    assert spoilt
    (tmp_path / "spoilt.gguf").write_bytes(data)
    with Model(tmp_path / "spoilt.gguf") as model, model.session(window=32, kv_type="f32") as session:
        session.read_tokens(tokens.tolist())
        np.testing.assert_array_equal(session.logits(), expected)


# Per case: what a converter, or the runtime, could forget or do wrongly. Each makes a difference that the comparison sees.
FORGOTTEN = {
    "llama-tied-biases": ["attn_k.bias", "attn_output.bias", "ffn_up.bias"],
    "gptj": ["output.bias", "attn_norm.bias"],
    "gptneox": ["attn_qkv.bias", "ffn_norm.bias", "output_norm.bias"],
    "qwen2": ["attn_q.bias", "attn_v.bias"],
    "qwen2moe": ["ffn_gate_inp_shexp.weight"],
    "qwen3": ["attn_q_norm.weight"],
    "gemma": ["attn_norm.weight", "output_norm.weight"],
    "gemma3": ["attn_k_norm.weight", "post_ffw_norm.weight"],
    "gpt-oss": ["attn_sinks.weight", "ffn_gate_inp.bias", "ffn_down_exps.bias"],
    "olmo2": ["attn_k_norm.weight", "post_attention_norm.weight"],
    "starcoder2": ["attn_q.bias", "ffn_down.bias"],
}


@pytest.mark.parametrize("name", FORGOTTEN)
def test_what_is_forgotten_is_seen(native, made, tmp_path, name):
    """The same file with such a tensor five percent larger is not as transformers: the comparison can fail."""
    case = tiny_hf.BY_NAME[name]
    model, path = made(name)
    tokens = tokens_of(case, 64)
    expected = hf_logits(model, tokens)
    import gguf

    for forgotten in FORGOTTEN[name]:
        changed = tmp_path / f"{forgotten}.gguf"
        data = bytearray(path.read_bytes())
        reader = gguf.GGUFReader(path)
        found = [t for t in reader.tensors if t.name == forgotten or t.name.endswith("." + forgotten)]
        assert found
        for t in found:
            n = t.n_bytes
            values = np.frombuffer(data, np.float32, n // 4, t.data_offset) * np.float32(1.05)
            data[t.data_offset : t.data_offset + n] = values.tobytes()
        changed.write_bytes(data)
        with open_model(native, changed) as opened:
            got = opened.rows(tokens, window=64, sinks=16, kv="f32")
        assert error(got, expected[:, : got.shape[1]]) > 2 * TOLERANCE, forgotten


@pytest.mark.parametrize("placement", ["contiguous", "true"])
def test_alibi_has_only_the_ceiling(native, made, placement):
    with open_model(native, made("mpt")[1]) as opened, pytest.raises(DoorError) as e, opened.session(placement=placement):
        pass
    assert f"the {placement} placement needs rotary positions; this model has ALiBi | Use the ceiling" in str(e.value)
