"""The sampler chain in float64, by sorting; and its random numbers, drawn by NumPy itself.

    penalties -> top-k -> typical -> top-p -> min-p -> temperature -> draw

Each link is a function from an ordered list of candidates to a shorter one; what each means is said at the head of
native/engine/sampler.c. A seed becomes a generator like this:

    >>> high, low, stream_high, stream_low = split_mix(seed, 4)
    >>> bits = np.random.PCG64()
    >>> bits.state = {"bit_generator": "PCG64", "has_uint32": 0, "uinteger": 0,
    ...               "state": {"state": high << 64 | low, "inc": stream_high << 64 | stream_low | 1}}
    >>> np.random.Generator(bits).random()  # the number that the first token is drawn with
"""

from dataclasses import dataclass

import numpy as np

HISTORY = 4096  # tokens that are remembered, at most
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Options:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last: int = 0
    seed: int = 0


def single(value: float) -> float:
    """Options are float32 in the library."""
    return float(np.float32(value))


def split_mix(seed: int, n: int) -> list[int]:
    """SplitMix64 (Steele, Lea and Flood 2014)."""
    outputs = []
    for _ in range(n):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
        outputs.append(z ^ z >> 31)
    return outputs


def generator(seed: int) -> np.random.Generator:
    """NumPy's own PCG64, in the state that the library's is in after a seed."""
    high, low, stream_high, stream_low = split_mix(seed, 4)
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": stream_high << 64 | stream_low | 1},
        "has_uint32": 0,
        "uinteger": 0,
    }
    return np.random.Generator(bits)


def penalize(logits: np.ndarray, recent: list[int], o: Options) -> np.ndarray:
    z = logits.astype(np.float32).copy()
    recent = recent[len(recent) - min(len(recent), o.penalty_last) :]
    for token in set(recent):
        if 0 <= token < len(z) and np.isfinite(z[token]):
            x = float(z[token])
            x = x / single(o.repeat_penalty) if x > 0 else x * single(o.repeat_penalty)
            x -= recent.count(token) * single(o.frequency_penalty) + single(o.presence_penalty)
            limit = float(np.finfo(np.float32).max)
            z[token] = np.float32(min(max(x, -limit), limit))
    return z


def softmax(z: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of float64 logits, infinite ones included."""
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where(z == z.max(), 0.0, z - z.max())
        weights = np.exp(gap / temperature)
    return weights / weights.sum()


def log_softmax(z: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.where(z == z.max(), 0.0, z - z.max())
        return gap - np.log(np.exp(gap).sum())


def shortest_run(p: np.ndarray, mass: float) -> int:
    """How many of p, from the first on, hold at least `mass` of it."""
    return min(int(np.searchsorted(np.cumsum(p), mass * p.sum(), side="left")) + 1, len(p))


def keep_typical(ids: np.ndarray, z: np.ndarray, mass: float) -> np.ndarray:
    p, log_p = softmax(z[ids]), log_softmax(z[ids])
    entropy = -np.sum(np.where(p > 0, p * np.where(p > 0, log_p, 0.0), 0.0))
    score = np.minimum(np.abs(-log_p - entropy), np.finfo(np.float32).max).astype(np.float32)
    order = np.lexsort((ids, score))
    kept = order[: shortest_run(p[order], mass)]
    return ids[np.sort(kept)]  # in the order of the logits again


def candidates(logits: np.ndarray, recent: list[int], o: Options) -> tuple[np.ndarray, np.ndarray]:
    """Ids that can be drawn, in order, and their probabilities."""
    z = penalize(logits, recent, o).astype(np.float64)
    ids = np.flatnonzero(~np.isnan(z) & (z > -np.inf))
    if len(ids) == 0:
        raise ValueError("no token has a probability")
    if z[ids].max() == np.inf:
        ids = ids[z[ids] == np.inf]
    ids = ids[np.lexsort((ids, -z[ids]))]
    if single(o.temperature) == 0 or o.top_k == 1:
        return ids[:1], np.ones(1)
    if o.top_k > 0:
        ids = ids[: o.top_k]
    if single(o.typical_p) < 1:
        ids = keep_typical(ids, z, single(o.typical_p))
    if single(o.top_p) < 1:
        ids = ids[: shortest_run(softmax(z[ids]), single(o.top_p))]
    if single(o.min_p) > 0:
        weights = np.exp(np.where(z[ids] == z[ids[0]], 0.0, z[ids] - z[ids[0]])) if z[ids[0]] < np.inf else np.ones(len(ids))
        ids = ids[weights >= single(o.min_p)]
    p = softmax(z[ids], single(o.temperature))
    return ids[p > 0], p[p > 0]


def draw(logits: np.ndarray, recent: list[int], o: Options, numbers: np.random.Generator) -> int:
    ids, p = candidates(logits, recent, o)
    if single(o.temperature) == 0 or o.top_k == 1:
        return int(ids[0])
    sums = np.cumsum(p)
    return int(ids[min(int(np.searchsorted(sums, numbers.random() * sums[-1], side="right")), len(ids) - 1)])


def log_probability(logits: np.ndarray, token: int) -> float:
    """The model's own, at temperature 1, before penalties and cuts."""
    z = logits.astype(np.float64)
    return float(log_softmax(np.where(np.isnan(z), -np.inf, z))[token])
