"""How well a model predicts the same text under several kinds of attention, by position."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lmi.errors import InvalidArgument
from lmi.eval.settings import GROWING, Setting, require_room
from lmi.machine import memory
from lmi.perplexity import LOGITS_BYTES, Report
from lmi.perplexity import measure as measure_nll

WARM = 20_000  # tokens after which memory is looked at first: by then every buffer is full
MOST_MARKS = 2048  # of the clock
CURVE_BLOCKS = 64
LEAST_BLOCK = 64  # tokens
BETWEEN = b"\n\n"  # documents


def cycled(open_blocks: list[Callable[[], Iterator[bytes]]], forever: bool) -> Iterator[bytes]:
    """Documents one after the other as one text, with an empty line between them; `forever`: then from the first again. Each
    opens anew when its turn comes, so that nothing of them stays in memory."""
    first = True
    while True:
        empty = True
        for open_one in open_blocks:
            begun = False
            for block in open_one():
                if not begun and not first:
                    yield BETWEEN
                begun, first, empty = True, False, False
                yield block
        if not forever or empty:
            return


class _Clock:
    """When which position was reached; few marks, however long the text."""

    def __init__(self):
        self.marks = [(0, time.perf_counter())]
        self._last: tuple[int, float] | None = None  # where it is now, if that has no mark
        self._stride = self._calls = 0

    def mark(self, position: int) -> None:
        self._calls += 1
        if self._calls % (1 << self._stride):
            self._last = (position, time.perf_counter())
            return
        self._last = None
        self.marks.append((position, time.perf_counter()))
        if len(self.marks) == MOST_MARKS:
            self.marks[1:] = self.marks[2::2]
            self._stride += 1

    def tenths(self) -> tuple[float, float] | None:
        """Tokens a second over about the first tenth of the text and the last; None if it was too short for that."""
        marks = self.marks + ([self._last] if self._last else [])
        if len(marks) < 20:
            return None
        end = marks[-1][0]
        early = next(m for m in marks if m[0] >= end / 10)
        late = next(m for m in reversed(marks) if m[0] <= end * 9 / 10)
        return early[0] / (early[1] - marks[0][1]), (end - late[0]) / (marks[-1][1] - late[1])


@dataclass
class Result:
    """`resident_early`, `resident_end`: bytes of this process after the first 20,000 tokens (of a shorter text: never) and at
    the end; `rates`: tokens a second over the first and the last tenth of the text, or None."""

    setting: Setting
    report: Report
    resident_early: int | None
    resident_end: int
    rates: tuple[float, float] | None

    def as_dict(self) -> dict:
        first, last = self.rates or (None, None)
        return {
            **self.setting.as_dict(),
            **self.report.as_dict(),
            "resident_bytes_early": self.resident_early,
            "resident_bytes_end": self.resident_end,
            "tokens_per_second_first_tenth": first,
            "tokens_per_second_last_tenth": last,
        }


def block_of(length: int) -> int:
    """Tokens of a block of the curve over a text of that length: a 64th, in whole steps of 64."""
    return max(LEAST_BLOCK, math.ceil(length / CURVE_BLOCKS / LEAST_BLOCK) * LEAST_BLOCK)


def measure(
    model,
    documents: list[Callable[[], Iterator[bytes]]],
    settings: list[Setting],
    *,
    until: int | None = None,
    last: tuple[int, ...] = (),
    every: int | None = None,
    started: Callable[[Setting], object] = lambda _: None,
    opened: Callable[[object], object] | None = None,
    progress: Callable[[int], object] = lambda _: None,
    done: Callable[[Result], object] = lambda _: None,
) -> list[Result]:
    """Every setting reads the same tokens, one setting after the other, each as a stream in the memory that its session has.

    `documents`: what opens each; they are joined to one text that begins with BOS if the vocabulary does so, and repeated until
    there are `until` tokens (None: once, and no setting may need to know the length). `every`: tokens of a block of the curve.
    `done` gets each result as it is ready. Raises OutOfMemory, before anything is read, for a setting that cannot hold its
    text, PromptError for a text of fewer than two tokens, Cancelled as a session does.
    """
    for setting in settings:
        if until is None and setting.kind in GROWING:
            raise InvalidArgument(f"setting {setting.name} keeps the whole text and must know its length", "Give `until`")
        rows = max(1, LOGITS_BYTES // (4 * model.info.n_vocab))
        chunk = min(model.plan(**setting.options).chunk, rows)
        require_room(model, setting, until or 0, all_logits=True, chunk=chunk)
    results = []
    for setting in settings:
        started(setting)
        clock, early = _Clock(), None

        def note(session, _, clock=clock):
            nonlocal early
            clock.mark(session.position)
            if early is None and session.position >= WARM:
                early = memory().resident
            progress(session.position)

        report = measure_nll(
            model,
            cycled(documents, forever=until is not None),
            last=last,
            every=every,
            limit=until,
            opened=opened,
            progress=note,
            **setting.for_length(until or 0).options,
        )
        results.append(Result(setting, report, early, memory().resident, clock.tenths()))
        done(results[-1])
    return results
