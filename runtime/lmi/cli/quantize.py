"""`lmi quantize`: a GGUF file with smaller weights."""

from __future__ import annotations

import os
import time
from collections import Counter

import click

from lmi.cli.console import Console, Progress
from lmi.cli.options import PATH, output_options
from lmi.cli.signals import Interrupts
from lmi.formats import duration, human_bytes
from lmi.machine import MOST_THREADS


@click.command(short_help="Write a GGUF file with smaller weights.")
@click.argument("model", metavar="MODEL", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, metavar="FILE", help="The file to write.")
@click.option(
    "-q", "--quant", default="Q4_K_M", show_default=True, metavar="MIX", help="Q8_0, Q6_K, Q5_K_M, Q4_K_M, ...: see below."
)
@click.option(
    "--tensor-type", "tensor_types", multiple=True, metavar="PATTERN=TYPE", help="Another type for tensors whose name matches."
)
@click.option("--imatrix", type=PATH, metavar="FILE", help="Importance of columns, as collected from a text.")
@click.option("-t", "--threads", type=click.IntRange(1, MOST_THREADS), help="Worker threads. [default: one per core]")
@click.option("--allow-requantize", is_flag=True, help="No warning where weights have been quantized before.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@output_options(quiet=("--quiet",))
def quantize(model, output, quant, tensor_types, imatrix, threads, allow_requantize, dry_run, force, console):
    """Write a GGUF file with smaller weights.

    \b
      lmi quantize model-f16.gguf -o model.gguf -q Q4_K_M
      lmi quantize model-f16.gguf -o model.gguf -q Q4_K_M --tensor-type attn_v=Q8_0
      lmi quantize model-f16.gguf -o model.gguf -q IQ4_XS --imatrix model.imatrix

    \b
    Mixes, large to small:
      F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q4_K_M Q4_K_S Q3_K_L Q3_K_M Q3_K_S Q2_K
      IQ4_NL IQ4_XS, the older Q5_1 Q5_0 Q4_1 Q4_0, and MXFP4 (experts only)

    A mix gives most weights the type of its name and some that matter more a larger one. The last --tensor-type that matches
    wins. The file is written whole or not at all.
    """
    from lmi_convert.importance import read_importance
    from lmi_convert.mix import find_mix, parse_override
    from lmi_convert.requantize import make_plan, requantize, require_other
    from lmi_convert.writer import require_writable, stale_partials

    began = time.monotonic()
    with Interrupts(output):
        mix = find_mix(quant)
        overrides = [parse_override(text) for text in tensor_types]
        importance = read_importance(imatrix) if imatrix else None
        bar = _Bar(console)
        plan = make_plan(model, mix.name, overrides=overrides, importance=importance, threads=threads, on_part=bar.add)
        source_bytes = sum(t.n_bytes for t, _ in plan.changes)
        if not dry_run:
            require_other(plan.source.paths, output)
            require_writable(output, overwrite=force)
        if plan.lossy and not allow_requantize:
            console.warn(
                f"{human_bytes(plan.lossy)} of the weights have been quantized before: what was lost then stays lost",
                "Better start from an F16, BF16 or F32 file; --allow-requantize silences this",
            )
        if plan.without_importance:
            names = ", ".join(plan.without_importance[:3]) + (", ..." if len(plan.without_importance) > 3 else "")
            console.note(f"no importance for {len(plan.without_importance)} tensors: {names}")
        for text, override in zip(tensor_types, overrides):
            if not any(override.pattern.search(t.name) for t, _ in plan.changes):
                console.warn(f"--tensor-type {text}: no tensor has such a name", "--dry-run lists the names")
        if plan.unfit:
            kinds = ", ".join(sorted({kind for t, kind in plan.changes if t.name in plan.unfit}))
            console.note(f"rows of {len(plan.unfit)} tensors are not whole blocks of {mix.kind}: they get {kinds}")
        for path in stale_partials(output):
            console.warn(f"left behind by a run that was killed: {path}", "It can be removed")
        console.note(f"{model}: {human_bytes(source_bytes)} -> {mix.name}, {human_bytes(plan.n_bytes)} ({_types(plan)})")
        if dry_run:
            for t, kind in plan.changes:
                shape = " x ".join(map(str, reversed(t.shape)))
                console.line(f"{t.name:40}  {t.type.name:>6} -> {kind:6}  {shape:>20}")
            return

        def progress(tensor, _done: int) -> None:
            console.detail(f"{tensor.name}  {tensor.type}  {human_bytes(tensor.n_bytes)}")

        bar.start(source_bytes)
        requantize(model, output, mix.name, plan=plan, overwrite=force, progress=progress)
        console.clear()
    console.note(f"wrote {output}: {human_bytes(os.path.getsize(output))} in {duration(time.monotonic() - began)}")


class _Bar:
    def __init__(self, console: Console):
        self._console, self._progress, self._done = console, None, 0

    def start(self, total: int) -> None:
        self._progress = Progress(self._console, "quantize", total, unit="MiB")

    def add(self, n: int) -> None:
        self._done += n
        if self._progress:
            self._progress.show(self._done, self._done >> 20)


def _types(plan) -> str:
    counts = Counter(kind for _, kind in plan.changes)
    return ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
