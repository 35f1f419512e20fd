"""Writing: sampling options, the loop from token to text, and what it reports."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace

from lmi._native import native
from lmi.errors import Cancelled, InvalidArgument
from lmi.plan import MAX_INT32, View, integer, real

MAX_STOPS = 64
LEAST = 1e-30  # of what must be more than 0: float32 has it


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn, in this order; each link is off at the value in brackets.

    Penalties over the last `penalty_last` tokens: `repeat_penalty` [1] divides positive and multiplies negative logits of
    tokens seen, `frequency_penalty` [0] is subtracted once for each time seen, `presence_penalty` [0] once if seen; then
    `top_k` [0], `typical_p` [1], `top_p` [1], `min_p` [0], `temperature` [1; 0: always the most likely token]. `seed`: None
    is a random one.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last: int = 64
    seed: int | None = None

    @classmethod
    def for_model(cls, model) -> Sampling:
        """The library's defaults, with those that the model's file gives (general.sampling.*) where they make sense."""
        ffi, lib = native()
        c = ffi.new("lmi_sampling *")
        lib.lmi_sampling_default(c)
        defaults = cls(**{f.name: _tidy(getattr(c, f.name)) for f in fields(cls) if f.name != "seed"})
        for key, name in _FILE_KEYS.items():
            value = model.metadata(f"general.sampling.{key}")
            if value is not None:
                try:
                    defaults = defaults.but(**{name: _tidy(value)})
                except InvalidArgument:
                    pass  # a value out of range in the file is not the user's fault
        return defaults

    def but(self, **changes) -> Sampling:
        """The same with other values. Raises InvalidArgument for unknown names and values out of range."""
        known = {f.name for f in fields(self)}
        for name, value in changes.items():
            if name not in known:
                raise InvalidArgument(f"unknown sampling option {name!r}", f"One of: {', '.join(sorted(known))}")
            low, high = _RANGES[name]
            if name in ("top_k", "penalty_last", "seed"):
                if value is not None or name != "seed":
                    integer(value, name, low, high)
            else:
                real(value, name, low, high)
                if name in _MORE_THAN_0 and value < LEAST:
                    raise InvalidArgument(f"{name} must be more than 0 and at most {high}, not {value:g}")
        return replace(self, **changes)

    def seeded(self) -> Sampling:
        """The same with a random seed if it has none. 32 bits: short enough to be typed again."""
        if self.seed is not None:
            return self
        import secrets

        return replace(self, seed=secrets.randbits(32))

    def as_native(self):
        ffi, lib = native()
        c = ffi.new("lmi_sampling *")
        lib.lmi_sampling_default(c)
        for f in fields(self):
            setattr(c, f.name, getattr(self, f.name))
        return c

    def as_dict(self) -> dict:
        return asdict(self)


_RANGES = {  # as the library has them
    "temperature": (0, 100),
    "top_k": (0, MAX_INT32),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_penalty": (0, 10),
    "frequency_penalty": (-10, 10),
    "presence_penalty": (-10, 10),
    "penalty_last": (0, 4096),
    "seed": (0, 2**64 - 1),
}
_MORE_THAN_0 = ("top_p", "typical_p", "repeat_penalty")
_FILE_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "penalty_last",
}


def _tidy(value):
    """A float32 as the decimal that was meant: 0.949999988079071 -> 0.95."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


@dataclass
class Stats:
    """What a run did. Tokens: `read` of the prompt, `written`, `position`; seconds: `read_seconds`, `write_seconds`,
    `first_token_seconds` from the start (None before it); bytes: `context_bytes` (constant), `peak_bytes` resident since the
    process began; `guessed` and `came_true`: tokens read ahead (option `draft`); `view`: what is visible at the end; `seed`: of
    the random numbers."""

    read: int = 0
    written: int = 0
    read_seconds: float = 0.0
    write_seconds: float = 0.0
    first_token_seconds: float | None = None
    position: int = 0
    context_bytes: int = 0
    peak_bytes: int = 0
    guessed: int = 0
    came_true: int = 0
    seed: int | None = None
    view: View = field(default_factory=lambda: View(0, 0, 0, 0))

    @property
    def in_view(self) -> list[tuple[int, int]]:
        """Visible positions, as half-open ranges."""
        return self.view.ranges

    @property
    def forgotten(self) -> int:
        """Tokens read and no longer visible."""
        return self.view.forgotten

    def update(self, session) -> Stats:
        """Takes position, view and memory from the session as they are now."""
        from lmi.machine import memory

        self.view = session.view
        self.position = session.position
        self.context_bytes = session.plan.keys_and_values_bytes
        self.peak_bytes = memory().peak_resident
        self.guessed, self.came_true, _ = session.draft_counts
        return self

    def as_dict(self) -> dict:
        values = {k: v for k, v in asdict(self).items() if k != "view"}
        return values | self.view.as_dict()


@dataclass(frozen=True)
class Event:
    """A piece of text as it is written. `text` may be "" while a character or a possible stop text is incomplete; `token`,
    `logprob` (natural logarithm): of what was drawn. The last event has `finish_reason`, the rest of the text, and token None:
    "length" (max_tokens), "end" (the model ended), "stop" (a stop text), "fit" (one more token would forget something).
    `stats` is one object for the whole stream; its view and memory are taken at the last event."""

    text: str
    token: int | None
    logprob: float | None
    stats: Stats
    finish_reason: str | None = None


@dataclass(frozen=True)
class Result:
    """What was written: `text`, `tokens` and `logprobs` [n], why it ended, and the `Stats`."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str
    stats: Stats


class StopTexts:
    """Holds text back as long as it may become one of the stop texts."""

    def __init__(self, stops):
        one = isinstance(stops, str) or not isinstance(stops, Iterable)
        stops = () if stops is None else (stops,) if one else tuple(stops)
        if len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
            raise InvalidArgument(f"stop must be at most {MAX_STOPS} texts that are not empty")
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be given out, True if a stop text was met: nothing after it is given out)."""
        if not self._stops:
            return text, False
        self._held += text
        found = [i for i in (self._held.find(s) for s in self._stops) if i >= 0]
        if found:
            out, self._held = self._held[: min(found)], ""
            return out, True
        keep = max(_overlap(self._held, s) for s in self._stops)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out, False

    def rest(self) -> str:
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, less than all of it."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


def generate(
    session, prompt, *, max_tokens, stop=(), bos=None, special=False, sampling=None, options=None, room=None, read_last=True
) -> Iterator[Event]:
    """The stream behind Session.stream. `room`: tokens that may still be written before something is forgotten (None: any
    number). `read_last`: the last token is read too, so that the timeline holds all that was given out."""
    integer(max_tokens, "max_tokens", 0)
    stops = StopTexts(stop)
    sampling = session.set_sampling(sampling, **(options or {}))
    return _events(session, prompt, max_tokens, stops, bos, special, sampling.seed, room, read_last)


def _events(session, prompt, max_tokens, stops, bos, special, seed, room, read_last):
    from lmi.tokens import Decoder

    stats = Stats(seed=seed, context_bytes=session.plan.keys_and_values_bytes)
    began = time.perf_counter()
    if prompt is not None:
        stats.read = session.feed(prompt, bos=bos, special=special)
        stats.read_seconds = time.perf_counter() - began
    start = time.perf_counter()
    reason, unread, owed = "length", None, None
    with Decoder(session.model) as decoder:
        try:
            for i in range(max_tokens):
                if room is not None and i >= room:
                    reason = "fit"
                    break
                if unread is not None:
                    token, unread = unread, None
                    session._read_one(token)
                token, logprob = session.sample()
                if stats.first_token_seconds is None:
                    stats.first_token_seconds = time.perf_counter() - began
                if session.model.is_end(token):
                    reason = "end"
                    break
                unread = token
                text, stopped = stops.push(decoder.push(token))
                stats.written += 1
                stats.position = session.position
                stats.write_seconds = time.perf_counter() - start
                owed = session._owe(token)
                yield Event(text, token, logprob, stats)
                session._settle(owed)
                if stopped:
                    reason = "stop"
                    break
        except GeneratorExit:
            session._pay(owed, read=read_last)
            raise
        if unread is not None and read_last:
            session._read_one(unread)
        rest = ""
        if reason != "stop":
            text, stopped = stops.push(decoder.push(-1))
            rest = text + ("" if stopped else stops.rest())
        stats.write_seconds = time.perf_counter() - start
        yield Event(rest, None, None, stats.update(session), reason)


def gather(events: Iterator[Event]) -> Result:
    """All events as one Result. A Cancelled that ends them carries the Result so far."""
    texts, tokens, logprobs, reason, stats = [], [], [], "cancelled", Stats()

    def result():
        return Result("".join(texts), tokens, logprobs, reason, stats)

    try:
        for event in events:
            texts.append(event.text)
            stats = event.stats
            if event.token is not None:
                tokens.append(event.token)
                logprobs.append(event.logprob)
            reason = event.finish_reason or "cancelled"
    except Cancelled as e:
        e.result = result()
        raise
    return result()
