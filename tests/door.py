"""lmi.h as the model tests use it: every option, every row of logits, nothing in between.

The library's own Python package is tested elsewhere; here the engine is, through the functions that the package calls.
"""

from contextlib import contextmanager
from pathlib import Path

import numpy as np

KV = {"f16": 0, "q8_0": 1, "f32": 2}
ISAS = {"ref": 1, "avx2": 2, "avxvnni": 3, "avx512": 4, "amx": 5, "neon": 6}
PLACEMENTS = {"ceiling": 0, "contiguous": 1, "true": 2}
RECALLS = {"none": 0, "topk": 1, "surprise": 2, "blocks": 3}


class DoorError(Exception):
    def __init__(self, ffi, error) -> None:
        self.status = int(error.status)
        super().__init__(ffi.string(error.message).decode() + " | " + ffi.string(error.remedy).decode())


def call(native, function: str, *arguments) -> None:
    """A function whose last parameter is an lmi_error."""
    ffi, lib = native
    error = ffi.new("lmi_error *")
    if getattr(lib, function)(*arguments, error) != 0:
        raise DoorError(ffi, error)


class Session:
    def __init__(self, native, pointer, chunk: int, n_vocab: int) -> None:
        self.native, self.pointer, self.chunk, self.n_vocab = native, pointer, chunk, n_vocab
        self.ffi, self.lib = native

    def read(self, tokens) -> None:
        ids = np.ascontiguousarray(tokens, np.int32)
        call(self.native, "lmi_session_read", self.pointer, self.ffi.from_buffer("int32_t[]", ids), len(ids), self.ffi.NULL)

    def logits(self, row: int = -1) -> np.ndarray:
        """A copy, float32 [n_vocab]."""
        pointer = self.lib.lmi_session_logits(self.pointer, row)
        assert pointer != self.ffi.NULL
        return np.frombuffer(self.ffi.buffer(pointer, 4 * self.n_vocab), np.float32).copy()

    def read_rows(self, tokens) -> np.ndarray:
        """Logits after every token, float32 [T][n_vocab]; the session was opened with all_logits."""
        rows = []
        for begin in range(0, len(tokens), self.chunk):
            part = tokens[begin : begin + self.chunk]
            self.read(part)
            assert self.lib.lmi_session_n_rows(self.pointer) == len(part)
            rows += [self.logits(row) for row in range(len(part))]
        return np.array(rows)

    def rewind(self, position: int) -> None:
        call(self.native, "lmi_session_rewind", self.pointer, position)

    def set_start(self, position: int) -> None:
        call(self.native, "lmi_session_set_start", self.pointer, position)

    def nll(self, token: int) -> float:
        return self.lib.lmi_session_nll(self.pointer, -1, int(token))

    def state(self) -> bytes:
        size = self.lib.lmi_session_state_size(self.pointer)
        state = self.ffi.new("char[]", size)
        call(self.native, "lmi_session_state_write", self.pointer, state, size)
        return bytes(self.ffi.buffer(state, size))

    def load_state(self, state: bytes) -> None:
        call(self.native, "lmi_session_state_read", self.pointer, self.ffi.from_buffer(state), len(state))

    def save(self, path: Path) -> None:
        call(self.native, "lmi_session_save", self.pointer, str(path).encode())

    def load(self, path: Path) -> None:
        call(self.native, "lmi_session_load", self.pointer, str(path).encode())

    @property
    def position(self) -> int:
        return self.lib.lmi_session_position(self.pointer)

    @property
    def plan(self):
        plan = self.ffi.new("lmi_plan *")
        self.lib.lmi_session_get_plan(self.pointer, plan)
        return plan

    @property
    def view(self):
        view = self.ffi.new("lmi_view *")
        self.lib.lmi_session_get_view(self.pointer, view)
        return view

    @property
    def hot_allocations(self) -> int:
        return self.lib.lmi_session_hot_allocations(self.pointer)


class Model:
    def __init__(self, native, pointer) -> None:
        self.native, self.pointer = native, pointer
        self.ffi, self.lib = native
        self.info = self.ffi.new("lmi_model_info *")
        self.lib.lmi_model_get_info(pointer, self.info)

    @contextmanager
    def session(
        self,
        *,
        window: int = 0,
        sinks: int = -1,
        kv: str = "f32",
        placement: str = "ceiling",
        chunk: int = 64,
        rollback: int = 0,
        all_logits: bool = True,
        draft: int = 0,
        recall: dict | None = None,
    ):
        """recall: fields of lmi_recall_options, `kind` by its name or number."""
        options = self.ffi.new("lmi_session_options *")
        self.lib.lmi_session_options_default(options)
        options.window, options.sinks, options.chunk, options.rollback = window, sinks, chunk, rollback
        options.kv_type, options.placement, options.all_logits = KV[kv], PLACEMENTS[placement], all_logits
        options.draft = draft
        given = dict(recall or {})
        folder = self.ffi.new("char[]", str(given.pop("folder", "")).encode())
        if len(folder) > 1:
            options.recall.folder = folder
        for name, value in given.items():
            setattr(options.recall, name, RECALLS.get(value, value))
        place = self.ffi.new("lmi_session **")
        call(self.native, "lmi_session_open", self.pointer, options, place)
        try:
            yield Session(self.native, place[0], chunk, self.info.n_vocab)
        finally:
            self.lib.lmi_session_close(place[0])

    def rows(self, tokens, *, start: int = 0, **options) -> np.ndarray:
        """Logits after every token of a fresh session, float32 [T][n_vocab]."""
        with self.session(**options) as session:
            if start:
                session.set_start(start)
            rows = session.read_rows(tokens)
            assert session.hot_allocations == 0
            return rows

    def encode(self, text: str) -> list[int]:
        place = self.ffi.new("lmi_encoder **")
        call(self.native, "lmi_encoder_open", self.pointer, 0, place)
        try:
            data = text.encode()
            call(self.native, "lmi_encoder_feed", place[0], data, len(data))
            call(self.native, "lmi_encoder_finish", place[0])
            ids = self.ffi.new("int32_t[]", len(data) + 16)
            n = self.lib.lmi_encoder_take(place[0], ids, len(data) + 16)
            return list(ids[0:n])
        finally:
            self.lib.lmi_encoder_close(place[0])

    def token_text(self, token: int) -> bytes:
        text = self.ffi.new("char[]", 256)
        return self.ffi.buffer(text, self.lib.lmi_model_token_text(self.pointer, token, 0, text, 256))[:]


@contextmanager
def open_model(native, path: Path, *, isa: str | None = None, threads: int = 2):
    ffi, lib = native
    options = ffi.new("lmi_model_options *")
    lib.lmi_model_options_default(options)
    options.n_threads = threads
    options.isa = ISAS[isa] if isa else 0
    options.device = 1  # the CPU: its kernels are what is tested
    place = ffi.new("lmi_model **")
    call(native, "lmi_model_open", str(path).encode(), options, place)
    try:
        yield Model(native, place[0])
    finally:
        lib.lmi_model_close(place[0])


def available_isas(native) -> list[str]:
    return [name for name, number in ISAS.items() if native[1].lmi_isa_available(number)]


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of any logit over the spread of the expected ones."""
    return float(np.max(np.abs(got - expected)) / np.std(expected))
