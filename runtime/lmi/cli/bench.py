"""`lmi bench`: speed at any depth."""

from __future__ import annotations

import json
import os

import click

from lmi import errors
from lmi.cli.console import Interrupted
from lmi.cli.options import (
    Depths,
    model_argument,
    model_options,
    open_model,
    output_options,
    recall_options,
    session_options,
    window_tokens,
)
from lmi.cli.signals import Interrupts
from lmi.formats import human_bytes
from lmi.summary import context_text, model_name, quant_name

COLUMNS = ("model", "size", "params", "backend", "threads", "test", "t/s", "GB/s", "of read", "RSS")


@click.command(short_help="Measure reading and writing speed, at any depth.")
@model_argument
@click.option("-p", "--n-prompt", type=Depths(), default="512", show_default=True, help="Tokens read at once; 0: no such test.")
@click.option("-n", "--n-gen", type=Depths(), default="64", show_default=True, help="Tokens one by one; 0: no such test.")
@click.option(
    "-d", "--depth", "depths", type=Depths(), default="0", show_default=True, help="Tokens already read: 0,4096,1000000."
)
@click.option("-r", "--repetitions", type=click.IntRange(1, 1000), default=5, show_default=True, help="Of each test.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["md", "json", "jsonl", "csv"]),
    default="md",
    show_default=True,
    help="Form of the table.",
)
@session_options
@recall_options
@model_options
@output_options
def bench(model, console, n_prompt, n_gen, depths, repetitions, output, window, sinks, kv_type, chunk, recalling, **opening):
    """Measure reading and writing speed, at any depth.

    \b
      lmi bench model.gguf
      lmi bench model.gguf -p 0 -n 64 -d 0,4096,65536,1000000

    pp reads many tokens at once, tg one after the other. t/s is the median of the repetitions ± standard deviation. GB/s is
    what a step fetches, weights and visible context, times steps a second; "of read" compares it with reading the weights and
    nothing else, just measured: no program can write faster with a model that is larger than the caches. A depth is reached by
    filling the whole buffer with real tokens at their real positions, not by reading all of them; with --recall all are read.
    """
    from lmi.bench import measure

    if not any(n_prompt) and not any(n_gen):
        raise click.UsageError("-p 0 and -n 0 leave nothing to measure.")
    table = _Table(console, output)
    with Interrupts() as stop, open_model(model, console, **opening) as m:
        options = {"window": window_tokens(m, window, sinks), "sinks": sinks, "kv_type": kv_type, "chunk": chunk}
        options = {k: v for k, v in options.items() if v is not None} | recalling
        info, size = m.info, m.plan(**options)
        console.note(f"context {context_text(size)}, {human_bytes(size.keys_and_values_bytes)} {kv_type}")
        fixed = {
            "model": f"{model_name(m)} {quant_name(m)}",
            "size": human_bytes(info.weight_bytes),
            "params": f"{info.n_parameters / 1e6:.2f} M" if info.n_parameters < 1e9 else f"{info.n_parameters / 1e9:.2f} B",
            "backend": _backend(info, size),
            "threads": str(info.n_threads),
        }
        record = {
            "model_filename": os.path.basename(model),
            "model_type": fixed["model"],
            "model_size": info.weight_bytes,
            "model_n_params": info.n_parameters,
            "backend": "CUDA" if size.device_layers else "CPU",
            "device": info.device if size.device_layers else "",
            "n_gpu_layers": size.device_layers,
            "isa": info.isa,
            "n_threads": info.n_threads,
            "kv_type": kv_type,
            "window": size.window,
            "sinks": size.sinks,
            "chunk": size.chunk,
        }
        from contextlib import ExitStack

        with ExitStack() as scope:
            try:
                measure(
                    m,
                    n_prompt=n_prompt,
                    n_gen=n_gen,
                    depths=depths,
                    repetitions=repetitions,
                    row=lambda r: table.add(r, fixed, record),
                    opened=lambda session: scope.enter_context(stop.gently(session)),
                    progress=console.moving,
                    **options,
                )
            except errors.Cancelled:
                raise Interrupted(stop.number or 2) from None
    table.end()


def _backend(info, plan) -> str:
    """ "CPU avx2", "CUDA", or "CUDA 20/32 + CPU avx2": layers on the GPU, of all."""
    cpu, n = f"CPU {info.isa}", plan.device_layers
    return "CUDA" if n == info.n_layers else f"CUDA {n}/{info.n_layers} + {cpu}" if n else cpu


class _Table:
    """Rows as they come, in the form that was asked for."""

    def __init__(self, console, form: str):
        self._console, self._form, self._records, self._keys = console, form, [], None

    def add(self, row, fixed: dict, record: dict) -> None:
        out = self._console.line
        if self._form == "md":
            if not self._records:
                out("| " + " | ".join(COLUMNS) + " |")
                out("| " + " | ".join("---" if c in ("model", "backend", "test") else "---:" for c in COLUMNS) + " |")
            speed = f"{row.median:.2f} ± {row.deviation:.2f}"
            fetched = share = ""
            if row.bytes_per_token:
                fetched = f"{row.bytes_per_second / 1e9:.2f}"
                share = f"{row.bytes_per_second / row.read_speed:.0%}" if row.read_speed else ""
            out("| " + " | ".join([*fixed.values(), row.name, speed, fetched, share, human_bytes(row.resident_bytes)]) + " |")
        full = {**record, **row.as_dict()}
        if self._form == "jsonl":
            out(json.dumps(full))
        elif self._form == "csv":
            full["samples_ts"] = " ".join(f"{s:.6g}" for s in full["samples_ts"])
            if not self._records:
                out(_csv(full.keys()))
            out(_csv(full.values()))
        self._records.append(full)

    def end(self) -> None:
        self._console.clear()
        if self._form == "json":
            self._console.line(json.dumps(self._records, indent=1))


def _csv(values) -> str:
    import csv
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()
