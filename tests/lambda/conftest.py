"""One layer of Λ attention, driven as a session drives it: ring and sink store of fixed size, keys written once, chunks."""

import math
import os
import platform
from pathlib import Path

import cffi
import numpy as np
import pytest
from oracle.lambda64 import ADJACENT, Rope

ROOT = Path(__file__).resolve().parents[2]
INTERNALS = Path(os.environ.get("LMI_INTERNALS", ROOT / "build" / "native" / "tests" / "liblmi_internals.so"))
ISA = {"ref": 1, "avx2": 2, "avxvnni": 3, "avx512": 4, "amx": 5, "neon": 6}  # as in lmi.h
KV = {"f16": 0, "q8_0": 1, "f32": 2}
SCALING = {None: 0, "linear": 1, "yarn": 2}
SEGMENT, BLOCK = 512, 64  # slots of a piece of decoding, tokens of a piece of prefill


class Internals:
    def __init__(self, path: Path) -> None:
        self.ffi = cffi.FFI()
        self.ffi.cdef((ROOT / "tests" / "native" / "internals.h").read_text())
        self.lib = self.ffi.dlopen(str(path))

    def floats(self, x: np.ndarray):
        assert x.dtype == np.float32 and x.flags.c_contiguous
        return self.ffi.cast("float *", self.ffi.from_buffer(x))


class Table:
    """The library's rope table, and the oracle's view of what was asked for."""

    def __init__(
        self,
        internals: Internals,
        n_rot: int,
        theta: float = 10000.0,
        factors: np.ndarray | None = None,
        scaling: str | None = None,
        factor: float = 1.0,
        original_context: float = 4096.0,
        attention_factor: float = 1.0,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        untruncated: bool = False,
    ) -> None:
        self.internals, self.n_rot = internals, n_rot
        ffi = internals.ffi
        self.turns = np.zeros(max(n_rot, 2) // 2, np.uint64)
        magnitude, message = ffi.new("float *"), ffi.new("char[704]")
        given_numbers = [theta, factor, original_context, attention_factor, beta_fast, beta_slow, untruncated]
        numbers = ffi.new("double[7]", given_numbers)
        given = ffi.NULL if factors is None else internals.floats(factors)
        turns = ffi.cast("uint64_t *", ffi.from_buffer(self.turns))
        status = internals.lib.internals_rope_init(n_rot, numbers, given, SCALING[scaling], turns, magnitude, message)
        if status != 0:
            raise ValueError(ffi.string(message).decode())
        self.magnitude = magnitude[0]

    def row(self, position: int) -> np.ndarray:
        """cos, sin by pair: [n_rot / 2, 2]."""
        out = np.zeros((self.n_rot // 2, 2), np.float32)
        turns = self.internals.ffi.cast("uint64_t *", self.internals.ffi.from_buffer(self.turns))
        self.internals.lib.internals_rope_row(self.n_rot, self.magnitude, turns, position, self.internals.floats(out))
        return out


class FloatTable(Table):
    """What not to do: position times frequency in float32."""

    def row(self, position: int) -> np.ndarray:
        omega = (self.turns.astype(np.float64) * 2.0**-64 * 2 * math.pi).astype(np.float32)
        angle = np.float32(position) * omega
        return (np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.float32(self.magnitude)).astype(np.float32)


class Layer:
    """push(q, k, v) takes the next tokens, not turned yet, and returns what attention gives them. No table: nothing is turned.
    slopes and sink_logits: one of each query head.

    capacity overrides the number of ring slots, sink_position where the query stands for sinks: for tests that must fail."""

    def __init__(
        self,
        internals: Internals,
        table: Table | None,
        *,
        isa: str,
        kv: str = "f32",
        n_heads: int = 2,
        n_kv_heads: int = 1,
        head_dim: int = 32,
        window: int,
        sinks: int,
        chunk: int = 8,
        rollback: int = 0,
        placement: str = "ceiling",
        pairing: int = ADJACENT,
        start: int = 0,
        capacity: int | None = None,
        sink_position: int | None = None,
        softcap: float = 0.0,
        slopes: np.ndarray | None = None,
        sink_logits: np.ndarray | None = None,
    ) -> None:
        self.softcap, self.sink_logits = softcap, sink_logits
        self.slopes = None if slopes is None else np.array(slopes, np.float32)
        self.internals, self.table, self.isa, self.lib = internals, table, ISA[isa], internals.lib
        self.n_heads, self.n_kv_heads, self.group, self.d = n_heads, n_kv_heads, n_heads // n_kv_heads, head_dim
        self.window, self.sinks, self.chunk, self.rollback_limit = window, sinks, chunk, rollback
        self.placement, self.pairing, self.start = placement, pairing, start
        self.capacity = capacity or self.lib.internals_ring_capacity(window, chunk, rollback)
        self.sink_position = window if sink_position is None else sink_position
        self.index = 0
        self.rings = [self._bank(KV[kv], self.capacity) for _ in range(n_kv_heads)]
        self.sink_banks = [self._bank(KV[kv], max(sinks, 1)) for _ in range(n_kv_heads)]

    def _bank(self, kv: int, slots: int):
        bank = self.lib.internals_bank_open(kv, self.d, slots, 0xFF)  # every number in it NaN
        assert bank != self.internals.ffi.NULL
        return self.internals.ffi.gc(bank, self.lib.internals_bank_close)

    def turned(self, x: np.ndarray, position: int) -> np.ndarray:
        """x [heads, d] at a position."""
        x = np.array(x, np.float32, order="C")
        if self.table is None:
            return x
        row = self.table.row(position)
        floats = self.internals.floats
        self.lib.internals_rope(self.isa, floats(x), len(x), self.d, self.table.n_rot, floats(row), self.pairing)
        return x

    def store(self, bank, slot: int, key: np.ndarray, value: np.ndarray) -> None:
        floats = self.internals.floats
        key, value = np.ascontiguousarray(key, np.float32), np.ascontiguousarray(value, np.float32)
        self.lib.internals_kv_store(self.isa, bank, slot, floats(key), floats(value))

    def attend(
        self, h: int, bank, is_sink: bool, q: np.ndarray, first: int, newest: int, used: int, slots: tuple[int, int], state
    ) -> None:
        m, z, o = state
        slopes = None if self.slopes is None else self.slopes[h * self.group : (h + 1) * self.group]
        floats = self.internals.floats
        q = np.ascontiguousarray(q, np.float32)
        status = self.lib.internals_attend(
            self.isa,
            bank,
            is_sink,
            floats(q),
            len(q),
            self.group,
            first,
            newest,
            used,
            self.window,
            *slots,
            self.softcap,
            self.internals.ffi.NULL if slopes is None else floats(slopes),
            floats(m),
            floats(z),
            floats(o),
        )
        assert status == 0

    def empty(self, rows: int):
        return np.full(rows, -np.inf, np.float32), np.zeros(rows, np.float32), np.zeros((rows, self.d), np.float32)

    def sink_query(self, x: np.ndarray, index: int) -> np.ndarray:
        if self.placement == "contiguous":
            return self.turned(x, min(index, self.sink_position + self.sinks - 1))
        return self.turned(x, self.sink_position)

    def sink_key(self, x: np.ndarray, index: int) -> np.ndarray:
        return self.turned(x, index if self.placement == "contiguous" else 0)

    def push(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        n, first = len(q), self.index
        assert 1 <= n <= self.chunk
        q = (np.asarray(q) / math.sqrt(self.d)).astype(np.float32)
        for t in range(n):
            index = first + t
            keys = self.turned(k[t], self.start + index)
            sink_keys = self.sink_key(k[t], index) if index < self.sinks else None
            for h in range(self.n_kv_heads):
                self.store(self.rings[h], index % self.capacity, keys[h], v[t, h])
                if index < self.sinks:
                    self.store(self.sink_banks[h], index, sink_keys[h], v[t, h])
        self.index += n
        ring_q = np.stack([self.turned(q[t], self.start + first + t) for t in range(n)])
        sink_q = np.stack([self.sink_query(q[t], first + t) for t in range(n)])
        out = np.empty((n, self.n_heads, self.d), np.float32)
        for h in range(self.n_kv_heads):
            heads = slice(h * self.group, (h + 1) * self.group)
            for t in range(0, n, BLOCK):
                block = slice(t, min(t + BLOCK, n))
                rows = (ring_q[block, heads].reshape(-1, self.d), sink_q[block, heads].reshape(-1, self.d))
                attend = self._decode if n == 1 else self._prefill
                out[block, heads] = attend(h, *rows, first + t).reshape(-1, self.group, self.d)
        return out

    def _prefill(self, h: int, ring_q: np.ndarray, sink_q: np.ndarray, first: int) -> np.ndarray:
        last = first + len(ring_q) // self.group - 1
        state = self.empty(len(ring_q))
        active = self.lib.internals_active_sinks(last, self.window, self.sinks)
        self.attend(h, self.sink_banks[h], True, sink_q, first, 0, active, (0, active), state)
        ranges = self.internals.ffi.new("int64_t[4]")
        n = self.lib.internals_band_slots(first, last, self.window, self.capacity, ranges)
        for i in range(n):
            slots = (ranges[2 * i], ranges[2 * i + 1])
            self.attend(h, self.rings[h], False, ring_q, first, self.index - 1, self.capacity, slots, state)
        return self._finish(h, *state)

    def _finish(self, h: int, m: np.ndarray, z: np.ndarray, o: np.ndarray) -> np.ndarray:
        """A sink logit is one more term of the sum, with the value 0."""
        if self.sink_logits is None:
            return o / z[:, None]
        logit = np.tile(np.asarray(self.sink_logits, np.float32)[h * self.group : (h + 1) * self.group], len(m) // self.group)
        top = np.maximum(m, logit)
        return o * np.exp(m - top)[:, None] / (z * np.exp(m - top) + np.exp(logit - top))[:, None]

    def _decode(self, h: int, ring_q: np.ndarray, sink_q: np.ndarray, first: int) -> np.ndarray:
        active = self.lib.internals_active_sinks(first, self.window, self.sinks)
        pieces = [(True, s, active) for s in range(0, active, SEGMENT)]
        pieces += [(False, s, min(first + 1, self.capacity)) for s in range(0, min(first + 1, self.capacity), SEGMENT)]
        parts = []
        for is_sink, slot, limit in pieces:
            state = self.empty(len(ring_q))
            slots = (slot, min(slot + SEGMENT, limit))
            bank, q, used = (self.sink_banks[h], sink_q, active) if is_sink else (self.rings[h], ring_q, self.capacity)
            self.attend(h, bank, is_sink, q, first, self.index - 1, used, slots, state)
            parts.append(state)
        top = np.max([m for m, _, _ in parts], axis=0)
        total, out = np.zeros_like(top), np.zeros_like(ring_q)
        for m, z, o in parts:
            factor = np.where(z > 0, np.exp(np.where(z > 0, m, 0) - top), np.where(z == 0, 0, np.nan)).astype(np.float32)
            total += factor * z
            out += factor[:, None] * o
        return self._finish(h, top, total, out)

    def rollback(self, n: int) -> None:
        if n > self.rollback_limit:
            raise ValueError(f"{n} tokens cannot be taken back, {self.rollback_limit} can")
        self.index -= n

    def run(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, cuts: int | list[int]) -> np.ndarray:
        """A whole text in pieces: all of one size, or as listed (repeated to the end)."""
        sizes, out, at, i = [cuts] if isinstance(cuts, int) else cuts, [], 0, 0
        while at < len(q):
            n = min(sizes[i % len(sizes)], len(q) - at)
            out.append(self.push(q[at : at + n], k[at : at + n], v[at : at + n]))
            at, i = at + n, i + 1
        return np.concatenate(out)

    def bytes(self) -> bytes:
        """Everything the cache holds."""
        out = b""
        for bank in self.rings + self.sink_banks:
            data = bytearray(self.lib.internals_bank_bytes(bank))
            self.lib.internals_bank_copy(bank, self.internals.ffi.from_buffer(data))
            out += bytes(data)
        return out


@pytest.fixture(scope="session")
def internals() -> Internals:
    if not INTERNALS.is_file():
        pytest.skip(f"no library of internals at {INTERNALS} (make test builds it; LMI_INTERNALS names another)")
    return Internals(INTERNALS)


X86 = platform.machine() in ("x86_64", "AMD64", "amd64")


@pytest.fixture(params=["ref", "avx2", "avx512"] if X86 else ["ref", "neon"])
def isa(request, internals) -> str:
    if not internals.lib.internals_isa_available(ISA[request.param]):
        pytest.skip(f"no {request.param} here")
    return request.param


@pytest.fixture
def make_table(internals):
    return lambda n_rot=32, **options: Table(internals, n_rot, **options)


@pytest.fixture
def make_float_table(internals):
    return lambda n_rot=32, **options: FloatTable(internals, n_rot, **options)


@pytest.fixture
def make_layer(internals, isa):
    """make_layer(table, window=, sinks=, ...) on the instruction set of the test; rope=False: nothing is turned."""

    def make(table: Table | None = None, rope: bool = True, **options) -> Layer:
        if rope and table is None:
            table = Table(internals, options.get("head_dim", 32))
        return Layer(internals, table, isa=isa, **options)

    return make


@pytest.fixture
def text():
    """text(n, ...) -> random q [n, H, d], k, v [n, H_kv, d]; logits have a standard deviation of about 2."""

    def make(n: int, n_heads: int = 2, n_kv_heads: int = 1, head_dim: int = 32, seed: int = 0):
        random = np.random.default_rng(seed)
        q = 2.0 * random.standard_normal((n, n_heads, head_dim))
        k, v = (random.standard_normal((n, n_kv_heads, head_dim)) for _ in range(2))
        return tuple(x.astype(np.float32) for x in (q, k, v))

    return make


@pytest.fixture
def rope_of():
    """The oracle's rope for given options of make_table."""
    from oracle.lambda64 import frequencies

    def make(n_rot: int = 32, pairing: int = ADJACENT, **options) -> Rope:
        omega, magnitude = frequencies(n_rot, **options)
        return Rope(omega, pairing, magnitude)

    return make
