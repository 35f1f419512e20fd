"""`lmi quantize`: what it keeps, what it refuses, that it leaves nothing half-written, importance matrices in both their
forms."""

import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from lmi import errors
from lmi.quantize import dequantize, quantize
from lmi_convert.importance import read_importance
from lmi_convert.requantize import make_plan, requantize
from lmi_convert.stored import open_stored
from oracle import tiny_models

SIZES = {"n_embd": 256, "n_ff": 512, "n_heads": 4, "n_kv_heads": 2, "n_layers": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model-f32.gguf"
    tiny_models.make_llama(path, **SIZES)
    return path


def lmi(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lmi", "quantize", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def tensors(path: Path) -> dict:
    return {t.name: t for t in open_stored(str(path)).tensors}


def test_keys_and_exact_tensors_are_kept(native, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    n = requantize(str(source), str(out), "Q4_K_M")
    assert n == out.stat().st_size < source.stat().st_size / 5
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(out)
    types = {"general.file_type", "general.quantization_version"}
    for key, value in before.fields.items():
        if not key.startswith("GGUF.") and key not in types:
            assert after.fields[key].types == value.types and after.fields[key].contents() == value.contents(), key
    assert set(after.fields) - set(before.fields) <= types
    assert after.fields["general.file_type"].contents() == 15
    assert after.fields["general.quantization_version"].contents() == 2
    old, new = tensors(source), tensors(out)
    assert list(old) == list(new)
    for name, t in new.items():
        assert t.shape == old[name].shape
        if t.type.name == "F32":
            assert np.array_equal(t.read(), old[name].read())
        else:
            x = old[name].read().view(np.float32)
            assert np.array_equal(t.read(), quantize(x, t.type.name)), name


@pytest.mark.parametrize(
    "mix",
    ["F16", "BF16", "Q8_0", "Q6_K", "Q5_K_S", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ4_NL", "MXFP4"],
)
def test_every_mix_runs(native, source: Path, tmp_path: Path, mix: str) -> None:
    from lmi import Model

    out = tmp_path / "q.gguf"
    requantize(str(source), str(out), mix)
    with Model(out, threads=1) as model, model.session(window=32) as session:
        session.read_tokens([1, 5, 9, 44, 100])
        assert np.isfinite(session.logits()).all()


@pytest.mark.parametrize("mix", ["Q5_K_M", "Q2_K", "Q4_0"])
def test_the_same_bytes_every_time(native, source: Path, tmp_path: Path, mix: str) -> None:
    files = []
    for i, threads in enumerate((1, 2, 3, 2)):
        requantize(str(source), str(tmp_path / f"{i}.gguf"), mix, threads=threads)
        files.append((tmp_path / f"{i}.gguf").read_bytes())
    assert files[0] == files[1] == files[2] == files[3]


def test_from_quantized_and_back_to_floats(native, source: Path, tmp_path: Path) -> None:
    first, second, wide = (tmp_path / n for n in ("q8.gguf", "q4.gguf", "f32.gguf"))
    requantize(str(source), str(first), "Q8_0")
    requantize(str(first), str(second), "Q4_K_M")
    requantize(str(first), str(wide), "F32")
    name = "blk.1.ffn_up.weight"
    eight = dequantize(tensors(first)[name].read(), "Q8_0")
    assert np.array_equal(tensors(wide)[name].read().view(np.float32), eight)
    assert np.array_equal(tensors(second)[name].read(), quantize(eight, "Q4_K"))
    done = lmi(first, "-o", second, "--force")
    assert done.returncode == 0 and "quantized before" in done.stderr
    done = lmi(first, "-o", second, "--force", "--allow-requantize")
    assert done.returncode == 0 and "quantized before" not in done.stderr


def test_command(native, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    done = lmi(source, "-o", out, "-q", "q4_k_s", "--tensor-type", "attn_v=Q8_0", "-t", 1)
    assert done.returncode == 0 and done.stdout == "" and "Q4_K_S" in done.stderr
    assert {t.type.name for name, t in tensors(out).items() if "attn_v" in name} == {"Q8_0"}
    done = lmi(source, "-o", out)
    assert done.returncode == 8 and "exists" in done.stderr and "--force" in done.stderr
    before = out.read_bytes()
    assert lmi(source, "-o", out, "--force", "--quiet").stderr == ""
    assert out.read_bytes() != before
    done = lmi(source, "-o", tmp_path / "none.gguf", "--dry-run")
    assert done.returncode == 0 and "blk.0.attn_q.weight" in done.stdout and not (tmp_path / "none.gguf").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q.gguf"]


def test_what_is_not_done_as_asked_is_said(native, source: Path, tmp_path: Path) -> None:
    done = lmi(source, "-o", tmp_path / "q.gguf", "--dry-run", "--tensor-type", "atn_v=Q8_0", "--tensor-type", "attn_v=Q8_0")
    assert done.returncode == 0 and "atn_v=Q8_0: no tensor has such a name" in done.stderr and "whole blocks" not in done.stderr
    assert "attn_v=Q8_0: no" not in done.stderr
    odd = tmp_path / "odd.gguf"
    tiny_models.make_llama(odd, **SIZES | {"n_ff": 288})
    done = lmi(odd, "-o", tmp_path / "q.gguf", "--dry-run", "-q", "Q4_K_M")
    assert "rows of 4 tensors are not whole blocks of Q4_K: they get Q5_0, Q8_0" in done.stderr, done.stderr


def test_refusals(native, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    cases = [
        ((source, "-o", out, "-q", "Q9"), 2, "no quantization"),
        ((source, "-o", out, "--tensor-type", "attn"), 2, "PATTERN=TYPE"),
        ((tmp_path / "nothing.gguf", "-o", out), 3, "no such file"),
        ((source, "-o", tmp_path / "no" / "q.gguf"), 8, "no such folder"),
        ((source, "-o", tmp_path), 8, "folder"),
        ((source, "-o", source, "--force"), 8, "file to be read"),
        ((source,), 2, "--output"),
        ((source, "-o", out, "--imatrix", tmp_path / "nothing"), 3, "cannot read"),
    ]
    for arguments, code, text in cases:
        done = lmi(*arguments)
        assert done.returncode == code and text in done.stderr, (arguments, done.returncode, done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_split_model_becomes_one_file(native, source: Path, tmp_path: Path) -> None:
    from lmi_convert.writer import Tensor, Value, write

    file = open_stored(str(source))
    half = len(file.tensors) // 2
    for i, part in enumerate((file.tensors[:half], file.tensors[half:])):
        number = {f"split.{k}": Value(2, struct.pack("<H", v)) for k, v in (("no", i), ("count", 2))}
        number["split.tensors.count"] = Value(5, struct.pack("<i", len(file.tensors)))
        keys = (file.keys if i == 0 else {}) | number
        made = [Tensor(t.name, t.shape, t.type.name, lambda t=t: [t.read()]) for t in part]
        write(str(tmp_path / f"m-{i + 1:05}-of-00002.gguf"), keys, made, verify=lambda path: None)
    requantize(str(tmp_path / "m-00001-of-00002.gguf"), str(tmp_path / "one.gguf"), "Q4_K_M")
    requantize(str(source), str(tmp_path / "other.gguf"), "Q4_K_M")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(errors.FileFormatError, match="1 of 2 parts"):
        open_stored(str(tmp_path / "m-00001-of-00002.gguf"))


def test_damaged_files_are_refused(native, source: Path, tmp_path: Path) -> None:
    whole = source.read_bytes()
    bad = tmp_path / "bad.gguf"
    rng = random.Random(1)
    header = whole.index(b"output.weight") + 400
    for n in [0, 3, 8, 23, 24, 100, header // 2, header, len(whole) - 1]:
        bad.write_bytes(whole[:n])
        with pytest.raises(errors.Error):
            make_plan(str(bad), "Q8_0")
    for _ in range(300):
        data = bytearray(whole)
        at = rng.randrange(header)
        data[at : at + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 1 << 62), rng.randbytes(8)])
        bad.write_bytes(data)
        try:
            plan = make_plan(str(bad), "Q8_0")
        except errors.Error:
            continue
        for t, _ in plan.changes:
            assert t.offset + t.n_bytes <= len(whole)


def test_nan_is_named_and_nothing_is_left(native, source: Path, tmp_path: Path) -> None:
    t = tensors(source)["blk.2.ffn_down.weight"]
    data = bytearray(source.read_bytes())
    struct.pack_into("<f", data, t.offset + 4 * (100 * 512 + 7), float("nan"))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    done = lmi(bad, "-o", tmp_path / "q.gguf")
    assert done.returncode == 2 and "blk.2.ffn_down.weight" in done.stderr and "row 100, column 7" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bad.gguf"]


# ---- importance -------------------------------------------------------------------------------------------------


def importance_values() -> dict:
    rng = np.random.default_rng(3)
    names = {f"blk.{i}.{s}.weight": 512 if s == "ffn_down" else 256 for i in range(4) for s in ("attn_q", "ffn_up", "ffn_down")}
    return {name: (rng.chisquare(1, n) ** 2).astype(np.float32) for name, n in names.items()}


def write_old(path: Path, values: dict, calls: int = 7) -> None:
    data = struct.pack("<i", len(values))
    for name, v in values.items():
        data += (
            struct.pack("<i", len(name))
            + name.encode()
            + struct.pack("<ii", calls, len(v))
            + (v * calls).astype("<f4").tobytes()
        )
    path.write_bytes(data + struct.pack("<ii", 33, 5) + b"a.txt")


def write_new(path: Path, values: dict) -> None:
    writer = gguf.GGUFWriter(path, "none")
    writer.add_string("general.type", "imatrix")
    writer.add_uint32("imatrix.chunk_count", 33)
    for name, v in values.items():
        writer.add_tensor(f"{name}.in_sum2", (v * 512).reshape(1, -1).astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.array([[512]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("form", [write_old, write_new])
def test_importance_files(native, source: Path, tmp_path: Path, form) -> None:
    values = importance_values()
    path = tmp_path / "imatrix"
    form(path, values)
    read = read_importance(str(path))
    assert read.chunks == 33 and set(read.columns) == set(values)
    for name, v in values.items():
        np.testing.assert_allclose(read.columns[name][0], v, rtol=1e-6)
    out = tmp_path / "q.gguf"
    done = lmi(source, "-o", out, "-q", "Q4_K_S", "--imatrix", path)
    assert done.returncode == 0 and "no importance for" in done.stderr
    old, new = tensors(source), tensors(out)
    name = "blk.3.ffn_up.weight"
    x = old[name].read().view(np.float32)
    assert np.array_equal(new[name].read(), quantize(x, "Q4_K", importance=read.columns[name][0]))
    assert not np.array_equal(new[name].read(), quantize(x, "Q4_K"))


def test_importance_of_experts(native, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    stack = rng.normal(size=(4, 64, 256)).astype(np.float32)
    columns = (rng.chisquare(1, (4, 256)) ** 2).astype(np.float32)
    path, out = tmp_path / "x.gguf", tmp_path / "y.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up_exps.weight", stack)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_old(tmp_path / "im", {"blk.0.ffn_up_exps.weight": columns.ravel()}, calls=1)
    importance = read_importance(str(tmp_path / "im"))
    from lmi_convert import requantize as module
    from lmi_convert.writer import write

    plan = make_plan(str(path), "Q4_K_M", importance=importance)
    assert module.shape_of(plan.source).architecture == "llama"
    write(str(out), plan.keys, plan.tensors, verify=lambda p: None)
    got = tensors(out)["blk.0.ffn_up_exps.weight"].read()
    want = np.concatenate([quantize(stack[e], "Q4_K", importance=columns[e]) for e in range(4)])
    assert np.array_equal(got, want)
    write_old(tmp_path / "im", {"blk.0.ffn_up_exps.weight": columns.ravel()[:-1]}, calls=1)
    with pytest.raises(errors.FileFormatError, match="another model|has 1,023"):
        make_plan(str(path), "Q4_K_M", importance=read_importance(str(tmp_path / "im")))


def test_bad_importance_files(native, tmp_path: Path) -> None:
    good, path = tmp_path / "good", tmp_path / "bad"
    write_old(good, importance_values())
    whole = good.read_bytes()
    for data in (
        b"",
        b"\0" * 4,
        b"\xff" * 64,
        whole[:1000],
        struct.pack("<iii", 1, 1 << 30, 0),
        whole[:200].replace(b"\0", b"\x7f"),
    ):
        path.write_bytes(data)
        with pytest.raises(errors.FileFormatError):
            read_importance(str(path))
    values = importance_values()
    values["blk.0.attn_q.weight"][5] = np.nan
    write_old(path, values)
    with pytest.raises(errors.FileFormatError, match=r"blk\.0\.attn_q"):
        read_importance(str(path))


# ---- whole or not at all ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def larger(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("larger") / "model.gguf"
    tiny_models.make_llama(
        path, n_embd=512, n_ff=1536, n_heads=8, n_kv_heads=2, n_layers=12, n_vocab=2000, weight_type="F16", decode=False
    )
    return path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_at_any_moment(native, larger: Path, tmp_path: Path, number) -> None:
    """The name holds the old file or the new one; only SIGKILL can leave a partial file, under another name. LMI_MOMENTS: how
    many moments, where the usual number is too few."""
    out = tmp_path / "q.gguf"
    old = b"what was here before"
    began = time.monotonic()
    lmi(larger, "-o", out, "-q", "Q4_K_M")
    whole, seconds = out.read_bytes(), time.monotonic() - began
    rng = random.Random(int(number))
    stopped = 0
    for i in range(int(os.environ.get("LMI_MOMENTS", 4))):
        out.write_bytes(old)
        command = [sys.executable, "-m", "lmi", "quantize", str(larger), "-o", str(out), "--force"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        if i:
            time.sleep(rng.uniform(0.3, 1) * seconds)
        while not i and len(list(tmp_path.iterdir())) < 2 and process.poll() is None:
            time.sleep(0.001)  # until it writes: this one is stopped in time, whatever else the machine does
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert out.read_bytes() in (old, whole)
        assert b"Traceback" not in err
        if out.read_bytes() == old:
            stopped += 1
            assert process.returncode in (-number, 128 + number)
        left = [p for p in tmp_path.iterdir() if p != out]
        assert number == signal.SIGKILL or not left, left
        for p in left:
            assert ".partial-" in p.name
            p.unlink()
    assert stopped


def test_full_disk(native, larger: Path, tmp_path: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = lmi(larger, "-o", tmp_path / "q.gguf", preexec_fn=limit)
    assert done.returncode == 8 and "nothing was left behind" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_memory(native, tmp_path: Path) -> None:
    """A tensor of 256 MiB in parts: the peak stays far below three times its size."""
    path, out = tmp_path / "x.gguf", tmp_path / "y.gguf"
    from lmi_convert.writer import Tensor, string, write

    rows, part = 65536, np.random.default_rng(1).normal(size=(4096, 1024)).astype(np.float32)
    stack = Tensor("blk.0.ffn_up.weight", (rows, 1024), "F32", lambda: (part for _ in range(rows // 4096)))
    write(str(path), {"general.architecture": string("llama")}, [stack], verify=lambda p: None)
    program = (
        "import sys, resource\nfrom lmi_convert.requantize import make_plan\nfrom lmi_convert.writer import write\n"
        "plan = make_plan(sys.argv[1], 'Q8_0')\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write(sys.argv[2], plan.keys, plan.tensors, verify=lambda p: None)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path), str(out)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 * 1024, done.stdout
