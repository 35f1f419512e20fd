"""lmi: runs GGUF language models on texts of any length in constant memory.

    import lmi

    with lmi.Model("model.gguf") as model:
        for event in model.stream("Once upon a time", max_tokens=100):
            print(event.text, end="", flush=True)

A token attends to the first G tokens ("sinks") and the last L ("window"); what is in between is read and then forgotten.
`Session.view` and every `Stats` say what is still visible. Nothing here prints. Names are imported when first used.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"
TYPE_CHECKING = False  # what type checkers take for true: `typing` itself is not needed to start

_HOME = {
    "Model": "model",
    "ModelInfo": "model",
    "Vocabulary": "model",
    "Tensor": "model",
    "Session": "session",
    "Snapshot": "session",
    "Choice": "session",
    "Plan": "plan",
    "View": "plan",
    "Sampling": "generate",
    "Event": "generate",
    "Result": "generate",
    "Stats": "generate",
    "Steer": "steer",
    "ChatTemplate": "templates",
    "library_version": "machine",
    "build_info": "machine",
    "memory": "machine",
    "find_device": "machine",
}
_ERRORS = [
    "Error",
    "InvalidArgument",
    "FileFormatError",
    "StateError",
    "UnsupportedModel",
    "OutOfMemory",
    "DeviceError",
    "PromptError",
    "OutputError",
    "RequireFit",
    "Cancelled",
    "SessionBusy",
    "ClosedError",
    "TemplateError",
    "InternalError",
]
_HOME.update((name, "errors") for name in _ERRORS)

__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'lmi' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lmi.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *_HOME])


if TYPE_CHECKING:
    from lmi.errors import (  # noqa: F401
        Cancelled,
        ClosedError,
        DeviceError,
        Error,
        FileFormatError,
        InternalError,
        InvalidArgument,
        OutOfMemory,
        OutputError,
        PromptError,
        RequireFit,
        SessionBusy,
        StateError,
        TemplateError,
        UnsupportedModel,
    )
    from lmi.generate import Event, Result, Sampling, Stats  # noqa: F401
    from lmi.machine import build_info, find_device, library_version, memory  # noqa: F401
    from lmi.model import Model, ModelInfo, Tensor, Vocabulary  # noqa: F401
    from lmi.plan import Plan, View  # noqa: F401
    from lmi.session import Choice, Session, Snapshot  # noqa: F401
    from lmi.steer import Steer  # noqa: F401
    from lmi.templates import ChatTemplate  # noqa: F401
