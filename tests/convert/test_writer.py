"""The file that is written: byte by byte as another writer has it, and whole or not at all."""

import os
import resource
import stat
import subprocess
import sys

import gguf
import numpy as np
import pytest
from lmi import errors
from lmi_convert import writer
from lmi_convert.writer import Tensor, boolean, booleans, f32, f32s, i32, i32s, string, strings, u32, u32s, u64, write


def sound(path: str) -> None:
    """Takes any file: the parts below are no models."""


def parts():
    rng = np.random.default_rng(1)
    arrays = {"a.weight": rng.standard_normal((3, 5)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)}
    arrays["c.weight"] = rng.standard_normal((2, 3, 64)).astype(np.float32)
    keys = {
        "general.architecture": string("llama"),
        "x.u32": u32(7),
        "x.u64": u64(1 << 40),
        "x.i32": i32(-3),
        "x.f32": f32(0.1),
        "x.bool": boolean(True),
        "x.text": string("héllo"),
        "x.texts": strings(["a", "", "ü"]),
        "x.i32s": i32s([1, -2]),
        "x.u32s": u32s([1, 2]),
        "x.f32s": f32s([0.5, 1.5]),
        "x.booleans": booleans([True, False]),
    }
    packed = {"c.weight": gguf.quants.quantize(arrays["c.weight"], gguf.GGMLQuantizationType.Q8_0)}
    tensors = [
        Tensor("a.weight", (3, 5), "F32", lambda: [arrays["a.weight"][:1], arrays["a.weight"][1:]]),
        Tensor("b", (7,), "F32", lambda: iter([arrays["b"]])),
        Tensor("c.weight", (2, 3, 64), "Q8_0", lambda: [packed["c.weight"]]),
    ]
    return keys, tensors, arrays, packed


def test_as_the_gguf_package_writes_it(tmp_path):
    keys, tensors, arrays, packed = parts()
    size = write(tmp_path / "ours.gguf", keys, tensors, verify=sound)
    w = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    w.add_uint32("x.u32", 7)
    w.add_uint64("x.u64", 1 << 40)
    w.add_int32("x.i32", -3)
    w.add_float32("x.f32", 0.1)
    w.add_bool("x.bool", True)
    w.add_string("x.text", "héllo")
    w.add_array("x.texts", ["a", "", "ü"])
    w.add_array("x.i32s", [1, -2])
    w.add_key_value("x.u32s", [1, 2], gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.UINT32)
    w.add_array("x.f32s", [0.5, 1.5])
    w.add_array("x.booleans", [True, False])
    w.add_tensor("a.weight", arrays["a.weight"])
    w.add_tensor("b", arrays["b"])
    w.add_tensor("c.weight", packed["c.weight"], raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    ours = (tmp_path / "ours.gguf").read_bytes()
    assert ours == (tmp_path / "theirs.gguf").read_bytes()
    assert size == len(ours) == writer.file_bytes(keys, tensors)


def test_one_tensor_at_a_time(tmp_path):
    """The data of a tensor is asked for when those before it are written."""
    seen = []

    def data(name):
        def make():
            seen.append(name)
            yield np.zeros(4, np.float32)

        return make

    tensors = [Tensor(name, (4,), "F32", data(name)) for name in "abc"]
    steps = []
    write(tmp_path / "x", {}, tensors, verify=sound, progress=lambda t, done: steps.append((t.name, list(seen), done)))
    assert [(name, before) for name, before, _ in steps] == [("a", []), ("b", ["a"]), ("c", ["a", "b"])]
    assert steps[2][2] - steps[1][2] == 32


class Stop(BaseException):
    pass


def failing(error):
    def data():
        yield np.zeros(2, np.float32)
        raise error

    return data


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), Stop(), errors.FileFormatError("x"), OSError(5, "x")])
def test_nothing_is_left_behind(tmp_path, error):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        write(path, {}, [Tensor("a", (4,), "F32", failing(error))], overwrite=True, verify=sound)
    assert os.listdir(tmp_path) == ["m.gguf"] and path.read_bytes() == b"old"


def test_a_file_that_does_not_read_back_gets_no_name(tmp_path):
    """Without `verify`, the library's reader decides: this is no model."""
    keys, tensors, *_ = parts()
    with pytest.raises(errors.InternalError, match="does not read back"):
        write(tmp_path / "m.gguf", keys, tensors)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("n", [3, 5])
def test_too_few_or_too_many_bytes(tmp_path, n):
    with pytest.raises(errors.InternalError, match="announced"):
        write(tmp_path / "m", {}, [Tensor("a", (4,), "F32", lambda: [np.zeros(n, np.float32)])], verify=sound)
    assert not os.listdir(tmp_path)


def test_permissions(tmp_path):
    _, tensors, *_ = parts()
    before = os.umask(0o027)
    try:
        modes = []
        write(tmp_path / "new", {}, tensors, verify=lambda p: modes.append(stat.S_IMODE(os.stat(p).st_mode)))
        assert modes == [0o600]  # nobody else reads it before it is whole
        assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o640
        os.chmod(tmp_path / "new", 0o604)
        write(tmp_path / "new", {}, tensors, overwrite=True, verify=sound)
        assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o604
    finally:
        os.umask(before)


def test_what_can_be_known_before(tmp_path):
    (tmp_path / "there").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    for path, match in (("there", "exists"), ("folder", "is a folder"), ("none/x", "no such folder")):
        with pytest.raises(errors.OutputError, match=match):
            write(tmp_path / path, {}, [], verify=sound)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(errors.OutputError, match="not a regular file"):
        write(tmp_path / "pipe", {}, [], overwrite=True, verify=sound)
    if os.geteuid():
        os.chmod(tmp_path / "folder", 0o500)
        with pytest.raises(errors.OutputError, match="no permission"):
            write(tmp_path / "folder" / "x", {}, [], verify=sound)


def test_full_disk(tmp_path, monkeypatch):
    """Announced before anything is written, where the system says how much is free; and in the middle."""
    tensors = [Tensor("a", (1 << 20,), "F32", lambda: [np.zeros(1 << 20, np.float32)])]
    monkeypatch.setattr(writer, "_free", lambda path: 1 << 20)
    with pytest.raises(errors.OutputError, match=r"no space left \(needs 4 MiB, 1 MiB free\); nothing was left behind"):
        write(tmp_path / "m", {}, tensors, verify=sound)
    monkeypatch.undo()

    def full(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.os, "write", full)
    with pytest.raises(errors.OutputError, match="no space left"):
        write(tmp_path / "m", {}, tensors, verify=sound)
    assert not os.listdir(tmp_path)


def test_file_size_limit(tmp_path):
    """A real limit, in a process of its own."""
    code = f"""
import numpy, resource
from lmi import errors
from lmi_convert.writer import Tensor, write
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write({str(tmp_path / "m.gguf")!r}, {{}}, [Tensor("a", (1 << 18,), "F32", lambda: [numpy.zeros(1 << 18, numpy.float32)])])
except errors.OutputError as e:
    print(e.exit_code, e.message)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("8 cannot write") and "larger than files may be here" in done.stdout, done.stderr
    assert not os.listdir(tmp_path)


def test_stale_partials_are_reported(tmp_path):
    path = tmp_path / "m.gguf"
    for name, age in (("m.gguf.partial-1-aa", 2e5), ("m.gguf.partial-2-bb", 10), ("other.gguf.partial-1-aa", 2e5)):
        (tmp_path / name).write_bytes(b"")
        at = os.stat(tmp_path / name).st_mtime - age
        os.utime(tmp_path / name, (at, at))
    assert writer.stale_partials(str(path)) == [str(tmp_path / "m.gguf.partial-1-aa")]


def test_large_vocabularies_are_fast(tmp_path):
    texts = [f"token {i}" for i in range(262_144)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    write(tmp_path / "v", {"t": strings(texts), "s": f32s([0.0] * len(texts))}, [], verify=sound)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 3
