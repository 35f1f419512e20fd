"""A llama in float64 that recalls tokens which left its window, read chunk by chunk as a session reads: by brute force.

A query at p sees, beside its window and the sinks (transformer64), some of the middle, tokens sinks <= j <= p - window, as if
all of them were `distance` away. Which, a policy says:
  blocks    token sinks + i is in block i // B. Up to 64 tokens of a chunk choose together what each of their kv heads sees:
            the N blocks whose keys can have the largest product with the sum of their queries (Quest, arXiv 2406.10774,
            section 3.2), of those that were whole before the first of them. What left and lies in no such block is seen, too.
            Of blocks that have no room the one goes that was not chosen for longest, of two the older one.
  surprise  M tokens at most are kept, those with the largest surprisal times decay ** (age / window). A token is kept, or not,
            with the chunk with which it leaves, and seen from the next one on.
  topk      a token that is read alone sees the K with the largest products, each head its own, from a layer on.
"""

import math
from dataclasses import dataclass

import numpy as np

from .tiny_models import TinyModel
from .transformer64 import rms_norm, rope_frequencies, rotate

TOGETHER = 64
CLOSE = 1e-6  # of two scores, relative to what they are sums of: float32 may order them otherwise


@dataclass(frozen=True)
class Shape:
    window: int
    sinks: int
    kind: str
    n: int
    distance: int
    block: int = 1
    layer: int = 0
    decay: float = 0.9
    placement: str = "ceiling"
    slots: int = 1 << 30  # blocks that there is room for
    n_open: int = 0  # of them, the last ones, which do not make room


def bfloat16_up(x: np.ndarray) -> np.ndarray:
    """The nearest numbers of 8 bits that are not less: of a float32 the upper half, and one more unless that was all."""
    bits = x.astype(np.float32).view(np.uint32)
    more = ((bits & 0xFFFF) != 0) & (bits >> 31 == 0)
    return ((bits & 0xFFFF0000) + np.where(more, np.uint32(0x10000), np.uint32(0))).view(np.float32).astype(np.float64)


def middle(shape: Shape, n_read: int) -> int:
    """Tokens of the middle for a query at n_read."""
    return max(0, n_read - shape.window + 1 - shape.sinks)


class Reader:
    """`close_call`: position of the first token for which float32 may choose otherwise, or None."""

    def __init__(self, model: TinyModel, shape: Shape) -> None:
        self.model, self.shape = model, shape
        self.w = {name: values.astype(np.float64) for name, values in model.weights.items()}
        self.omega, self.magnitude = rope_frequencies(model)
        empty = np.empty((0, model.n_kv_heads, model.head_dim))
        self.k, self.v = [empty] * model.n_layers, [empty] * model.n_layers
        self.surprisal: list[float] = []
        self.last: np.ndarray | None = None
        self.close_call: int | None = None
        self.blocks: dict[int, int] = {}  # number -> chunk that last chose it
        self.dropped = 0
        self.kept: dict[int, float] = {}  # token -> rank

    @property
    def n_read(self) -> int:
        return len(self.surprisal)

    def read(self, tokens) -> np.ndarray:
        """One chunk: logits float64 [n][n_vocab]."""
        first, n = self.n_read, len(tokens)
        self._begin(first, n)
        x = self.w["token_embd.weight"][np.asarray(tokens)]
        for layer in range(self.model.n_layers):
            x = self._layer(layer, x, first)
        x = rms_norm(x, self.w["output_norm.weight"], self.model.eps)
        logits = x @ self.w["token_embd.weight" if self.model.tied else "output.weight"].T
        for before, token in zip([self.last, *logits[:-1]], tokens, strict=True):
            self.surprisal.append(0.0 if before is None else _nll(before, int(token)))
        self.last = logits[-1]
        if self.shape.kind == "surprise":
            self._keep(first, n)
        return logits

    def _layer(self, layer: int, x: np.ndarray, first: int) -> np.ndarray:
        m, block, n = self.model, f"blk.{layer}.", len(x)
        h = rms_norm(x, self.w[block + "attn_norm.weight"], m.eps)
        q = (h @ self.w[block + "attn_q.weight"].T).reshape(n, m.n_heads, m.head_dim)
        for kept, stem in ((self.k, "attn_k"), (self.v, "attn_v")):
            new = (h @ self.w[f"{block}{stem}.weight"].T).reshape(n, m.n_kv_heads, m.head_dim)
            kept[layer] = np.concatenate([kept[layer], new])
        x = x + self._attention(layer, q, first) @ self.w[block + "attn_output.weight"].T
        h = rms_norm(x, self.w[block + "ffn_norm.weight"], m.eps)
        gate = h @ self.w[block + "ffn_gate.weight"].T
        return x + gate / (1.0 + np.exp(-gate)) * (h @ self.w[block + "ffn_up.weight"].T) @ self.w[block + "ffn_down.weight"].T

    def _turn(self, x: np.ndarray, positions) -> np.ndarray:
        return rotate(x, np.broadcast_to(positions, len(x)), self.omega, self.magnitude)

    def _attention(self, layer: int, q: np.ndarray, first: int) -> np.ndarray:
        s, k, v = self.shape, self.k[layer], self.v[layer]
        p, j = first + np.arange(len(q)), np.arange(len(k))
        group = q.shape[1] // k.shape[1]
        still = self._turn(k, 0)
        band = self._turn(q, p), self._turn(k, j)
        if s.placement == "ceiling":
            far = self._turn(q, s.window), still
        else:
            far = self._turn(q, np.minimum(p, s.window + s.sinks - 1)), band[1]
        recalled = self._turn(q, s.distance), still
        distance = p[:, None] - j
        in_band = (distance >= 0) & (distance < s.window)
        is_sink = (distance >= s.window) & (j < s.sinks)
        out_of_window = (distance >= s.window) & (j >= s.sinks)
        chosen = self._choose(layer, first, *recalled)
        out = np.empty_like(q)
        for head in range(q.shape[1]):
            kv = head // group
            logits = np.full((len(q), len(k)), -np.inf)
            for seen, (queries, keys) in ((in_band, band), (is_sink, far), (out_of_window & chosen[head], recalled)):
                logits = np.where(seen, queries[:, head] @ keys[:, kv].T / math.sqrt(q.shape[2]), logits)
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, kv]
        return out.reshape(len(q), -1)

    # ---- policies ----

    def _begin(self, first: int, n: int) -> None:
        """Room for the blocks that tokens of the chunk begin."""
        s = self.shape
        if s.kind != "blocks":
            return
        for block in range(middle(s, first) // s.block, -(-middle(s, first + n) // s.block)):
            if block in self.blocks:
                continue
            if len(self.blocks) == s.slots:
                others = [b for b in self.blocks if b <= block - s.n_open]
                del self.blocks[min(others, key=lambda b: (self.blocks[b], b))]
                self.dropped += 1
            self.blocks[block] = first

    def _keep(self, first: int, n: int) -> None:
        s = self.shape
        for token in range(s.sinks + middle(s, first), s.sinks + middle(s, first + n)):
            surprisal = math.log(max(self.surprisal[token], 1e-30))
            rank = surprisal - math.log(s.decay) * token / s.window
            if len(self.kept) == s.n:
                ranks = {**self.kept, token: rank}
                least, next_one = sorted(ranks, key=lambda t: ranks[t])[:2]
                if ranks[next_one] - ranks[least] < 1e-5:
                    self._doubt(first + n)
                if least == token:
                    continue
                del self.kept[least]
            self.kept[token] = rank

    def _choose(self, layer: int, first: int, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        """bool [heads][queries][keys]; of q and k, turned."""
        s, (n, n_heads, _), n_keys = self.shape, q.shape, len(k)
        chosen = np.zeros((n_heads, n, n_keys), bool)
        group = n_heads // k.shape[1]
        if layer < s.layer:
            return chosen
        if s.kind == "surprise":
            chosen[:, :, list(self.kept)] = True
        elif s.kind == "topk" and n == 1 and middle(s, first) >= s.n:
            candidates = np.arange(s.sinks, first - s.window + 1)
            for head in range(n_heads):
                products = k[candidates, head // group] * q[0, head]
                best = self._best(products.sum(axis=1), np.abs(products).sum(axis=1), first, products)
                chosen[head, 0, candidates[best]] = True
        for begin in range(0, n, TOGETHER) if s.kind == "blocks" else ():
            rows = slice(begin, min(begin + TOGETHER, n))
            whole = middle(s, first + begin) // s.block
            candidates = [b for b in sorted(self.blocks) if b < whole]
            chosen[:, rows, s.sinks + whole * s.block :] = True
            for kv in range(k.shape[1]) if candidates else ():
                heads = slice(kv * group, (kv + 1) * group)
                look = q[rows, heads].sum(axis=(0, 1))
                where = [s.sinks + b * s.block + np.arange(s.block) for b in candidates]
                boxes = ((-_bfloat16_above(-k[w, kv].min(axis=0)), _bfloat16_above(k[w, kv].max(axis=0))) for w in where)
                bounds = np.array([np.maximum(look * smallest, look * largest) for smallest, largest in boxes])
                for i in self._best(bounds.sum(axis=1), np.abs(bounds).sum(axis=1), first + begin):
                    chosen[heads, rows, where[i]] = True
                    self.blocks[candidates[i]] = first
        return chosen

    def _best(self, scores: np.ndarray, scales: np.ndarray, position: int, of=None) -> np.ndarray:
        """`of`: equal rows of it stand for the same token in the first layer, of which it does not matter which is seen."""
        order = np.argsort(-scores, kind="stable")
        if len(order) > self.shape.n:
            last, next_one = order[self.shape.n - 1 : self.shape.n + 1]
            same = of is not None and np.allclose(of[last], of[next_one], rtol=0, atol=1e-13)
            if scores[last] - scores[next_one] < CLOSE * scales.max() and not same:
                self._doubt(position)
        return order[: self.shape.n]

    def _doubt(self, position: int) -> None:
        self.close_call = position if self.close_call is None else self.close_call


def _bfloat16_above(x: np.ndarray) -> np.ndarray:
    """The nearest that are not less: the largest and the smallest of a block's keys are kept as such."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.ceil(fraction * 256) / 256, exponent)


def _nll(logits: np.ndarray, token: int) -> float:
    top = logits.max()
    return float(top + np.log(np.exp(logits - top).sum()) - logits[token])
