"""`lmi eval`: the group, what its commands share, and the tables."""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager

import click

from lmi import errors
from lmi.cli.console import Interrupted, Progress
from lmi.cli.options import (
    OPENING,
    PATH,
    RECALL,
    SIZE,
    Count,
    Counts,
    Window,
    count_of,
    model_argument,
    model_options,
    open_model,
    open_text,
    output_options,
    window_tokens,
)
from lmi.cli.signals import Interrupts
from lmi.eval.settings import NAMES
from lmi.formats import duration, human_bytes, span
from lmi.machine import KV_TYPES


@click.group("eval", short_help="Compare kinds of attention: prediction, retrieval, speed.")
def eval():
    """Compare kinds of attention: prediction, retrieval, speed.

    \b
      lmi eval perplexity model.gguf book.txt --until 16k --setting all
      lmi eval passkey model.gguf --lengths 1x,4x,20x --samples 100
      lmi eval needle model.gguf book.txt --keys 4
      lmi eval speed model.gguf --depths 0,16k,1M

    \b
    Settings:                 tokens seen             at which distance
      ordinary                all                     the true one
      window                  the last L              the true one
      sinks                   the first G, last L     the true one
      limit                   all                     at most L
      lambda                  the first G, last L     at most L
      lambda+RECALL           those, and some of the others that were kept (--recall)

    lambda is what lmi does otherwise. ordinary and limit keep the whole text: their memory grows with it. L is --window, G is
    --sinks. k stands for thousands and M for millions of tokens.
    """


class Kinds(click.ParamType):
    """Names of settings, separated by commas, or "all"."""

    name = "name,..."

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        kinds = tuple(NAMES) if value == "all" else tuple(part.strip() for part in value.split(","))
        for kind in kinds:
            if kind not in NAMES:
                self.fail(f"{kind!r} is no setting. One of: {', '.join(NAMES)}, or all.", param, ctx)
        return kinds


class Lengths(click.ParamType):
    """1x,4x: times the window; or tokens: 500,16k."""

    name = "nx|n,..."

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        lengths = []
        for part in value.split(","):
            times = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)x", part.strip())
            n = float(times[1]) if times else count_of(part)
            if not n:
                self.fail(f"{part!r} is not a length such as 4x (four windows), 500 or 16k.", param, ctx)
            lengths.append(n)
        return tuple(lengths)


def lengths_in(lengths: tuple, window: int) -> list[int]:
    """In tokens: floats are multiples of the window."""
    return [n if isinstance(n, int) else round(n * window) for n in lengths]


def setting_options(default: str):
    """Which settings, and what all of them have alike; comes as `chosen`."""

    def decorate(function):
        for option in reversed(
            [
                click.option(
                    "--setting",
                    "-s",
                    "kinds",
                    type=Kinds(),
                    default=default,
                    show_default=True,
                    help="Kinds of attention, or all; see lmi eval --help.",
                ),
                click.option("--window", "-w", type=Window(), help="L, of all settings. [default: at most 4096]"),
                click.option(
                    "--sinks", type=Counts(), default=(), help="G of lambda and sinks; each makes a setting. [default: 16]"
                ),
                click.option(
                    "--kv-type", type=click.Choice(KV_TYPES), default="f16", show_default=True, help="Numbers of the context."
                ),
                click.option("--chunk", type=click.IntRange(1), help="Tokens read at once. [default: 512]"),
                click.option(
                    "--recall",
                    type=RECALL,
                    multiple=True,
                    help="Also lambda that recalls: blocks:NxB, surprise:M or topk:K. Repeatable: each makes a setting.",
                ),
                click.option("--recall-budget", type=SIZE, help="Most that blocks and topk may keep. [default: 1G]"),
                click.option("--recall-layer", type=click.IntRange(0), help="First layer that recalls. [default: 0; topk: 4]"),
            ]
        ):
            function = option(function)
        return function

    return decorate


def result_options(function):
    """Where results go beside the table."""
    for option in (
        click.option("--force", is_flag=True, help="Replace files that exist."),
        click.option("--plot", type=PATH, metavar="FILE", help="Also as a picture: .png, .svg or .pdf."),
        click.option("--json", "json_file", type=PATH, metavar="FILE", help="Also as one JSON object."),
    ):
        function = option(function)
    return function


def settings_of(m, *, kinds, window, sinks, **options):
    """What `setting_options` chose, for a model."""
    from lmi.eval.settings import make_settings

    options = {k: v for k, v in options.items() if v is not None}
    return make_settings(m, kinds, window=window_tokens(m, window, sinks[0] if sinks else None), sinks=sinks, **options)


def _split(rest: dict) -> tuple[dict, dict]:
    """What setting_options gave, and what model_options did."""
    return {k: v for k, v in rest.items() if k not in OPENING}, {k: rest[k] for k in OPENING}


def _alike(chosen: dict) -> dict:
    """What all settings have alike."""
    return {k: chosen[k] for k in ("kv_type", "chunk")}


class Run:
    """A model, opened, and what happens to results when a signal comes: what is ready is kept."""

    def __init__(self, console, stop, scope):
        self.console, self.stop = console, stop
        self._scope, self._gentle = scope, None
        self.complete = True
        self.model = None
        self.bar = Progress(console, "", None)

    def open(self, path, opening) -> None:
        self.model = self._scope.enter_context(open_model(path, self.console, **opening))

    def opened(self, session) -> None:
        """From now on a signal cancels this session."""
        self._settle()
        self._gentle = self.stop.gently(session)
        self._gentle.__enter__()

    def _settle(self) -> None:
        if self._gentle:
            gentle, self._gentle = self._gentle, None
            gentle.__exit__(None, None, None)

    def started(self, label: str, total: int | None = None) -> None:
        self.bar = Progress(self.console, label, total)

    @contextmanager
    def measuring(self):
        """Within, Ctrl-C ends the measuring and not the program."""
        try:
            yield
        except (errors.Cancelled, Interrupted):
            self.complete = False
        finally:
            self._settle()
            self.console.clear()


@contextmanager
def run(console, json_file, plot, force, path, opening):
    """Checks what can be checked, opens the model, and in the end exits as a signal demands."""
    from lmi.eval import record
    from lmi.eval.plot import require_matplotlib

    for file in filter(None, (json_file, plot)):
        record.require_writable(file, force=force)
    if plot:
        require_matplotlib(plot)
    with Interrupts() as stop, ExitStack() as scope:
        r = Run(console, stop, scope)
        r.open(path, opening)
        yield r
        if not r.complete:
            raise Interrupted(stop.number or 2)


def keep(r, evaluation: str, arguments: dict, results: list[dict], json_file, plot) -> None:
    """Writes the files that were asked for."""
    from lmi.eval import record

    if not r.complete:
        r.console.warn("stopped: the results are of what was ready")
    if not results:
        return
    whole = record.record(r.model, evaluation, arguments, results, complete=r.complete)
    if json_file:
        record.write_json(json_file, whole)
        r.console.note(f"wrote {json_file}")
    if plot:
        from lmi.eval.plot import write_plot

        write_plot(plot, whole)
        r.console.note(f"wrote {plot}")


def table(console, rows: list[list[str]]) -> None:
    """Columns as wide as they need: the first to the left, numbers to the right. The first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        console.line("  ".join(cells).rstrip())


def number(value, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


# ---- perplexity ---------------------------------------------------------------------------------------------------------


@eval.command(short_help="How well the next token is predicted, by position.")
@model_argument
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=PATH)
@click.option("--until", type=Count(2), help="Read so many tokens, the files over and over. [default: the files, once]")
@click.option("--last", type=Counts(), default="4096", show_default=True, help="Also over the last N tokens.")
@click.option("--every", type=Count(1), help="Tokens of a point of the curve. [default: a 64th of --until]")
@click.option(
    "--errors", "on_error", type=click.Choice(["strict", "replace"]), default="strict", help="For bytes that are not UTF-8."
)
@setting_options("lambda")
@result_options
@model_options
@output_options
def perplexity(model, files, console, until, last, every, on_error, json_file, plot, force, **rest):
    """How well the next token is predicted, by position.

    \b
      lmi eval perplexity model.gguf book.txt --until 16k --setting all
      lmi eval perplexity model.gguf book.txt --until 16k --sinks 0,1,2,10,100,1000
      lmi eval perplexity model.gguf books/*.txt --until 10M --json flat.json

    Every setting reads the same tokens: the files one after the other, with an empty line between them, and BOS before the
    first where the model wants it. A file is read as a stream. NLL is the mean of minus the natural logarithm of the
    probability of the true token. With lambda it should not rise with the position.
    """
    from lmi.eval.perplexity import block_of, measure
    from lmi.eval.settings import GROWING
    from lmi.perplexity import MOST_LAST

    if max(last) > MOST_LAST:
        raise click.UsageError(f"--last takes at most {MOST_LAST:,} tokens.")
    if "-" in files:
        raise click.UsageError("Standard input can be read once only, and every setting reads the text: name a file.")
    chosen, opening = _split(rest)
    for kind in GROWING:
        if kind in chosen["kinds"] and not until:
            raise click.UsageError(f"Setting {kind} keeps the whole text in memory: say how much of it with --until.")
    with run(console, json_file, plot, force, model, opening) as r:
        for file in files:
            with open_text(file, on_error, r.stop) as text:
                text.check()
        settings = settings_of(r.model, **chosen)
        results = []
        with r.measuring():
            measure(
                r.model,
                [lambda file=file: _blocks(file, on_error, r.stop) for file in files],
                settings,
                until=until,
                last=tuple(n for n in last if n),
                every=every or (block_of(until) if until else None),
                started=lambda setting: r.started(setting.name, until),
                opened=r.opened,
                progress=lambda position: r.bar.show(position, position),
                done=results.append,
            )
        if results:
            _perplexity_table(console, results)
        arguments = {"texts": [str(f) for f in files], "until": until, **_alike(chosen)}
        keep(r, "perplexity", arguments, [result.as_dict() for result in results], json_file, plot)


def _blocks(file, on_error, stop):
    with open_text(file, on_error, stop) as text:
        yield from text.blocks()


def _perplexity_table(console, results) -> None:
    first = results[0].report
    rows = [["NLL", *(r.setting.name for r in results)]]

    def line(name, of):
        rows.append([name, *(number(of(r), 4) for r in results)])

    for i, (begin, end, _) in enumerate(first.buckets):
        line(f"positions {span(begin, end)}", lambda r, i=i: r.report.buckets[i][2].mean)
    for i, (n, total) in enumerate(first.last):
        if total.n == n:
            line(f"last {n:,}", lambda r, i=i: r.report.last[i][1].mean)
    line("all", lambda r: r.report.all.mean)
    line("all ±", lambda r: r.report.all.error)
    rows.append(["perplexity", *(f"{r.report.all.perplexity:,.2f}" for r in results)])
    for i, name in enumerate(("tok/s, first tenth", "tok/s, last tenth")):
        rows.append([name, *(number(r.rates[i] if r.rates else None) for r in results)])
    rows.append(["context", *(human_bytes(r.report.plan.keys_and_values_bytes) for r in results)])
    if any(r.resident_early is not None for r in results):
        early = (human_bytes(r.resident_early) if r.resident_early else "–" for r in results)
        rows.append(["RSS after 20,000", *early])
    rows.append(["RSS at the end", *(human_bytes(r.resident_end) for r in results)])
    table(console, rows)
    console.note(f"{first.all.n + 1:,} tokens, in {duration(sum(r.report.seconds for r in results))}")


# ---- passkey, needle ----------------------------------------------------------------------------------------------------


def retrieval_options(function):
    """Lengths and samples of passkey and needle."""
    for option in (
        click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the numbers that are hidden."),
        click.option("--depths", "bins", type=click.IntRange(1, 100), help="Also by depth, in so many ranges."),
        click.option("--samples", type=Counts(1), default="20", show_default=True, help="Prompts of each length, or of each."),
        click.option(
            "--lengths",
            type=Lengths(),
            default="0.5x,1x,2x,4x,20x",
            show_default=True,
            help="Of prompts: times the window, or tokens.",
        ),
    ):
        function = option(function)
    return function


@eval.command(short_help="A number hidden in filler: found again?")
@model_argument
@retrieval_options
@setting_options("lambda")
@result_options
@model_options
@output_options
def passkey(model, console, lengths, samples, bins, seed, json_file, plot, force, **rest):
    """Whether a number hidden in filler is found again, by length and depth.

    \b
      lmi eval passkey model.gguf --lengths 1x,4x,20x --samples 100
      lmi eval passkey model.gguf --lengths 1x,200x,2000x --samples 50,20,5 --depths 5

    Prompt, filler and count are those of the LM-Infinite paper: a number below ten million stands between sentences that
    say nothing, the most likely tokens after the question are written, the first number in them is compared. Prompts have
    exactly the length asked for, depths are evenly spread. The range is Wilson's interval of 95 %. "in window" is the share
    of prompts whose number was still in the window at the question: what is seen, and no more, can be found.
    """
    from lmi.eval import passkey as evaluation

    chosen, opening = _split(rest)
    with run(console, json_file, plot, force, model, opening) as r:
        settings = settings_of(r.model, **chosen)
        counts = _with_samples(lengths_in(lengths, settings[0].options["window"]), samples)

        def measure(**watching):
            evaluation.measure(r.model, settings, counts, seed=seed, **watching)

        _retrieve(r, "passkey", measure, counts, bins, {"seed": seed}, chosen, json_file, plot)


@eval.command(short_help="A number hidden in a book, or several: found again?")
@model_argument
@click.argument("file", metavar="FILE", type=PATH)
@click.option("--keys", type=click.IntRange(1), default=1, show_default=True, help="Numbers that are hidden; one is asked for.")
@click.option(
    "--errors", "on_error", type=click.Choice(["strict", "replace"]), default="strict", help="For bytes that are not UTF-8."
)
@retrieval_options
@setting_options("lambda")
@result_options
@model_options
@output_options
def needle(model, file, console, keys, on_error, lengths, samples, bins, seed, json_file, plot, force, **rest):
    """Whether a number hidden in a book is found again, or one of several.

    \b
      lmi eval needle model.gguf book.txt --lengths 1x,4x --samples 50
      lmi eval needle model.gguf book.txt --keys 4 --setting lambda,ordinary

    As lmi eval passkey, with sentences of FILE (- is standard input) instead of filler. With --keys there are several
    numbers, each with a name, and that of one name is asked for: the depth is that of this one, the others are anywhere.
    """
    from lmi.eval import needle as evaluation

    chosen, opening = _split(rest)
    with run(console, json_file, plot, force, model, opening) as r:
        settings = settings_of(r.model, **chosen)
        counts = _with_samples(lengths_in(lengths, settings[0].options["window"]), samples)
        with open_text(file, on_error, r.stop) as text:
            haystack = evaluation.haystack_of(r.model, text.blocks(), max(n for n, _ in counts), text.name)

        def measure(**watching):
            evaluation.measure(r.model, settings, counts, haystack, keys=keys, seed=seed, **watching)

        arguments = {"text": file, "keys": keys, "seed": seed}
        _retrieve(r, "needle", measure, counts, bins, arguments, chosen, json_file, plot)


def _with_samples(lengths: list[int], samples: tuple[int, ...]) -> list[tuple[int, int]]:
    if len(samples) not in (1, len(lengths)):
        raise click.UsageError(f"--samples has {len(samples)} numbers for {len(lengths)} lengths: give one, or one for each.")
    return list(zip(lengths, samples * len(lengths)))


def _retrieve(r, evaluation: str, measure, counts, bins, arguments: dict, chosen: dict, json_file, plot) -> None:
    scores, samples = [], dict(counts)

    def started(setting, length):
        r.started(f"{setting.name}, {length:,} tokens", samples[length])

    with r.measuring():
        measure(
            started=started, opened=r.opened, progress=lambda n_done, n_read: r.bar.show(n_done, n_read), done=scores.append
        )
    if scores:
        _retrieval_table(r.console, scores, bins)
    arguments = {**arguments, **_alike(chosen)}
    keep(r, evaluation, arguments, [score.as_dict(bins or 0) for score in scores], json_file, plot)


def _retrieval_table(console, scores, bins) -> None:
    from lmi.eval.retrieval import wilson

    ranges = [f"{100 * i // bins}–{100 * (i + 1) // bins} %" for i in range(bins)] if bins else []
    rows = [["setting", "tokens", "right", "accuracy", "95 %", "in window", *ranges]]
    for s in scores:
        low, high = wilson(s.right, len(s.samples))
        depths = [f"{right}/{n}" if n else "–" for _, _, n, right in (s.by_depth(bins) if bins else [])]
        share = f"{s.accuracy:.1%}", f"{low:.0%}–{high:.0%}", f"{s.in_window:.0%}"
        rows.append([s.setting.name, f"{s.length:,}", f"{s.right}/{len(s.samples)}", *share, *depths])
    table(console, rows)


# ---- speed --------------------------------------------------------------------------------------------------------------


@eval.command(short_help="Speed and memory by depth, beside ordinary attention.")
@model_argument
@click.option("--depths", type=Counts(), default="0,1k,4k,16k,1M", show_default=True, help="Tokens already read.")
@click.option("--n-prompt", "-p", type=Count(), default=512, show_default=True, help="Tokens read at once; 0: no such test.")
@click.option("--n-gen", "-n", type=Count(), default=64, show_default=True, help="Tokens one by one; 0: no such test.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=3, show_default=True, help="The settings take turns in each.")
@click.option(
    "--ordinary-most", type=Count(), default="16k", show_default=True, help="Deepest for settings that keep the whole text."
)
@setting_options("lambda,ordinary")
@result_options
@model_options
@output_options
def speed(model, console, depths, n_prompt, n_gen, rounds, ordinary_most, json_file, plot, force, **rest):
    """Reading and writing speed and memory by depth, beside ordinary attention.

    \b
      lmi eval speed model.gguf
      lmi eval speed model.gguf --depths 0,4k,32k,1M --ordinary-most 32k

    Settings take turns in the same run; figures are medians over the rounds, in tokens a second. The ratio is that of the
    first setting over the last. lambda reaches a depth by filling its buffer once; ordinary has to read everything, in memory
    that grows, so that it is left out beyond --ordinary-most. Memory is what the session holds: keys, values and work space.
    """
    from lmi.eval.speed import measure

    if not n_prompt and not n_gen:
        raise click.UsageError("Nothing to measure: --n-prompt and --n-gen are both 0.")
    chosen, opening = _split(rest)
    with run(console, json_file, plot, force, model, opening) as r:
        settings = settings_of(r.model, **chosen)
        rows = []
        with r.measuring():
            measure(
                r.model,
                settings,
                depths,
                n_read=n_prompt,
                n_write=n_gen,
                rounds=rounds,
                ordinary_most=ordinary_most,
                opened=r.opened,
                progress=console.moving,
                done=rows.append,
            )
        if rows:
            _speed_table(console, settings, rows)
        arguments = {"n_prompt": n_prompt, "n_gen": n_gen, "rounds": rounds, **_alike(chosen)}
        keep(r, "speed", arguments, [row.as_dict() for row in rows], json_file, plot)


def _speed_table(console, settings, rows) -> None:
    columns = (("writes", "write_median"), ("reads", "read_median"), ("memory", "session_bytes"))
    head = ["depth"]
    for title, _ in columns:
        head += [f"{title}: {setting.name}" for setting in settings] + (["ratio"] if len(settings) > 1 else [])
    lines = [head]
    for row in rows:
        line = [f"{row.depth:,}"]
        sides = [next((s for s in row.sides if s.setting.name == setting.name), None) for setting in settings]
        for title, key in columns:
            values = [getattr(side, key) if side else None for side in sides]
            show = (lambda v: "–" if v is None else human_bytes(v)) if title == "memory" else number
            line += [show(v) for v in values]
            if len(settings) > 1:
                whole = values[0] and values[-1]
                line.append(f"{values[0] / values[-1]:.2f}" if whole else "–")
        lines.append(line)
    table(console, lines)
    for row in rows:
        for name, why in row.left_out:
            console.note(f"{name} at {row.depth:,}: left out: {why}")
