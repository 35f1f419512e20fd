"""The sampler by itself, through the library that opens internals to tests."""

import os
from pathlib import Path

import cffi
import numpy as np
import pytest
from oracle.sampler64 import HISTORY, Options

ROOT = Path(__file__).resolve().parents[2]
INTERNALS = Path(os.environ.get("LMI_INTERNALS", ROOT / "build" / "native" / "tests" / "liblmi_internals.so"))


class Sampler:
    def __init__(self, ffi, lib, n_vocab: int) -> None:
        self.ffi, self.lib, self.n_vocab = ffi, lib, n_vocab
        self.pointer = ffi.gc(lib.internals_sampler_open(n_vocab), lib.internals_sampler_close)

    def _call(self, function: str, *arguments) -> None:
        message = self.ffi.new("char[704]")
        status = getattr(self.lib, function)(self.pointer, *arguments, message)
        if status != 0:
            raise ValueError(f"{status}: {self.ffi.string(message).decode()}")

    def set(self, o: Options) -> None:
        chances = [o.temperature, o.top_p, o.min_p, o.typical_p, o.repeat_penalty, o.frequency_penalty, o.presence_penalty]
        self._call("internals_sampler_set", self.ffi.new("float[7]", chances), o.top_k, o.penalty_last, o.seed)

    def draw(self, logits: np.ndarray, recent: list[int] | None = None, n: int = 1, position: int | None = None):
        """(tokens, log probabilities) of n draws. `recent`: the last tokens, oldest first, of a text of `position`."""
        recent = recent or []
        position = len(recent) if position is None else position
        history = np.arange(HISTORY, dtype=np.int32) % self.n_vocab  # what is not known must not matter
        for i, token in enumerate(reversed(recent[-HISTORY:]), 1):
            history[(position - i) % HISTORY] = token
        logits = np.ascontiguousarray(logits, np.float32)
        assert logits.shape == (self.n_vocab,)
        tokens, logprobs = np.empty(n, np.int32), np.empty(n, np.float32)
        before = logits.copy()
        self._call(
            "internals_sampler_draw",
            self.ffi.from_buffer("float[]", logits),
            self.ffi.from_buffer("int32_t[]", history),
            position,
            min(len(recent), HISTORY),
            n,
            self.ffi.from_buffer("int32_t[]", tokens),
            self.ffi.from_buffer("float[]", logprobs),
        )
        assert logits.tobytes() == before.tobytes(), "the logits were changed"
        return tokens, logprobs

    def nll(self, logits: np.ndarray, token: int) -> float:
        logits = np.ascontiguousarray(logits, np.float32)
        return self.lib.internals_logits_nll(self.ffi.from_buffer("float[]", logits), len(logits), token)

    @property
    def state(self) -> bytes:
        buffer = self.ffi.new("char[]", self.lib.internals_sampler_state_bytes())
        self.lib.internals_sampler_get_state(self.pointer, buffer)
        return bytes(self.ffi.buffer(buffer))

    @state.setter
    def state(self, value: bytes) -> None:
        self._call("internals_sampler_put_state", self.ffi.from_buffer(value))


@pytest.fixture(scope="session")
def make_sampler():
    if not INTERNALS.is_file():
        pytest.skip(f"no library of internals at {INTERNALS} (make test builds it; LMI_INTERNALS names another)")
    ffi = cffi.FFI()
    ffi.cdef((ROOT / "tests" / "native" / "internals_sampler.h").read_text())
    lib = ffi.dlopen(str(INTERNALS))
    return lambda n_vocab: Sampler(ffi, lib, n_vocab)
