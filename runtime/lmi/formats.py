"""Numbers as people read them: 4.7 GiB, 58:12, 412,807."""

from __future__ import annotations


def human_bytes(n: float) -> str:
    """1610612736 -> "1.5 GiB". At most one decimal, none from 100 up."""
    value, unit = float(n), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if abs(value) < 1023.95:
            break
        value, unit = value / 1024, larger
    if unit == "B" or abs(value) >= 99.95:
        return f"{value:.0f} {unit}"
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def human_count(n: float) -> str:
    """8030261248 -> "8.0 B" parameters: 260 K, 5.8 M, 8.0 B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= size * 0.9995:
            value = n / size
            return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:.1f} {unit}"
    return f"{n:.0f}"


def duration(seconds: float) -> str:
    """24.93 -> "24.9 s", 3492 -> "58:12", 7384 -> "2:03:04"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 0.95 else f"{seconds * 1000:.0f} ms"
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rate(count: float, seconds: float) -> str:
    """Tokens a second: three figures."""
    if seconds <= 0:
        return "–"
    value = count / seconds
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def span(begin: int, end: int) -> str:
    """[0, 16) -> "0–15": the first and the last of a half-open range."""
    return f"{begin:,}–{end - 1:,}" if end - begin > 1 else f"{begin:,}"


_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "?")


def one_line(text: str) -> str:
    """Names and texts out of files may hold anything: what comes out of here is one line that moves no terminal."""
    return text.translate(_CONTROLS)
