"""What a terminal gets that a file does not: a moving line, colour, a last new line."""

import os
import pty
import select
import subprocess
import time

import pytest
from lmi.cli.console import Console, Progress, plain


def on_terminal(command, *, stdout_too=True, env=None, columns=80) -> tuple[int, str, bytes]:
    """(exit code, what the terminal got, what standard output got if it is not the terminal)"""
    ours, theirs = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = (
        {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM", "COLUMNS")} | {"TERM": "xterm"} | (env or {})
    )
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs if stdout_too else subprocess.PIPE, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            if not data:
                break
            shown += data
        elif process.poll() is not None:
            break
    os.close(ours)
    out = process.stdout.read() if process.stdout else b""
    return process.wait(20), shown.decode("utf-8", "replace"), out


def test_terminal_gets_a_bar_colour_and_a_last_line(lmi_command, tiny, book, tmp_path):
    shelf = tmp_path / "shelf.txt"  # enough that the fastest machine is seen to read it
    shelf.write_text(book.read_text() * 40)
    code, shown, _ = on_terminal(lmi_command("run", tiny, "--prompt", shelf, "-n", 5, "--seed", 1))
    assert code == 0 and "\x1b[90m" in shown and "\r\x1b[K" in shown and "█" in shown and "tok/s" in shown
    assert "Traceback" not in shown


def test_file_gets_neither(lmi, tiny, book):
    done = lmi("run", tiny, "--prompt", book, "-n", 5, "--seed", 1)
    assert "\x1b" not in done.err and "\r" not in done.err and not done.out.endswith(b"\n\n")


def test_last_new_line_only_on_a_terminal(lmi_command, tiny):
    command = lmi_command("run", tiny, "--text", "abc", "-n", 4, "--seed", 1, "-q")
    _, shown, _ = on_terminal(command)
    _, _, out = on_terminal(command, stdout_too=False)
    assert shown.replace("\r\n", "\n") == out.decode() + ("" if out.endswith(b"\n") else "\n")


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_when_not_wanted(lmi_command, tiny, environment):
    _, shown, _ = on_terminal(lmi_command("run", tiny, "--text", "abc", "-n", 4), env=environment)
    assert "\x1b[9" not in shown and "\x1b[3" not in shown


def test_colour_on_demand(lmi, tiny):
    assert "\x1b[90m" in lmi("run", tiny, "--text", "a", "-n", 1, "--color", "always").err
    assert lmi("run", "none.gguf", "--text", "a", "--color", "always").err.startswith("\x1b[31merror: ")


def test_one_column_terminal(lmi_command, tiny, book):
    code, shown, _ = on_terminal(lmi_command("run", tiny, "--prompt", book, "-n", 2), columns=1)
    assert code == 0 and "Traceback" not in shown


class Sink(Console):
    """Keeps what would go to standard error."""

    def __init__(self, interactive):
        super().__init__(color="never")
        self.interactive, self.unicode, self.shown = interactive, True, []

    def _put(self, text):
        self.shown.append(text)


def test_long_reads_give_short_logs(monkeypatch):
    """An hour of reading into a file: at most a line for each tenth and each minute."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    console = Sink(interactive=False)
    progress = Progress(console, "reading", 3_600_000)
    for i in range(36_000):
        clock[0] = i / 10
        progress.show(100 * i, 500 * i)
    assert 10 <= len(console.shown) <= 80 and sum(map(len, console.shown)) < 10_000
    assert "eta" in console.shown[3]


def test_moving_line_ten_times_a_second_at_most(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    console = Sink(interactive=True)
    progress = Progress(console, "reading", None)
    for i in range(10_000):
        clock[0] = i / 1000
        progress.show(i, i)
    assert 80 <= len(console.shown) <= 101
    quiet = Sink(interactive=True)
    quiet.quiet = True
    Progress(quiet, "reading", 10).show(5, 5)
    assert quiet.shown == []


def test_eta_only_after_two_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress(Sink(interactive=True), "reading", 1000)
    clock[0] = 1.9
    assert progress.remaining(500) is None
    clock[0] = 2.5
    assert progress.remaining(500) == pytest.approx(2.5)
    assert progress.remaining(1000) is None and progress.remaining(0) is None


def test_plain():
    assert plain("a · b – █░ …é") == "a | b - #- ...?"
