"""The machine and the library: versions, instruction sets, memory."""

from __future__ import annotations

from dataclasses import dataclass

from lmi._native import native, text_of
from lmi.errors import InvalidArgument

ISA_NAMES = ("auto", "ref", "avx2", "avx512", "neon")  # by value of lmi_isa
KV_TYPES = ("f16", "q8_0", "f32")  # by value of lmi_kv_type
PLACEMENTS = ("ceiling", "contiguous")  # by value of lmi_placement


def library_version() -> str:
    """Version of the native library, e.g. "0.1.0"."""
    return text_of(native()[1].lmi_version())


def build_info() -> dict[str, str]:
    """What was built and what this CPU has."""
    ffi, lib = native()
    n = lib.lmi_build_info(ffi.NULL, 0)
    text = ffi.new("char[]", n + 1)
    lib.lmi_build_info(text, n + 1)
    lines = text_of(text).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def available_isas() -> list[str]:
    """Instruction sets whose kernels this library has and this CPU runs, slowest first."""
    _, lib = native()
    return [name for value, name in enumerate(ISA_NAMES) if value and lib.lmi_isa_available(value)]


def code_of(name: str, names: tuple[str, ...], what: str) -> int:
    """Index of a name in a table of enum names; raises InvalidArgument."""
    try:
        return names.index(name)
    except ValueError:
        raise InvalidArgument(f"{what} {name!r} is unknown", f"One of: {', '.join(names)}") from None


@dataclass(frozen=True)
class Memory:
    """Bytes. `resident`, `peak_resident` and `anonymous` (not a mapped file) are this process's; `available` is what the
    system can still give, limits of the container included; `total` is the machine's."""

    resident: int
    peak_resident: int
    anonymous: int
    available: int
    total: int


def memory() -> Memory:
    """Memory of this process and of the machine, now."""
    ffi, lib = native()
    m = ffi.new("lmi_memory *")
    lib.lmi_memory_now(m)
    return Memory(m.resident_bytes, m.peak_resident_bytes, m.anonymous_bytes, m.available_bytes, m.total_bytes)
