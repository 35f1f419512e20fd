"""Λ attention of one layer in float64, every pair (query, key) with its distance written out, O(n²).

For a query at p and a key at j, n = p - j:
  0 <= n < L             seen at its true distance n
  n >= L and j < G       seen at distance L (ceiling: LM-Infinite, arXiv 2308.16137, section 4)
                         or at min(p, L + G - 1) - j (contiguous: StreamingLLM, arXiv 2309.17453, as one formula)
                         or at n itself (true: the paper's Λ mask without its limit of distance)
  otherwise              not seen: weight exactly 0
A logit is scale * <R(distance) q, k>, so no angle here is ever large, whatever the absolute positions; then, in models that do
so, capped: c tanh(logit / c), and biased: - slope * distance (ALiBi). A learned sink logit of a head stands beside the logits
in its softmax and has no value.
"""

import math
from dataclasses import dataclass

import numpy as np

ADJACENT, HALVES = 0, 1  # as in kernels.h


@dataclass(frozen=True)
class Rope:
    """The first 2 * len(omega) values of a head turn; omega in radians a token."""

    omega: np.ndarray
    pairing: int = ADJACENT
    magnitude: float = 1.0

    @property
    def n_rot(self) -> int:
        return 2 * len(self.omega)


def frequencies(
    n_rot: int,
    theta: float = 10000.0,
    factors: np.ndarray | None = None,
    scaling: str | None = None,
    factor: float = 1.0,
    original_context: float = 4096.0,
    attention_factor: float = 1.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    untruncated: bool = False,
) -> tuple[np.ndarray, float]:
    """Radians a token [n_rot / 2] and the factor on cos and sin, from float32-rounded inverse frequencies as published models
    compute them, the rest in float64."""
    exponent = np.arange(0, n_rot, 2, dtype=np.float32) / np.float32(n_rot)
    power = (float(theta) ** exponent.astype(np.float64)).astype(np.float32)
    omega = (np.float32(1.0) / power).astype(np.float64)
    if factors is not None:
        omega = omega / factors
    if scaling == "linear":
        omega = omega / factor
    if scaling != "yarn":
        return omega, attention_factor

    def pair_that_turns(times: float) -> float:
        return n_rot * math.log(original_context / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if not untruncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n_rot - 1)
    ramp = np.clip((np.arange(n_rot // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return omega * (1.0 - ramp) + omega / factor * ramp, attention_factor * (0.1 * math.log(factor) + 1.0)


def to_pairs(x: np.ndarray, rope: Rope) -> tuple[np.ndarray, np.ndarray]:
    """x [..., d] -> the turning pairs as complex numbers [..., n_rot / 2], and the rest [..., d - n_rot]."""
    turning = x[..., : rope.n_rot]
    if rope.pairing == ADJACENT:
        a, b = turning[..., 0::2], turning[..., 1::2]
    else:
        a, b = turning[..., : rope.n_rot // 2], turning[..., rope.n_rot // 2 :]
    return a + 1j * b, x[..., rope.n_rot :]


def rotate(x: np.ndarray, positions: np.ndarray, rope: Rope) -> np.ndarray:
    """x [T, ..., d] turned by positions [T]. For positions that are small enough for float64."""
    pairs, rest = to_pairs(np.asarray(x, np.float64), rope)
    angle = np.asarray(positions, np.float64).reshape(-1, *[1] * (x.ndim - 1)) * rope.omega
    pairs = pairs * np.exp(1j * angle) * rope.magnitude
    if rope.pairing == ADJACENT:
        turned = np.stack([pairs.real, pairs.imag], axis=-1).reshape(*pairs.shape[:-1], rope.n_rot)
    else:
        turned = np.concatenate([pairs.real, pairs.imag], axis=-1)
    return np.concatenate([turned, rest], axis=-1)


def distances(n_tokens: int, window: int, sinks: int, placement: str) -> np.ndarray:
    """[p, j]: at which distance p sees j, or -1."""
    out = np.full((n_tokens, n_tokens), -1, np.int64)
    for p in range(n_tokens):
        for j in range(p + 1):
            n = p - j
            if n < window:
                out[p, j] = n
            elif j < sinks:
                out[p, j] = {"ceiling": window, "contiguous": min(p, window + sinks - 1) - j, "true": n}[placement]
    return out


NO_ROPE = Rope(np.zeros(0))


def alibi_slopes(n_heads: int, bias_max: float = 8.0) -> np.ndarray:
    """[H]: 2^(-bias_max h / H), h = 1 .. H for a power of two; else those of the next power of two, every second one first (as
    MPT has it)."""
    n = 1 << (n_heads - 1).bit_length()
    slopes = 2.0 ** (-bias_max * np.arange(1, n + 1) / n)
    return slopes if n == n_heads else np.concatenate([slopes[1::2], slopes[0::2]])[:n_heads]


def attend_at(
    q,
    k,
    v,
    rope: Rope,
    distance: np.ndarray,
    scale: float | None = None,
    softcap: float = 0.0,
    slopes: np.ndarray | None = None,
    sink_logits: np.ndarray | None = None,
) -> np.ndarray:
    """q [T, H, d], k, v [T, H_kv, d], none turned; distance [T, T] -> [T, H, d]. Query head h uses kv head h // (H / H_kv).
    slopes, sink_logits [H]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    n_tokens, n_heads, d = q.shape
    group = n_heads // k.shape[1]
    scale = 1.0 / math.sqrt(d) if scale is None else scale
    q_pairs, q_rest = to_pairs(q, rope)
    k_pairs, k_rest = (np.repeat(x, group, axis=1) for x in to_pairs(k, rope))
    values = np.repeat(v, group, axis=1)
    out = np.empty_like(q)
    for p in range(n_tokens):
        (seen,) = np.nonzero(distance[p] >= 0)
        turn = np.exp(1j * distance[p, seen, None] * rope.omega) * rope.magnitude**2  # [j, pair]
        logits = np.einsum("hi,ji,jhi->hj", q_pairs[p], turn, k_pairs[seen].conj()).real
        logits = scale * (logits + np.einsum("hd,jhd->hj", q_rest[p], k_rest[seen]))
        if softcap > 0:
            logits = softcap * np.tanh(logits / softcap)
        if slopes is not None:
            logits = logits - np.asarray(slopes, np.float64)[:, None] * distance[p, seen]
        top = logits.max(axis=1, keepdims=True)
        weights = np.exp(logits - top)
        total = weights.sum(axis=1, keepdims=True)
        if sink_logits is not None:
            total = total + np.exp(np.asarray(sink_logits, np.float64)[:, None] - top)
        out[p] = np.einsum("hj,jhd->hd", weights / total, values[seen])
    return out


def attend(q, k, v, rope: Rope, window: int, sinks: int, placement: str = "ceiling", **options) -> np.ndarray:
    """Λ attention of a whole text; options as attend_at."""
    return attend_at(q, k, v, rope, distances(len(q), window, sinks, placement), **options)


def attend_all(q, k, v, rope: Rope, **options) -> np.ndarray:
    """Ordinary causal attention."""
    n = np.arange(len(q))
    return attend_at(q, k, v, rope, np.where(n[:, None] >= n, n[:, None] - n, -1), **options)


def streaming(q, k, v, rope: Rope, start_size: int, recent_size: int) -> np.ndarray:
    """StreamingLLM as its authors run it, token by token: the cache holds unturned keys; each step appends the token, turns
    every key by its place in the cache and the query by the last place, attends to all, and then evicts what lies between the
    first start_size and the last recent_size entries. (So a query sees start_size + recent_size entries and itself.)"""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    n_tokens, n_heads, d = q.shape
    group = n_heads // k.shape[1]
    cache: list[int] = []
    out = np.zeros_like(q)
    for t in range(n_tokens):
        cache.append(t)
        places = np.arange(len(cache))
        keys = np.repeat(rotate(k[cache], places, rope), group, axis=1)
        values = np.repeat(v[cache], group, axis=1)
        query = rotate(q[t : t + 1], places[-1:], rope)[0]
        logits = np.einsum("hd,shd->hs", query, keys) / math.sqrt(d)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[t] = np.einsum("hs,shd->hd", weights / weights.sum(axis=1, keepdims=True), values)
        if len(cache) > start_size + recent_size:
            cache = cache[:start_size] + cache[len(cache) - recent_size :]
    return out
