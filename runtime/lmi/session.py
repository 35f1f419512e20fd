"""One timeline of tokens with a context of fixed size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lmi import errors
from lmi._native import Handle, check, native, path_bytes
from lmi.generate import Event, Result, Sampling, generate
from lmi.machine import KV_TYPES, PLACEMENTS
from lmi.plan import MAX_INT32, Plan, View, integer, plan_from, require_memory, session_options
from lmi.recall import KINDS, Recall
from lmi.steer import Steer, apply, load, resolve
from lmi.text import utf8_blocks
from lmi.tokens import Reader


class Choice(NamedTuple):
    """A token drawn, and the natural logarithm of its probability."""

    token: int
    logprob: float


class DraftCounts(NamedTuple):
    """What reading ahead came to: tokens `guessed`, how many came `true`, `passes` over the weights for single tokens."""

    guessed: int
    true: int
    passes: int


class Snapshot:
    """The whole timeline of a session at one point, in memory: `n_bytes` of it."""

    def __init__(self, data: bytearray, position: int):
        self._data = data
        self.position = position

    @property
    def n_bytes(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"<lmi.Snapshot at {self.position:,}, {self.n_bytes:,} bytes>"


class Session(Handle):
    """Opened by `Model.session`. Each token attends to the first `plan.sinks` tokens and the last `plan.window`.

    One thread at a time: a second one gets SessionBusy at once. `cancel` may be called by any thread at any time. After
    close(), or after the model's, everything raises ClosedError.
    """

    def __init__(self, model, **options):
        ffi, lib = native()
        self._error = ffi.new("lmi_error *")
        self.model = model
        options, steers = resolve(model, options)
        c, _kept = session_options(**options)
        out, plan = ffi.new("lmi_session **"), ffi.new("lmi_plan *")
        with model.use() as m:
            if model.info.vocab_only:
                raise errors.UnsupportedModel(
                    "a model opened with vocab_only has no weights to run", "Open it without vocab_only"
                )
            check(lib.lmi_session_plan(m, c, plan, self._error), self._error)
            require_memory(m, plan_from(plan), **options)
            status = lib.lmi_session_open(m, c, out, self._error)
            model._copying.reraise()
            if status == -2 and options.get("recall_folder") is not None:
                status = -10  # an output, like a saved state
            check(status, self._error)
            super().__init__(out[0], lib.lmi_session_close, "session", parent=model, exclusive=True)
        lib.lmi_session_get_plan(out[0], plan)
        self._plan = plan_from(plan)
        self._n_vocab = model.info.n_vocab
        self._position = 0
        self._n_read, self._token, self._logprob = ffi.new("size_t *"), ffi.new("int32_t *"), ffi.new("float *")
        self._one = ffi.new("int32_t[1]")
        self._owed = None  # int32_t[1]: a token that a stream has given out and not read yet
        self.seed: int | None = None  # of the last sampling that was set
        self.steers: list[tuple[Steer, float]] = []
        if steers:
            self.steer(steers)

    def __enter__(self) -> Session:
        return self

    def __repr__(self) -> str:
        return f"<lmi.Session {'closed' if self.closed else f'at {self._position:,}'}>"

    # ---- reading ----

    def feed(
        self,
        text,
        *,
        bos: bool | None = None,
        special: bool = False,
        errors: str = "strict",
        require_fit: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Reads a text (str, bytes, an open file in text or binary mode, or an iterable of str or bytes) as a stream, in
        constant memory. Returns how many tokens were read. What was read before goes on in it.

        `bos`: begin with the BOS token; None: if the vocabulary does so and nothing was read yet. `special`: control tokens
        are recognised in the text. `errors`: "strict" raises PromptError at the first byte that is not UTF-8, "replace"
        reads U+FFFD. `require_fit`: raise RequireFit rather than forget anything. `progress(position)`: called after each
        chunk; an exception in it ends the reading and is raised here. What was read before an error stays read.
        """
        reader = Reader(self, limit=self.plan.reach if require_fit else None, progress=progress)
        reader.ids(self.model.bos_tokens(bos) if bos or (bos is None and not self._position) else [])
        reader.text(utf8_blocks(text, errors=errors), special)
        reader.flush()
        return reader.n_read

    def read_tokens(self, tokens, *, progress: Callable[[int], object] | None = None) -> int:
        """Reads ids (any iterable of int, or an int32 buffer such as a numpy array). Returns how many.

        Raises InvalidArgument for an id outside the vocabulary; ids before it are read."""
        reader = Reader(self, progress=progress)
        highest = self._n_vocab - 1
        reader.ids(integer(t, "a token id", 0, highest) for t in tokens)
        reader.flush()
        return reader.n_read

    def _read(self, tokens, n: int) -> None:
        """Reads n ids of an int32_t *. One native call: Python gets its turn, for signals, after each chunk."""
        _, lib = native()
        if self._owed is not None and tokens is not self._owed:
            self._read(self._owed, 1)
        with self._use as s:
            status = lib.lmi_session_read(s, tokens, n, self._n_read, self._error)
            self._position = lib.lmi_session_position(s)
            if status:
                if status == -8:
                    lib.lmi_session_clear_cancel(s)
                check(status, self._error)
            self._owed = None

    def _owe(self, token: int):
        """A stream gives out a token: it is read with whatever is read next, in its place in the text."""
        self._owed = native()[0].new("int32_t[1]", [token])
        return self._owed

    def _settle(self, owed) -> None:
        """The stream goes on and reads the token itself."""
        if self._owed is not owed:
            raise errors.InvalidArgument(
                "the session was used for something else while it streamed", "Open a session for each stream"
            )
        self._owed = None

    def _pay(self, owed, read: bool) -> None:
        """The stream that owes is left behind, perhaps by the garbage collector, where nobody hears of an error: what cannot be
        read now is read next."""
        if owed is None or self._owed is not owed:
            return
        try:
            if read:
                self._read(owed, 1)
            else:
                self._owed = None
        except (errors.Error, ReferenceError):  # ReferenceError: the session is being collected, too
            pass

    def read_token(self, token: int) -> None:
        """Reads one id."""
        self._read_one(integer(token, "a token id", 0, self._n_vocab - 1))

    def _read_one(self, token: int) -> None:
        self._one[0] = token
        self._read(self._one, 1)

    # ---- writing ----

    def stream(
        self,
        prompt=None,
        *,
        max_tokens: int = 512,
        stop=(),
        bos: bool | None = None,
        special: bool = False,
        sampling: Sampling | None = None,
        read_last: bool = True,
        **options,
    ) -> Iterator[Event]:
        """Reads `prompt` (None: goes on from where the session is) and yields an `Event` per token, then a last one with
        `finish_reason` and token None. What was given out has been read: the timeline ends with it (`read_last` False: with
        the token before, which saves a step where the session is not used further).

        `stop`: texts at which to end; they are not given out. `sampling`, or its fields as keywords: temperature, top_k, top_p,
        min_p, typical_p, repeat_penalty, frequency_penalty, presence_penalty, penalty_last, seed; what is not given is the
        model's own (general.sampling.*) or the library's. Raises Cancelled, SessionBusy, ClosedError, PromptError.
        """
        return generate(
            self,
            prompt,
            max_tokens=max_tokens,
            stop=stop,
            bos=bos,
            special=special,
            sampling=sampling,
            options=options,
            read_last=read_last,
        )

    def generate(self, prompt=None, **options) -> Result:
        """As `stream`, at once. Cancelled carries what there was until then as `result`."""
        from lmi.generate import gather

        return gather(self.stream(prompt, **options))

    def set_sampling(self, sampling: Sampling | None = None, **options) -> Sampling:
        """Sets how `sample` draws, and starts its random numbers anew. Returns what is in force, the seed included."""
        if sampling is not None and not isinstance(sampling, Sampling):
            raise errors.InvalidArgument(f"sampling must be a Sampling, not {type(sampling).__name__}")
        sampling = (sampling or Sampling.for_model(self.model)).but(**options).seeded()
        c = sampling.as_native()
        with self._use as s:
            check(native()[1].lmi_session_set_sampling(s, c, self._error), self._error)
        self.seed = sampling.seed
        return sampling

    def sample(self) -> Choice:
        """Draws a token from the last logits. It is not read: pass it to `read_token` to go on."""
        with self._use as s:
            check(native()[1].lmi_session_sample(s, self._token, self._logprob, self._error), self._error)
            return Choice(self._token[0], self._logprob[0])

    def logits(self, row: int = -1):
        """Logits after the last token read: a read-only numpy view, [n_vocab] float32, of the session's own memory. The next
        read, rewind or load changes what it shows: use `.copy()` to keep it. It stays safe to touch after close().

        `row`: with all_logits, the token of the last chunk, 0-based. Raises InvalidArgument if there is no such row."""
        lib = native()[1]
        with self._use as s:
            pointer = lib.lmi_session_logits(s, integer(row, "row", -1))
        if not pointer:
            raise _no_logits()
        return self._floats(pointer, self._n_vocab)

    def hidden(self, row: int = -1):
        """Hidden state of a token of the last chunk, after the last norm and before any steer: a view as of `logits`, [n_embd]
        float32. Needs the option `all_hidden`."""
        lib = native()[1]
        with self._use as s:
            pointer = lib.lmi_session_hidden(s, integer(row, "row", -1))
        if not pointer:
            raise errors.InvalidArgument("there is no hidden state for this row", "Open with all_hidden, and read a token")
        return self._floats(pointer, self.model.info.n_embd)

    def _hidden_rows(self, n: int):
        """The first n rows of the last chunk as one view, [n][n_embd]."""
        n_embd = self.model.info.n_embd
        with self._use as s:
            last, first = native()[1].lmi_session_hidden(s, n - 1), native()[1].lmi_session_hidden(s, 0)
        if not last:
            raise errors.InvalidArgument(f"there are not {n:,} hidden states")
        return self._floats(first, n * n_embd).reshape(n, n_embd)

    def _floats(self, pointer, n: int):
        import numpy

        ffi, owner = native()[0], self._owner

        def keep(_, _owner=owner):  # the view's memory is the session's: it must not go first
            pass

        view = numpy.frombuffer(ffi.buffer(ffi.gc(ffi.cast("float *", pointer), keep), 4 * n), dtype=numpy.float32)
        view.flags.writeable = False
        return view

    def nll(self, token: int, row: int = -1) -> float:
        """Minus the natural logarithm of the probability of `token` after the last token read (or after `row`); infinity for an
        id outside the vocabulary. Raises InvalidArgument if there is no such row."""
        token, row = integer(token, "a token id", -MAX_INT32, MAX_INT32), integer(row, "row", -1)
        lib = native()[1]
        with self._use as s:
            if not lib.lmi_session_logits(s, row):
                raise _no_logits()
            return lib.lmi_session_nll(s, row, token)

    def _nll_rows(self, tokens, first: int, n: int) -> list[float]:
        """NLL of tokens[1 : n + 1] of an int32_t * in rows first, first + 1, ... of the last read; first -1: its last row."""
        if not n:
            return []
        ffi, lib = native()
        values = ffi.new("double[]", n)
        with self._use as s:
            row = lib.lmi_session_n_rows(s) - 1 if first == -1 else first
            check(lib.lmi_session_nll_rows(s, row, tokens + 1, n, values, self._error), self._error)
        return ffi.unpack(values, n)

    @property
    def draft_counts(self) -> DraftCounts:
        """Of the option `draft`, since the session was opened."""
        ffi, lib = native()
        c = ffi.new("lmi_draft_counts *")
        with self._use as s:
            lib.lmi_session_get_draft(s, c)
        return DraftCounts(c.n_guessed, c.n_true, c.n_passes)

    def importance(self) -> dict:
        """What the model's matrices were multiplied with so far: name of tensor -> (squares, counts), numpy arrays; `squares`
        float64 [matrices of a stack][columns], summed over tokens, `counts` int64 [matrices]. Needs the option `importance`."""
        import numpy

        ffi, lib = native()
        found, c = {}, ffi.new("lmi_importance *")
        names = [t.name for t in self.model.tensors()]
        with self._use as s:
            for index, name in enumerate(names):
                check(lib.lmi_session_importance(s, index, c, self._error), self._error)
                n, cols = c.n_matrices, c.n_cols
                if n:
                    squares = numpy.frombuffer(ffi.buffer(c.squares, 8 * n * cols), numpy.float64).reshape(n, cols)
                    counts = numpy.frombuffer(ffi.buffer(c.counts, 8 * n), numpy.int64)
                    found[name] = squares.copy(), counts.copy()
        return found

    def steer(self, steers=()) -> None:
        """Steers what is written from the next read on: [(file or `Steer`, alpha), ...] in the place of those before; none: the
        model as it is. Their sum is applied; an alpha of 0 is the model without that steer. Only logits change, never what was
        read, and no saved state holds it. The ranks of all must fit `steer_rank`, the option that this session was opened with.
        Raises FileFormatError, StateError for a steer of another model, InvalidArgument."""
        loaded = load(self.model, steers)
        with self._use as s:
            apply(s, loaded, self._error)
        self.steers = loaded

    # ---- where it is ----

    @property
    def plan(self) -> Plan:
        """Sizes as they are. Bytes and tokens."""
        return self._plan

    @property
    def position(self) -> int:
        """Tokens read so far. Any thread may ask, also while the session reads: it counts whole chunks."""
        return self._position

    @property
    def view(self) -> View:
        """What the next token can attend to."""
        ffi, lib = native()
        c = ffi.new("lmi_view *")
        with self._use as s:
            lib.lmi_session_get_view(s, c)
        return View(c.sinks_end, c.window_begin, c.position, c.forgotten, c.kept, c.dropped)

    in_view = view

    def start_at(self, position: int) -> None:
        """Moves the counter of an empty session, as if so many tokens had been read and forgotten: for measurements."""
        lib = native()[1]
        with self._use as s:
            check(lib.lmi_session_set_start(s, integer(position, "position", 0), self._error), self._error)
            self._position = lib.lmi_session_position(s)

    def rewind(self, n: int) -> None:
        """Forgets the last n tokens. At most `plan.rollback` back from the furthest token read, or all of them; else
        StateError."""
        n = integer(n, "n", 0)
        if n > self._position:
            raise errors.InvalidArgument(f"cannot take back {n:,} tokens: {self._position:,} were read")
        self.rewind_to(self._position - n)

    def rewind_to(self, position: int) -> None:
        """The same, by the position that remains. 0 empties the session."""
        lib = native()[1]
        with self._use as s:
            check(lib.lmi_session_rewind(s, integer(position, "position", 0), self._error), self._error)
            self._moved(s)

    def _moved(self, pointer) -> None:
        self._position = native()[1].lmi_session_position(pointer)
        self._owed = None

    # ---- keeping it ----

    @property
    def state_bytes(self) -> int:
        """Size of a snapshot or state file: depends on the options only, not on how much was read; with `recall`, also on how
        much is kept by now."""
        with self._use as s:
            return native()[1].lmi_session_state_size(s)

    def snapshot(self) -> Snapshot:
        """The timeline as it is now, to come back to with `restore`."""
        ffi, lib = native()
        with self._use as s:
            data = bytearray(lib.lmi_session_state_size(s))
            check(lib.lmi_session_state_write(s, ffi.from_buffer(data), len(data), self._error), self._error)
            return Snapshot(data, self._position)

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot of a session with the same model and options; else StateError and nothing has changed."""
        ffi, lib = native()
        if not isinstance(snapshot, Snapshot):
            raise errors.InvalidArgument(f"a Snapshot is restored, not {type(snapshot).__name__}", "Session.snapshot makes one")
        with self._use as s:
            data = snapshot._data
            check(lib.lmi_session_state_read(s, ffi.from_buffer(data), len(data), self._error), self._error)
            self._moved(s)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the timeline to a file: whole or not at all. Raises OutputError."""
        with self._use as s:
            status = native()[1].lmi_session_save(s, path_bytes(path), self._error)
            if status == -2:
                status = -10  # not the reader's fault: it is an output
            check(status, self._error)

    def load(self, path: str | os.PathLike) -> None:
        """Reads such a file back. Raises StateError or FileFormatError if it does not fit, and nothing has changed."""
        lib = native()[1]
        with self._use as s:
            check(lib.lmi_session_load(s, path_bytes(path), self._error), self._error)
            self._moved(s)

    # ---- stopping ----

    def cancel(self) -> None:
        """Stops what the session reads or writes, between two layers, with Cancelled; if it does nothing, its next read.
        From any thread or signal handler."""
        with self._guard:  # so that close() cannot free it in between
            native()[1].lmi_session_cancel(self.pointer())

    @property
    def hot_allocations(self) -> int:
        """Allocations attempted while tokens were read or written: 0, or a bug."""
        with self._use as s:
            return native()[1].lmi_session_hot_allocations(s)


def _no_logits() -> errors.InvalidArgument:
    return errors.InvalidArgument("there are no logits for this row", "Read a token first; rows need all_logits")


def state_options(path: str | os.PathLike) -> dict:
    """The options that a state file was saved with, as `Model.session` takes them."""
    ffi, lib = native()
    c, error = ffi.new("lmi_session_options *"), ffi.new("lmi_error *")
    lib.lmi_session_options_default(c)
    check(lib.lmi_state_file_options(path_bytes(path), c, error), error)
    options = {
        "window": c.window,
        "sinks": c.sinks,
        "kv_type": KV_TYPES[c.kv_type],
        "placement": PLACEMENTS[c.placement],
        "chunk": c.chunk,
        "rollback": c.rollback,
    }
    r = c.recall
    if r.kind:
        options["recall"] = Recall(KINDS[r.kind], r.n, r.block)
        options.update(recall_layer=r.layer, recall_distance=r.distance)
        options.update({"recall_decay": r.decay} if KINDS[r.kind] == "surprise" else {"recall_budget": r.budget})
    return options
