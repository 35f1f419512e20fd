"""Learns a steer: the factors under which texts become likelier with their own label as alpha, the model itself frozen.

Hidden states are those that lmi computes; from there on it is one product with the output matrix, in PyTorch. A second steer,
the dummy, is learned beside it with an alpha that is always 1: it takes up what all the texts have in common and the model does
not expect, so that the first is left with what tells them apart (LM-Steer, arXiv 2305.12798).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from lmi import errors
from lmi._native import check, native
from lmi.formats import human_bytes
from lmi.machine import memory
from lmi.plan import integer, real
from lmi.steer import Steer

START = 0.01  # standard deviation of the factors before the first step
LONGEST_LINE = 16 << 20  # bytes
BLOCK_BYTES = 128 << 20  # of logits at a time


@dataclass(frozen=True)
class Sample:
    text: str
    label: float


@dataclass(frozen=True)
class Trained:
    """`before`: mean NLL of the model as it is, `after`: with steer and dummy, over the last tenth of the steps; in nats."""

    steer: Steer
    dummy: Steer
    texts: int
    tokens: int
    before: float
    after: float


def read_samples(blocks: Iterable[bytes], name: str) -> list[Sample]:
    """Lines {"text": ..., "label": a number from -1 to 1} of a JSONL file. Raises PromptError that names the line."""
    samples, held, number = [], b"", 0
    for block in chain(blocks, [b"\n"]):
        *lines, held = (held + block).split(b"\n")
        if len(held) > LONGEST_LINE:
            raise errors.PromptError(f"{name}, line {number + len(lines) + 1:,} is longer than {human_bytes(LONGEST_LINE)}")
        for line in lines:
            number += 1
            if line.strip():
                samples.append(_sample(line, f"{name}, line {number:,}"))
    labels = {s.label for s in samples}
    if len(labels) < 2:
        what = "holds no texts" if not samples else f"has one label only ({min(labels):g})"
        raise errors.PromptError(f"{name} {what}", "What is to be told apart needs two labels, such as 1 and -1")
    return samples


def _sample(line: bytes, where: str) -> Sample:
    remedy = 'A line is {"text": "...", "label": 1}'
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise errors.PromptError(f"{where} is not JSON", remedy) from None
    text, label = (entry.get("text"), entry.get("label")) if isinstance(entry, dict) else (None, None)
    if not isinstance(text, str) or not text:
        raise errors.PromptError(f"{where} has no text", remedy)
    if isinstance(label, bool) or not isinstance(label, (int, float)) or not -1 <= label <= 1:
        raise errors.PromptError(f"{where} has no label from -1 to 1", remedy)
    return Sample(text, float(label))


def require_torch():
    try:
        import torch
    except ImportError:
        raise errors.UnsupportedModel("training a steer needs PyTorch", "pip install 'lmi[torch]'") from None
    return torch


# ---- what the model makes of the texts ------------------------------------------------------------------------------


@dataclass
class _States:
    """Of all texts one after the other: `hidden` float32 [n][n_embd], `next` int64 [n] the token that follows; text i has rows
    first[i] to first[i + 1]."""

    hidden: object
    next: object
    first: list[int]


def _token_lists(model, samples: list[Sample], longest: int) -> list[list[int]]:
    lists = []
    for i, s in enumerate(samples):
        try:
            ids = model.tokenize(s.text[: 256 * longest])[:longest]  # no text takes longer than its first tokens need
        except errors.PromptError as e:  # a lone surrogate, which JSON can spell
            raise errors.PromptError(f"text {i + 1:,}: {e.message}") from None
        lists.append(ids if len(ids) > 1 else [])
    if not any(lists):
        raise errors.PromptError("every text is shorter than two tokens")
    return lists


def _read(model, lists: list[list[int]], longest: int, opened, progress) -> _States:
    import numpy as np

    n, n_embd = sum(max(0, len(ids) - 1) for ids in lists), model.info.n_embd
    size, free = 4 * n * n_embd, memory().available
    if 2 * size > free:
        text = f"the hidden states of {n:,} tokens need {human_bytes(size)}, {human_bytes(free)} free"
        raise errors.OutOfMemory(text, "Fewer texts, or fewer tokens of each: --max-tokens")
    states = _States(np.empty((n, n_embd), np.float32), np.empty(n, np.int64), [0])
    at = 0
    with model.session(chunk=longest, window=min(longest, model.plan().window), all_hidden=True) as session:
        if opened:
            opened(session)
        for i, ids in enumerate(lists):
            if ids:
                session.rewind_to(0)
                session.read_tokens(ids)
                end = at + len(ids) - 1
                states.hidden[at:end], states.next[at:end] = session._hidden_rows(end - at), ids[1:]
                at = end
            states.first.append(at)
            if progress:
                progress("reading", i + 1, len(lists), math.nan)
    return states


def _output(model):
    """(matrix float32 [n_vocab][n_embd], bias or None, cap or None): from a hidden state to logits, as the file has it."""
    import numpy as np

    from lmi.quantize import dequantize

    ffi, lib = native()
    c, error, found = ffi.new("lmi_tensor *"), ffi.new("lmi_error *"), {}
    for i, tensor in enumerate(model.tensors()):
        if tensor.name in ("output.weight", "output.bias", "token_embd.weight"):
            with model.use() as m:
                check(lib.lmi_model_get_tensor(m, i, c, error), error)
                blocks = np.frombuffer(ffi.buffer(c.data, c.n_bytes), np.uint8)
                found[tensor.name] = dequantize(blocks, tensor.type).reshape(tensor.shape[::-1])
    matrix = found.get("output.weight", found["token_embd.weight"])
    cap = model.metadata(f"{model.info.architecture}.final_logit_softcapping")
    return matrix, found.get("output.bias"), cap or None


# ---- training -------------------------------------------------------------------------------------------------------


def train(
    model,
    samples: list[Sample],
    *,
    rank: int = 64,
    steps: int = 1000,
    lr: float = 1e-2,
    epsilon: float = 1e-3,
    batch: int = 32,
    max_tokens: int = 256,
    decay: float = 0.0,
    seed: int = 0,
    threads: int | None = None,
    opened: Callable[[object], object] | None = None,
    progress: Callable[[str, int, int, float], object] | None = None,
) -> Trained:
    """`batch` texts a step, at most `max_tokens` of each. Adam's rate falls from `lr` to 0, so that what only chance moved
    comes to rest; `decay` times the squares of the factors is added to the loss. The same seed, data and threads give the same
    file. `opened(session)`, then `progress("reading" or "training", done, all, NLL)`. Raises PromptError, OutOfMemory,
    UnsupportedModel without PyTorch."""
    torch = require_torch()
    integer(rank, "rank", 1, model.info.n_embd)
    integer(steps, "steps", 1)
    integer(batch, "batch", 1)
    integer(max_tokens, "max_tokens", 2, 65536)
    real(lr, "lr", 1e-9, 10)
    real(epsilon, "epsilon", 1e-9, 1)
    real(decay, "decay", 0, 1e3)
    lists = _token_lists(model, samples, max_tokens)
    states = _read(model, lists, max_tokens, opened, progress)
    matrix, bias, cap = _output(model)
    n_embd, n_vocab = model.info.n_embd, matrix.shape[0]
    if threads:
        torch.set_num_threads(threads)
    hidden, following = torch.from_numpy(states.hidden), torch.from_numpy(states.next)
    matrix = torch.from_numpy(matrix)
    bias = None if bias is None else torch.from_numpy(bias)
    rows = max(1, BLOCK_BYTES // (4 * n_vocab))
    generator = torch.Generator().manual_seed(integer(seed, "seed", 0, 2**63 - 1))
    p1, p2, d1, d2 = (torch.empty(n_embd, rank).normal_(0, START, generator=generator).requires_grad_() for _ in range(4))
    optimizer = torch.optim.Adam([p1, p2, d1, d2], lr=lr)
    usable = [i for i, ids in enumerate(lists) if ids]

    def nll(index, labels, steered: bool):
        c = hidden[index]
        if steered:
            c = c + epsilon * (labels[:, None] * (c @ p1) @ p2.T + (c @ d1) @ d2.T)
        z = torch.nn.functional.linear(c, matrix, bias)
        z = cap * torch.tanh(z / cap) if cap else z
        return torch.nn.functional.cross_entropy(z, following[index], reduction="sum")

    last, before = [], []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        drawn = [usable[i] for i in torch.randint(len(usable), (batch,), generator=generator).tolist()]
        index = torch.cat([torch.arange(states.first[i], states.first[i + 1]) for i in drawn])
        labels = torch.cat([torch.full((states.first[i + 1] - states.first[i],), samples[i].label) for i in drawn])
        optimizer.zero_grad()
        total = 0.0
        for begin in range(0, len(index), rows):
            part = slice(begin, begin + rows)
            loss = nll(index[part], labels[part], True) / len(index)
            loss.backward()
            total += loss.item()
        if decay:
            (decay * (p1.square().sum() + p2.square().sum() + d1.square().sum() + d2.square().sum())).backward()
        optimizer.step()
        if not math.isfinite(total):
            raise errors.InvalidArgument(f"training diverged at step {step + 1:,}", "Use a smaller --lr or --epsilon")
        if 10 * step >= 9 * steps or step == steps - 1:
            last.append(total)
            with torch.no_grad():  # of the same texts
                parts = (slice(b, b + rows) for b in range(0, len(index), rows))
                before.append(sum(nll(index[p], labels[p], False).item() for p in parts) / len(index))
        if progress:
            progress("training", step + 1, steps, total)
    n = len(following)
    base, after = sum(before) / len(before), sum(last) / len(last)
    notes = {
        "model": os.path.basename(model.path),
        "texts": str(len(usable)),
        "tokens": str(n),
        "steps": str(steps),
        "lr": repr(lr),
        "batch": str(batch),
        "max_tokens": str(max_tokens),
        "decay": repr(decay),
        "seed": str(seed),
        "nll_before": f"{base:.4f}",
        "nll_after": f"{after:.4f}",
    }

    def steer(role: str, *factors) -> Steer:
        data = [p.detach().numpy().astype("<f4").tobytes() for p in factors]
        return Steer("", n_embd, rank, epsilon, model.fingerprint, {**notes, "role": role}, *data)

    return Trained(steer("steer", p1, p2), steer("dummy", d1, d2), len(usable), n, base, after)
