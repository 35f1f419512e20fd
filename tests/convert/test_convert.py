"""`lmi convert` as a whole: what it writes, what it refuses, and that nothing is left behind."""

import ctypes
import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from lmi import Model
from lmi.errors import Error, FileFormatError, OutputError, UnsupportedModel
from lmi_convert import families
from lmi_convert.convert import convert
from lmi_convert.families.gpt_oss import mxfp4_blocks
from oracle import tiny_hf
from safetensors.torch import load_file, save_file

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # of Linux


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small Qwen 3 in BF16. Not to be changed: `copy` gives one that may be."""
    return tiny_hf.save(tiny_hf.make_model(tiny_hf.BY_NAME["qwen3"]), tmp_path_factory.mktemp("Tiny-Qwen3"), dtype="bfloat16")


@pytest.fixture
def copy(checkpoint, tmp_path):
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def run(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lmi", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def tensors_of(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def change(folder: Path, edit) -> None:
    """`edit(tensors)` on the weights of a folder."""
    tensors = {name: t.clone() for name, t in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def configure(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


# ---- what is written --------------------------------------------------------------------------------------------


def test_keys_and_types(checkpoint, tmp_path):
    report = convert(checkpoint, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    value = {name: f.contents() for name, f in reader.fields.items()}
    assert value["general.architecture"] == report.architecture == "qwen3"
    assert value["general.name"].startswith("Tiny-Qwen3") and value["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    assert value["qwen3.attention.key_length"] == 32 and value["qwen3.block_count"] == 3
    assert value["tokenizer.ggml.model"] == "gpt2" and value["tokenizer.ggml.pre"] == "gpt-2"
    assert len(value["tokenizer.ggml.tokens"]) == value["qwen3.vocab_size"] == tiny_hf.N_VOCAB
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == "BF16" and kinds["blk.0.attn_q_norm.weight"] == "F32"
    assert "output.weight" not in kinds  # tied
    assert os.path.getsize(tmp_path / "m.gguf") == report.n_bytes
    stored = {t.name: t for t in reader.tensors}
    source = load_file(checkpoint / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_array_equal(
        stored["blk.1.ffn_up.weight"].data.view(np.uint16).reshape(source.shape),
        source.view(torch.int16).numpy().view(np.uint16),
    )


@pytest.mark.parametrize("quant, kind", [("F32", "F32"), ("F16", "F16"), ("Q8_0", "Q8_0"), ("q4_0", "Q4_0")])
def test_other_types(checkpoint, tmp_path, quant, kind):
    convert(checkpoint, tmp_path / "m.gguf", quant=quant)
    t = tensors_of(tmp_path / "m.gguf")["blk.1.ffn_up.weight"]
    source = load_file(checkpoint / "model.safetensors")["model.layers.1.mlp.up_proj.weight"].float().numpy()
    got = gguf.quants.dequantize(t.data, t.tensor_type)
    assert t.tensor_type.name == kind
    assert np.abs(got - source).max() <= {"F32": 0, "F16": 1e-3, "Q8_0": 0.01, "Q4_0": 0.2}[kind] * np.abs(source).max()


def test_the_same_bytes_every_time(checkpoint, tmp_path):
    """Again, with other numbers of threads, from shards, and by the command."""
    files = [tmp_path / f"{i}.gguf" for i in range(4)]
    for path, threads in zip(files, (1, 2)):
        convert(checkpoint, path, quant="Q4_K_M", threads=threads, name="x")
    model = load_file(checkpoint / "model.safetensors")
    sharded = tmp_path / "sharded"
    shutil.copytree(checkpoint, sharded)
    (sharded / "model.safetensors").unlink()
    names = sorted(model)
    listed = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({n: model[n] for n in part}, sharded / file)
        listed |= dict.fromkeys(part, file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    convert(sharded, files[2], quant="Q4_K_M", name="x")
    done = run(checkpoint, "-o", files[3], "-q", "Q4_K_M", "--name", "x")
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stderr and not done.stdout
    assert len({path.read_bytes() for path in files}) == 1


def test_tensor_types(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "m.gguf", quant="Q8_0", tensor_types=["ffn_up=F16", r"blk\.2\..*up=Q4_0"])
    kinds = {name: t.tensor_type.name for name, t in tensors_of(tmp_path / "m.gguf").items()}
    assert [kinds[f"blk.{i}.ffn_up.weight"] for i in range(3)] == ["F16", "F16", "Q4_0"]
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"


def test_importance(tmp_path):
    """Each expert with its own columns: as quantizing the F32 file with the same matrix."""
    from lmi_convert.importance import read_importance
    from lmi_convert.requantize import requantize

    folder = tiny_hf.save(tiny_hf.make_model(tiny_hf.BY_NAME["qwen3moe"]), tmp_path / "m")
    convert(folder, tmp_path / "f32.gguf", quant="F32", name="x")
    rng = np.random.default_rng(0)
    w = gguf.GGUFWriter(tmp_path / "i.gguf", "imatrix")
    for name, t in tensors_of(tmp_path / "f32.gguf").items():
        shape = tuple(int(d) for d in reversed(t.shape))
        if name.startswith("blk.") and len(shape) > 1:
            n = shape[0] if len(shape) == 3 else 1
            w.add_tensor(f"{name}.in_sum2", (rng.random((n, shape[-1])) ** 4 * 100).astype(np.float32))
            w.add_tensor(f"{name}.counts", np.ones((n, 1), np.float32))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    convert(folder, tmp_path / "direct.gguf", quant="Q4_0", name="x", imatrix=tmp_path / "i.gguf")
    requantize(
        str(tmp_path / "f32.gguf"), str(tmp_path / "later.gguf"), "Q4_0", importance=read_importance(str(tmp_path / "i.gguf"))
    )
    convert(folder, tmp_path / "without.gguf", quant="Q4_0", name="x")
    direct, later, without = (tensors_of(tmp_path / f"{n}.gguf") for n in ("direct", "later", "without"))
    for name, t in direct.items():
        assert t.tensor_type == later[name].tensor_type
        np.testing.assert_array_equal(t.data, later[name].data, name)
    assert (direct["blk.1.ffn_up_exps.weight"].data[-1] != without["blk.1.ffn_up_exps.weight"].data[-1]).any()


def test_progress(checkpoint, tmp_path):
    """Of every piece, up to the whole file."""
    seen = []
    report = convert(checkpoint, tmp_path / "m.gguf", progress=lambda done, total: seen.append((done, total)))
    assert len(seen) >= report.n_tensors and seen == sorted(seen)
    assert seen[-1] == (report.n_bytes, report.n_bytes)


def test_dry_run(checkpoint, tmp_path):
    done = run(checkpoint, "-o", tmp_path / "m.gguf", "-q", "Q8_0", "--dry-run", "-v")
    assert done.returncode == 0 and not os.listdir(tmp_path)
    convert(checkpoint, tmp_path / "m.gguf", quant="Q8_0")
    assert "qwen3" in done.stdout and "blk.2.ffn_down.weight" in done.stdout
    kinds = tensors_of(tmp_path / "m.gguf")
    assert f"tensors  {len(kinds)} " in done.stdout


def test_f8(checkpoint, copy, tmp_path):
    """Published F8: stored with scales, written as BF16 unless something else is asked for."""

    def edit(tensors):
        for name in [n for n in tensors if n.endswith("proj.weight")]:
            scale = torch.full([-(-d // 128) for d in tensors[name].shape], 0.5)
            tensors[name] = (tensors[name].float() / 0.5).to(torch.float8_e4m3fn)
            tensors[name + "_scale_inv"] = scale

    change(copy, edit)
    assert convert(copy, tmp_path / "m.gguf").quant == "BF16"
    stored = load_file(copy / "model.safetensors")["model.layers.0.self_attn.v_proj.weight"].float().numpy() * 0.5
    t = tensors_of(tmp_path / "m.gguf")["blk.0.attn_v.weight"]
    np.testing.assert_array_equal(gguf.quants.dequantize(t.data, t.tensor_type), stored)


def test_experts_in_either_layout(tmp_path):
    """One tensor per expert, or all experts in one: the same file."""
    for name in ("qwen3moe", "mixtral"):
        folder = tiny_hf.save(tiny_hf.make_model(tiny_hf.BY_NAME[name]), tmp_path / name)
        convert(folder, tmp_path / f"{name}-1.gguf", quant="F32", name="x")
        tensors = load_file(folder / "model.safetensors")
        fused = any(n.endswith("gate_up_proj") for n in tensors)
        prefix = "model.layers.{}." + ("mlp" if fused or name == "qwen3moe" else "block_sparse_moe")
        gate, up, down = ("w1", "w3", "w2") if name == "mixtral" else ("gate_proj", "up_proj", "down_proj")
        n = 4 if name == "mixtral" else 6
        assert not fused, "transformers writes one tensor per expert; the other way is made here"
        for layer in range(3):
            stem = prefix.format(layer) + ".experts"
            each = [[tensors.pop(f"{stem}.{i}.{part}.weight") for i in range(n)] for part in (gate, up, down)]
            tensors[f"{stem}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(*each[:2])])
            tensors[f"{stem}.down_proj"] = torch.stack(each[2])
        save_file(tensors, folder / "model.safetensors")
        convert(folder, tmp_path / f"{name}-2.gguf", quant="F32", name="x")
        assert (tmp_path / f"{name}-1.gguf").read_bytes() == (tmp_path / f"{name}-2.gguf").read_bytes()


def test_mxfp4_is_taken_as_it_is(tmp_path):
    """gpt-oss as published: blocks and scales, which mean in the file what they mean in the checkpoint."""
    case = tiny_hf.BY_NAME["gpt-oss"]
    folder = tiny_hf.save(tiny_hf.make_model(case), tmp_path / "m")
    rng = np.random.default_rng(0)
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    levels = np.concatenate([levels, -levels])
    expected = {}

    def edit(tensors):
        for layer in range(4):
            stem = f"model.layers.{layer}.mlp.experts."
            for name, shape in (("gate_up_proj", (4, 128, 2, 16)), ("down_proj", (4, 64, 2, 16))):
                blocks = rng.integers(0, 256, shape, dtype=np.uint8)
                scales = rng.integers(118, 124, shape[:3], dtype=np.uint8)
                del tensors[stem + name]
                tensors[stem + name + "_blocks"] = torch.tensor(blocks)
                tensors[stem + name + "_scales"] = torch.tensor(scales)
                values = np.stack([levels[blocks & 15], levels[blocks >> 4]], -1).reshape(*shape[:3], 32)
                values = values * (2.0 ** (scales.astype(np.float32) - 127))[..., None]
                expected[layer, name] = values.reshape(*shape[:2], 64)

    change(folder, edit)
    report = convert(folder, tmp_path / "m.gguf", quant="Q8_0")
    assert {kind for kind, _, _ in report.types} == {"MXFP4", "Q8_0", "F32"}
    found = tensors_of(tmp_path / "m.gguf")
    for layer in range(4):
        for ours, name, rows in (
            ("gate", "gate_up_proj", slice(0, None, 2)),
            ("up", "gate_up_proj", slice(1, None, 2)),
            ("down", "down_proj", slice(None)),
        ):
            t = found[f"blk.{layer}.ffn_{ours}_exps.weight"]
            assert t.tensor_type == gguf.GGMLQuantizationType.MXFP4
            np.testing.assert_array_equal(gguf.quants.dequantize(t.data, t.tensor_type), expected[layer, name][:, rows])
    assert mxfp4_blocks(np.zeros((1, 1, 16), np.uint8), np.full((1, 1), 9, np.uint8)).tolist() == [[9] + [0] * 16]


def test_gemma_3_of_a_multimodal_checkpoint(tmp_path):
    """Names with the prefix of the language part, its configuration in a table, vision left out."""
    folder = tiny_hf.save(tiny_hf.make_model(tiny_hf.BY_NAME["gemma3"]), tmp_path / "m")
    convert(folder, tmp_path / "1.gguf", quant="F32", name="x")
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for prefix in ("language_model.", "model.language_model."):
        renamed = {prefix + (n if prefix == "language_model." else n.removeprefix("model.")): t for n, t in tensors.items()}
        renamed |= {"vision_tower.x.weight": torch.ones(3), "multi_modal_projector.y": torch.ones(2)}
        save_file(renamed, folder / "model.safetensors")
        outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": config}
        (folder / "config.json").write_text(json.dumps(outer))
        convert(folder, tmp_path / "2.gguf", quant="F32", name="x", overwrite=True)
        assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()


def test_gemma_3_with_less_in_its_config(tmp_path):
    """That of Gemma 3 4B leaves out what is usual."""
    case = tiny_hf.BY_NAME["gemma3"]
    usual = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256}
    case = dataclasses.replace(case, options={**case.options, **usual})
    folder = tiny_hf.save(tiny_hf.make_model(case), tmp_path / "m")
    configure(folder, max_position_embeddings=131072)
    convert(folder, tmp_path / "1.gguf", name="x")
    config = json.loads((folder / "config.json").read_text())
    for key in (*usual, "max_position_embeddings", "vocab_size", "rms_norm_eps"):
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "2.gguf", name="x")
    kept, less = (gguf.GGUFReader(tmp_path / f"{i}.gguf").fields for i in (1, 2))
    for key, field in kept.items():
        if key.startswith("gemma3.") and key != "gemma3.vocab_size":
            assert less[key].contents() == field.contents(), key
    Model(tmp_path / "2.gguf").close()


def test_it_runs(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "m.gguf", quant="Q8_0")
    with Model(tmp_path / "m.gguf") as m:
        assert m.info.architecture == "qwen3" and m.info.n_vocab == tiny_hf.N_VOCAB
        with m.session() as s:
            assert s.generate("the cat", max_tokens=3).text


# ---- what is refused --------------------------------------------------------------------------------------------


def refused(folder: Path, out: Path, **options) -> Error:
    with pytest.raises(Error) as caught:
        convert(folder, out / "m.gguf", **options)
    assert not [name for name in os.listdir(out) if name.startswith("m.gguf")]
    assert "\n" not in caught.value.message and caught.value.remedy
    return caught.value


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite(copy, tmp_path, kind, value):
    def edit(tensors):
        for name in tensors:
            tensors[name] = tensors[name].to(kind)
        tensors["model.layers.1.mlp.up_proj.weight"][7, 5] = value

    change(copy, edit)
    for quant in ("auto", "Q8_0", "F32"):
        e = refused(copy, tmp_path, quant=quant)
        assert isinstance(e, FileFormatError) and "--allow-nonfinite" in e.remedy
        assert "model.layers.1.mlp.up_proj.weight holds 1 NaN or infinite values, the first in row 7, column 5" in e.message
    convert(copy, tmp_path / "m.gguf", allow_nonfinite=True)
    t = tensors_of(tmp_path / "m.gguf")["blk.1.ffn_up.weight"]
    got = gguf.quants.dequantize(t.data, t.tensor_type)
    assert (~np.isfinite(got)).sum() == 1 and not np.isfinite(got[7, 5])


def test_too_large_for_f16(copy, tmp_path):
    change(copy, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].__setitem__((3, 2), 1e6))
    assert "BF16" in refused(copy, tmp_path, quant="F16").remedy
    convert(copy, tmp_path / "m.gguf", quant="BF16")


def test_tensors_missing_left_over_or_of_another_shape(copy, tmp_path):
    whole = load_file(copy / "model.safetensors")
    name = "model.layers.2.self_attn.k_norm.weight"

    def message(edit) -> str:
        save_file({n: t.clone() for n, t in whole.items()}, copy / "model.safetensors")
        change(copy, edit)
        return refused(copy, tmp_path).message

    assert message(lambda t: t.pop(name)) == f"tensor {name} is missing"
    assert "tensor model.extra.weight of the checkpoint is not known to the family 'qwen3'" in message(
        lambda t: t.update({"model.extra.weight": torch.ones(2)})
    )
    assert "q_proj.bias and 1 more" in message(
        lambda t: t.update({f"model.layers.0.self_attn.{p}_proj.bias": torch.ones(2) for p in "qv"})
    )
    assert f"tensor {name} has the shape 33, config.json implies 32" in message(lambda t: t.update({name: torch.ones(33)}))
    assert "is of the type I8" in message(lambda t: t.update({name: torch.ones(32, dtype=torch.int8)}))
    save_file(whole, copy / "model.safetensors")
    configure(copy, intermediate_size=97)
    assert "96 x 64, config.json implies 97 x 64" in refused(copy, tmp_path).message


@pytest.mark.parametrize(
    "values, match",
    [
        ({"architectures": ["Gpt2Something"]}, "'Gpt2Something' is not supported"),
        ({"architectures": ["MambaForCausalLM"]}, "keep a state instead of keys and values"),
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "compressed across heads"),
        ({"architectures": ["Qwen3NextForCausalLM"]}, "linear attention"),
        ({"architectures": None}, "names no architecture"),
        ({"architectures": [["x"]]}, "names no architecture"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"num_hidden_layers": 10**9}, "not a whole number from 1 to 1,024"),
        ({"num_hidden_layers": "3"}, "not a whole number"),
        ({"num_hidden_layers": True}, "not a whole number"),
        ({"num_key_value_heads": 3}, "do not fit together"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"rms_norm_eps": 1e400}, "rms_norm_eps"),
        ({"rope_parameters": {"rope_type": "magic"}}, "rope_type is 'magic'"),
        ({"vocab_size": 100}, "the shape 320 x 64"),
    ],
)
def test_configurations(copy, tmp_path, values, match):
    configure(copy, **values)
    e = refused(copy, tmp_path)
    assert match in e.message
    if "not supported" in e.message:
        assert isinstance(e, UnsupportedModel) and "gpt-oss" in e.remedy and "llama" in e.remedy


def test_families_are_named_once():
    classes = [c for f in families.families() for c in f.classes]
    assert len(classes) == len(set(classes))
    assert len({f.architecture for f in families.families()}) == 16
    for case in tiny_hf.CASES:
        name = json.dumps(case.config)
        assert name


def test_real_configurations(data, tmp_path):
    """Every published config.json with the tensors that transformers makes of it, in files without data: a plan for all of
    them, or refused by name."""
    from bench.make_checkpoint import shapes_of

    millions = {}
    for path in sorted((data / "configs").glob("*.json")):
        folder = tmp_path / path.name.removesuffix(".config.json")
        folder.mkdir()
        (folder / "config.json").write_text(path.read_text())
        tiny_hf.write_tokenizer(folder)
        at, table = 0, {}
        for name, shape in shapes_of(folder / "config.json").items():
            size = 2 * int(np.prod(shape))
            table[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        header = json.dumps(table).encode()
        with open(folder / "model.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + at)
        if folder.name == "gpt2":
            with pytest.raises(UnsupportedModel, match="'GPT2LMHeadModel' is not supported"):
                convert(folder, tmp_path / "m.gguf", dry_run=True)
        else:
            report = convert(folder, tmp_path / "m.gguf", quant="Q4_K_M", dry_run=True)
            millions[folder.name] = round(report.n_parameters / 1e6)
    assert len(millions) >= 19
    assert millions["llama3_2_1b"] == 1236 and millions["Mixtral-8x7B-v0.1"] == 46703 and millions["qwen3_0.6b"] == 596


# ---- nothing left behind ----------------------------------------------------------------------------------------


def test_output_exists(checkpoint, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists"):
        convert(checkpoint, path)
    done = run(checkpoint, "-o", path)
    assert done.returncode == 8 and "--force" in done.stderr and path.read_bytes() == b"old"
    assert run(checkpoint, "-o", path, "--force").returncode == 0
    Model(path).close()
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_exit_codes(checkpoint, copy, tmp_path):
    assert run(tmp_path / "none").returncode == 3
    assert "hf download org/name --local-dir name" in run("org/name").stderr
    (tmp_path / "m.gguf").write_bytes(b"")
    assert "lmi quantize" in run(tmp_path / "m.gguf").stderr
    (tmp_path / "m.gguf").unlink()
    assert run(checkpoint, "-o", tmp_path / "no" / "m.gguf").returncode == 8
    assert run(checkpoint, "-o", tmp_path / "m.gguf", "-q", "Q9_Z").returncode == 2
    assert run(checkpoint, "-o", tmp_path / "m.gguf", "--tensor-type", "x").returncode == 2
    assert run(checkpoint, "--no-such-option").returncode == 2
    configure(copy, architectures=["MambaForCausalLM"])
    done = run(copy, "-o", tmp_path / "m.gguf")
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["copy"]


def test_full_disk_and_read_only_folder(checkpoint, tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = run(checkpoint, "-o", tmp_path / "m.gguf", preexec_fn=limited)
    assert done.returncode == 8 and "nothing was left behind" in done.stderr and not os.listdir(tmp_path)

    def restricted():  # also where the tests run as root, who may write anywhere
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)

    os.chmod(tmp_path, 0o500)
    try:
        done = run(checkpoint, "-o", tmp_path / "m.gguf", preexec_fn=restricted)
        assert done.returncode == 8 and "no permission" in done.stderr
    finally:
        os.chmod(tmp_path, 0o700)


def test_no_heavy_imports_before_they_are_needed():
    for modules, heavy in (
        ("lmi.cli.group, lmi.cli.convert", "numpy torch gguf safetensors lmi_convert"),
        ("lmi_convert.convert", "torch transformers safetensors sentencepiece tokenizers"),
    ):
        code = f"import sys, {modules}; print([m for m in {heavy.split()} if m in sys.modules])"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Some 100 MiB, so that a run takes a second."""
    case = tiny_hf.Case(
        "larger",
        "LlamaConfig",
        {**tiny_hf.BY_NAME["llama"].options, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 14},
    )
    return tiny_hf.save(tiny_hf.make_model(case), tmp_path_factory.mktemp("larger"), dtype="bfloat16", max_shard_size="20MB")


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_at_any_moment(larger, tmp_path, kind):
    """The name is absent or holds the whole new file, or what was there before; only SIGKILL may leave a partial file.
    LMI_MOMENTS: how many, where the usual number is too few."""
    reference, path = tmp_path / "reference", tmp_path / "m.gguf"
    began = time.monotonic()
    convert(larger, reference, quant="Q8_0", name="x")
    whole = reference.read_bytes()
    took = time.monotonic() - began + 0.4
    rng = random.Random(int(kind))
    command = [sys.executable, "-m", "lmi", "convert", str(larger), "-o", str(path), "-q", "Q8_0", "--name", "x", "--force"]
    for round_ in range(int(os.environ.get("LMI_MOMENTS", 3))):
        old = b"old" if round_ % 2 else None
        path.unlink(missing_ok=True)
        if old:
            path.write_bytes(old)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(rng.uniform(0.15, took))
        process.send_signal(kind)
        _, messages = process.communicate(timeout=60)
        now = path.read_bytes() if path.exists() else None
        assert now in (old, whole), "neither the old file nor the whole new one"
        assert process.returncode in ({-9, 0} if kind == signal.SIGKILL else {128 + kind, 0, -kind}), messages
        assert b"Traceback" not in messages
        partials = [name for name in os.listdir(tmp_path) if "partial" in name]
        if kind != signal.SIGKILL:
            assert not partials
        for name in partials:
            os.unlink(tmp_path / name)
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert path.read_bytes() == whole


def test_peak_memory(larger, tmp_path):
    """At most three times the largest tensor and 500 MB, whatever the model's size: here far less than the file."""
    code = """
import sys
from lmi_convert.convert import convert
convert(sys.argv[1], sys.argv[2], quant="F32")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", code, larger, tmp_path / "m.gguf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.path.getsize(tmp_path / "m.gguf") > 200e6
    assert int(done.stdout) * 1024 < 130e6
