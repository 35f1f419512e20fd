"""Mixes: which tensor gets which type. llama.cpp's own choice is the oracle where it is installed; tables by hand where it is
not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lmi.errors import InvalidArgument
from lmi.quantize import type_info
from lmi_convert.mix import FALLBACK, KINDS, MIXES, Shape, choose, find_mix, fitting, more_bits, parse_override, quantizable
from lmi_convert.stored import open_stored

PYTHON = os.environ.get("LMI_PEERS_PYTHON", sys.executable)
PROGRAM = Path(__file__).with_name("peer_mixes.py")


def llama_tensors(n_layers: int, width: int = 1024, n_ff: int = 2048, kv: int = 256, tied: bool = False) -> list:
    found = [("token_embd.weight", (32000, width)), ("output_norm.weight", (width,))]
    found += [] if tied else [("output.weight", (32000, width))]
    for i in range(n_layers):
        stems = {"attn_q": (width, width), "attn_k": (kv, width), "attn_v": (kv, width), "attn_output": (width, width)}
        stems |= {"ffn_gate": (n_ff, width), "ffn_up": (n_ff, width), "ffn_down": (width, n_ff), "attn_norm": (width,)}
        found += [(f"blk.{i}.{stem}.weight", shape) for stem, shape in stems.items()]
        found.append((f"blk.{i}.attn_q.bias", (width,)))
    return found


def chosen(mix: str, tensors: list, model: Shape, **options) -> dict:
    return dict(zip((name for name, _ in tensors), choose(mix, tensors, model, **options)))


def layers_with(found: dict, stem: str, kind: str) -> list[int]:
    return [i for i in range(200) if found.get(f"blk.{i}.{stem}.weight") == kind]


def test_q4_k_m(native) -> None:
    found = chosen("Q4_K_M", llama_tensors(32), Shape("llama", 32, 32, 8))
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]  # as in every published 32-layer Q4_K_M
    assert layers_with(found, "attn_v", "Q6_K") == layers_with(found, "ffn_down", "Q6_K") == more
    assert found["output.weight"] == "Q6_K" and found["token_embd.weight"] == "Q4_K"
    assert layers_with(found, "attn_q", "Q4_K") == layers_with(found, "ffn_up", "Q4_K") == list(range(32))
    assert (
        found["blk.0.attn_norm.weight"] is None and found["blk.0.attn_q.bias"] is None and found["output_norm.weight"] is None
    )


def test_tied_embeddings_are_an_output(native) -> None:
    for mix, kind in (
        ("Q4_K_M", "Q6_K"),
        ("Q2_K", "Q6_K"),
        ("Q8_0", "Q8_0"),
        ("IQ4_XS", "Q6_K"),
        ("F16", "F16"),
        ("Q4_0", "Q6_K"),
    ):
        assert chosen(mix, llama_tensors(4, tied=True), Shape("llama", 4, 8, 8))["token_embd.weight"] == kind


def test_few_values_heads_get_more_bits(native) -> None:
    narrow, wide = Shape("llama", 16, 32, 8), Shape("llama", 16, 8, 8)
    for mix, with_gqa, without in (("Q2_K", "Q4_K", "Q3_K"), ("IQ4_XS", "Q5_K", "IQ4_XS"), ("IQ4_NL", "Q5_K", "IQ4_NL")):
        assert chosen(mix, llama_tensors(16), narrow)["blk.7.attn_v.weight"] == with_gqa
        assert chosen(mix, llama_tensors(16), wide)["blk.7.attn_v.weight"] == without


def test_experts(native) -> None:
    tensors = llama_tensors(8) + [(f"blk.{i}.ffn_down_exps.weight", (8, 1024, 2048)) for i in range(8)]
    tensors += [(f"blk.{i}.ffn_gate_inp.weight", (8, 1024)) for i in range(8)]
    found = chosen("Q4_K_M", tensors, Shape("llama", 8, 32, 8, n_experts=8))
    assert layers_with(found, "ffn_down_exps", "Q6_K") == [0, 3, 6, 7]
    assert found["blk.2.attn_v.weight"] == found["blk.2.attn_k.weight"] == "Q8_0"
    assert found["blk.2.attn_output.weight"] == "Q5_K" and found["blk.2.ffn_gate_inp.weight"] is None
    found = chosen("MXFP4", tensors, Shape("gpt-oss", 8, 32, 8, n_experts=8))
    assert found["blk.2.ffn_down_exps.weight"] == "MXFP4" and found["blk.2.attn_q.weight"] == found["output.weight"] == "Q8_0"


def test_rows_that_are_not_whole_blocks(native) -> None:
    assert fitting("Q4_K", 256) == "Q4_K" and fitting("Q4_K", 288) == "Q5_0" and fitting("Q4_K", 100) == "F16"
    assert fitting("Q6_K", 32) == "Q8_0" and fitting("IQ4_NL", 48) == "F16" and fitting("F32", 7) == "F32"
    for mix in MIXES:
        for name, kind in chosen(mix, llama_tensors(4, n_ff=2080), Shape("llama", 4, 8, 8)).items():
            cols = 2080 if "ffn_down" in name else 1024
            assert kind is None or cols % type_info(kind).block_values == 0
    assert set(FALLBACK) == {k for k in KINDS if type_info(k).block_values == 256}


def test_overrides(native) -> None:
    model, tensors = Shape("llama", 8, 8, 8), llama_tensors(8, n_ff=2080)
    rules = [parse_override(t) for t in ("attn_.*=q8_0", r"blk\.[0-3]\.attn_v=F16", "ffn_down=Q6_K", "norm=Q4_0", "bias=Q4_0")]
    found = chosen("Q4_K_M", tensors, model, overrides=rules)
    assert found["blk.5.attn_q.weight"] == found["blk.5.attn_v.weight"] == "Q8_0"
    assert found["blk.2.attn_v.weight"] == "F16"
    assert found["blk.2.ffn_down.weight"] == "Q8_0"  # in place of Q6_K: 2080 is not a multiple of 256
    assert found["blk.2.attn_norm.weight"] is None and found["blk.2.attn_q.bias"] is None


@pytest.mark.parametrize("text", ["Q4_K", "=Q4_K", "attn=", "attn=Q9", "attn=IQ2_XXS", "at(tn=Q4_K"])
def test_bad_overrides(native, text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_override(text)


def test_names() -> None:
    assert find_mix("q4_k_m").file_type == 15 and find_mix("Q4_K").name == "Q4_K_M" and find_mix("mxfp4_moe").name == "MXFP4"
    with pytest.raises(InvalidArgument, match="no quantization") as e:
        find_mix("Q4_K_X")
    assert "Q4_K_M" in e.value.remedy
    from lmi.summary import _FILE_TYPES

    assert {m.file_type: m.name for m in MIXES.values()}.items() <= _FILE_TYPES.items()


def test_more_bits() -> None:
    assert [i for i in range(16) if more_bits(i, 16)] == [0, 1, 4, 7, 10, 13, 14, 15]
    assert not quantizable("blk.0.ffn_gate_exps.bias", (4, 64)) and quantizable("blk.0.ffn_up_exps.weight", (4, 64, 32))


# ---- llama.cpp's choice -----------------------------------------------------------------------------------------


def make(case: str, folder: Path) -> Path:
    path = folder / "in.gguf"
    if case.startswith("llama"):
        from oracle import tiny_models

        sizes = {"n_embd": 256, "n_ff": 512, "n_heads": 8, "n_kv_heads": 8, "n_layers": 16, "weight_type": "F16"}
        changes = {"llama-wide": {"n_kv_heads": 2, "n_layers": 12, "tied": True}, "llama-odd": {"n_ff": 288, "n_layers": 24}}
        tiny_models.make_llama(path, **sizes | changes.get(case, {}))
        return path
    import dataclasses

    from lmi_convert.convert import convert
    from oracle import tiny_hf

    found = tiny_hf.BY_NAME[case]
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 9}
    sizes |= {"num_local_experts": 8} if case == "mixtral" else {}
    tiny_hf.save(tiny_hf.make_model(dataclasses.replace(found, options={**found.options, **sizes})), folder)
    convert(str(folder), str(path), quant="F16")
    return path


@pytest.mark.parametrize("case", ["llama", "llama-wide", "llama-odd", "mixtral", "phi3"])
def test_as_llama_cpp(native, tmp_path: Path, case: str) -> None:
    if subprocess.run([PYTHON, "-c", "import llama_cpp"], capture_output=True).returncode:
        pytest.skip("no llama-cpp-python here: pip install '.[peers]', or name its Python in LMI_PEERS_PYTHON")
    from lmi_convert.requantize import make_plan

    source = make(case, tmp_path)
    mixes = {name: mix.file_type for name, mix in MIXES.items() if name not in ("F32", "F16", "BF16")}
    if case == "llama-odd":  # it refuses rows that are not whole blocks of these
        mixes = {k: v for k, v in mixes.items() if "K" in k or k == "IQ4_XS"}
    arguments = [PYTHON, str(PROGRAM), str(source), str(tmp_path), *(f"{n}={t}" for n, t in mixes.items())]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for mix in mixes:
        theirs = {t.name: t.type.name for t in open_stored(str(tmp_path / f"{mix}.gguf")).tensors}
        ours = {t.name: kind for t, kind in make_plan(str(source), mix).changes}
        assert ours == theirs, (mix, {n: (ours.get(n), k) for n, k in theirs.items() if ours.get(n) != k})
        assert open_stored(str(tmp_path / f"{mix}.gguf")).number("general.file_type") == MIXES[mix].file_type
