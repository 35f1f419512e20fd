"""How well a model predicts a text, by position: what shows whether quality holds at any length."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

from lmi._native import native
from lmi.errors import PromptError
from lmi.plan import Plan, View

FIRST_BUCKET = 64  # positions 0-63 are one bucket, then every doubling is one
MOST_LAST = 10_000_000  # tokens: 80 MB of values
LOGITS_BYTES = 128 << 20  # all logits of a chunk may take this much


@dataclass
class Sum:
    """NLL over some tokens, in nats. `n` tokens."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, nll: float) -> None:
        self.n += 1
        self.total += nll
        self.squares += nll * nll

    @property
    def mean(self) -> float:
        return self.total / self.n if self.n else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        if self.n < 2:
            return math.nan
        variance = max(0.0, (self.squares - self.total * self.total / self.n) / (self.n - 1))
        return math.sqrt(variance / self.n)

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean) if self.mean < 700 else math.inf

    def as_dict(self) -> dict:
        values = {"n": self.n, "nll": self.mean, "nll_error": self.error, "perplexity": self.perplexity}
        return {k: v if math.isfinite(v) else None for k, v in values.items()}


@dataclass
class Report:
    """`buckets`: (begin, end, Sum) by position of the predicted token; `last`: (N, Sum) over the last N; `curve`: (begin, end,
    Sum) of equal blocks if asked for; `seconds` in all."""

    all: Sum = field(default_factory=Sum)
    buckets: list[tuple[int, int, Sum]] = field(default_factory=list)
    last: list[tuple[int, Sum]] = field(default_factory=list)
    curve: list[tuple[int, int, Sum]] = field(default_factory=list)
    seconds: float = 0.0
    plan: Plan | None = None
    view: View | None = None

    def as_dict(self) -> dict:
        def spans(rows):
            return [{"begin": b, "end": e, **s.as_dict()} for b, e, s in rows]

        return {
            **self.all.as_dict(),
            "seconds": self.seconds,
            "buckets": spans(self.buckets),
            "last": [{"last": n, **s.as_dict()} for n, s in self.last],
            "curve": spans(self.curve),
            "plan": asdict(self.plan) if self.plan else None,
            **(self.view.as_dict() if self.view else {}),
        }


class _Ledger:
    """Takes the NLL of one token after the other."""

    def __init__(self, last: tuple[int, ...], every: int | None):
        self.report = Report()
        self._last = last
        self._recent = array("d", bytes(8 * max(last, default=0)))
        self._every = every

    def add(self, position: int, values: list[float]) -> None:
        r, recent, size = self.report, self._recent, len(self._recent)
        for nll in values:
            r.all.add(nll)
            if not r.buckets or position >= r.buckets[-1][1]:
                begin = 0 if position < FIRST_BUCKET else 1 << position.bit_length() - 1
                r.buckets.append((begin, max(FIRST_BUCKET, 2 * begin), Sum()))
            r.buckets[-1][2].add(nll)
            if self._every:
                begin = position - position % self._every
                if not r.curve or r.curve[-1][0] != begin:
                    r.curve.append((begin, begin + self._every, Sum()))
                r.curve[-1][2].add(nll)
            if size:
                recent[r.all.n % size] = nll
            position += 1

    def close(self, end: int) -> Report:
        r, size = self.report, len(self._recent)
        for n in self._last:
            s = Sum()
            for i in range(r.all.n, max(0, r.all.n - n), -1):
                s.add(self._recent[i % size])
            r.last.append((n, s))
        for rows in (r.buckets, r.curve):
            if rows:
                begin, _, s = rows[-1]
                rows[-1] = (begin, min(rows[-1][1], end), s)
        return r


def measure(
    model,
    blocks: Iterator[bytes],
    *,
    last: tuple[int, ...] = (1024, 4096),
    every: int | None = None,
    limit: int | None = None,
    progress: Callable[[object, _Ledger], object] | None = None,
    opened: Callable[[object], object] | None = None,
    **options,
) -> Report:
    """Reads a text as a stream and scores every token but the first by what was read before it. Memory does not grow.

    `last`: also over the last N tokens; `every`: also in blocks of so many; `limit`: stop after so many tokens. `opened` gets
    the session, `progress(session, report)` is called after each chunk. Options as for `Model.session`. Raises PromptError if
    the text has fewer than two tokens, Cancelled as `Session.feed` does.
    """
    ffi, _ = native()
    began = time.perf_counter()
    plan = model.plan(**options)
    rows = max(1, LOGITS_BYTES // (4 * model.info.n_vocab))
    chunk = min(plan.chunk, rows)
    ledger = _Ledger(last, every)
    with model.session(**{**options, "chunk": chunk, "all_logits": True}) as session:
        if opened:
            opened(session)
        chunk = session.plan.chunk
        buffer = ffi.new("int32_t[]", chunk + 1)  # [0] is the token before, of the last chunk
        for n in _filled(model.iter_tokens_of_blocks(blocks), buffer, chunk, limit):
            position = session.position
            if position:
                ledger.add(position, session._nll_rows(buffer, -1, 1))
            session._read(buffer + 1, n)
            ledger.add(position + 1, session._nll_rows(buffer + 1, 0, n - 1))
            if progress:
                progress(session, ledger.report)
        if not ledger.report.all.n:
            raise PromptError("the text is too short: nothing in it can be predicted", "At least two tokens are needed")
        report = ledger.close(session.position)
        report.plan, report.view = session.plan, session.view
    report.seconds = time.perf_counter() - began
    return report


def _filled(lists: Iterator[list[int]], buffer, chunk: int, limit: int | None) -> Iterator[int]:
    """Puts ids into buffer[1 : n + 1], chunk after chunk, and yields n."""
    left = limit if limit is not None else -1
    n = 0
    for ids in lists:
        if left >= 0:
            ids = ids[:left]
            left -= len(ids)
        at = 0
        while at < len(ids):
            taken = min(chunk - n, len(ids) - at)
            buffer[1 + n : 1 + n + taken] = ids[at : at + taken]
            n, at = n + taken, at + taken
            if n == chunk:
                yield n
                n = 0
        if left == 0:
            break
    if n:
        yield n
