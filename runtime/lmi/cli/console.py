"""Standard output, standard error, progress, colour: what goes where, and what happens when nobody listens.

Standard output carries results only: UTF-8, flushed piece by piece. Everything else goes to standard error, where a terminal
gets colour and a moving line, and a file gets a line now and then.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time

from lmi.errors import OutputError
from lmi.formats import duration, one_line

PER_SECOND = 10  # redraws of the moving line
QUIET_STEP = 60.0  # seconds between plain lines
GREY, BOLD, RED, YELLOW = "90", "1", "31", "33"


class ClosedPipe(Exception):
    """Who read our standard output has gone. Not an error: exit 141 without a word."""


class Interrupted(Exception):
    """Stopped by a signal while nothing had to be brought to an end. Exit 128 + number."""

    def __init__(self, number: int):
        super().__init__(f"stopped by signal {number}")
        self.number = number


class Console:
    """`quiet`: only errors on standard error. `verbose`: details too. `color`: "auto", "always", "never"."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, color: str = "auto"):
        self.quiet = quiet
        self.verbose = verbose
        self.interactive = _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
        self.color = color == "always" or (color == "auto" and self.interactive and not os.environ.get("NO_COLOR"))
        encoding = (getattr(sys.stderr, "encoding", None) or "ascii").lower().replace("-", "")
        self.unicode = encoding.startswith("utf")
        self._moving = False
        self._ended = True  # standard output stands at the start of a line

    # ---- standard error ----

    def style(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and text else text

    def note(self, text: str = "") -> None:
        """A line about the run; not with --quiet."""
        if not self.quiet:
            self._line(text, GREY)

    def detail(self, text: str) -> None:
        """A line for --verbose."""
        if self.verbose:
            self._line(text, GREY)

    def warn(self, text: str, remedy: str = "") -> None:
        """Something the user should know although the run goes on; also with --quiet."""
        self._labelled("warning: ", YELLOW, text, remedy)

    def error(self, text: str, remedy: str = "") -> None:
        self._labelled("error: ", RED, text, remedy)

    def _labelled(self, label: str, code: str, text: str, remedy: str) -> None:
        self.clear()
        self._put(self.style(label, code) + one_line(text) + "\n")
        if remedy:
            self._put("  " + one_line(remedy) + "\n")

    def _line(self, text: str, code: str) -> None:
        self.clear()
        self._put(self.style(one_line(text), code) + "\n")

    def _put(self, text: str) -> None:
        if not self.unicode:
            text = plain(text)
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            pass  # standard error is closed or full: the run does not depend on it

    # ---- the moving line ----

    def moving(self, text: str) -> None:
        """Replaces the moving line; only where standard error is a terminal."""
        if self.interactive and not self.quiet:
            width = max(1, shutil.get_terminal_size().columns - 1)
            text = text if self.unicode else plain(text)
            self._put("\r\x1b[K" + text[:width])
            self._moving = True

    def clear(self) -> None:
        if self._moving:
            self._moving = False
            self._put("\r\x1b[K")

    # ---- standard output ----

    def write(self, text: str) -> None:
        """A piece of the result, at once. Raises ClosedPipe, OutputError."""
        if not text:
            return
        self.clear()
        self._ended = text.endswith("\n")
        out = getattr(sys.stdout, "buffer", None)
        try:
            if sys.stdout is None:
                raise OSError(errno.EBADF, "it is closed")
            if out is None:
                sys.stdout.write(text)
            else:
                out.write(text.encode("utf-8", "replace"))
            sys.stdout.flush()
        except BrokenPipeError:
            silence(sys.stdout)
            raise ClosedPipe from None
        except (OSError, ValueError) as e:
            silence(sys.stdout)
            full = getattr(e, "errno", None) == errno.ENOSPC
            why = "no space left on the device" if full else getattr(e, "strerror", None) or "it is closed"
            raise OutputError(f"cannot write to standard output: {why}") from None

    def line(self, text: str = "") -> None:
        self.write(text + "\n")

    def end_text(self) -> None:
        """After generated text: a new line if standard output is a terminal and stands in the middle of one. Where only
        standard error is a terminal it has to be a line of its own too, but nothing is added to what is captured."""
        if not self._ended and _is_terminal(sys.stdout):
            self.write("\n")


class Progress:
    """How far a long run is. On a terminal a bar, at most ten times a second; else a line for each tenth or each minute.

    `total`: what `done` counts to, or None if unknown. `label` stands before, `unit` behind the count of `show`.
    """

    def __init__(self, console: Console, label: str, total: int | None, *, unit: str = "tok"):
        self._console = console
        self._label = label
        self._total = total
        self._unit = unit
        self._began = self._last = time.monotonic()
        self._tenth = 0
        self._advised = False

    def show(self, done: int, count: int) -> None:
        """`done` of `total` (bytes, say), and `count` units (tokens) until now."""
        if self._console.quiet:
            return
        now = time.monotonic()
        elapsed = now - self._began
        if self._console.interactive:
            if now - self._last < 1 / PER_SECOND:
                return
            self._last = now
            self._console.moving(self._text(done, count, elapsed))
        else:
            tenth = 10 * done // self._total if self._total else 0
            if elapsed < 2 or (tenth <= self._tenth and now - self._last < QUIET_STEP):
                self._tenth = max(self._tenth, tenth) if elapsed < 2 else self._tenth
                return
            self._tenth, self._last = max(tenth, self._tenth), now
            self._console.note(self._text(done, count, elapsed, bar=False))

    def remaining(self, done: int) -> float | None:
        """Seconds left by the rate until now; None in the first two seconds or where the total is unknown."""
        elapsed = time.monotonic() - self._began
        if not self._total or elapsed < 2 or not 0 < done < self._total:
            return None
        return elapsed * (self._total - done) / done

    def _text(self, done: int, count: int, elapsed: float, bar: bool = True) -> str:
        parts = [self._label]
        if self._total:
            share = min(1.0, done / self._total)
            if bar:
                full = int(share * 16 + 0.5)
                parts.append(("█" * full + "░" * (16 - full)) if self._console.unicode else "#" * full + "-" * (16 - full))
            parts.append(f"{share:.0%}")
        parts.append(f"{count:,} {self._unit}")
        if elapsed >= 0.5:
            parts.append(f"{count / elapsed:,.0f} {self._unit}/s")
        left = self.remaining(done)
        if left is not None:
            parts.append(f"eta {duration(left)}")
        return "  ".join(parts)


def plain(text: str) -> str:
    """Without characters that an ASCII terminal cannot show."""
    return (
        text.replace("·", "|")
        .replace("–", "-")
        .replace("█", "#")
        .replace("░", "-")
        .replace("…", "...")
        .encode("ascii", "replace")
        .decode()
    )


def _is_terminal(stream) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def silence(stream) -> None:
    """Lets the interpreter's own flush at exit go nowhere, instead of complaining."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass
