"""The same files in llama.cpp: they load, and its logits are ours. Needs llama-cpp-python (the extra `peers`), in this Python
or
in the one that LMI_PEERS_PYTHON names."""

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

PYTHON = os.environ.get("LMI_PEERS_PYTHON", sys.executable)
PROGRAM = Path(__file__).with_name("peer_logits.py")

# Where llama.cpp does something else than transformers (and we), on purpose or not, the case goes round it.
CHANGED = {
    "gemma2": {"query_pre_attn_scalar": 32},  # it takes the head size, whatever the file says
    "gemma3": {"query_pre_attn_scalar": 32},
    "gpt-oss": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}
    },  # it rounds YaRN's range, gpt-oss does not
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


@pytest.mark.parametrize("name", [name for name in tiny_hf.BY_NAME if name not in WITHOUT_GRAPH])
def test_as_llama_cpp(native, llama_cpp, tmp_path, name):
    case = tiny_hf.BY_NAME[name]
    case = dataclasses.replace(case, options={**case.options, **CHANGED.get(name, {})})
    tiny_hf.save(tiny_hf.make_model(case), tmp_path)
    path = tmp_path / "model.gguf"
    convert(tmp_path, path, quant="F32", name="tiny")
    tokens = np.random.default_rng(5).integers(1, 250, LENGTH.get(name, 120)).astype(np.int32)
    np.save(tmp_path / "tokens.npy", tokens)
    command = [PYTHON, str(PROGRAM), str(path), str(tmp_path / "tokens.npy"), str(tmp_path / "logits.npy")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, [line for line in done.stderr.splitlines() if "error" in line]
    expected = np.load(tmp_path / "logits.npy")
    with open_model(native, path) as model:
        got = model.rows(tokens, window=len(tokens), sinks=16, kv="f32")
    assert got.shape == expected.shape
    assert np.max(np.abs(got - expected)) / np.max(np.abs(expected)) < GELU.get(name, 2e-5)
