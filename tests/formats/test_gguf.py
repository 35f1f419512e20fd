"""The GGUF reader against the `gguf` package: what it writes is read back, and real vocabularies hold what it says they do."""

import struct
from contextlib import contextmanager
from pathlib import Path

import gguf
import lmi
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

NAMES = {
    GGUFValueType.UINT8: "u8",
    GGUFValueType.INT8: "i8",
    GGUFValueType.UINT16: "u16",
    GGUFValueType.INT16: "i16",
    GGUFValueType.UINT32: "u32",
    GGUFValueType.INT32: "i32",
    GGUFValueType.FLOAT32: "f32",
    GGUFValueType.BOOL: "bool",
    GGUFValueType.STRING: "string",
    GGUFValueType.UINT64: "u64",
    GGUFValueType.INT64: "i64",
    GGUFValueType.FLOAT64: "f64",
}
VALUES = {
    GGUFValueType.UINT8: [0, 255],
    GGUFValueType.INT8: [-128, 127],
    GGUFValueType.UINT16: [0, 65535],
    GGUFValueType.INT16: [-32768, 32767],
    GGUFValueType.UINT32: [0, 2**32 - 1],
    GGUFValueType.INT32: [-(2**31), 2**31 - 1],
    GGUFValueType.FLOAT32: [0.0, -1.5, 3.4028234663852886e38, 1e-45],
    GGUFValueType.BOOL: [False, True],
    GGUFValueType.STRING: ["", "plain", "h\u00e9llo \u4e16\u754c \U0001f600", "two\nlines"],
    GGUFValueType.UINT64: [0, 2**64 - 1],
    GGUFValueType.INT64: [-(2**63), 2**63 - 1],
    GGUFValueType.FLOAT64: [0.1, -1e308, 5e-324],
}
SUPPORTED = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
SUPPORTED += ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """The least SentencePiece vocabulary: files without weights are opened for their vocabulary."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + ["a", "b", "\u2581"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-1.0, -2.0, -3.0])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * 3)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


class Opened:
    def __init__(self, native, model) -> None:
        self.ffi, self.lib = native
        self.model = model
        self.info = self.ffi.new("lmi_model_info *")
        self.lib.lmi_model_get_info(model, self.info)

    def metadata(self) -> list[tuple[str, str, int]]:
        item, error = self.ffi.new("lmi_metadata *"), self.ffi.new("lmi_error *")
        found = []
        for i in range(self.info.n_metadata):
            assert self.lib.lmi_model_get_metadata(self.model, i, item, error) == 0
            name = self.ffi.unpack(item.key, item.key_size).decode()
            found.append((name, self.ffi.string(item.type).decode(), item.n_elements))
        return found

    def tensors(self) -> list[tuple[str, str, list[int], int, int]]:
        item, error = self.ffi.new("lmi_tensor *"), self.ffi.new("lmi_error *")
        found = []
        for i in range(self.info.n_tensors):
            assert self.lib.lmi_model_get_tensor(self.model, i, item, error) == 0
            name = self.ffi.unpack(item.name, item.name_size).decode()
            shape = [item.shape[d] for d in range(item.n_dims)]
            assert all(item.shape[d] == 1 for d in range(item.n_dims, 4))
            found.append((name, self.ffi.string(item.type).decode(), shape, item.n_bytes, item.offset))
        return found


def open_status(native, path: Path, no_map: bool = False):
    ffi, lib = native
    model, error, options = ffi.new("lmi_model **"), ffi.new("lmi_error *"), ffi.new("lmi_model_options *")
    lib.lmi_model_options_default(options)
    options.vocab_only, options.n_threads, options.no_map = 1, 1, no_map
    return lib.lmi_model_open(str(path).encode(), options, model, error), model[0], error


@contextmanager
def opened(native, path: Path, no_map: bool = False):
    status, model, error = open_status(native, path, no_map)
    assert status == 0, native[0].string(error.message)
    try:
        yield Opened(native, model)
    finally:
        native[1].lmi_model_close(model)


def same(kind: GGUFValueType, value, expected) -> bool:
    """Floats of 32 bits come as short decimals of the same value."""
    if kind == GGUFValueType.FLOAT32:
        return np.float32(value) == np.float32(expected)
    return value == expected and isinstance(value, bool) == (kind == GGUFValueType.BOOL)


@pytest.mark.parametrize("no_map", [False, True])
def test_every_kind_of_value(native, tmp_path: Path, no_map: bool) -> None:
    path = tmp_path / "values.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    add_vocabulary(writer)
    expected = {}
    for kind, values in VALUES.items():
        for i, value in enumerate(values):
            writer.add_key_value(f"one.{kind.name}.{i}", value, kind)
            expected[f"one.{kind.name}.{i}"] = (kind, NAMES[kind], [value])
        writer.add_key_value(f"many.{kind.name}", values, GGUFValueType.ARRAY, sub_type=kind)
        expected[f"many.{kind.name}"] = (kind, "array of " + NAMES[kind], values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    with opened(native, path, no_map) as file:
        keys = {name: (kind, n) for name, kind, n in file.metadata()}
        for name, (_, type_name, values) in expected.items():
            assert keys[name] == (type_name, len(values)), name
    with lmi.Model(path, vocab_only=True, mmap=not no_map) as model:
        for name, (kind, _, values) in expected.items():
            found = model.metadata(name)
            found = found if name.startswith("many.") else [found]
            assert len(found) == len(values) and all(same(kind, *pair) for pair in zip(found, values)), name
        cut = {name: value for name, _, value in model.metadata_items(1)}
        assert all(len(cut[f"many.{kind.name}"]) == 1 for kind in VALUES)


@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_every_kind_of_tensor(native, tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "tensors.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    add_vocabulary(writer)
    rng = np.random.default_rng(3)
    expected = {}
    for name in SUPPORTED:
        kind = GGMLQuantizationType[name]
        values, size = GGML_QUANT_SIZES[kind]
        for shape in [(5,), (3, 2), (2, 3, 2), (2, 2, 1, 3)]:  # in numpy's order: the last runs fastest
            raw = rng.integers(0, 256, (*shape[:-1], shape[-1] * size), dtype=np.uint8)
            key = f"{name}.{len(shape)}"
            writer.add_tensor(key, raw, raw_dtype=kind)
            expected[key] = (name, [shape[-1] * values, *reversed(shape[:-1])], raw.tobytes())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    content = path.read_bytes()
    by_package = {t.name: t for t in gguf.GGUFReader(path).tensors}
    with opened(native, path) as file:
        found = file.tensors()
        assert [t[0] for t in found] == list(expected)
        for name, kind, shape, n_bytes, offset in found:
            assert (kind, shape) == expected[name][:2], name
            assert content[offset : offset + n_bytes] == expected[name][2], name
            assert offset == by_package[name].data_offset and n_bytes == by_package[name].n_bytes, name
            assert offset % alignment == 0


@pytest.mark.parametrize("stem", ["llama-spm", "phi-3", "gpt-2"])
def test_real_vocabularies(native, data: Path, stem: str) -> None:
    path = data / "vocabs" / f"ggml-vocab-{stem}.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    reader = gguf.GGUFReader(path)
    with opened(native, path) as file, lmi.Model(path, vocab_only=True) as model:
        fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        assert [k[0] for k in file.metadata()] == list(fields)
        for name, type_name, n in file.metadata():
            field = fields[name]
            kinds = [NAMES[k] for k in field.types if k != GGUFValueType.ARRAY]
            assert type_name == ("array of " if field.types[0] == GGUFValueType.ARRAY else "") + kinds[0], name
            value = model.metadata(name)
            if field.types[0] != GGUFValueType.ARRAY:
                assert same(field.types[0], value, field.contents()), name
                continue
            assert n == len(field.data) == len(value), name
            for i in [0, 1, n - 1, *range(0, n, 997)]:
                part = field.parts[field.data[i]]
                text = field.types[1] == GGUFValueType.STRING
                assert same(field.types[1], value[i], bytes(part).decode("utf-8", "replace") if text else part[0]), (name, i)


def write_ours(path: Path, tensors: bytes = b"", n_tensors: int = 0) -> None:
    """A header and a table by hand: the package cannot write what must be refused."""
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, n_tensors, 0) + tensors)


def test_messages(native, tmp_path: Path) -> None:
    """The lines that users see, whole."""
    ffi, _ = native
    path = tmp_path / "bad.gguf"

    def message() -> tuple[int, int, str]:
        status, model, error = open_status(native, path)
        assert model == ffi.NULL and ffi.string(error.remedy)
        return status, error.offset, ffi.string(error.message).decode()

    path.write_bytes(b"<!DOCTYPE html><title>404</title>")
    assert message() == (-3, 0, 'not a GGUF file (starts with "<!DO"): looks like a web page saved by a failed download')
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(64))
    assert message() == (-3, 4, "GGUF version 1; lmi reads 2 and 3")
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + bytes(64))
    assert message() == (
        -3,
        24,
        "damaged file at byte 24: key length 4,611,686,018,427,387,904 is not 1 to 65,535 (key 1)",
    )
    name = b"blk.0.ffn_up.weight"
    tensor = struct.pack("<Q", len(name)) + name + struct.pack("<IQQIQ", 2, 256, 4, 16, 0)
    write_ours(path, tensor, 1)
    assert message() == (-4, 71, "tensor type IQ2_XXS (blk.0.ffn_up.weight) is not supported")
    tensor = struct.pack("<Q", len(name)) + name + struct.pack("<IQQIQ", 2, 4096, 1024, 0, 0)
    write_ours(path, tensor + bytes(13 + 4096 * 1024 * 2), 1)
    assert message() == (
        -3,
        8388704,
        "file is incomplete: tensor blk.0.ffn_up.weight needs bytes up to 16,777,312, file has 8,388,704 (50 %)",
    )
