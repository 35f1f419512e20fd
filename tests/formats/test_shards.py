"""Models in several files, as the `gguf` package splits them: the same model as the single file, or a message that helps."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import lmi
import numpy as np
import pytest
from door import open_model
from gguf import GGUFReader, GGUFValueType
from lmi.errors import FileFormatError
from oracle import tiny_models
from oracle.tiny_models import split_file

TOKENS = np.random.default_rng(3).integers(3, 250, 40).tolist()


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """A small llama of 2 layers. Not to be changed."""
    path = tmp_path_factory.mktemp("single") / "model.gguf"
    tiny_models.make_llama(path)
    return path


@pytest.fixture
def parts(single, tmp_path) -> list[Path]:
    (tmp_path / "parts").mkdir()
    found = split_file(single, tmp_path / "parts")
    assert len(found) >= 3 and found[1].name == f"m-00002-of-{len(found):05}.gguf"
    return found


def patched(path: Path, old: bytes, new: bytes) -> None:
    """One text or number of the header replaced by one of the same size."""
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def number(key: str, kind: GGUFValueType, value: int) -> bytes:
    """A key and its value as they lie in a file."""
    size = {GGUFValueType.UINT16: 2, GGUFValueType.INT32: 4}[kind]
    return key.encode() + int(kind).to_bytes(4, "little") + value.to_bytes(size, "little")


def logits(native, path: Path) -> np.ndarray:
    with open_model(native, path) as model:
        return model.rows(TOKENS)


def refused(path: Path) -> FileFormatError:
    with pytest.raises(FileFormatError) as caught:
        lmi.Model(path).close()
    assert "\n" not in caught.value.message and caught.value.remedy
    return caught.value


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "lmi", *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("options", [{}, {"most": 1}, {"most": 4, "small_first_shard": True}])
def test_the_same_model(native, single, tmp_path, options):
    """Also with one tensor in each file, and with none in the first."""
    found = split_file(single, tmp_path, **options)
    n_tensors = len(GGUFReader(single).tensors)
    assert len(found) == {None: -(-n_tensors // 5), 1: n_tensors, 4: 1 + -(-n_tensors // 4)}[options.get("most")]
    with lmi.Model(found[0]) as model, lmi.Model(single) as whole:
        assert (model.info.n_files, model.info.n_tensors) == (len(found), whole.info.n_tensors)
        assert model.info.n_parameters == whole.info.n_parameters
        assert model.info.file_bytes == sum(path.stat().st_size for path in found)
    np.testing.assert_array_equal(logits(native, found[0]), logits(native, single))


def test_commands(native, single, parts):
    for path in (single, parts[0]):
        assert command("info", path).returncode == 0
    runs = [command("run", path, "--text", "a b", "-n", "8", "--temp", "0") for path in (single, parts[0])]
    assert runs[0].returncode == runs[1].returncode == 0, runs[1].stderr
    assert runs[0].stdout == runs[1].stdout and runs[0].stdout


def test_a_missing_part(native, parts):
    parts[2].unlink()
    e = refused(parts[0])
    assert parts[2].name in e.message and "put all of them into one folder" in e.remedy
    done = command("run", parts[0], "--text", "a", "-n", "1")
    assert done.returncode == 3 and parts[2].name in done.stderr and "Traceback" not in done.stderr


def test_not_the_first(native, parts):
    for i, path in enumerate(parts[1:], 2):
        e = refused(path)
        assert f"this is file {i} of the {len(parts)}" in e.message and f"-00001-of-{len(parts):05}.gguf" in e.remedy
    done = command("run", parts[1], "--text", "a", "-n", "1")
    assert done.returncode == 3 and "00001-of" in done.stderr


def test_parts_exchanged(native, parts):
    """The names say another order than the files do."""
    os.rename(parts[1], parts[0].with_name("x"))
    os.rename(parts[2], parts[1])
    os.rename(parts[0].with_name("x"), parts[2])
    e = refused(parts[0])
    assert parts[1].name in e.message and f"file 3 of {len(parts)}" in e.message and "names" in e.remedy


def test_renamed(native, parts):
    """The names of the others come from that of the first."""
    path = parts[0].with_name("model.gguf")
    os.rename(parts[0], path)
    assert f"does not end in -00001-of-{len(parts):05}.gguf" in refused(path).message


def test_a_part_of_another_model(native, single, parts, tmp_path):
    """Another split of the same model, one with more parts, one with other shapes, one that is no part of anything."""
    (tmp_path / "other").mkdir()
    tiny_models.make_llama(tmp_path / "wide.gguf", n_embd=128)
    wide = split_file(tmp_path / "wide.gguf", tmp_path / "other")
    assert len(wide) == len(parts)
    kept = parts[1].read_bytes()
    shutil.copy(wide[1], parts[1])
    e = refused(parts[0])
    assert "has shape" in e.message and "from the same download" in e.remedy
    shutil.rmtree(tmp_path / "other")
    (tmp_path / "other").mkdir()
    more = split_file(single, tmp_path / "other", most=3)
    shutil.copy(more[1], parts[1])
    assert f"file 2 of {len(more)}" in refused(parts[0]).message
    shutil.copy(single, parts[1])
    assert parts[1].name in refused(parts[0]).message
    parts[1].write_bytes(kept)
    assert logits(native, parts[0]).shape == logits(native, single).shape


def test_a_tensor_in_two_parts(native, parts):
    names = [[t.name for t in GGUFReader(path).tensors] for path in parts]
    twice = next(n for n in names[0] if n in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"))
    stem = twice.split(".", 2)[2].encode()
    theirs = next(n for n in names[1] + names[2] if n.endswith(twice.split(".", 2)[2]))
    path = parts[1] if theirs in names[1] else parts[2]
    patched(path, theirs.encode(), b"blk.0." + stem)
    assert f"tensor {twice} is in two of the model's files" in refused(parts[0]).message


def test_a_tensor_too_few(native, parts):
    n = sum(len(GGUFReader(path).tensors) for path in parts)
    key = gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT
    patched(parts[0], number(key, GGUFValueType.INT32, n), number(key, GGUFValueType.INT32, n + 1))
    e = refused(parts[0])
    assert f"the files hold {n} tensors, not the {n + 1}" in e.message


def test_absurd_counts(native, parts):
    key, kind = gguf.Keys.Split.LLM_KV_SPLIT_COUNT, GGUFValueType.UINT16
    whole = parts[0].read_bytes()
    for count, match in ((998, "does not end in -00001-of-00998.gguf"), (65535, "is 65535, not 0 to 999"), (1, "is missing")):
        patched(parts[0], number(key, kind, len(parts)), number(key, kind, count))
        with pytest.raises(FileFormatError, match=match):
            lmi.Model(parts[0]).close()
        parts[0].write_bytes(whole)


def test_every_part_is_checked(native, parts):
    """Cut anywhere, any part: refused, and those after the first by name."""
    for path in parts:
        whole = path.read_bytes()
        for n in (0, 3, 40, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:n])
            e = refused(parts[0])
            assert path == parts[0] or path.name in e.message
        path.write_bytes(whole)
    logits(native, parts[0])


def test_a_part_that_shrinks(parts):
    """While it is mapped: an error before the next token, not a bus error at some weight."""
    with lmi.Model(parts[0]) as model, model.session() as session:
        session.feed("a")
        os.truncate(parts[2], parts[2].stat().st_size - 1)
        with pytest.raises(FileFormatError, match="became shorter while in use"):
            session.feed("b")
