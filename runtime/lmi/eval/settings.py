"""Kinds of attention by name, as options of a session.

                  which tokens are seen             at which distance
  ordinary        all                               the true one
  window          the last L                        the true one
  sinks           the first G and the last L        the true one
  limit           all                               at most L
  lambda          the first G and the last L        at most L

`lambda` is LM-Infinite, the others what it is compared with (arXiv 2308.16137, figure 5). `ordinary` and `limit` keep the whole
text, so their memory grows with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lmi.errors import InvalidArgument, OutOfMemory, UnsupportedModel
from lmi.formats import human_bytes
from lmi.recall import recall_of

NAMES = ("ordinary", "window", "sinks", "limit", "lambda")
GROWING = ("ordinary", "limit")  # keep every token


@dataclass(frozen=True)
class Setting:
    """`kind`: one of NAMES; `name`: what tables call it; `options`: for `Model.session`."""

    kind: str
    name: str
    options: dict

    def for_length(self, length: int) -> Setting:
        """The same for a text of `length` tokens; only those that keep the whole text differ."""
        if self.kind == "ordinary":
            return replace(self, options={**self.options, "window": length})
        if self.kind == "limit":
            return replace(self, options={**self.options, "sinks": length})
        return self

    def as_dict(self) -> dict:
        return {"setting": self.name, "kind": self.kind, "options": dict(self.options)}


def make_settings(
    model, kinds, *, window=None, sinks: tuple[int, ...] = (), recall=(), recall_budget=None, recall_layer=None, **options
) -> list[Setting]:
    """The settings of these kinds, in their order. All have the same L: `window`, or the library's choice. `sinks`: one or more
    counts for the kinds that have some; more than one makes a setting of each. `recall`: for each a `lambda` that recalls so,
    with `recall_budget` and `recall_layer` if given. `options`: others, for every session."""
    plan = model.plan(window=window, sinks=sinks[0] if len(sinks) == 1 else None, placement="ceiling", **options)
    counts = sinks or (plan.sinks,)
    made = []
    for kind in kinds:
        if kind not in NAMES:
            raise InvalidArgument(f"setting {kind!r} is unknown", f"One of: {', '.join(NAMES)}")
        if kind in ("lambda", "sinks"):
            placement = "ceiling" if kind == "lambda" else "true"
            _require_placement(model, kind, placement)
            for n in counts:
                name = kind if len(counts) == 1 else f"{kind} G={n}"
                made.append(Setting(kind, name, {**options, "window": plan.window, "sinks": n, "placement": placement}))
        else:  # `ordinary` and `limit` get their length later
            made.append(Setting(kind, kind, {**options, "window": plan.window, "sinks": 0, "placement": "ceiling"}))
    for spec in map(recall_of, recall):
        given = {"recall_layer": recall_layer, "recall_budget": None if spec.kind == "surprise" else recall_budget}
        given = {k: v for k, v in given.items() if v is not None}
        for n in counts:
            name = f"lambda+{spec}" if len(counts) == 1 else f"lambda+{spec} G={n}"
            kept = {"window": plan.window, "sinks": n, "placement": "ceiling", "recall": str(spec), **given}
            made.append(Setting("lambda", name, {**options, **kept}))
    return made


def _require_placement(model, kind: str, placement: str) -> None:
    try:
        model.plan(placement=placement)
    except UnsupportedModel as e:
        others = ",".join(k for k in NAMES if k != kind)
        raise UnsupportedModel(f"setting {kind}: {e.message}", f"Leave it out: --setting {others}") from None


def require_room(model, setting: Setting, length: int, **options) -> None:
    """Raises OutOfMemory if the setting cannot hold a text of `length` tokens."""
    plan = model.plan(**{**setting.for_length(length).options, **options})
    if plan.fits:
        return
    if plan.fits_system:
        needed, free, where = plan.device_needed_bytes, plan.device_available_bytes, " on the GPU"
    else:
        needed, free, where = plan.needed_bytes, plan.available_bytes, " beside the weights"
    keeps = f"keeps all {length:,} tokens: it " if setting.kind in GROWING else ""
    text = f"setting {setting.name} {keeps}needs {human_bytes(needed)}{where}, {human_bytes(free)} free"
    remedy = "Shorter texts, or leave this setting out" if keeps else "Smaller window: --window; or a smaller quant"
    raise OutOfMemory(text, remedy)
