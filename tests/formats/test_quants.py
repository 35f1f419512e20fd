"""Decoders of tensor types against the `gguf` package: equal to the last bit, on any bytes."""

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

SUPPORTED = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
SUPPORTED += ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]
N_BLOCKS = 100_000


def decode(native, name: str, raw: bytes, n: int) -> np.ndarray:
    ffi, lib = native
    values = np.full(n, 12345.0, np.float32)
    error = ffi.new("lmi_error *")
    status = lib.lmi_dequantize(name.encode(), raw, len(raw), ffi.from_buffer("float[]", values), n, error)
    assert status == 0, ffi.string(error.message)
    return values


def check_equal(got: np.ndarray, want: np.ndarray) -> None:
    """Bit for bit; a NaN may carry another payload."""
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    wrong = np.flatnonzero(~same)
    assert wrong.size == 0, f"{wrong.size} values differ, first at {wrong[0]}: {got[wrong[0]]!r}, expected {want[wrong[0]]!r}"


def reference(raw: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    with np.errstate(all="ignore"):
        return quants.dequantize(raw, kind).astype(np.float32).ravel()


@pytest.mark.parametrize("name", SUPPORTED)
def test_random_bytes(native, name: str) -> None:
    """Scales are random too: infinite, NaN and subnormal ones are among them."""
    kind = GGMLQuantizationType[name]
    values, size = GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(1).integers(0, 256, (N_BLOCKS, size), dtype=np.uint8)
    if values == 1:
        raw = raw.ravel()
    check_equal(decode(native, name, raw.tobytes(), N_BLOCKS * values), reference(raw, kind))


@pytest.mark.parametrize("name", [n for n in SUPPORTED if GGML_QUANT_SIZES[GGMLQuantizationType[n]][0] > 1])
def test_sane_scales(native, name: str) -> None:
    """Scales as models have them: rounding of the sums shows, which infinities would hide."""
    kind = GGMLQuantizationType[name]
    values, size = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(2)
    raw = rng.integers(0, 256, (N_BLOCKS // 10, size), dtype=np.uint8)
    where = {"Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208], "Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2]}
    for at in where.get(name, [0]):
        if name == "MXFP4":
            raw[:, 0] = rng.integers(100, 130, len(raw), dtype=np.uint8)
        else:
            raw[:, at : at + 2] = rng.normal(0, 0.02, (len(raw), 1)).astype(np.float16).view(np.uint8)
    want = reference(raw, kind)
    assert np.isfinite(want).all()
    check_equal(decode(native, name, raw.tobytes(), len(raw) * values), want)


def test_every_half(native) -> None:
    raw = np.arange(65536, dtype=np.uint16)
    check_equal(decode(native, "F16", raw.tobytes(), 65536), reference(raw.view(np.uint8), GGMLQuantizationType.F16))
    check_equal(decode(native, "BF16", raw.tobytes(), 65536), reference(raw.view(np.uint8), GGMLQuantizationType.BF16))


def test_sizes(native) -> None:
    ffi, lib = native
    for kind, (values, size) in GGML_QUANT_SIZES.items():
        supported = kind.name in SUPPORTED
        assert lib.lmi_tensor_bytes(kind.name.encode(), 3 * values) == (3 * size if supported else 0), kind.name
        if supported and values > 1:
            assert lib.lmi_tensor_bytes(kind.name.encode(), 3 * values - 1) == 0
    assert lib.lmi_tensor_bytes(b"q4_K", 256) == 0 and lib.lmi_tensor_bytes(b"", 256) == 0


def test_refusals(native) -> None:
    ffi, lib = native
    error = ffi.new("lmi_error *")
    values = ffi.new("float[]", 64)
    for name, size, n in [(b"IQ2_XXS", 66, 256), (b"nothing", 1, 1), (b"Q4_0", 17, 32), (b"Q4_0", 18, 31), (b"Q4_0", 18, -32)]:
        assert lib.lmi_dequantize(name, bytes(size), size, values, n, error) != 0, (name, size, n)
        assert ffi.string(error.message)
