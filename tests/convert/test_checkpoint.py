"""Checkpoint folders: every number as it is, one shard or several; and what is wrong with the others."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from lmi.errors import Error, FileFormatError, UnsupportedModel
from lmi_convert.checkpoint import Checkpoint, parse_json, read_json, to_float32
from lmi_convert.family import Weights
from lmi_convert.matrix import adjacent_pairs, joined, rows_of, stacked
from safetensors.torch import save_file

KINDS = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F64": torch.float64,
}


def raw_file(path: Path, table: dict | bytes, data: bytes = b"", size: int | None = None) -> None:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)


def entry(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers(tmp_path, kind):
    """All bit patterns of the small types, and rows read from the middle."""
    if kind == "F8_E4M3":
        t = torch.arange(256, dtype=torch.uint8).view(KINDS[kind]).reshape(16, 16)
    elif kind in ("F16", "BF16"):
        t = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(KINDS[kind]).reshape(64, 1024)
    else:
        t = torch.randn(64, 32, dtype=KINDS[kind])
    save_file({"a": torch.zeros(3), "t": t, "z": torch.ones(2)}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        source = checkpoint.sources["t"]
        assert (source.dtype, source.shape) == (kind, tuple(t.shape))
        got = to_float32(source.read(5, 14), kind)
        np.testing.assert_array_equal(got, t[5:14].float().numpy())
        whole = np.concatenate(list(rows_of(source).floats()))
        np.testing.assert_array_equal(whole, t.float().numpy())


def test_shards_and_links(tmp_path):
    """As the Hub's cache has it: names that link to files elsewhere."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir(), folder.mkdir()
    tensors = {f"t{i}": torch.full((4,), float(i)) for i in range(4)}
    listed = {}
    for shard in range(2):
        name = f"model-{shard + 1:05}-of-00002.safetensors"
        part = {n: t for i, (n, t) in enumerate(tensors.items()) if i % 2 == shard}
        save_file(part, blobs / f"blob{shard}")
        (folder / name).symlink_to(blobs / f"blob{shard}")
        listed |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with Checkpoint(folder) as checkpoint:
        assert {n: float(s.read(0, 1)[0]) for n, s in checkpoint.sources.items()} == {f"t{i}": float(i) for i in range(4)}

    def index(change):
        table = dict(listed)
        change(table)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
        with pytest.raises(FileFormatError) as caught, Checkpoint(folder):
            pass
        return caught.value.message

    assert "outside the folder" in index(lambda t: t.update(t0="../blobs/blob0"))
    assert "outside the folder" in index(lambda t: t.update(t0="/etc/passwd"))
    assert "shard model-9 is missing" in index(lambda t: t.update(t0="model-9"))
    assert "listed in model.safetensors.index.json but not in its shard" in index(lambda t: t.update(t9=t["t0"]))
    assert "not listed" in index(lambda t: t.pop("t0"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "is missing" in index(lambda t: None)


BAD = {
    "empty": (b"", "too short"),
    "short": (b"\x00" * 7, "too short"),
    "header beyond": (struct.pack("<Q", 1000) + b"{}", "incomplete"),
    "header huge": (struct.pack("<Q", 1 << 62) + b"{}", "not a safetensors file"),
    "web page": (b"<!DOCTYPE html><html></html>", "not a safetensors file"),
}


@pytest.mark.parametrize("name", BAD)
def test_no_header(tmp_path, name):
    content, match = BAD[name]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FileFormatError, match=match), Checkpoint(tmp_path):
        pass


TABLES = {
    "not json": (b"{", "not JSON"),
    "not a table": (b"[1]", "not a JSON object"),
    "twice": (
        b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        "twice",
    ),
    "deep": (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested deeper"),
    "dtype": ({"a": entry("F4", [1], 0, 4)}, "of the type 'F4'"),
    "no dtype": ({"a": {"shape": [1]}}, "of the type None"),
    "entry": ({"a": 1}, "of the type None"),
    "shape": ({"a": entry("F32", [-1], 0, 4)}, "makes no sense"),
    "shape of bools": ({"a": entry("F32", [True], 0, 4)}, "makes no sense"),
    "shape huge": ({"a": entry("F32", [1 << 40, 1 << 40, 1 << 40], 0, 4)}, "cannot take"),
    "offsets": ({"a": entry("F32", [1], 4, 0)}, "cannot take"),
    "size": ({"a": entry("F32", [2], 0, 4)}, "cannot take"),
    "gap": ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, "does not begin where"),
    "overlap": ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, "does not begin where"),
    "beyond": ({"a": entry("F32", [8], 0, 32)}, "incomplete: its tensors need"),
    "behind": ({"a": entry("F32", [1], 0, 4)}, "behind its last tensor"),
}


@pytest.mark.parametrize("name", TABLES)
def test_bad_tables(tmp_path, name):
    table, match = TABLES[name]
    raw_file(tmp_path / "model.safetensors", table, bytes(12))
    with pytest.raises((FileFormatError, UnsupportedModel), match=match), Checkpoint(tmp_path):
        pass


def test_every_truncation(tmp_path):
    """A file cut anywhere is refused with a message, never read."""
    save_file({"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16()}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for n in range(len(whole)):
        (tmp_path / "model.safetensors").write_bytes(whole[:n])
        with pytest.raises(FileFormatError), Checkpoint(tmp_path):
            pass


def test_bytes_changed_anywhere(tmp_path):
    """Any byte of the header changed: an error of ours or a file that still makes sense."""
    rng = np.random.default_rng(0)
    save_file({"a": torch.randn(3, 4), "b": torch.randn(5)}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in range(header):
        data = bytearray(whole)
        data[at] = rng.integers(0, 256)
        (tmp_path / "model.safetensors").write_bytes(data)
        try:
            with Checkpoint(tmp_path) as checkpoint:
                for s in checkpoint.sources.values():
                    s.read(0, s.shape[0] if s.shape else 1)
        except Error:
            pass


def test_file_that_shrinks(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.randn(1000, 10)}, path)
    with Checkpoint(tmp_path) as checkpoint:
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(FileFormatError, match="became shorter"):
            checkpoint.sources["a"].read(0, 1000)


def test_f8_scales(tmp_path):
    """Blocks of 128 x 128, edges included; read from any row."""
    torch.manual_seed(0)
    w = (torch.randn(300, 200) * 40).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2) + 0.5
    save_file({"m.weight": w, "m.weight_scale_inv": scales}, tmp_path / "model.safetensors")
    expected = w.float() * scales.repeat_interleave(128, 0)[:300].repeat_interleave(128, 1)[:, :200]
    with Checkpoint(tmp_path) as checkpoint:
        weights = Weights(checkpoint)
        source = weights.source("m.weight", (300, 200))
        found = weights.scales(source)
        got = np.concatenate(list(rows_of(source, scales=found).floats()))
        np.testing.assert_array_equal(got, expected.numpy())
        part = np.concatenate(list(rows_of(source, [(130, 290)], scales=found).floats()))
        np.testing.assert_array_equal(part, expected[130:290].numpy())
        weights.require_all_used("x")
    save_file({"m.weight": w, "m.weight_scale": torch.tensor(0.25)}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        weights = Weights(checkpoint)
        source = weights.source("m.weight", (300, 200))
        got = np.concatenate(list(rows_of(source, scales=weights.scales(source)).floats()))
        np.testing.assert_array_equal(got, (w.float() * 0.25).numpy())
    for table, match in (({}, "no scales"), ({"m.weight_scale": torch.ones(300, 1)}, "one scale, or one for each")):
        save_file({"m.weight": w, **table}, tmp_path / "model.safetensors")
        with Checkpoint(tmp_path) as checkpoint, pytest.raises(Error, match=match):
            weights = Weights(checkpoint)
            weights.scales(weights.source("m.weight", (300, 200)))


def test_pickles(tmp_path):
    tensors = {"a": torch.randn(4, 3).bfloat16(), "b": torch.randn(5), "s": torch.tensor(2.0)}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="can run code") as caught, Checkpoint(tmp_path):
        pass
    assert "--allow-pickle" in caught.value.remedy
    with Checkpoint(tmp_path, allow_pickle=True) as checkpoint:
        for name, t in tensors.items():
            source = checkpoint.sources[name]
            got = to_float32(source.read(0, t.shape[0] if t.ndim else 1), source.dtype)
            np.testing.assert_array_equal(got.reshape(t.shape), t.float().numpy())
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileFormatError, match="cannot be read as plain weights"), Checkpoint(tmp_path, allow_pickle=True):
        pass
    assert not marker.exists()


def test_folders(tmp_path):
    with pytest.raises(FileFormatError, match="no such folder"), Checkpoint(tmp_path / "none"):
        pass
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileFormatError, match="is not a folder"), Checkpoint(tmp_path / "file"):
        pass
    with pytest.raises(FileFormatError, match="has no model.safetensors"), Checkpoint(tmp_path):
        pass
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(FileFormatError, match="no model.safetensors.index.json"), Checkpoint(tmp_path):
        pass


def test_json_depth(tmp_path):
    deep = b'{"a":' * 64 + b"1" + b"}" * 64
    assert parse_json(deep, "x")
    with pytest.raises(FileFormatError, match="nested deeper"):
        parse_json(b'{"b":' + deep + b"}", "x")
    assert parse_json(json.dumps({"a": "[" * 500, "b": '\\"[' * 500}).encode(), "x")  # brackets in texts do not count
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "x.json") == {}


def test_orders_of_rows(tmp_path):
    t = torch.arange(12 * 5, dtype=torch.float32).reshape(12, 5)
    save_file({"t": t, "v": torch.arange(12.0)}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        source = checkpoint.sources["t"]
        spans = adjacent_pairs(2)(12)
        permuted = rows_of(source, [s for s, _ in spans], shape=(12, 5), change=spans[0][1])
        np.testing.assert_array_equal(permuted.values(), t.numpy()[[0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]])
        v = rows_of(checkpoint.sources["v"], [s for s, _ in spans], shape=(12,), change=spans[0][1])
        assert v.values().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
        parts = [rows_of(source, [(i, i + 2)]) for i in (4, 0)]
        np.testing.assert_array_equal(stacked(parts).values(), np.stack([t[4:6], t[0:2]]))
        np.testing.assert_array_equal(joined(parts).values(), np.concatenate([t[4:6], t[0:2]]))
