"""Pictures of what an evaluation wrote. The only file that imports matplotlib (`pip install 'lmi[plot]'`)."""

from __future__ import annotations

import os

from lmi.errors import InvalidArgument

FORMATS = ("png", "svg", "pdf")
SIZE = (7.0, 4.2)  # inches


def require_matplotlib(path: str) -> None:
    """Raises InvalidArgument if `path` has no known ending or matplotlib is missing: before hours of work."""
    if path.rpartition(".")[2].lower() not in FORMATS:
        raise InvalidArgument(f"cannot plot to {path}: its name says no known format", f"End it with: .{', .'.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InvalidArgument(
            "plots need matplotlib, which is not installed", "pip install 'lmi[plot]', or leave out --plot"
        ) from None


def write_plot(path: str, record: dict) -> None:
    """A picture of a record as `lmi.eval.record.record` makes it. Raises OutputError."""
    import io

    import matplotlib
    from matplotlib.figure import Figure

    from lmi.eval.record import write

    draw = {"perplexity": _perplexity, "passkey": _retrieval, "needle": _retrieval, "speed": _speed}[record["evaluation"]]
    with matplotlib.rc_context({"svg.hashsalt": "lmi", "svg.fonttype": "none"}):  # the same record gives the same file
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure, record)
        data, form = io.BytesIO(), os.path.splitext(path)[1][1:].lower()
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}[form]
        figure.savefig(data, format=form, dpi=150, metadata=dates)
    write(path, data.getvalue())


def _title(record: dict) -> str:
    model = record["model"]
    return f"{model['name']} {model['weights']}, trained on {model['trained_context']:,} tokens"


def _perplexity(figure, record: dict) -> None:
    axes = figure.subplots()
    for result in record["results"]:
        rows = [r for r in result["curve"] or result["buckets"] if r["nll"] is not None]
        places = [(r["begin"] + r["end"]) / 2 for r in rows]
        wide = result["kind"] == "lambda"  # and behind: what lies on it is seen
        axes.plot(places, [r["nll"] for r in rows], label=result["setting"], linewidth=3 if wide else 1.2, zorder=2 - wide)
    _mark_trained(axes, record)
    axes.set(ylabel="NLL (nats per token)", title=_title(record))
    _tokens_along(axes, "position (tokens)")
    axes.legend()


def _retrieval(figure, record: dict) -> None:
    axes = figure.subplots()
    lines = {}
    for result in record["results"]:
        lines.setdefault(result["setting"], []).append(result)
    for name, rows in lines.items():
        rows.sort(key=lambda r: r["length"])
        lengths, shares = [r["length"] for r in rows], [r["accuracy"] for r in rows]
        errors = [[r["accuracy"] - r["low"] for r in rows], [r["high"] - r["accuracy"] for r in rows]]
        line = axes.errorbar(lengths, shares, yerr=errors, label=name, marker="o", capsize=3, linewidth=1.4)
        color = line.lines[0].get_color()
        axes.plot(
            lengths, [r["in_window"] for r in rows], color=color, linestyle=":", linewidth=1, label=f"{name}: in the window"
        )
    _mark_trained(axes, record)
    axes.set(ylabel="share of right answers", title=_title(record), ylim=(-0.03, 1.03))
    _tokens_along(axes, "length (tokens)")
    axes.legend()


def _mark_trained(axes, record: dict) -> None:
    axes.axvline(record["model"]["trained_context"], color="grey", linestyle="--", linewidth=0.8)


def _tokens_along(axes, label: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(xlabel=label, xscale="log")
    low, high = axes.get_xlim()
    few = high / low < 300
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.xaxis.set_major_formatter(lambda n, _: f"{n / 1e6:,g}M" if n >= 1e6 else f"{n / 1000:,g}k" if n >= 1000 else f"{n:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _speed(figure, record: dict) -> None:
    figure.set_size_inches(SIZE[0] * 1.6, SIZE[1])
    figure.suptitle(_title(record))
    lines = {}
    for row in record["results"]:
        for side in row["settings"]:
            lines.setdefault(side["setting"], []).append((row["depth"], side))
    panels = (("write", "writing (tokens a second)", 1), ("read", "reading (tokens a second)", 1))
    panels += (("session_bytes", "memory of the session (MiB)", 1 << 20),)
    for axes, (key, label, unit) in zip(figure.subplots(1, 3), panels):
        for name, sides in lines.items():
            points = [(max(depth, 1), side[key] / unit) for depth, side in sides if side[key] is not None]
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, marker="o", linewidth=1.4)
        axes.set(ylabel=label)
        axes.set_ylim(bottom=0)
        _tokens_along(axes, "depth (tokens)")
    axes.legend()
