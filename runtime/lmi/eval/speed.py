"""Reading and writing speed and memory by depth, of Λ and of ordinary attention in the same engine and the same run.

Both sessions are open at once and take turns, so that whatever else the machine does meets both. A depth is reached as in
`lmi.bench`: Λ fills its buffer once, ordinary attention has to read everything.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from lmi.bench import Tokens, reach_depth, sample
from lmi.errors import OutOfMemory
from lmi.eval.settings import Setting, require_room
from lmi.machine import memory


@dataclass
class Side:
    """One setting at one depth. `read`, `write`: tokens a second, one of each round; `context_bytes`: keys and values;
    `session_bytes`: with the work space, all that the session holds, wherever that lies."""

    setting: Setting
    context_bytes: int
    session_bytes: int
    read: list[float] = field(default_factory=list)
    write: list[float] = field(default_factory=list)

    @property
    def read_median(self) -> float | None:
        return statistics.median(self.read) if self.read else None

    @property
    def write_median(self) -> float | None:
        return statistics.median(self.write) if self.write else None

    def as_dict(self) -> dict:
        return {
            **self.setting.as_dict(),
            "context_bytes": self.context_bytes,
            "session_bytes": self.session_bytes,
            "read": self.read_median,
            "write": self.write_median,
            "read_samples": self.read,
            "write_samples": self.write,
        }


@dataclass
class Row:
    """All settings at one depth. `left_out`: (name, why) of those that were not run; `resident_bytes`: of this process, with
    all their sessions."""

    depth: int
    sides: list[Side]
    left_out: list[tuple[str, str]]
    resident_bytes: int

    def as_dict(self) -> dict:
        left_out = [{"setting": name, "why": why} for name, why in self.left_out]
        settings = [s.as_dict() for s in self.sides]
        return {"depth": self.depth, "settings": settings, "left_out": left_out, "resident_bytes": self.resident_bytes}


def measure(
    model,
    settings: list[Setting],
    depths: tuple[int, ...],
    *,
    n_read: int = 512,
    n_write: int = 64,
    rounds: int = 3,
    ordinary_most: int,
    opened: Callable[[object], object] = lambda _: None,
    progress: Callable[[str], object] = lambda _: None,
    done: Callable[[Row], object] = lambda _: None,
) -> list[Row]:
    """Every setting at every depth; `ordinary_most`: the depth beyond which a setting that keeps the whole text is left out, as
    it is where it does not fit into memory. `n_read` or `n_write` 0: no such test. `done` gets each row as it is ready.
    Raises Cancelled as a session does."""
    rows, source = [], Tokens(model)
    longest = max(n_read, n_write, 1)
    with model.session(window=64, sinks=4, rollback=longest) as warming:  # touches the weights and wakes the threads
        opened(warming)
        source.read(warming, 32)
    for depth in depths:
        sides, left_out = [], []
        with ExitStack() as scope:
            sessions = []
            for setting in settings:
                length = depth + longest
                fitted = setting.for_length(length)
                options = {**fitted.options, "rollback": max(model.plan(**fitted.options).chunk, longest)}
                try:
                    if fitted is not setting and depth > ordinary_most:
                        raise OutOfMemory(f"more than {ordinary_most:,} tokens were not asked for")
                    require_room(model, setting, length, rollback=options["rollback"])
                except OutOfMemory as e:
                    left_out.append((setting.name, e.message))
                    continue
                progress(f"{setting.name}: filling to {depth:,}")
                session = scope.enter_context(model.session(**options))
                opened(session)
                reach_depth(session, depth, source)
                for n, one_by_one in ((n_read, False), (min(n_write, 4), True)):  # touches what a test will touch
                    for _ in range(n if one_by_one else min(n, 1)):
                        source.read(session, 1 if one_by_one else n)
                    session.rewind_to(depth)
                sessions.append(session)
                p = session.plan
                held = p.context_bytes + p.work_bytes + p.device_context_bytes + p.device_work_bytes
                sides.append(Side(fitted, p.keys_and_values_bytes, held))
            for i in range(rounds):
                for side, session in zip(sides, sessions):
                    opened(session)
                    progress(f"{side.setting.name} @ {depth:,}: round {i + 1} of {rounds}")
                    if n_read:
                        side.read.append(sample(session, source, depth, n_read, False))
                    if n_write:
                        side.write.append(sample(session, source, depth, n_write, True))
            rows.append(Row(depth, sides, left_out, memory().resident))
        done(rows[-1])
    return rows
