"""A llama in float64, whole text at once, with Λ attention as its definition reads: a mask and a distance for every pair.

For a query at p and a key at j <= p, n = p - j:
  n <  L              seen at distance n
  n >= L and j < G    seen at distance L (ceiling), or min(p, L + G - 1) - j (contiguous), or n (true)
  otherwise           not seen
(LM-Infinite, arXiv 2308.16137, section 4; StreamingLLM, arXiv 2309.17453, for the second placement.) A layer with a native
window w has L = min(L, w) and no sinks.
"""

import math

import numpy as np

from .tiny_models import TinyModel


def rope_frequencies(model: TinyModel) -> tuple[np.ndarray, float]:
    """Radians a token [head_dim / 2], and the factor on cos and sin."""
    d = model.head_dim
    omega = model.rope_theta ** (-np.arange(0, d, 2, dtype=np.float64) / d)
    magnitude = 1.0
    if model.rope_factors is not None:
        omega = omega / model.rope_factors.astype(np.float64)
    scaling = model.rope_scaling
    if scaling is not None and scaling["type"] == "linear":
        omega = omega / scaling["factor"]
    elif scaling is not None and scaling["type"] == "yarn":  # arXiv 2309.00071, section 3.2, beta 32 and 1
        def pair_that_turns(times: float) -> float:
            return d * math.log(scaling["original"] / (times * 2 * math.pi)) / (2 * math.log(model.rope_theta))

        low = max(math.floor(pair_that_turns(32.0)), 0)
        high = min(math.ceil(pair_that_turns(1.0)), d - 1)
        ramp = np.clip((np.arange(d // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
        omega = omega * (1.0 - ramp) + omega / scaling["factor"] * ramp
        magnitude = 1.0 + 0.1 * math.log(scaling["factor"])
    return omega, magnitude


def rotate(x: np.ndarray, positions: np.ndarray, omega: np.ndarray, magnitude: float) -> np.ndarray:
    """x [T][heads][d] with adjacent pairs turned by positions [T]."""
    angle = positions[:, None].astype(np.float64) * omega
    turn = (np.exp(1j * angle) * magnitude)[:, None, :]
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = pairs.real, pairs.imag
    return out


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rounded(x: np.ndarray, block: int | None) -> np.ndarray:
    """x as block types see it: in every block, whole multiples of its largest magnitude / 127 (None: as it is)."""
    if block is None:
        return x
    blocks = x.reshape(*x.shape[:-1], -1, block)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / 127.0
    return (np.rint(blocks / np.where(scale > 0, scale, 1.0)) * scale).reshape(x.shape)


def attention(q, k, v, model: TinyModel, window: int, sinks: int, placement: str) -> np.ndarray:
    """q [T][H][d], k and v [T][H_kv][d], none of them turned yet -> [T][H * d]."""
    n_tokens, n_heads, d = q.shape
    omega, magnitude = rope_frequencies(model)
    p = np.arange(n_tokens)
    group = n_heads // k.shape[1]
    q_band, k_band = rotate(q, p, omega, magnitude), rotate(k, p, omega, magnitude)
    if placement == "ceiling":
        q_sink = rotate(q, np.full(n_tokens, window), omega, magnitude)
        k_sink = rotate(k, np.zeros(n_tokens), omega, magnitude)
    elif placement == "contiguous":
        q_sink, k_sink = rotate(q, np.minimum(p, window + sinks - 1), omega, magnitude), k_band
    else:
        q_sink, k_sink = q_band, k_band
    distance = p[:, None] - p[None, :]
    in_band = (distance >= 0) & (distance < window)
    is_sink = (distance >= window) & (p[None, :] < sinks)
    out = np.empty((n_tokens, n_heads, d))
    for head in range(n_heads):
        kv = head // group
        band = q_band[:, head] @ k_band[:, kv].T
        far = q_sink[:, head] @ k_sink[:, kv].T
        logits = np.where(in_band, band, np.where(is_sink, far, -np.inf)) / math.sqrt(d)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, kv]
    return out.reshape(n_tokens, -1)


def forward(
    model: TinyModel,
    tokens,
    *,
    window: int | None = None,
    sinks: int = 0,
    placement: str = "ceiling",
    activation_block: int | None = None,
) -> np.ndarray:
    """Logits float64 [T][n_vocab]; window None: ordinary attention; activation_block: what enters a matrix is `rounded`."""
    w = {name: values.astype(np.float64) for name, values in model.weights.items()}
    tokens = np.asarray(tokens)
    n_tokens = len(tokens)
    window = n_tokens + 1 if window is None else window
    if model.native_window is not None and model.native_window < model.context:
        window, sinks = min(window, model.native_window), 0
    x = w["token_embd.weight"][tokens]
    for i in range(model.n_layers):
        block = f"blk.{i}."
        h = rounded(rms_norm(x, w[block + "attn_norm.weight"], model.eps), activation_block)
        q = (h @ w[block + "attn_q.weight"].T).reshape(n_tokens, model.n_heads, model.head_dim)
        k = (h @ w[block + "attn_k.weight"].T).reshape(n_tokens, model.n_kv_heads, model.head_dim)
        v = (h @ w[block + "attn_v.weight"].T).reshape(n_tokens, model.n_kv_heads, model.head_dim)
        seen = attention(q, k, v, model, window, sinks, placement)
        x = x + rounded(seen, activation_block) @ w[block + "attn_output.weight"].T
        h = rounded(rms_norm(x, w[block + "ffn_norm.weight"], model.eps), activation_block)
        gate = h @ w[block + "ffn_gate.weight"].T
        up = h @ w[block + "ffn_up.weight"].T
        x = x + rounded(gate / (1.0 + np.exp(-gate)) * up, activation_block) @ w[block + "ffn_down.weight"].T
    x = rounded(rms_norm(x, w["output_norm.weight"], model.eps), activation_block)
    return x @ w["token_embd.weight" if model.tied else "output.weight"].T


def nll(logits: np.ndarray, tokens) -> np.ndarray:
    """Minus log probability of tokens[1:], float64 [T - 1]."""
    tokens = np.asarray(tokens)
    rows = logits[: len(tokens) - 1]
    top = rows.max(axis=1)
    return top + np.log(np.exp(rows - top[:, None]).sum(axis=1)) - rows[np.arange(len(rows)), tokens[1:]]
