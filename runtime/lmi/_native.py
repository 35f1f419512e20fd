"""Finds liblmi, reads its header through cffi, and guards the pointers it gives.

Nothing of the C interface is declared here: `lmi.h` is the only description of it. Calls release the GIL.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import weakref
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path

from lmi import errors

_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"


def declarations(header: str) -> str:
    """The plain declarations of lmi.h: without comments, preprocessor lines, the C++ wrapping and LMI_API."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    text = re.sub(r"^#ifdef __cplusplus.*?^#endif", "", text, flags=re.S | re.M)
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    return text.replace("LMI_API ", "")


def locate() -> tuple[Path, Path]:
    """(library, header): LMI_LIBRARY if it is set, else beside this package, else in the checkout around it."""
    import lmi

    checkout = Path(__file__).resolve().parents[2]
    headers = [Path(p) / "lib" / "lmi.h" for p in lmi.__path__] + [checkout / "native" / "include" / "lmi.h"]
    named = os.environ.get("LMI_LIBRARY")
    if named:
        libraries = [Path(named)]
        headers = [Path(named).with_name("lmi.h"), headers[-1], *headers[:-1]]
    else:
        libraries = [Path(p) / "lib" / f"liblmi{_SUFFIX}" for p in lmi.__path__] + [
            checkout / "build" / "native" / f"liblmi{_SUFFIX}"
        ]
    library = next((p for p in libraries if p.is_file()), None)
    header = next((p for p in headers if p.is_file()), None)
    if library is None or header is None:
        lacking = "its header lmi.h" if library else "the library " + " or ".join(str(p) for p in libraries)
        raise errors.InternalError(f"this installation of lmi lacks {lacking}", "Install it again, or build it: make build")
    return library, header


def device_library() -> str | None:
    """The library that runs GPUs: LMI_CUDA_LIBRARY if it is set (it then needs no driver); None: the one beside the library."""
    return os.environ.get("LMI_CUDA_LIBRARY") or None


@lru_cache(maxsize=1)
def native():
    """(ffi, lib), loaded on first use."""
    import cffi

    library, header = locate()
    ffi = cffi.FFI()
    ffi.cdef(declarations(header.read_text(encoding="utf-8")))
    try:
        return ffi, ffi.dlopen(str(library))
    except OSError as e:
        raise errors.InternalError(f"cannot load {library}: {e}", "Install lmi again for this machine") from None


def text_of(cdata) -> str:
    """A NUL-terminated C string as str; "" for NULL."""
    ffi, _ = native()
    return ffi.string(cdata).decode("utf-8", "replace") if cdata else ""


def path_bytes(path) -> bytes:
    """A path as the library takes it: C would read it up to a NUL, and another file would be meant."""
    name = os.fsencode(path)
    if b"\0" in name:
        raise errors.InvalidArgument("a path cannot hold a NUL character")
    return name


def check(status: int, error) -> None:
    """Raises the exception that belongs to a status other than LMI_OK. `error`: the lmi_error that the call filled, or None."""
    if status == 0:
        return
    if error is None:
        raise errors.from_status(status, "")
    offset = error.offset if error.offset >= 0 else None
    raise errors.from_status(status, text_of(error.message), text_of(error.remedy), offset)


class Handle:
    """Something of the library that is freed once, and refused afterwards.

    `exclusive`: used by one thread at a time; a second one gets SessionBusy instead of a wait. The memory lives until close()
    was called and nothing that borrows from it (a session of a model, a view of logits) is left, so that no order of closing
    can touch freed memory. After a fork the child may not use it, nor frees it.
    """

    def __init__(self, pointer, free, what: str, *, parent: Handle | None = None, exclusive: bool = False):
        ffi, _ = native()
        pid = os.getpid()
        keep = parent._owner if parent else None

        def release(p, _keep=keep):  # holding the parent's owner keeps its memory until ours is gone
            if os.getpid() == pid:
                free(p)

        self._owner = ffi.gc(pointer, release)
        self._pid = pid
        self._what = what
        self._exclusive = exclusive
        self._users = 0
        self._guard = threading.RLock()  # re-entered if a signal handler closes or cancels
        self._children: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._use = _Use(self)
        if parent:
            parent._children.add(self)

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._owner is None

    def pointer(self):
        """The C pointer, checked for life but not for use: only for calls that any thread may make at any time. For this
        package's own use."""
        owner = self._owner
        if owner is None:
            raise errors.ClosedError(f"the {self._what} is closed")
        if self._pid != os.getpid():
            raise errors.ClosedError(
                f"the {self._what} was opened before this process was forked", "Open it again in the child"
            )
        return owner

    def use(self) -> _Use:
        """`with handle.use() as pointer:` around native calls. For this package's own use."""
        return self._use

    def close(self) -> None:
        """Frees it, its children first. Calling it again does nothing. Raises SessionBusy while one of them is in use, and then
        closes nothing."""
        with ExitStack() as held:
            family = self._family(held)
            for h in family:
                if h._users and h._pid == os.getpid():
                    raise errors.SessionBusy(f"the {h._what} is in use by another thread", "cancel() what it does, then close")
            for h in reversed(family):
                h._owner = None

    def _family(self, held: ExitStack) -> list[Handle]:
        """What is open of this and all that borrow from it; nobody else can use them while `held` is."""
        held.enter_context(self._guard)
        if self._owner is None:
            return []
        return [self, *(h for child in list(self._children) for h in child._family(held))]

    def __exit__(self, kind, *exc) -> None:
        try:
            self.close()
        except errors.SessionBusy:
            # Ctrl-C may raise between two steps of Python and leave a use unfinished: that is what the caller has to hear of,
            # and the memory goes with the object.
            if kind is None:
                raise


class _Use:
    __slots__ = ("_handle",)

    def __init__(self, handle: Handle):
        self._handle = weakref.proxy(handle)

    def __enter__(self):
        h = self._handle
        with h._guard:
            pointer = h.pointer()
            if h._users and h._exclusive:
                raise errors.SessionBusy(
                    f"the {h._what} is in use by another thread", "One thread at a time: open a session for each"
                )
            h._users += 1
        return pointer

    def __exit__(self, *exc):
        h = self._handle
        with h._guard:
            h._users -= 1
