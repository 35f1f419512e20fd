"""Ctrl-C and SIGTERM. The first stops the run in good order, the second ends the process.

A native call keeps Python's own handlers waiting, so a small thread listens to the wake-up pipe that the interpreter's C
handler writes to, and cancels the session from there: the library looks at that flag between any two layers.
"""

from __future__ import annotations

import glob
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager

from lmi.cli.console import Interrupted

AGAIN = 0  # written to the wake-up pipe by ourselves; no signal has this number


class Interrupts:
    """`with Interrupts() as stop:` in the main thread. `stop.number` is the signal that came, or None. `outputs`: files
    that are written, of which the second signal leaves no unfinished ones behind either.

    Where nothing has to be finished the first signal raises Interrupted. Inside `with stop.gently(session):` it cancels the
    session instead, which then raises lmi.Cancelled; while standard input is waited for, `with stop.waiting():` lets it raise
    again.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, *outputs: str | None):
        self.number: int | None = None
        self._outputs = [path for path in outputs if path]
        self._gentle = 0
        self._session = None
        self._repeats = 0

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is not threading.main_thread():
            return self  # a command called as a function from a thread: signals are its caller's business
        self._ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._theirs = theirs
        self._old = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        self._old_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._old_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self._thread = threading.Thread(target=self._listen, name="lmi-signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        if not hasattr(self, "_old"):
            return
        sys.unraisablehook = self._old_hook
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._theirs.close()  # the thread reads the end and goes
        self._thread.join(1)
        self._ours.close()

    def _listen(self) -> None:
        seen = 0
        while numbers := self._ours.recv(16):
            for number in numbers:
                if number == AGAIN:
                    self._repeat()
                if number not in self.SIGNALS:
                    continue
                if self._repeats:
                    self._repeats -= 1
                    continue
                seen += 1
                if seen > 1:
                    self._end(number)
                self._cancel()

    def _end(self, number: int) -> None:
        """At once, whatever the main thread is doing."""
        for path in self._outputs:
            for partial in glob.glob(f"{glob.escape(os.path.realpath(path))}.partial-{os.getpid()}-*"):
                try:
                    os.unlink(partial)
                except OSError:
                    pass
        os._exit(128 + number)

    def _unraisable(self, lost) -> None:
        """What is raised while an object is freed goes nowhere: a signal that came just then is raised once more."""
        if not isinstance(lost.exc_value, Interrupted):
            self._old_hook(lost)
            return
        try:
            self._theirs.send(bytes([AGAIN]))
        except OSError:
            pass  # full: the process is being signalled without end

    def _repeat(self) -> None:
        time.sleep(0.001)  # by then the object is gone
        self._repeats += 1
        signal.pthread_kill(threading.main_thread().ident, self.number)

    def _cancel(self) -> None:
        session = self._session
        if session is not None:
            try:
                session.cancel()
            except Exception:
                pass  # closed just now: nothing left to cancel

    def _handle(self, number, frame) -> None:
        """Runs in the main thread, between two steps of Python."""
        if self.number is None:
            self.number = number
        if not self._gentle:
            raise Interrupted(number)

    @contextmanager
    def gently(self, session):
        """Within, a signal cancels `session`."""
        self._session = session
        self._gentle += 1
        try:
            if self.number is not None:
                session.cancel()
            yield self
        finally:
            self._gentle -= 1
            self._session = None

    @contextmanager
    def waiting(self):
        """Within, a signal raises Interrupted although the run is to be ended gently: waiting for input cannot be cancelled."""
        before, self._gentle = self._gentle, 0
        try:
            if self.number is not None:
                raise Interrupted(self.number)
            yield
        finally:
            self._gentle = before

    def check(self) -> None:
        """Raises Interrupted if a signal came."""
        if self.number is not None:
            raise Interrupted(self.number)
