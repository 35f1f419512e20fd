"""Whether the weights of a file are numbers: damage that leaves a file whole shows as NaN and infinities."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lmi._native import check, native
from lmi.model import Model, Tensor

PIECE = 1 << 20  # values decoded at once


def not_finite(model: Model, progress: Callable[[int], object] = lambda _: None) -> Iterator[tuple[Tensor, int, int]]:
    """(tensor, index of the first value that is not finite, how many there are) of each tensor that has any. Every block is
    decoded. `progress` gets the bytes seen so far."""
    import numpy as np

    from lmi.quantize import dequantize, type_info

    ffi, lib = native()
    c, error, done = ffi.new("lmi_tensor *"), ffi.new("lmi_error *"), 0
    for i, tensor in enumerate(model.tensors()):
        info, first, n = type_info(tensor.type), -1, 0
        step = PIECE // info.block_values * info.block_bytes
        for at in range(0, tensor.n_bytes, step):
            with model.use() as m:
                check(lib.lmi_model_get_tensor(m, i, c, error), error)
                size = min(step, tensor.n_bytes - at)
                blocks = np.frombuffer(ffi.buffer(ffi.cast("char *", c.data) + at, size), np.uint8)
                bad = np.flatnonzero(~np.isfinite(dequantize(blocks, tensor.type)))
            if bad.size:
                first = first if n else at // info.block_bytes * info.block_values + int(bad[0])
                n += bad.size
            done += size
            progress(done)
        if n:
            yield tensor, first, n
