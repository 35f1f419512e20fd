"""`lmi convert`: a checkpoint folder becomes a GGUF file."""

from __future__ import annotations

import os
import time

import click

from lmi import errors
from lmi.cli.console import Progress
from lmi.cli.options import PATH, output_options
from lmi.cli.signals import Interrupts
from lmi.formats import duration, human_bytes, human_count
from lmi.machine import MOST_THREADS


@click.command(short_help="Turn a checkpoint folder into a GGUF file.")
@click.argument("folder", type=PATH)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FILE",
    help="The file to write. [default: NAME-MIX.gguf in the current folder]",
)
@click.option(
    "-q",
    "--quant",
    "--outtype",
    metavar="MIX",
    default="auto",
    show_default=True,
    help="Q4_K_M, Q8_0, F16, ... (lmi quantize --help lists them); auto: the type that the checkpoint has.",
)
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Another type for tensors whose name matches.",
)
@click.option("--imatrix", type=PATH, metavar="FILE", help="Importance of columns, from lmi imatrix.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--name", metavar="NAME", help="The model's name in the file. [default: the folder's]")
@click.option("--pre", metavar="NAME", help="The pre-tokenizer, where the files do not tell which it is.")
@click.option(
    "--allow-pickle", is_flag=True, help="Also read pickled weights (.bin): only of people whom you trust with this machine."
)
@click.option("--allow-nonfinite", is_flag=True, help="Convert NaN and infinite weights as they are.")
@click.option("-t", "--threads", type=click.IntRange(1, MOST_THREADS), help="Worker threads. [default: one per core]")
@output_options(quiet=("--quiet",))
def convert(
    console, folder, output, quant, tensor_types, imatrix, dry_run, force, name, pre, allow_pickle, allow_nonfinite, threads
):
    """Turn a checkpoint folder into a GGUF file.

    \b
      lmi convert ./Qwen3-0.6B -o model.gguf -q Q4_K_M
      lmi convert ./Qwen3-0.6B --dry-run

    FOLDER is a checkpoint as Hugging Face has it: config.json, .safetensors files, the tokenizer's files. No code of it is
    run. The file appears whole or not at all.
    """
    lmi_convert = _converter()
    output = output or _default_output(folder, quant)
    began = time.monotonic()
    with Interrupts(output):
        for stale in lmi_convert.writer.stale_partials(output):
            console.warn(f"{stale} was left by a run that was killed more than a day ago", f"Remove it: rm {stale}")
        bar = None

        def planned(report) -> None:
            nonlocal bar
            for line in _plan_lines(report, folder):
                (console.line if dry_run else console.note)(line)
            for note in report.notes:
                console.note(f"note     {note}")
            if dry_run and console.verbose:
                for t in report.tensors:
                    console.line(
                        f"{t.name:40}  {t.type:6}  {' x '.join(map(str, reversed(t.shape))):>20}  {human_bytes(t.n_bytes):>10}"
                    )
            bar = Progress(console, "writing", report.n_bytes, unit="MiB")

        report = lmi_convert.convert.convert(
            folder,
            output,
            quant=quant,
            overwrite=force,
            dry_run=dry_run,
            allow_pickle=allow_pickle,
            allow_nonfinite=allow_nonfinite,
            pre=pre,
            name=name,
            tensor_types=tensor_types,
            imatrix=imatrix,
            threads=threads,
            progress=lambda done, total: bar.show(done, done >> 20),
            plan=planned,
        )
        console.clear()
    if not dry_run:
        console.note(f"wrote    {report.path}, {human_bytes(report.n_bytes)}, in {duration(time.monotonic() - began)}")


def _converter():
    """The package, and what it needs, imported only now."""
    try:
        import lmi_convert.convert
        import lmi_convert.writer
    except ModuleNotFoundError as e:
        raise errors.UnsupportedModel(f"converting needs the package {e.name}", "pip install 'lmi[convert]'") from None
    return lmi_convert


def _default_output(folder: str, quant: str) -> str:
    stem = os.path.basename(os.path.abspath(folder)) or "model"
    return f"{stem}.gguf" if quant.lower() == "auto" else f"{stem}-{quant.upper()}.gguf"


def _plan_lines(report, folder: str) -> list[str]:
    parameters, source = human_count(report.n_parameters), human_bytes(report.source_bytes)
    mix = " + ".join(f"{n} {kind} ({human_bytes(size)})" for kind, n, size in report.types)
    return [
        f"model    {folder} · {report.architecture} · {parameters} parameters · {source} of weights",
        f"tokens   {report.n_vocab:,} · {report.vocabulary}",
        f"tensors  {report.n_tensors} · {mix}",
        f"file     {report.path} · {report.quant} · {human_bytes(report.n_bytes)}",
    ]
