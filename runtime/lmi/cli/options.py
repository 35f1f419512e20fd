"""Options that several commands share, so that they mean the same everywhere."""

from __future__ import annotations

import functools
import re

import click

from lmi.cli.console import Console, Progress
from lmi.errors import InvalidArgument
from lmi.machine import ISA_NAMES, KV_TYPES, MOST_THREADS, device_of

OPENING = ("threads", "device", "gpu_layers", "isa", "no_mmap")  # names of what model_options gives


PATH = click.Path(readable=False)  # what cannot be read is refused by who reads it, with the exit code that belongs to it


class Window(click.ParamType):
    """A number of tokens, or "max": as much as the model was trained for."""

    name = "tokens|max"

    def convert(self, value, param, ctx):
        if value == "max" or isinstance(value, int):
            return value
        return click.IntRange(1).convert(value, param, ctx)


class Device(click.ParamType):
    """Where to run: auto, cpu, cuda, cuda:1."""

    name = "auto|cpu|cuda[:N]"

    def convert(self, value, param, ctx):
        try:
            device_of(value)
        except InvalidArgument as e:
            self.fail(f"{e.message}. {e.remedy}.", param, ctx)
        return value


class Layers(click.ParamType):
    """A number of layers, or "auto": as many as fit."""

    name = "auto|n"

    def convert(self, value, param, ctx):
        return None if value in ("auto", None) else click.IntRange(0, 2**31 - 1).convert(value, param, ctx)


class Depths(click.ParamType):
    """Numbers separated by commas: 0,4096,1000000."""

    name = "n,n,..."

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        one = click.IntRange(0, 2**62)
        return tuple(one.convert(part.strip().replace("_", ""), param, ctx) for part in value.split(","))


def count_of(text: str) -> int | None:
    """16, 16k (16,000), 10M (10,000,000), 1_000; None for anything else."""
    found = re.fullmatch(r"([0-9][0-9_]*)([kKmM]?)", text.strip())
    if not found:
        return None
    return int(found[1]) * {"": 1, "k": 1000, "m": 1_000_000}[found[2].lower()]


class Count(click.ParamType):
    """A number of tokens, with k for thousands and M for millions."""

    name = "n|nk|nM"

    def __init__(self, least: int = 0):
        self._least = least

    def convert(self, value, param, ctx):
        n = value if isinstance(value, int) else count_of(value)
        if n is None:
            self.fail(f"{value!r} is not a number of tokens such as 500, 16k or 10M.", param, ctx)
        return click.IntRange(self._least, 2**62).convert(n, param, ctx)


class Counts(Count):
    """Several, separated by commas."""

    name = "n,n,..."

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        return tuple(super(Counts, self).convert(part, param, ctx) for part in str(value).split(","))


def _all(function, options):
    for option in reversed(options):
        function = option(function)
    return function


def model_argument(function):
    return click.argument("model", metavar="MODEL", type=PATH)(function)


def model_options(function):
    """What opening a model takes."""
    return _all(
        function,
        [
            click.option(
                "-t", "--threads", type=click.IntRange(1, MOST_THREADS), help="Worker threads. [default: one per core]"
            ),
            click.option("--device", type=Device(), default="auto", help="Where to run. [default: a GPU if there is one]"),
            click.option(
                "--gpu-layers", type=Layers(), help="Layers that the GPU runs, the last ones. [default: as many as fit]"
            ),
            click.option(
                "--isa",
                type=click.Choice(ISA_NAMES),
                default="auto",
                envvar="LMI_ISA",
                help="Instruction set of the kernels. [env: LMI_ISA]",
            ),
            click.option("--no-mmap", is_flag=True, help="Read the file into memory instead of mapping it."),
        ],
    )


def session_options(function):
    """What opening a session takes."""
    return _all(
        function,
        [
            click.option("--window", "-w", type=Window(), help="Last tokens that stay in view. [default: at most 4096]"),
            click.option("--sinks", type=click.IntRange(0), help="First tokens that stay in view. [default: 16]"),
            click.option(
                "--kv-type", type=click.Choice(KV_TYPES), default="f16", show_default=True, help="Numbers of the context."
            ),
            click.option("--chunk", type=click.IntRange(1), help="Tokens read at once. [default: 512]"),
        ],
    )


class SteerAt(click.ParamType):
    """A file of lmi steer train, and how much of it: style.steer:1.5."""

    name = "file:alpha"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        path, _, alpha = value.rpartition(":")
        if not path:
            self.fail(f"{value!r} lacks an alpha: {value}:1 is as trained, {value}:-1 its opposite.", param, ctx)
        return path, click.FLOAT.convert(alpha, param, ctx)


class Parsed(click.ParamType):
    """What a function of lmi.recall makes of a word."""

    def __init__(self, name: str, function: str):
        self.name, self._function = name, function

    def convert(self, value, param, ctx):
        import lmi.recall

        try:
            return getattr(lmi.recall, self._function)(value)
        except InvalidArgument as e:
            self.fail(f"{e.message}. {e.remedy}.", param, ctx)


RECALL = Parsed("kind[:n[xb]]", "recall_of")  # blocks:8x32, surprise:256, topk:5
SIZE = Parsed("size", "size_of")  # bytes: 1000000, 512M, 1.5G


def recall_options(function):
    """What becomes of tokens that left the window; gives the command a dict `recalling` of what was given."""

    @functools.wraps(function)
    def gathered(*args, **kwargs):
        given = {name: kwargs.pop(name) for name in [*kwargs] if name == "recall" or name.startswith("recall_")}
        return function(*args, recalling={k: v for k, v in given.items() if v is not None}, **kwargs)

    return _all(
        gathered,
        [
            click.option(
                "--recall",
                type=RECALL,
                help="Look up what left the window: blocks:NxB, surprise:M or topk:K. [default: it is forgotten]",
            ),
            click.option("--recall-budget", type=SIZE, help="Most that blocks and topk may keep. [default: 1G]"),
            click.option("--recall-folder", type=PATH, help="Keep it in a nameless file there, not in memory."),
            click.option("--recall-layer", type=click.IntRange(0), help="First layer that recalls. [default: 0; topk: 4]"),
            click.option("--recall-distance", type=click.IntRange(1), help="Where it seems to be. [default: half a window]"),
            click.option(
                "--recall-decay",
                type=click.FloatRange(0, 1, min_open=True),
                help="What surprise counts a window later. [default: 0.9]",
            ),
        ],
    )


def steer_option(function):
    return click.option(
        "--steer",
        "steers",
        type=SteerAt(),
        multiple=True,
        help="Write in a style (lmi steer train), by so much; 0: not at all. Repeatable: they add up.",
    )(function)


def steer_record(steers) -> list[dict]:
    """For --json: [(Steer, alpha), ...]."""
    return [{"file": steer.path, "alpha": alpha} for steer, alpha in steers]


def output_options(function=None, *, quiet: tuple[str, ...] = ("-q", "--quiet")):
    """-q, -v, --color, --debug; gives the command a `console`. `quiet`: names of that option, where -q is something else."""
    if function is None:
        return functools.partial(output_options, quiet=quiet)

    @functools.wraps(function)
    def with_console(*args, quiet, verbose, color, debug, **kwargs):
        return function(*args, console=Console(quiet=quiet, verbose=verbose, color=color), **kwargs)

    return _all(
        with_console,
        [
            click.option(*quiet, is_flag=True, help="Nothing on standard error but warnings and errors."),
            click.option("-v", "--verbose", is_flag=True, help="More on standard error."),
            click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", help="Colour of messages."),
            click.option("--debug", is_flag=True, help="Show where an error came from."),
        ],
    )


def open_model(
    path: str,
    console: Console | None = None,
    *,
    threads=None,
    device="auto",
    gpu_layers=None,
    isa="auto",
    no_mmap=False,
    vocab_only=False,
):
    """`console`: shows how far copying weights to a GPU is, once a session is opened."""
    from lmi.model import Model

    return Model(
        path,
        threads=threads,
        device=device,
        gpu_layers=gpu_layers,
        isa=isa,
        mmap=not no_mmap,
        vocab_only=vocab_only,
        progress=_copying(console) if console else None,
    )


def _copying(console: Console):
    bar = None

    def show(done: int, whole: int) -> None:
        nonlocal bar
        bar = bar or Progress(console, "copying to the GPU", whole, unit="MiB")
        bar.show(done, done >> 20)
        if done == whole:
            console.clear()

    return show


def window_tokens(model, window, sinks) -> int | None:
    """--window as the API takes it: "max" becomes what the model was trained for, less the sinks."""
    if window != "max":
        return window
    trained = model.info.trained_context
    return max(1, trained - (sinks if sinks is not None else model.plan().sinks))


def open_text(file: str, errors: str, stop):
    """A TextFile; `-` is standard input. `stop`: the command's Interrupts."""
    import sys

    from lmi.text import TextFile

    if file == "-":
        return TextFile(None, stream=sys.stdin.buffer, errors=errors, waiting=stop.waiting)
    return TextFile(file, errors=errors, kind="text")
