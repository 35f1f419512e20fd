"""What a session will hold, known before it is opened, and what it can see once it runs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from lmi._native import check, native, text_of
from lmi.errors import InvalidArgument, OutOfMemory
from lmi.formats import human_bytes, span
from lmi.machine import KV_TYPES, PLACEMENTS, code_of
from lmi.recall import fill, recall_of

MAX_INT64, MAX_INT32 = 2**63 - 1, 2**31 - 1
MOST_DRAFT = 7  # tokens guessed ahead
CEILING_SINKS = 100  # more sinks than this at one distance blur each other (LM-Infinite, table 4)


@dataclass(frozen=True)
class Plan:
    """Sizes of a session. Tokens: `window` (L), `sinks` (G), `chunk`, `rollback`, `ring_slots` (per full-attention layer).
    Bytes: `weight_bytes` that the CPU reads for tokens, `context_bytes` (keys and values of its layers: allocated once, never
    grows), `work_bytes` (activations, logits, scratch), `tokenizer_bytes`, their sum `total_bytes`, and `available_bytes` that
    the system can give now. `weights_mapped`: weights are pages of the file, which the system can drop and read again.

    What may be kept of the middle of the text: `recall_tokens` tokens in `recall_bytes`, of which `recall_file_bytes` lie in a
    file and the rest is part of `context_bytes` (pages are taken as it fills); a token sees at most `recall_seen` of them (of
    `topk`: each query head).

    On the GPU: `device_layers` of the model, the last ones (0: none, and the rest is 0), `device_weight_bytes`,
    `device_context_bytes`, `device_work_bytes`; `device_needed_bytes` of them are still to be found there, where
    `device_available_bytes` are free. `device_note`: why the GPU does not run all layers, or "". Before a model's first session
    these are what it would decide."""

    window: int
    sinks: int
    chunk: int
    rollback: int
    ring_slots: int
    weight_bytes: int
    context_bytes: int
    recall_bytes: int
    recall_file_bytes: int
    recall_tokens: int
    recall_seen: int
    work_bytes: int
    tokenizer_bytes: int
    total_bytes: int
    available_bytes: int
    weights_mapped: bool
    device_layers: int
    device_weight_bytes: int
    device_context_bytes: int
    device_work_bytes: int
    device_needed_bytes: int
    device_available_bytes: int
    device_note: str

    @property
    def needed_bytes(self) -> int:
        """What the system must still find: context and work space. Mapped weights can be dropped and read again, and weights
        that were read into memory are there already."""
        return self.context_bytes + self.work_bytes

    @property
    def keys_and_values_bytes(self) -> int:
        """The context, wherever it lies."""
        return self.context_bytes + self.device_context_bytes

    @property
    def device_total_bytes(self) -> int:
        return self.device_weight_bytes + self.device_context_bytes + self.device_work_bytes

    @property
    def fits_system(self) -> bool:
        return self.needed_bytes <= self.available_bytes

    @property
    def fits(self) -> bool:
        """The system's memory and the GPU's have room."""
        return self.fits_system and self.device_needed_bytes <= self.device_available_bytes

    @property
    def weights_fit(self) -> bool:
        """False: mapped weights do not fit beside the rest, so that they would be read from disk again and again."""
        return not self.weights_mapped or self.needed_bytes + self.weight_bytes <= self.available_bytes

    @property
    def reach(self) -> int:
        """Tokens that a text may have before anything is forgotten: sinks + window."""
        return self.sinks + self.window

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class View:
    """What the next token can attend to: tokens [0, sinks_end) and [window_begin, position). `forgotten`: tokens that were
    read and are no longer visible in full-attention layers, nor kept; `kept`: what can be recalled of those in between;
    `dropped`: of the forgotten, what was kept until there was no more room."""

    sinks_end: int
    window_begin: int
    position: int
    forgotten: int
    kept: int = 0
    dropped: int = 0

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Visible positions as half-open ranges: one while all is visible, else two."""
        if not self.position:
            return []
        gap = self.forgotten + self.kept
        if not gap or not self.sinks_end:
            return [(0 if not gap else self.window_begin, self.position)]
        return [(0, self.sinks_end), (self.window_begin, self.position)]

    def __str__(self) -> str:
        if not self.position:
            return "in view: nothing was read"
        if not self.forgotten and not self.kept:
            return f"in view: all {self.position:,} tokens"
        text = f"in view: tokens {' and '.join(span(*r) for r in self.ranges)}"
        text += f"; {self.kept:,} kept to be recalled" if self.kept else ""
        if self.forgotten:
            text += f"; {self.forgotten:,} read and no longer visible"
            text += f" ({self.dropped:,} dropped for room)" if self.dropped else ""
        return text

    def as_dict(self) -> dict:
        values = {"in_view": [list(r) for r in self.ranges], "position": self.position, "forgotten": self.forgotten}
        return {**values, "kept": self.kept, "dropped": self.dropped} if self.kept or self.dropped else values


def integer(value, what: str, low: int, high: int = MAX_INT64) -> int:
    """A whole number in range, or InvalidArgument. Booleans and floats with a fraction are refused."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidArgument(f"{what} must be a whole number, not {value!r}")
    number = value.__index__()
    if not low <= number <= high:
        raise InvalidArgument(f"{what} must be from {low:,} to {high:,}, not {number:,}")
    return number


def real(value, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in range, or InvalidArgument."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidArgument(f"{what} must be a finite number, not {value!r}")
    if not low <= value <= high:
        raise InvalidArgument(f"{what} must be from {low:g} to {high:g}, not {value:g}")
    return float(value)


def session_options(
    *,
    window=None,
    sinks=None,
    kv_type="f16",
    placement=None,
    chunk=None,
    rollback=None,
    all_logits=False,
    importance=False,
    draft=0,
    recall=None,
    recall_budget=None,
    recall_layer=None,
    recall_distance=None,
    recall_decay=None,
    recall_folder=None,
    all_hidden=False,
    steer_rank=0,
):
    """A filled `lmi_session_options`, and what must live as long as it is used. None means the library's default; `placement`
    None: contiguous for many sinks."""
    ffi, lib = native()
    o = ffi.new("lmi_session_options *")
    lib.lmi_session_options_default(o)
    if window is not None:
        o.window = integer(window, "window", 1)
    if sinks is not None:
        o.sinks = integer(sinks, "sinks", 0)
    if placement is None:
        placement = "contiguous" if sinks is not None and sinks > CEILING_SINKS else "ceiling"
    o.kv_type = code_of(kv_type, KV_TYPES, "kv_type")
    o.placement = code_of(placement, PLACEMENTS, "placement")
    if chunk is not None:
        o.chunk = integer(chunk, "chunk", 1)
    if rollback is not None:
        o.rollback = integer(rollback, "rollback", 1)
    o.all_logits = 1 if all_logits else 0
    o.importance = 1 if importance else 0
    o.draft = integer(draft, "draft", 0, MOST_DRAFT)
    o.all_hidden = 1 if all_hidden else 0
    o.steer_rank = integer(steer_rank, "steer_rank", 0, MAX_INT32)
    kept = fill(
        o.recall,
        ffi,
        recall_of(recall),
        budget=recall_budget,
        layer=recall_layer,
        distance=recall_distance,
        decay=recall_decay,
        folder=recall_folder,
    )
    return o, kept


def plan_from(c) -> Plan:
    """A `lmi_plan` as a Plan."""
    values = {name: getattr(c, name) for name in Plan.__dataclass_fields__}
    values["weights_mapped"], values["device_note"] = bool(values["weights_mapped"]), text_of(c.device_note)
    return Plan(**values)


def make_plan(model_pointer, **options) -> Plan:
    ffi, lib = native()
    c, error = ffi.new("lmi_plan *"), ffi.new("lmi_error *")
    o, _kept = session_options(**options)
    check(lib.lmi_session_plan(model_pointer, o, c, error), error)
    return plan_from(c)


def require_memory(model_pointer, plan: Plan, **options) -> None:
    """Raises OutOfMemory if context and work space are more than the system can give, with a smaller window that would fit.
    Of the GPU the library itself says so."""
    if plan.fits_system:
        return
    text = f"needs {human_bytes(plan.needed_bytes)} beside the weights, {human_bytes(plan.available_bytes)} free"
    if 2 * (plan.recall_bytes - plan.recall_file_bytes) > plan.needed_bytes:
        on_disk = "" if plan.device_layers else ", or --recall-folder to keep what is recalled on disk"
        raise OutOfMemory(text, f"Use a smaller --recall-budget{on_disk}")
    window, saving = plan.window, 0
    while window > 256:  # halve until it fits; 256 is the least that is of use
        window = max(256, 1 << (window - 1).bit_length() - 1)
        smaller = make_plan(model_pointer, **{**options, "window": window})
        saving = plan.needed_bytes - smaller.needed_bytes
        if smaller.fits_system:
            break
    if saving > 0:
        remedy = f"Smaller window: {window} saves {human_bytes(saving)}; or a smaller quant"
        raise OutOfMemory(text, remedy, window=window, saving=saving)
    fewer = "Fewer sinks, or a smaller chunk" if plan.sinks > plan.window else "Close other programs, or take a smaller model"
    raise OutOfMemory(text, fewer)
