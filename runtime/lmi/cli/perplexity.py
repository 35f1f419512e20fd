"""`lmi perplexity`: how well a model predicts a text, by position."""

from __future__ import annotations

import json

import click

from lmi import errors
from lmi.cli.console import Interrupted, Progress
from lmi.cli.options import (
    PATH,
    Depths,
    model_argument,
    model_options,
    open_model,
    open_text,
    output_options,
    recall_options,
    session_options,
    steer_option,
    steer_record,
    window_tokens,
)
from lmi.cli.signals import Interrupts
from lmi.formats import duration, human_bytes, rate, span
from lmi.summary import context_text


@click.command(short_help="Measure how well a model predicts a text, by position.")
@model_argument
@click.argument("file", metavar="FILE", type=PATH)
@click.option("-n", "--max-tokens", type=click.IntRange(2), help="Stop after so many tokens of the text.")
@click.option("--last", type=Depths(), default="1024,4096", show_default=True, help="Also over the last N tokens.")
@click.option("--every", type=click.IntRange(1), help="Also in blocks of so many tokens (in --json: a curve).")
@click.option(
    "--errors", "on_error", type=click.Choice(["strict", "replace"]), default="strict", help="For bytes that are not UTF-8."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@steer_option
@session_options
@recall_options
@model_options
@output_options
def perplexity(
    model,
    file,
    console,
    max_tokens,
    last,
    every,
    on_error,
    as_json,
    steers,
    window,
    sinks,
    kv_type,
    chunk,
    recalling,
    **opening,
):
    """Measure how well a model predicts a text, by position.

    \b
      lmi perplexity model.gguf book.txt
      lmi perplexity model.gguf book.txt --window 1024 --json > curve.json
      lmi perplexity model.gguf play.txt --steer plays.steer:1

    FILE is read as one stream (- is standard input): every token but the first is predicted from the tokens in view, none
    twice. NLL is the mean of minus the natural logarithm of the probability of the true token; perplexity is its exponential.
    If NLL does not rise with the position, the length of the text does no harm.
    """
    from lmi.perplexity import MOST_LAST, measure
    from lmi.steer import load

    if max(last) > MOST_LAST:
        raise click.UsageError(f"--last takes at most {MOST_LAST:,} tokens.")
    with Interrupts() as stop:
        text = open_text(file, on_error, stop)
        with open_model(model, console, **opening) as m:
            text.check()
            options = {"window": window_tokens(m, window, sinks), "sinks": sinks, "kv_type": kv_type, "chunk": chunk}
            options = {k: v for k, v in options.items() if v is not None} | recalling
            options["steer"] = steers = load(m, steers)
            progress = Progress(console, "reading", text.size)

            def show(session, report):
                progress.show(text.done, session.position)

            def opened(session):
                console.note(f"context {context_text(session.plan)}, {human_bytes(session.plan.keys_and_values_bytes)}")
                scope.enter_context(stop.gently(session))

            from contextlib import ExitStack

            with ExitStack() as scope:
                try:
                    blocks = text.blocks()
                    report = measure(
                        m,
                        blocks,
                        last=tuple(n for n in last if n),
                        every=every,
                        limit=max_tokens,
                        progress=show,
                        opened=opened,
                        **options,
                    )
                except errors.Cancelled:
                    raise Interrupted(stop.number or 2) from None
    console.clear()
    if as_json:
        what = {"model": model, "text": text.name, "kv_type": kv_type, "steer": steer_record(steers)}
        console.line(json.dumps({**what, **report.as_dict()}))
        return
    _table(console, report)
    n = report.all.n + 1
    console.note(f"{n:,} tokens in {duration(report.seconds)} ({rate(n, report.seconds)} tok/s) · {report.view}")


def _table(console, report) -> None:
    rows = [(f"positions {span(b, e)}", s) for b, e, s in report.buckets]
    rows += [(f"blocks {span(b, e)}", s) for b, e, s in report.curve]
    rows += [(f"last {n:,}", s) for n, s in report.last if s.n == n]
    rows += [("all", report.all)]
    width = max(len(name) for name, _ in rows)
    console.line(f"{'':{width}}  {'tokens':>10}  {'NLL':>8}  {'±':>7}  {'perplexity':>11}")
    for name, s in rows:
        console.line(f"{name:{width}}  {s.n:>10,}  {s.mean:>8.4f}  {s.error:>7.4f}  {s.perplexity:>11.3f}")
