"""Reading and writing speed at any depth.

A depth is reached honestly but cheaply: the counter is set so far on that reading fills the whole buffer once, with real
keys at their real positions, and ends exactly at the depth. Cost and memory of a token do not depend on more than that.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from lmi._native import native

LEAST_SECONDS = 0.25  # of a sample: with a small model one round of a test is over before the clock says much


@dataclass(frozen=True)
class Row:
    """One test: `n_prompt` tokens read at once or `n_gen` one by one, after `depth` tokens. `samples`: tokens a second, one
    per repetition, each of as many rounds as fill a quarter of a second. `bytes_per_token`: weights and context that a step
    of one token must fetch (of reading: 0). `read_speed`: bytes a second at which this machine just
    read the weights, each where it lies; 0 where the GPU cannot say."""

    n_prompt: int
    n_gen: int
    depth: int
    samples: tuple[float, ...]
    bytes_per_token: int
    resident_bytes: int
    read_speed: float

    @property
    def name(self) -> str:
        test = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{test} @ d{self.depth}" if self.depth else test

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0

    @property
    def bytes_per_second(self) -> float:
        return self.median * self.bytes_per_token

    def as_dict(self) -> dict:
        extra = {
            "test": self.name,
            "median_ts": self.median,
            "avg_ts": statistics.fmean(self.samples),
            "stddev_ts": self.deviation,
        }
        values = asdict(self)
        values["samples_ts"] = list(values.pop("samples"))
        values["n_depth"] = values.pop("depth")
        return {**extra, **values, "bytes_per_second": self.bytes_per_second}


def step_bytes(model) -> int:
    """Weight bytes that one token fetches: of experts the chosen ones, of a separate embedding table one row."""
    sizes = {t.name: t.n_bytes for t in model.tensors()}
    total = model.info.weight_bytes_active
    return total - sizes["token_embd.weight"] if "output.weight" in sizes and "token_embd.weight" in sizes else total


def read_speed(model) -> float:
    """Bytes a second at which all threads, or the GPU, read the weights, doing nothing with them."""
    with model.use() as m:
        return native()[1].lmi_model_read_speed(m)


def measure(
    model,
    *,
    n_prompt: tuple[int, ...] = (512,),
    n_gen: tuple[int, ...] = (64,),
    depths: tuple[int, ...] = (0,),
    repetitions: int = 5,
    row: Callable[[Row], object] = lambda _: None,
    opened: Callable[[object], object] = lambda _: None,
    progress: Callable[[str], object] = lambda _: None,
    **options,
) -> list[Row]:
    """Runs every test at every depth; `row` gets each result as it is ready, `opened` each session. Raises Cancelled if one is
    cancelled."""
    from lmi.machine import memory

    longest = max([*n_prompt, *n_gen, 1])
    plan = model.plan(**options)
    options = {**options, "rollback": max(plan.chunk, longest)}  # a test is taken back, so that each starts at the same depth
    rows = []
    weights = step_bytes(model)
    source = Tokens(model)
    for depth in depths:
        with model.session(**options) as session:
            opened(session)
            plan = session.plan
            per_slot = plan.keys_and_values_bytes / (plan.ring_slots + plan.sinks)
            progress(f"filling to {depth:,}")
            source.read(session, min(plan.chunk, 32))  # wakes the threads and touches the weights
            session.rewind_to(0)
            reach_depth(session, depth, source)
            visible = min(depth, plan.window + plan.sinks)
            for n, one_by_one in [(n, False) for n in n_prompt if n] + [(n, True) for n in n_gen if n]:
                samples = []
                for i in range(repetitions):
                    progress(f"{'tg' if one_by_one else 'pp'}{n} @ d{depth:,}: {i + 1} of {repetitions}")
                    samples.append(sample(session, source, depth, n, one_by_one))
                fetched = int(weights + per_slot * visible) if one_by_one else 0
                test = (0, n) if one_by_one else (n, 0)
                speed = read_speed(model) if one_by_one else 0.0
                rows.append(Row(*test, depth, tuple(samples), fetched, memory().resident, speed))
                row(rows[-1])
    return rows


def sample(session, source: Tokens, depth: int, n: int, one_by_one: bool) -> float:
    """Tokens a second of n tokens after `depth`, over as many rounds as fill a quarter of a second; each is taken back."""
    seconds, rounds = 0.0, 0
    while seconds < LEAST_SECONDS:
        began = time.perf_counter()
        for _ in range(n if one_by_one else 1):
            source.read(session, 1 if one_by_one else n)
        seconds, rounds = seconds + time.perf_counter() - began, rounds + 1
        session.rewind_to(depth)
    return rounds * n / seconds


def reach_depth(session, depth: int, source: Tokens) -> None:
    """Brings an empty session to `depth` tokens: reads as many as fill the buffer, or all if it keeps what leaves it."""
    buffer = session.plan.ring_slots + session.plan.sinks + session.plan.chunk
    filling = depth if session.plan.recall_bytes else min(depth, buffer)
    if depth > filling:
        session.start_at(depth - filling)
    if filling:
        source.read(session, filling)


class Tokens:
    """Ids drawn from the vocabulary, the same in every run."""

    def __init__(self, model):
        ffi, _ = native()
        self._size = 1 << 14
        draw = random.Random(1)
        n_vocab = model.info.n_vocab
        self._ids = ffi.new("int32_t[]", [draw.randrange(n_vocab) for _ in range(self._size)])
        self._at = 0

    def read(self, session, n: int) -> None:
        chunk = session.plan.chunk
        while n:
            if self._at + min(n, chunk) > self._size:
                self._at = 0
            step = min(n, chunk, self._size)
            session._read(self._ids + self._at, step)
            self._at += step
            n -= step
