"""`lmi imatrix`: sums against transformers' own inputs, the file that other readers expect, what it is good for."""

import subprocess
import sys

import gguf
import numpy as np
import pytest
from lmi import Model, errors
from lmi_convert.convert import convert
from lmi_convert.importance import collect, read_importance
from oracle import tiny_hf

TOKENS = np.random.default_rng(3).integers(1, 250, 100)


def lmi(*arguments, **options) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-m", "lmi", *map(str, arguments)], capture_output=True, text=True, **options)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def make(tmp_path, name: str):
    model = tiny_hf.make_model(tiny_hf.BY_NAME[name])
    tiny_hf.save(model, tmp_path)
    convert(tmp_path, tmp_path / "model.gguf", quant="F32")
    return model, tmp_path / "model.gguf"


def sums_of(path, **options) -> dict:
    with Model(path, threads=options.pop("threads", 2)) as model:
        with model.session(window=160, chunk=options.pop("chunk", 32), kv_type="f32", importance=True) as session:
            session.read_tokens(TOKENS.tolist())
            return session.importance()


def inputs_of(model, modules: dict) -> dict:
    """Name -> what that module was called with, [T][width], in one pass of transformers."""
    import torch

    seen, hooks = {}, []
    for name, module in modules.items():

        def keep(_, given, name=name):
            seen[name] = given[0].reshape(-1, given[0].shape[-1]).double().numpy()

        hooks.append(module.register_forward_pre_hook(keep))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(TOKENS[None]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def test_sums_as_transformers(native, tmp_path):
    """Every matrix, in every layer; q, k, v and gate, up share their input; the output is a tied embedding."""
    model, path = make(tmp_path, "llama-tied-biases")
    modules = {"token_embd": model.lm_head}
    for i, layer in enumerate(model.model.layers):
        a, m = layer.self_attn, layer.mlp
        parts = {"attn_q": a.q_proj, "attn_k": a.k_proj, "attn_v": a.v_proj, "attn_output": a.o_proj}
        parts |= {"ffn_gate": m.gate_proj, "ffn_up": m.up_proj, "ffn_down": m.down_proj}
        modules |= {f"blk.{i}.{name}": module for name, module in parts.items()}
    expected = inputs_of(model, modules)
    found = sums_of(path)
    assert set(found) == {f"{name}.weight" for name in expected}
    for name, x in expected.items():
        squares, counts = found[f"{name}.weight"]
        assert counts.tolist() == [len(TOKENS)]
        np.testing.assert_allclose(squares[0], (x**2).sum(0), rtol=1e-4, err_msg=name)


def test_each_expert_has_its_own(native, tmp_path):
    import torch

    model, path = make(tmp_path, "qwen3moe")
    case = tiny_hf.BY_NAME["qwen3moe"]
    n, n_used = case.options["num_experts"], case.options["num_experts_per_tok"]
    blocks = {i: layer.mlp for i, layer in enumerate(model.model.layers)}
    inputs = inputs_of(model, blocks)
    found = sums_of(path)
    for i, block in blocks.items():
        x = torch.from_numpy(inputs[i])
        chosen = torch.topk(x @ block.gate.weight.double().T, n_used).indices
        squares, counts = found[f"blk.{i}.ffn_up_exps.weight"]
        down, down_counts = found[f"blk.{i}.ffn_down_exps.weight"]
        assert squares.shape[0] == n and down_counts.tolist() == counts.tolist()
        gate_up = block.experts.gate_up_proj.double()
        for e in range(n):
            mine = x[(chosen == e).any(-1)]
            assert counts[e] == len(mine)
            np.testing.assert_allclose(squares[e], (mine**2).sum(0), rtol=1e-4)
            gate, up = (mine @ gate_up[e].T).chunk(2, -1)
            hidden = torch.nn.functional.silu(gate) * up
            np.testing.assert_allclose(down[e], (hidden**2).sum(0).detach(), rtol=1e-3, atol=1e-6)
        assert found[f"blk.{i}.ffn_gate_inp.weight"][1].tolist() == [len(TOKENS)]


def test_threads_do_not_matter(native, tmp_path):
    _, path = make(tmp_path, "qwen2moe")
    one, three = sums_of(path, threads=1), sums_of(path, threads=3)
    for name, (squares, counts) in one.items():
        np.testing.assert_array_equal(squares, three[name][0], name)
        np.testing.assert_array_equal(counts, three[name][1], name)


def test_a_fused_tensor_has_its_sums(native, tmp_path):
    """phi3's q, k, v are one tensor, its gate and up another."""
    model, path = make(tmp_path, "phi3")
    found = sums_of(path)
    x = inputs_of(model, {"mlp": model.model.layers[1].mlp.gate_up_proj, "qkv": model.model.layers[1].self_attn.qkv_proj})
    np.testing.assert_allclose(found["blk.1.ffn_up.weight"][0][0], (x["mlp"] ** 2).sum(0), rtol=1e-4)
    np.testing.assert_allclose(found["blk.1.attn_qkv.weight"][0][0], (x["qkv"] ** 2).sum(0), rtol=1e-4)


def test_without_the_option(native, shipped_model):
    with Model(shipped_model) as model, model.session(window=64) as session:
        with pytest.raises(errors.InvalidArgument, match="importance"):
            session.importance()


def test_command(native, shipped_model, tmp_path):
    """The file is as llama.cpp's tools write it, and makes quantization better where it says that it matters."""
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 40)
    out = tmp_path / "found.gguf"
    done = lmi("imatrix", shipped_model, "-f", text, "-f", text, "-o", out, "--chunk", 256)
    assert done.returncode == 0 and "tokens in" in done.stderr and not done.stdout
    reader = gguf.GGUFReader(out)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    n = int(next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight.counts").data[0][0])
    expected = {
        "general.type": "imatrix",
        "imatrix.datasets": [f"{text}, {text}"],
        "imatrix.chunk_count": -(-n // 256),
        "imatrix.chunk_size": 256,
    }
    assert keys == expected
    names = {t.name for t in reader.tensors}
    assert all((name.removesuffix(".counts") + ".in_sum2") in names for name in names if name.endswith(".counts"))
    found = read_importance(str(out))
    for extra, name in (["--imatrix", out], "with"), ([], "without"):
        done = lmi("quantize", shipped_model, "-o", tmp_path / f"{name}.gguf", "-q", "Q4_0", "--allow-requantize", *extra)
        assert done.returncode == 0, done.stderr
    from lmi.quantize import dequantize

    def weights(file, name):
        tensor = next(t for t in gguf.GGUFReader(file).tensors if t.name == name)
        return dequantize(np.asarray(tensor.data), tensor.tensor_type.name).reshape(-1, int(tensor.shape[0]))

    for name in "blk.0.ffn_down.weight", "blk.1.attn_output.weight":
        original, columns = weights(shipped_model, name), found.columns[name][0]
        loss = {
            k: float((((weights(tmp_path / f"{k}.gguf", name) - original) ** 2) @ columns).sum()) for k in ("with", "without")
        }
        assert loss["with"] < 0.98 * loss["without"], name


def test_refusals(native, shipped_model, tmp_path):
    text, empty, old = tmp_path / "text.txt", tmp_path / "empty.txt", tmp_path / "old.gguf"
    text.write_text("Once upon a time.")
    empty.write_text("")
    old.write_text("old")
    for arguments, code, said in (
        ((shipped_model, "-f", text, "-o", old), 8, "--force"),
        ((shipped_model, "-f", empty, "-o", tmp_path / "new.gguf"), 7, "empty"),
        ((shipped_model, "-f", tmp_path / "none.txt"), 7, "no such text file"),
        ((shipped_model,), 2, "--file"),
        ((tmp_path / "none.gguf", "-f", text), 3, "none.gguf"),
    ):
        done = lmi("imatrix", *arguments, cwd=tmp_path)
        assert done.returncode == code and said in done.stderr, (arguments, done.stderr)
    assert old.read_text() == "old" and not (tmp_path / "new.gguf").exists()
    piped = lmi("imatrix", shipped_model, "-f", "-", "-n", 3, cwd=tmp_path, input="Once upon a time, and then.")
    assert piped.returncode == 0 and "3 tokens" in piped.stderr
    assert (tmp_path / "lmi-tiny.imatrix.gguf").exists()


def test_collecting_is_limited(native, shipped_model, tmp_path):
    with Model(shipped_model) as model:
        assert collect(model, iter([b"One two three four five six."]), tmp_path / "a.gguf", limit=4) == 4
