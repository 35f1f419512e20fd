"""Ctrl-C and SIGTERM at any time: the exit code, whole output, a state that loads; and twice is at once."""

import os
import random
import signal
import subprocess
import sys
import time

import lmi as package
import pytest
from lmi.cli.console import Interrupted
from lmi.cli.signals import Interrupts
from lmi.session import state_options


@pytest.fixture(scope="module")
def long_book(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_text("the quick brown fox jumps over the lazy dog and then it sleeps\n" * 20_000)
    return path


class Started:
    def __init__(self, command, **options):
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes | options)

    def wait_for(self, text: bytes) -> None:
        """Reads standard error until it holds `text`."""
        seen = b""
        while text not in seen:
            seen += os.read(self.process.stderr.fileno(), 4096) or pytest.fail(f"ended early: {seen!r}")

    def signal(self, number) -> float:
        """Sends it; returns the seconds until the process has ended."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.out, self.err = self.process.communicate(timeout=60)
        assert b"Traceback" not in self.err
        return time.monotonic() - began

    @property
    def code(self) -> int:
        return self.process.returncode


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, b"Ctrl-C"), (signal.SIGTERM, 143, b"SIGTERM")])
def test_while_reading(lmi_command, tiny, long_book, tmp_path, number, code, name):
    state = tmp_path / "s"
    run = Started(lmi_command("run", tiny, "--prompt", long_book, "--save-state", state))
    run.wait_for(b"context first")
    time.sleep(0.5)
    assert run.signal(number) < 3
    assert run.code == code and run.out == b""
    assert b"stopped: " + name in run.err and b"saved   " in run.err and b"--resume" in run.err and b"in view" in run.err
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    with package.Model(tiny) as m, m.session(**state_options(state)) as s:
        s.load(state)
        assert s.position % 512 == 0  # whole chunks
        with m.session(**state_options(state)) as expected:
            expected.read_tokens(m.tokenize(long_book.read_text())[: s.position])
            assert s.position > 0
            s.read_token(5)
            expected.read_token(5)
            assert abs(expected.logits() - s.logits()).max() < 1e-3


def test_while_writing(lmi_command, tiny):
    run = Started(lmi_command("run", tiny, "--text", "abc", "-n", 10**7, "--temp", 0, "-q"))
    assert os.read(run.process.stdout.fileno(), 1)
    assert run.signal(signal.SIGINT) < 3
    assert run.code == 130
    run.out.decode("utf-8")  # whole characters


def test_while_writing_json_is_whole(lmi_command, tiny):
    import json

    run = Started(lmi_command("run", tiny, "--text", "abc", "-n", 10**7, "--temp", 0, "--json"))
    run.wait_for(b"context first")
    time.sleep(0.7)
    run.signal(signal.SIGINT)
    assert run.code == 130
    record = json.loads(run.out)
    assert record["finish_reason"] == "Ctrl-C" and record["stats"]["written"] == len(record["tokens"])


def test_while_waiting_for_standard_input(lmi_command, tiny):
    for arguments in (("run", tiny), ("run", tiny, "--prompt", "-"), ("tokenize", tiny, "--count"), ("perplexity", tiny, "-")):
        run = Started(lmi_command(*arguments), stdin=subprocess.PIPE)
        time.sleep(0.8)
        if arguments[0] == "run":
            os.write(run.process.stdin.fileno(), b"some words ")
            time.sleep(0.4)
        assert run.signal(signal.SIGINT) < 3
        assert run.code == 130, (arguments, run.err)


def test_twice_is_at_once(lmi_command, tiny, long_book):
    run = Started(lmi_command("perplexity", tiny, long_book))
    run.wait_for(b"context")
    time.sleep(0.3)
    run.process.send_signal(signal.SIGINT)
    assert run.signal(signal.SIGINT) < 2
    assert run.code == 130


@pytest.mark.parametrize("command", ["perplexity", "bench", "tokenize", "doctor", "info"])
def test_other_commands(lmi_command, tiny, long_book, command):
    extra = {
        "perplexity": (tiny, long_book),
        "bench": (tiny, "-r", 1000, "-d", "0,100000"),
        "tokenize": (tiny, "--prompt", long_book),
        "doctor": (),
        "info": (tiny,),
    }[command]
    run = Started(lmi_command(command, *extra), stdout=subprocess.DEVNULL)
    time.sleep(0.9 if command in ("perplexity", "bench") else 0.12)
    run.signal(signal.SIGINT)
    assert run.code in ((130,) if command in ("perplexity", "bench") else (0, 130, -2)), run.err


def test_at_any_time(lmi_command, tiny, long_book):
    """From before Python's first line to the middle of the work. Before lmi has set its handlers the signal is Python's own."""
    draw = random.Random(3)
    for _ in range(12):
        run = Started(lmi_command("run", tiny, "--prompt", long_book, "-q"))
        time.sleep(0.35 + draw.random() * 0.8)
        assert run.signal(signal.SIGTERM) < 3
        assert run.code in (143, -15), run.err
        assert run.out == b""


def test_a_signal_while_something_is_freed():
    """Python drops what is raised there: the signal is raised again, and nothing is printed of it."""

    class Freed:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0)

    complaints = []
    before, sys.unraisablehook = sys.unraisablehook, complaints.append
    try:
        with pytest.raises(Interrupted), Interrupts() as stop:
            Freed()
            time.sleep(5)
        assert stop.number == signal.SIGINT and not complaints
        with Interrupts():
            del Failing().cycle  # what others lose is still told
        assert len(complaints) == 1
    finally:
        sys.unraisablehook = before


def test_the_second_signal_leaves_no_partial_files(tmp_path):
    """Here while the main thread is not even in a step of Python's."""
    target, link = tmp_path / "out [1]", tmp_path / "link"
    link.symlink_to(target)
    others = {f"{target}.partial-1-aa", str(link)}
    code = f"""
import os, signal, time
from lmi.cli.signals import Interrupts
with Interrupts(None, {str(link)!r}) as stop, stop.gently(None):
    for name in ({str(target)!r} + f".partial-{{os.getpid()}}-aa", {str(target)!r} + ".partial-1-aa"):
        open(name, "w").close()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
    time.sleep(5)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 130
    assert {str(p) for p in tmp_path.iterdir()} == others


class Failing:
    def __init__(self):
        self.cycle = 1

    def __del__(self):
        raise KeyError
