"""Results as files: one JSON object for a run, written whole or not at all."""

from __future__ import annotations

import json
import os

from lmi.errors import OutputError


def record(model, evaluation: str, arguments: dict, results: list[dict], *, complete: bool = True) -> dict:
    """What `--json` writes. `complete`: False if the run was stopped and some results are missing."""
    from lmi import __version__
    from lmi.summary import device_text, model_name, quant_name

    info = model.info
    plan = model.plan()
    return {
        "evaluation": evaluation,
        "lmi": __version__,
        "model": {
            "file": os.path.basename(model.path),
            "name": model_name(model),
            "weights": quant_name(model),
            "parameters": info.n_parameters,
            "trained_context": info.trained_context,
        },
        "machine": {"runs_on": device_text(info, plan), "threads": info.n_threads, "isa": info.isa},
        "arguments": arguments,
        "complete": complete,
        "results": results,
    }


def require_writable(path: str, *, force: bool) -> None:
    """What can be known before hours of work: OutputError for a file that exists or cannot be written."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise OutputError(f"cannot write {path}: it is a folder", "Name a file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputError(f"cannot write {path}: it is not a regular file", "Name another file")
    if os.path.exists(path) and not force:
        raise OutputError(f"{path} exists already", "--force overwrites it")
    if not os.path.isdir(folder):
        raise OutputError(f"cannot write {path}: there is no folder {folder}", "Make the folder first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write {path}: folder {folder} is not writable", "Name a file in another folder")


def write(path: str, data: bytes) -> None:
    """Raises OutputError, and then the file is as it was."""
    partial = f"{path}.partial-{os.getpid()}"
    try:
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    except OSError as e:
        if os.path.exists(partial):
            os.unlink(partial)
        raise OutputError(f"cannot write {path}: {e.strerror or e}") from None


def write_json(path: str, result: dict) -> None:
    write(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
