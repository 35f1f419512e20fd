"""`lmi info`: what a model file holds and what it would need."""

from __future__ import annotations

import hashlib
import json

import click

from lmi import errors
from lmi.cli.console import Progress
from lmi.cli.options import (
    model_argument,
    model_options,
    open_model,
    output_options,
    recall_options,
    session_options,
    window_tokens,
)
from lmi.cli.signals import Interrupts
from lmi.formats import human_bytes, one_line
from lmi.summary import context_text, device_lines, device_text, info_lines, quant_name, tensor_mix

SHOWN = 8  # elements of an array


@click.command(short_help="Show what a model file holds and what it would need.")
@model_argument
@click.option("--metadata", "show_metadata", is_flag=True, help="All keys of the file.")
@click.option("--tensors", "show_tensors", is_flag=True, help="All tensors of the file.")
@click.option(
    "--check-tensors", is_flag=True, help="Decode all weights and look for NaN and infinities; exit code 3 if there are."
)
@click.option("--template", "show_template", is_flag=True, help="Only the chat template, as it is.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@session_options
@recall_options
@model_options
@output_options
def info(
    model,
    console,
    show_metadata,
    show_tensors,
    check_tensors,
    show_template,
    as_json,
    window,
    sinks,
    kv_type,
    chunk,
    recalling,
    **opening,
):
    """Show what a model file holds and what it would need.

    \b
      lmi info model.gguf
      lmi info model.gguf --window 32768 --kv-type q8_0
      lmi info model.gguf --metadata --tensors
      lmi info model.gguf --check-tensors

    The memory plan is what `lmi run` with the same options would take, for a text of any length.
    """
    try:
        m = open_model(model, **opening)
    except errors.Error as e:
        m, why = _vocabulary_only(model, e), e
    else:
        why = None
    with Interrupts(), m:
        if show_template:
            template = m.chat_template
            if template is None:
                raise errors.UnsupportedModel("the model has no chat template")
            console.line(template)
            return
        mix = tensor_mix(m)
        plan = None
        if not m.info.vocab_only:
            options = {"window": window_tokens(m, window, sinks), "sinks": sinks, "kv_type": kv_type, "chunk": chunk}
            plan = m.plan(**{k: v for k, v in options.items() if v is not None}, **recalling)
        if check_tensors:
            _check(console, m)
            return
        if as_json:
            console.line(json.dumps(_record(m, mix, plan, show_metadata, show_tensors), ensure_ascii=False))
            return
        for line in info_lines(m, mix) + _template_lines(m) + _plan_lines(m, plan, kv_type):
            console.line(one_line(line))
        if why:
            console.line(f"cannot run  {why.message}" if m.info.n_tensors else "cannot run  vocabulary only: it has no weights")
        if show_metadata:
            _metadata(console, m)
        if show_tensors:
            _tensors(console, m)


def _vocabulary_only(path: str, error: errors.Error):
    """A file that cannot run, opened for what can be shown. If not even that: the first error."""
    if not isinstance(error, (errors.UnsupportedModel, errors.FileFormatError)):
        raise error
    try:
        return open_model(path, vocab_only=True)
    except errors.Error:
        raise error from None


def _template_lines(m) -> list[str]:
    template = m.chat_template
    if not template:
        return ["template    none: text is continued as it is"]
    sha = hashlib.sha256(template.encode("utf-8", "replace")).hexdigest()[:16]
    return [f"template    {len(template):,} characters, sha256 {sha} (--template shows it)"]


def _plan_lines(m, plan, kv_type: str) -> list[str]:
    if plan is None:
        return []
    mapped = " (mapped)" if plan.weights_mapped else ""
    parts = [
        f"weights {human_bytes(plan.weight_bytes)}{mapped if plan.weight_bytes else ''}",
        f"context {human_bytes(plan.context_bytes)} {kv_type}",
        f"work {human_bytes(plan.work_bytes)}",
        f"tokenizer {human_bytes(plan.tokenizer_bytes)}",
    ]
    lines = [
        f"device      {device_text(m.info, plan)}",
        f"context     {context_text(plan)}",
        f"memory      {' + '.join(parts)} = {human_bytes(plan.total_bytes)}, {human_bytes(plan.available_bytes)} free",
        *device_lines(plan, "gpu         "),
    ]
    if not plan.fits:
        lines.append("            does not fit: take a smaller --window or a smaller quant")
    elif not plan.weights_fit:
        lines.append("            weights do not fit beside it: they would be read from disk again and again")
    return lines


def _metadata(console, m) -> None:
    console.line()
    for key, kind, value in m.metadata_items(SHOWN):
        if isinstance(value, float):
            shown = f"{value:.7g}"
        elif isinstance(value, list):
            count = {k: n for k, _, n in m._metadata_keys()}[key]
            more = f", ... {count:,} in all" if count > len(value) else ""
            shown = "[" + ", ".join(json.dumps(v, ensure_ascii=False) for v in value) + more + "]"
        else:
            shown = json.dumps(value, ensure_ascii=False)
            shown = shown if len(shown) <= 200 else shown[:200] + f"... {len(value):,} characters"
        console.line(one_line(f"{key} = {shown}  ({kind})"))


def _tensors(console, m) -> None:
    console.line()
    for t in m.tensors():
        shape = " x ".join(map(str, t.shape))
        console.line(one_line(f"{t.name:40}  {t.type:8}  {shape:>20}  {human_bytes(t.n_bytes):>10}  at {t.offset:,}"))


def _check(console, m) -> None:
    from lmi.weights import not_finite

    bar, n = Progress(console, "checking", m.info.file_bytes, unit="MiB"), 0
    for tensor, first, count in not_finite(m, lambda done: bar.show(done, done >> 20)):
        n += 1
        row, column = divmod(first, tensor.shape[0])
        many = f"{count:,} values are" if count > 1 else "a value is"
        console.line(one_line(f"{tensor.name}: {many} not finite, first in row {row:,}, column {column:,}"))
    console.clear()
    if n:
        text = f"{n:,} of {m.info.n_tensors:,} tensors hold values that are not finite"
        raise errors.FileFormatError(text, "Download the file again; if they stay, its maker has to know")
    console.line(f"{m.info.n_tensors:,} tensors, all values finite")


def _record(m, mix, plan, show_metadata: bool, show_tensors: bool) -> dict:
    record = {**m.info.as_dict(), "path": m.path, "quant": quant_name(m, mix)}
    record["types"] = {kind: {"tensors": count, "bytes": n} for kind, count, n in mix}
    template = m.chat_template
    record["chat_template_sha256"] = hashlib.sha256(template.encode("utf-8", "replace")).hexdigest() if template else None
    if m.info.has_tokenizer:
        record["tokenizer"] = vars(m.vocabulary)
    record["plan"] = plan.as_dict() if plan else None
    if show_metadata:
        record["metadata"] = {key: value for key, _, value in m.metadata_items()}
    if show_tensors:
        record["tensors"] = [vars(t) for t in m.tensors()]
    return record
