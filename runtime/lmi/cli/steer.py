"""`lmi steer`: learns a style from labelled texts, and shows what a file of one holds."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack

import click

from lmi import errors
from lmi.cli.console import Interrupted, Progress
from lmi.cli.options import PATH, model_argument, model_options, open_model, open_text, output_options
from lmi.cli.signals import Interrupts
from lmi.formats import human_bytes, one_line


@click.group(short_help="Learn a style from labelled texts, for --steer.")
def steer():
    """Learn a style from labelled texts, for --steer.

    \b
      lmi steer train model.gguf --data labelled.jsonl -o style.steer
      lmi run model.gguf --text "Once upon a time" --steer style.steer:1
      lmi steer info style.steer

    A steer shifts what the model writes, just before its output matrix; the model itself stays as it is. Steers add up, and how
    much of each is chosen when they are used.
    """


@steer.command(short_help="Learn a style from labelled texts.")
@model_argument
@click.option(
    "--data",
    required=True,
    type=PATH,
    metavar="FILE",
    help='Lines {"text": "...", "label": -1 to 1}; - is standard input.',
)
@click.option("-o", "--output", required=True, type=PATH, metavar="FILE", help="The file to write.")
@click.option("--dummy", type=PATH, metavar="FILE", help="Also keep what all texts have in common, as a steer of its own.")
@click.option("--rank", type=click.IntRange(1), default=64, show_default=True, help="Directions that the steer has.")
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True, help="Of Adam.")
@click.option(
    "--lr", type=click.FloatRange(0, 10, min_open=True), default=1e-2, show_default=True, help="Its rate, which falls to 0."
)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Texts of a step.")
@click.option("--max-tokens", type=click.IntRange(2, 65536), default=256, show_default=True, help="Of each text.")
@click.option(
    "--epsilon",
    type=click.FloatRange(0, 1, min_open=True),
    default=1e-3,
    show_default=True,
    help="Scale of the steer; a larger one moves faster.",
)
@click.option(
    "--decay", type=click.FloatRange(0, 1000), default=0.0, show_default=True, help="Cost of the squares of its numbers."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the random numbers.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@model_options
@output_options
def train(model, data, output, dummy, console, force, threads, **o):
    """Learn a style from labelled texts.

    \b
      lmi steer train model.gguf --data labelled.jsonl -o style.steer
      lmi perplexity model.gguf play.txt --steer style.steer:1

    A label says how much of the style a text has: 1 all of it, -1 its opposite. With --steer style.steer:ALPHA texts of that
    label become likelier. Some hundred texts of each kind, of some hundred words, are enough. Needs PyTorch: the texts are read
    once, on the GPU or the CPU, then only the steer is trained, on the CPU.
    """
    from lmi_convert.writer import require_writable, write_pieces

    from lmi.steer import Steer
    from lmi.steer_train import read_samples, require_torch
    from lmi.steer_train import train as learn

    if dummy and os.path.abspath(dummy) == os.path.abspath(output):
        raise click.UsageError("--dummy and --output name the same file.")
    for path in filter(None, (output, dummy)):
        require_writable(path, overwrite=force)
    opening = {k: o.pop(k) for k in ("device", "gpu_layers", "isa", "no_mmap")}
    bars: dict[str, Progress] = {}
    with Interrupts(output, dummy) as stop, ExitStack() as scope:
        with open_text(data, "strict", stop) as text:
            samples = read_samples(text.blocks(), text.name)
        require_torch()
        with open_model(model, console, threads=threads, **opening) as m:

            def opened(session):
                scope.enter_context(stop.gently(session))

            def progress(what, done, whole, nll):
                stop.check()
                if what not in bars:
                    bars[what] = Progress(console, what, whole, unit="texts" if what == "reading" else "steps")
                bars[what].show(done, done)
                if what == "training" and done % max(1, whole // 10) == 0:
                    console.note(f"step {done:,}  NLL {nll:.4f}")

            try:
                found = learn(m, samples, threads=threads, opened=opened, progress=progress, **o)
            except errors.Cancelled:
                raise Interrupted(stop.number or 2) from None
    console.clear()
    console.note(
        f"{found.texts:,} texts, {found.tokens:,} tokens: NLL {found.before:.4f} before, {found.after:.4f} with the steer"
    )
    for made, path in ((found.steer, output), (found.dummy, dummy)):
        if path:
            size = write_pieces(path, made.pieces(), overwrite=force, verify=Steer.read)
            console.note(f"wrote {path}: {human_bytes(size)}, rank {made.rank}")


@steer.command(short_help="Show what a steer is.")
@click.argument("file", metavar="FILE", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@output_options
def info(file, as_json, console):
    """Show what a steer is.

    \b
      lmi steer info style.steer
    """
    from lmi.steer import Steer

    s = Steer.read(file)
    how = {k: v for k, v in s.notes.items() if k not in ("format", "fingerprint", "epsilon")}
    if as_json:
        shape = {"n_embd": s.n_embd, "rank": s.rank, "epsilon": s.epsilon, "fingerprint": s.fingerprint}
        console.line(json.dumps({"file": s.path, **shape, "notes": how}, ensure_ascii=False))
        return
    console.line(f"steer        rank {s.rank} at width {s.n_embd}, epsilon {s.epsilon:g}, {human_bytes(os.path.getsize(file))}")
    console.line(f"for          the model file with fingerprint {s.fingerprint}")
    for name, value in how.items():
        console.line(f"{_shown(name):<12} {_shown(value)}")


def _shown(text: str) -> str:
    """The file may come from anywhere, and this goes to a terminal."""
    return one_line(text[:200])
