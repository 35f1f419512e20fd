"""The same files in llama.cpp: they load, and its logits are ours; and files of its quantizer in lmi.

Needs llama-cpp-python (the extra `peers`), in this Python or in the one that LMI_PEERS_PYTHON names.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from door import open_model
from lmi_convert.convert import convert
from oracle import tiny_hf
from oracle.tiny_models import split_file

PYTHON = os.environ.get("LMI_PEERS_PYTHON", sys.executable)
PROGRAM = Path(__file__).with_name("peer_logits.py")

# Where llama.cpp does something else than transformers (and we), on purpose or not, the case goes round it.
CHANGED = {
    "gemma2": {"query_pre_attn_scalar": 32},  # it takes the head size, whatever the file says
    "gemma3": {"query_pre_attn_scalar": 32},
    # It rounds YaRN's range, gpt-oss does not.
    "gpt-oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}},
    "phi3": {"sliding_window": None},  # it leaves the window out
}
LENGTH = {"mistral-window": 48, "starcoder2": 48}  # it leaves these windows out too
WITHOUT_GRAPH = {"gptj"}  # it knows the names and cannot run them
# It takes GELU from a table of 16-bit numbers, and by tanh where the model has the exact one.
GELU = {
    "mpt": 2e-3,
    "gptneox": 2e-3,
    "gptneox-sequential": 2e-3,
    "gemma": 2e-3,
    "gemma2": 6e-3,
    "gemma3": 2e-3,
    "starcoder2": 2e-3,
}


@pytest.fixture(scope="module")
def llama_cpp():
    found = subprocess.run([PYTHON, "-c", "import llama_cpp"], capture_output=True)
    if found.returncode:
        pytest.skip("no llama-cpp-python here: pip install '.[peers]', or name its Python in LMI_PEERS_PYTHON")


def their_logits(path: Path, tokens: np.ndarray, folder: Path) -> np.ndarray:
    np.save(folder / "tokens.npy", tokens)
    run_peer(PROGRAM, path, folder / "tokens.npy", folder / "logits.npy")
    return np.load(folder / "logits.npy")


def run_peer(*command) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([PYTHON, *map(str, command)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, [line for line in done.stderr.splitlines() if "error" in line]


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize("name", [name for name in tiny_hf.BY_NAME if name not in WITHOUT_GRAPH])
def test_as_llama_cpp(native, llama_cpp, tmp_path, name):
    case = tiny_hf.BY_NAME[name]
    case = dataclasses.replace(case, options={**case.options, **CHANGED.get(name, {})})
    tiny_hf.save(tiny_hf.make_model(case), tmp_path)
    path = tmp_path / "model.gguf"
    convert(tmp_path, path, quant="F32", name="tiny")
    tokens = np.random.default_rng(5).integers(1, 250, LENGTH.get(name, 120)).astype(np.int32)
    expected = their_logits(path, tokens, tmp_path)
    with open_model(native, path) as model:
        found = difference(model.rows(tokens, window=len(tokens), sinks=16, kv="f32"), expected)
    print(f"{name}: {found:.1e} of the largest logit")
    assert found < GELU.get(name, 2e-5)


# ---- files of its quantizer, in one part or in several ----------------------------------------------------------

MIXES = {"Q8_0": 7, "Q4_K_M": 15, "IQ4_XS": 30, "Q2_K": 10}


def error(got: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2)))


@pytest.fixture
def wide(tmp_path, request) -> Path:
    """A model of a family in F32, with rows of whole blocks."""
    case = tiny_hf.BY_NAME[request.param]
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    sizes |= {"query_pre_attn_scalar": 64} if request.param == "gemma3" else {}
    case = dataclasses.replace(case, options={**case.options, **sizes})
    tiny_hf.save(tiny_hf.make_model(case), tmp_path)
    convert(tmp_path, tmp_path / "f32.gguf", quant="F32", name="tiny")
    return tmp_path / "f32.gguf"


def quantize(source: Path, folder: Path, *mixes: str) -> None:
    run_peer(PROGRAM.with_name("peer_mixes.py"), source, folder, *(f"{mix}={MIXES[mix]}" for mix in mixes))


def our_logits(native, path: Path) -> np.ndarray:
    with open_model(native, path) as model:
        return model.rows(TOKENS, window=len(TOKENS), sinks=16, kv="f32")


TOKENS = np.random.default_rng(5).integers(1, 250, 60).astype(np.int32)


@pytest.mark.parametrize("wide", ["qwen3", "mixtral", "gemma3"], indirect=True)
def test_its_quantized_files(native, llama_cpp, tmp_path, wide):
    """Both runtimes round what is multiplied with such weights to 8 bits too, each in its own way. So both are measured against
    what the file's weights stand for, and ours is to be no worse."""
    quantize(wide, tmp_path, *MIXES)
    for mix in MIXES:
        path = tmp_path / f"{mix}.gguf"
        exact = our_logits(native, split_file(path, tmp_path, most=0, exact=True)[0])
        ours, theirs = error(our_logits(native, path), exact), error(their_logits(path, TOKENS, tmp_path), exact)
        print(f"{mix}: {ours:.1e} of the logits, llama.cpp {theirs:.1e}")
        assert ours < 1.2 * theirs


@pytest.mark.parametrize("wide", ["llama-3"], indirect=True)
def test_its_files_in_parts(native, llama_cpp, tmp_path, wide):
    (tmp_path / "in").mkdir(), (tmp_path / "out").mkdir()
    quantize(wide, tmp_path, "Q4_K_M")
    quantize(split_file(wide, tmp_path / "in", most=9)[0], tmp_path / "out", "Q4_K_M")
    parts = sorted((tmp_path / "out").iterdir())
    assert len(parts) > 2 and parts[0].name.startswith("Q4_K_M-00001-of-")
    np.testing.assert_array_equal(our_logits(native, parts[0]), our_logits(native, tmp_path / "Q4_K_M.gguf"))
