"""Whether a number is found again that stood somewhere in a long text: what `passkey` and `needle` share.

A prompt is a head, a haystack with needles between its sentences, and a question, and has exactly as many tokens as asked for:
after the last needle as many tokens of the haystack are left out (less than a sentence) as make it end with a whole sentence.

Prompts of a length begin alike, up to their first needle. That beginning is read once: the session is kept as a snapshot there,
at a multiple of its chunk, so that what follows is cut as it would be without, and the answers are the same to the bit.
"""

from __future__ import annotations

import math
import random
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass

from lmi._native import native
from lmi.errors import InvalidArgument
from lmi.eval.settings import Setting, require_room
from lmi.generate import Sampling
from lmi.tokens import Decoder, continuation

GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)


def ids_of(model, text: str, *, begins: bool = False) -> array:
    """Ids of a piece of text that goes on from another, or that the prompt begins with."""
    if begins:
        return array("i", model.tokenize(text))
    lead, drop = continuation(model)
    return array("i", model.tokenize(lead + text.encode(), bos=False)[drop:])


class Haystack:
    """Sentences, over and over. Places count tokens from the start of the first."""

    def __init__(self, sentences: list[array]):
        self._tokens, self._ends = array("i"), array("q")
        for sentence in sentences:
            self._tokens += sentence
            self._ends.append(len(self._tokens))

    def piece(self, begin: int, end: int) -> array:
        """Tokens [begin, end)."""
        period, out = len(self._tokens), array("i")
        while begin < end:
            at = begin % period
            n = min(period - at, end - begin)
            out += self._tokens[at : at + n]
            begin += n
        return out

    def end_before(self, place: int) -> int:
        """The last end of a sentence at `place` or before; 0 is one."""
        whole, rest = divmod(place, len(self._tokens))
        i = bisect_right(self._ends, rest)
        return whole * len(self._tokens) + (self._ends[i - 1] if i else 0)

    def end_after(self, place: int) -> int:
        """The first end of a sentence at `place` or after it."""
        whole, rest = divmod(place, len(self._tokens))
        return whole * len(self._tokens) + (self._ends[bisect_left(self._ends, rest)] if rest else 0)


@dataclass
class Task:
    """One question. `needles`: (share of the haystack that stands before, ids), the one asked for first; `question`, `answer`:
    ids and the number."""

    depth: float
    needles: list[tuple[float, array]]
    question: array
    answer: int
    answer_tokens: int


class Prompt:
    """The tokens of a task. `shared`: how many at the start are head and haystack alone; `needle_at`: where the needle that is
    asked for begins."""

    def __init__(self, head: array, haystack: Haystack, task: Task, length: int):
        self.task, self.length = task, length
        self._head, self._haystack = head, haystack
        fixed = len(head) + sum(len(ids) for _, ids in task.needles) + len(task.question)
        room = length - fixed
        if room < 0:
            text = f"a prompt of {length:,} tokens has no room for what it hides and its question: {fixed:,} tokens"
            raise InvalidArgument(text, "Ask for longer prompts")
        places = [(haystack.end_before(int(depth * room)), ids) for depth, ids in task.needles]
        asked = places[0]
        places.sort(key=lambda p: p[0])
        self._parts: list[tuple[int, array | None, int]] = []  # (where it begins, ids; or None and its place in the haystack)
        at = before = 0
        self._parts.append((0, head, 0))
        at = len(head)
        self.shared = at + places[0][0]
        for place, ids in places:
            self._parts.append((at, None, before))
            at += place - before
            if ids is asked[1]:
                self.needle_at = at
            self._parts.append((at, ids, 0))
            at, before = at + len(ids), place
        rest = room - before
        self._parts.append((at, None, haystack.end_after(room) - rest))
        self._parts.append((at + rest, task.question, 0))

    def tokens(self, begin: int, end: int) -> array:
        """Tokens [begin, end) of the prompt."""
        out = array("i")
        for i, (at, ids, place) in enumerate(self._parts):
            until = self._parts[i + 1][0] if i + 1 < len(self._parts) else self.length
            first, last = max(begin, at), min(end, until)
            if first < last:
                out += (
                    ids[first - at : last - at]
                    if ids is not None
                    else self._haystack.piece(place + first - at, place + last - at)
                )
        return out


@dataclass(frozen=True)
class Sample:
    """`written`: the text; `right`: its first number is the one asked for; `in_window`: the needle was whole among the last L
    tokens when the answer began."""

    depth: float
    answer: int
    written: str
    right: bool
    in_window: bool


@dataclass
class Score:
    """Answers of one setting at one length."""

    setting: Setting
    length: int
    samples: list[Sample]

    @property
    def right(self) -> int:
        return sum(s.right for s in self.samples)

    @property
    def accuracy(self) -> float:
        return self.right / len(self.samples)

    @property
    def in_window(self) -> float:
        """Share of prompts whose needle was in the window: what a model that finds all it sees, and nothing else, would get."""
        return sum(s.in_window for s in self.samples) / len(self.samples)

    def by_depth(self, bins: int) -> list[tuple[float, float, int, int]]:
        """(from, to, samples, right) of equal ranges of depth, from the start of the text to its end."""
        rows = []
        for i in range(bins):
            here = [s for s in self.samples if min(int(s.depth * bins), bins - 1) == i]
            rows.append((i / bins, (i + 1) / bins, len(here), sum(s.right for s in here)))
        return rows

    def as_dict(self, bins: int = 0) -> dict:
        low, high = wilson(self.right, len(self.samples))
        record = {
            **self.setting.as_dict(),
            "length": self.length,
            "n": len(self.samples),
            "right": self.right,
            "accuracy": self.accuracy,
            "low": low,
            "high": high,
            "in_window": self.in_window,
        }
        if bins:
            record["by_depth"] = [{"begin": b, "end": e, "n": n, "right": r} for b, e, n, r in self.by_depth(bins)]
        return {**record, "samples": [asdict(s) for s in self.samples]}


def wilson(right: int, n: int) -> tuple[float, float]:
    """The interval that holds the true share with 95 %, by Wilson's score."""
    z, p = 1.959963984540054, right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def depths(n: int) -> list[float]:
    """n depths, evenly spread."""
    return [(i + 0.5) / n for i in range(n)]


def draws(*names) -> random.Random:
    """Random numbers that are the same for the same names, on every machine."""
    return random.Random(":".join(str(n) for n in names))


def first_number(text: str) -> int | None:
    found = re.search(r"[0-9]+", text)
    return int(found.group()) if found else None


def measure(
    model,
    settings: list[Setting],
    lengths: list[tuple[int, int]],
    make_tasks: Callable[[int, int], list[Task]],
    head: array,
    haystack: Haystack,
    *,
    share: bool = True,
    started: Callable[[Setting, int], object] = lambda *_: None,
    opened: Callable[[object], object] = lambda _: None,
    progress: Callable[[int, int], object] = lambda *_: None,
    done: Callable[[Score], object] = lambda _: None,
) -> list[Score]:
    """Asks all tasks of every length under every setting. `lengths`: (tokens, samples); `make_tasks(tokens, samples)` gives the
    tasks. `share`: read what prompts have in common once. `progress(tasks answered, tokens read)` is called after each chunk,
    `done` gets each score as it is ready. Raises OutOfMemory before anything is read, Cancelled as a session does."""
    prompts = {}
    for length, n in lengths:
        made = [Prompt(head, haystack, task, length) for task in make_tasks(length, n)]
        prompts[length] = sorted(made, key=lambda p: p.shared)
    for setting in settings:
        for length, _ in lengths:
            require_room(model, setting, _needed(prompts[length]))
    scores = []
    for length, _ in lengths:
        for setting in settings:
            started(setting, length)
            with model.session(**setting.for_length(_needed(prompts[length])).options) as session:
                opened(session)
                asker = _Asker(model, session, share, progress)
                samples = [asker.ask(prompt) for prompt in prompts[length]]
            samples.sort(key=lambda s: s.depth)
            scores.append(Score(setting, length, samples))
            done(scores[-1])
    return scores


def _needed(prompts: list[Prompt]) -> int:
    return max(p.length + p.task.answer_tokens for p in prompts)


class _Asker:
    """Puts one prompt after the other to a session, in the order of what they share."""

    def __init__(self, model, session, share: bool, progress):
        self._model, self._session, self._share, self._progress = model, session, share, progress
        self._chunk = session.plan.chunk
        self._kept = None
        self._n_done = self._n_read = 0
        session.set_sampling(GREEDY)

    def ask(self, prompt: Prompt) -> Sample:
        session, task = self._session, prompt.task
        common = prompt.shared // self._chunk * self._chunk if self._share else 0
        if self._kept:
            session.restore(self._kept)
        else:
            session.rewind_to(0)
        if common > session.position:
            self._read(prompt, common)
            self._kept = session.snapshot()
        self._read(prompt, prompt.length)
        text = self._write(task.answer_tokens)
        self._n_done += 1
        self._progress(self._n_done, self._n_read)
        number = first_number(text)
        in_window = prompt.needle_at >= prompt.length - session.plan.window
        return Sample(task.depth, task.answer, text, number == task.answer, in_window)

    def _read(self, prompt: Prompt, end: int) -> None:
        session, ffi = self._session, native()[0]
        while session.position < end:
            ids = prompt.tokens(session.position, min(end, session.position + self._chunk))
            session._read(ffi.from_buffer("int32_t[]", ids), len(ids))
            self._n_read += len(ids)
            self._progress(self._n_done, self._n_read)

    def _write(self, most: int) -> str:
        """The most likely tokens, until there are `most`, the text ends, or the first number has."""
        text = ""
        with Decoder(self._model) as decoder:
            for _ in range(most):
                token = self._session.sample().token
                if self._model.is_end(token):
                    break
                text += decoder.push(token)
                if re.search(r"[0-9][^0-9]", text):
                    break
                self._session._read_one(token)
            return text + decoder.push(-1)
