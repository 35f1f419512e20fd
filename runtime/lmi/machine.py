"""The machine and the library: versions, instruction sets, memory."""

from __future__ import annotations

from dataclasses import dataclass

from lmi._native import check, device_library, native, path_bytes, text_of
from lmi.errors import InvalidArgument

ISA_NAMES = ("auto", "ref", "avx2", "avxvnni", "avx512", "amx", "neon")  # by value of lmi_isa
KV_TYPES = ("f16", "q8_0", "f32")  # by value of lmi_kv_type
PLACEMENTS = ("ceiling", "contiguous", "true")  # by value of lmi_placement
MOST_THREADS = 256  # that the library takes
DEVICES = ("auto", "cpu", "cuda")  # by value of lmi_device


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


def device_of(name: str) -> tuple[int, int]:
    """(lmi_device, number of the GPU) of "auto", "cpu", "cuda" or "cuda:1"; raises InvalidArgument."""
    kind, _, number = str(name).partition(":")
    if ":" in str(name) and (kind != "cuda" or not (number.isascii() and number.isdigit()) or len(number) > 4):
        raise InvalidArgument(f"device {name!r} is unknown", "One of: auto, cpu, cuda, or cuda:1 for the second GPU")
    return code_of(kind, DEVICES, "device"), int(number or 0)


@dataclass(frozen=True)
class Device:
    """A GPU, as it is now. `compute`: its capability, (9, 0); `driver`, `runtime`: versions of CUDA, (13, 0); bytes."""

    name: str
    index: int
    compute: tuple[int, int]
    driver: tuple[int, int]
    runtime: tuple[int, int]
    total: int
    free: int

    def __str__(self) -> str:
        from lmi.formats import human_bytes

        versions = f"compute {self.compute[0]}.{self.compute[1]}, CUDA {self.runtime[0]}.{self.runtime[1]}"
        driver = f"driver for {self.driver[0]}.{self.driver[1]}"
        return f"{self.name}, {versions}, {driver}, {human_bytes(self.free)} free of {human_bytes(self.total)}"


def find_device(index: int = 0) -> Device:
    """The GPU with that number. Raises DeviceError with the cause and the remedy if it cannot be used."""
    ffi, lib = native()
    c, error = ffi.new("lmi_device_info *"), ffi.new("lmi_error *")
    library = device_library()
    path = ffi.new("char[]", path_bytes(library)) if library else ffi.NULL
    check(lib.lmi_device_find(index, path, c, error), error)
    driver, runtime = ((v // 1000, v % 1000 // 10) for v in (c.driver, c.runtime))
    return Device(text_of(c.name), c.index, (c.major, c.minor), driver, runtime, c.total_bytes, c.free_bytes)
