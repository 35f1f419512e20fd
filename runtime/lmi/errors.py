"""What can go wrong, as types. Each error says what happened in one line and, where something can be done, what to do in
another.

The command line maps `exit_code` to its exit status; `lmi --help` lists them.
"""

from __future__ import annotations


class Error(Exception):
    """Base of every error that lmi raises. `message`: what is wrong; `remedy`: what to do, or ""; `offset`: byte of the
    file where it was noticed, or None."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "", offset: int | None = None):
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.offset = offset

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class InvalidArgument(Error, ValueError):
    """A value that the caller gave is out of range."""

    exit_code = 2


class FileFormatError(Error):
    """A model or state file is missing, unreadable, damaged, incomplete or something else altogether."""

    exit_code = 3


class StateError(FileFormatError):
    """A saved state does not fit this model or these options, or a rewind goes back too far."""


class UnsupportedModel(Error):
    """A sound file that this version cannot run."""

    exit_code = 4


class OutOfMemory(Error, MemoryError):
    """Needs more memory than there is. `window` and `saving`: a smaller window that would help and the bytes that it saves,
    or None."""

    exit_code = 5

    def __init__(
        self, message: str, remedy: str = "", offset: int | None = None, *, window: int | None = None, saving: int | None = None
    ):
        super().__init__(message, remedy, offset)
        self.window = window
        self.saving = saving


class DeviceError(Error):
    """The requested device is missing or failed."""

    exit_code = 6


class PromptError(Error):
    """The text to read is missing, empty or not UTF-8."""

    exit_code = 7


class OutputError(Error):
    """Output could not be written: the disk is full, the place is not writable, the file exists."""

    exit_code = 8


class RequireFit(Error):
    """Something would have left the view although it was asked that nothing does."""

    exit_code = 9


class Cancelled(Error):
    """cancel() was called. `result`: what was generated until then (a `Result`), or None."""

    exit_code = 130

    def __init__(self, message: str = "cancelled", remedy: str = "", offset: int | None = None, *, result: object = None):
        super().__init__(message, remedy, offset)
        self.result = result


class SessionBusy(Error, RuntimeError):
    """Another thread is using the session. One thread at a time; open a session for each thread."""


class ClosedError(Error, RuntimeError):
    """The model or session was closed, or was opened before this process was forked."""


class TemplateError(Error):
    """The model's chat template is broken, too large, too slow or tries what it may not."""

    exit_code = 7


class InternalError(Error):
    """A bug in lmi, or an installation without its library. Please report."""


def from_status(status: int, message: str, remedy: str = "", offset: int | None = None) -> Error:
    """The exception for a status of the native library (lmi.h, lmi_status)."""
    kind = _BY_STATUS.get(status, InternalError)
    return kind(message or f"the library reports status {status} without a message", remedy, offset)


_BY_STATUS = {
    -1: InvalidArgument,
    -2: FileFormatError,
    -3: FileFormatError,
    -4: UnsupportedModel,
    -5: OutOfMemory,
    -6: DeviceError,
    -7: StateError,
    -8: Cancelled,
    -9: SessionBusy,
    -10: OutputError,
    -11: InternalError,
}
