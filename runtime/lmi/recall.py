"""What becomes of the middle of a text: the option `recall`, from words to numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmi.errors import InvalidArgument

KINDS = ("none", "topk", "surprise", "blocks")  # by value of lmi_recall
_FORM = re.compile(r"(topk|surprise|blocks)(?::(\d{1,12})(?:x(\d{1,12}))?)?")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
MOST_BYTES = 1 << 60  # more than any machine has
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


@dataclass(frozen=True)
class Recall:
    """`kind`: "topk", "surprise" or "blocks"; `n`: K, M or N; `block`: B. 0: the library's default."""

    kind: str
    n: int = 0
    block: int = 0

    def __str__(self) -> str:
        if not self.n:
            return self.kind
        return f"{self.kind}:{self.n}x{self.block}" if self.block else f"{self.kind}:{self.n}"


def recall_of(value) -> Recall | None:
    """ "topk:5", "surprise:256", "blocks:8x32" (or a kind alone), None and "none": nothing is recalled."""
    if value is None or value == "none" or isinstance(value, Recall):
        return None if value == "none" else value
    found = _FORM.fullmatch(value) if isinstance(value, str) else None
    if not found or (found[3] and found[1] != "blocks"):
        raise InvalidArgument(f"recall {value!r} is not known", "Use blocks:8x32, surprise:256 or topk:5")
    if found[2] and (int(found[2]) == 0 or found[3] == "0"):
        raise InvalidArgument(f"recall {value!r} recalls nothing", "Leave it out, or use numbers from 1")
    return Recall(found[1], int(found[2] or 0), int(found[3] or 0))


def size_of(value) -> int:
    """Bytes: a whole number, or "512M", "1.5G" (powers of 1024)."""
    if isinstance(value, int) and not isinstance(value, bool):
        n = value
    else:
        found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        n = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if not 0 < n <= MOST_BYTES:
        raise InvalidArgument(f"{value!r} is not a size", "Use bytes, or a number with K, M, G or T: 512M")
    return n


def fill(o, ffi, recall: Recall | None, *, budget, layer, distance, decay, folder):
    """Into an lmi_recall_options. Returns what must live as long as it does."""
    from lmi._native import path_bytes
    from lmi.plan import integer, real

    if recall is None:
        for name, value in (("budget", budget), ("layer", layer), ("distance", distance), ("decay", decay), ("folder", folder)):
            if value is not None:
                raise InvalidArgument(f"recall_{name} means nothing without recall", "Give recall, too: blocks:8x32")
        return None
    for name, value, kind in (("budget", budget, "surprise"), ("decay", decay, "blocks"), ("decay", decay, "topk")):
        if value is not None and recall.kind == kind:
            raise InvalidArgument(f"recall_{name} means nothing for {kind}", "Leave it out")
    o.kind, o.n, o.block = KINDS.index(recall.kind), recall.n, recall.block
    if budget is not None:
        o.budget = size_of(budget)
    if layer is not None:
        o.layer = integer(layer, "recall_layer", 0, 2**31 - 1)
    if distance is not None:
        o.distance = integer(distance, "recall_distance", 1)
    if decay is not None:
        o.decay = real(decay, "recall_decay", 1e-9, 1.0)
    name = None if folder is None else ffi.new("char[]", path_bytes(folder))
    o.folder = ffi.NULL if name is None else name
    return name
