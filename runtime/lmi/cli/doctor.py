"""`lmi doctor`: does this installation work, and what does this machine have."""

from __future__ import annotations

import json
import platform

import click

from lmi import __version__, errors
from lmi.cli.options import output_options
from lmi.cli.signals import Interrupts
from lmi.formats import human_bytes


@click.command(short_help="Check this installation and this machine.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@output_options
def doctor(console, as_json):
    """Check this installation and this machine.

    \b
      lmi doctor

    Shows versions, what the processor can do, the GPU or why there is none, and free memory, then makes a tiny model and runs
    it with every instruction set and on the GPU for about two seconds. Exit code 0: all is well.
    """
    from lmi import selftest
    from lmi._native import locate
    from lmi.machine import available_isas, build_info, find_device, library_version, memory

    library, _ = locate()
    m, build, isas = memory(), build_info(), available_isas()
    try:
        gpu, cuda = find_device(), ""
    except errors.DeviceError as e:
        gpu, cuda = None, f"none: {e.message.removeprefix('no usable CUDA device: ')}"
    facts = {
        "lmi": __version__,
        "library": library_version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": ", ".join(_packages()),
        "path": str(library),
        "kernels": ", ".join(isas),
        "cuda": cuda or str(gpu),
        "memory": f"{human_bytes(m.available)} free of {human_bytes(m.total)}",
    }
    if not as_json:
        for name, value in {**facts, **{k: v for k, v in build.items() if k not in facts}}.items():
            console.line(f"{name:12}{value}")
    warnings = (
        [] if library_version() == __version__ else [f"the library is version {library_version()}, the package {__version__}"]
    )
    with Interrupts():
        outcomes = selftest.run(gpu=gpu is not None)
    passed = all(o.passed for o in outcomes)
    if as_json:
        record = {
            **facts,
            "build": build,
            "available_bytes": m.available,
            "total_bytes": m.total,
            "device": vars(gpu) if gpu else None,
            "warnings": warnings,
            "passed": passed,
        }
        console.line(json.dumps({**record, "selftest": [vars(o) for o in outcomes]}))
    else:
        for o in outcomes:
            console.line(f"{'ok' if o.passed else 'FAILED':12}{o.name}: {o.detail}")
    for w in warnings:
        console.warn(w, "Install lmi again")
    if not passed:
        console.error("the self-test failed", "Please report what is above, with the model of the processor")
        return 1
    return 0


def _packages() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("click", "cffi", "numpy", "jinja2", "gguf"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return found
