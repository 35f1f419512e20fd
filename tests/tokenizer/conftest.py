"""Vocabularies that several files of tests use, made once."""

import os
from pathlib import Path

import cffi
import pytest
from tokenizer.tokens import open_tokens

from tokenizer import vocabularies

ROOT = Path(__file__).resolve().parents[2]
INTERNALS = Path(os.environ.get("LMI_INTERNALS", ROOT / "build" / "native" / "tests" / "liblmi_internals.so"))


@pytest.fixture(scope="session")
def internals():
    """(ffi, lib) of the functions in internals_tokenizer.h."""
    if not INTERNALS.is_file():
        pytest.fail(f"no library at {INTERNALS}: make test builds it")
    ffi = cffi.FFI()
    ffi.cdef((ROOT / "tests" / "native" / "internals_tokenizer.h").read_text())
    return ffi, ffi.dlopen(str(INTERNALS))


@pytest.fixture(scope="session")
def trained():
    """Byte-level BPE with special tokens, whose merges know no words."""
    return vocabularies.trained_bpe()


@pytest.fixture(scope="session")
def llama3_file(data, tmp_path_factory):
    return vocabularies.llama3(data / "tokenizers").write(tmp_path_factory.mktemp("llama3") / "llama3.gguf")


@pytest.fixture(scope="session")
def qwen_file(data, tmp_path_factory):
    return vocabularies.qwen(data / "tokenizers").write(tmp_path_factory.mktemp("qwen") / "qwen.gguf")


@pytest.fixture
def open_file(native):
    """Opens GGUF files; they are closed after the test."""
    opened = []

    def open_one(path: Path):
        context = open_tokens(native, path)
        tokens = context.__enter__()
        opened.append(context)
        return tokens

    yield open_one
    for context in opened:
        context.__exit__(None, None, None)


@pytest.fixture
def open_vocabulary(open_file, tmp_path):
    """Writes a Vocabulary and opens it."""
    count = iter(range(1000))
    return lambda vocabulary: open_file(vocabulary.write(tmp_path / f"{next(count)}.gguf"))
