"""`lmi imatrix`: which columns of a model's matrices matter, found by reading a text."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

import click

from lmi import errors
from lmi.cli.console import Interrupted, Progress
from lmi.cli.options import (
    PATH,
    model_argument,
    model_options,
    open_model,
    open_text,
    output_options,
    session_options,
    window_tokens,
)
from lmi.cli.signals import Interrupts
from lmi.formats import duration, human_bytes, rate


@click.command(short_help="Find out from a text which weights matter, for quantize.")
@model_argument
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    required=True,
    type=PATH,
    help="Text to read; more than one is one after the other.",
)
@click.option(
    "-o", "--output", type=PATH, metavar="FILE", help="The file to write. [default: MODEL's name + .imatrix.gguf, here]"
)
@click.option("-n", "--max-tokens", type=click.IntRange(2), help="Stop after so many tokens.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option(
    "--errors", "on_error", type=click.Choice(["strict", "replace"]), default="strict", help="For bytes that are not UTF-8."
)
@session_options
@model_options
@output_options
def imatrix(model, files, output, console, max_tokens, force, on_error, window, sinks, kv_type, chunk, **opening):
    """Find out from a text which weights matter, for quantize.

    \b
      lmi imatrix model-f16.gguf -f text.txt -o model.imatrix.gguf
      lmi quantize model-f16.gguf -o model.gguf -q Q4_K_M --imatrix model.imatrix.gguf

    The text should be like what the model will read and write (- is standard input); some hundred thousand tokens are enough.
    The file holds, for each column of each matrix, the squares of what it was multiplied with; llama.cpp's tools read it too.
    """
    from lmi_convert.importance import collect

    output = output or os.path.basename(model).removesuffix(".gguf") + ".imatrix.gguf"
    began = time.monotonic()
    with Interrupts(output) as stop, ExitStack() as scope:
        texts = [open_text(file, on_error, stop) for file in files]
        with open_model(model, console, **opening) as m:
            for text in texts:
                text.check()
            options = {"window": window_tokens(m, window, sinks), "sinks": sinks, "kv_type": kv_type, "chunk": chunk}
            bar = Progress(console, "reading", sum(text.size or 0 for text in texts))

            def opened(session):
                scope.enter_context(stop.gently(session))

            try:
                n = collect(
                    m,
                    (block for text in texts for block in text.blocks()),
                    output,
                    dataset=", ".join(text.name for text in texts),
                    limit=max_tokens,
                    overwrite=force,
                    opened=opened,
                    progress=lambda position: bar.show(sum(text.done for text in texts), position),
                    **{k: v for k, v in options.items() if v is not None},
                )
            except errors.Cancelled:
                raise Interrupted(stop.number or 2) from None
    console.clear()
    seconds = time.monotonic() - began
    size, speed = human_bytes(os.path.getsize(output)), rate(n, seconds)
    console.note(f"wrote {output}: {size} from {n:,} tokens in {duration(seconds)} ({speed} tok/s)")
