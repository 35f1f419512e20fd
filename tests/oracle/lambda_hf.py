"""transformers models with Λ attention: the model's own code for everything else, so that every family has an oracle beyond L.

Layers that have a window of their own keep it; the others see the first G and the last L tokens, distances capped at L. The
model's own functions turn q and k, at positions that this file chooses.
"""

import sys
from contextlib import contextmanager

import torch

from oracle.lambda64 import distances


@contextmanager
def lambda_attention(model, window: int, sinks: int):
    """Within, a forward pass over tokens 0 .. T - 1 of `model` is one with this window."""
    kind = type(model).__name__
    change = {"MptForCausalLM": _mpt, "GPTJForCausalLM": _gptj}.get(kind, _usual)
    undo = change(model, window, sinks)
    try:
        yield model
    finally:
        for owner, name, value in undo:
            setattr(owner, name, value)


def _set(undo: list, owner, name: str, value) -> None:
    undo.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def _seen(n: int, window: int, sinks: int, own_window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, T]: distance, and whether it is that of a sink; -1 where nothing is seen."""
    if own_window:
        window, sinks = own_window, 0
    distance = torch.from_numpy(distances(n, window, sinks, "ceiling").astype("int64"))
    p, j = torch.arange(n)[:, None], torch.arange(n)[None]
    return distance, (distance >= 0) & (p - j >= window)


def _weigh(scores, distance, v, *, cap=None, sink_logits=None):
    """scores [B, H, T, T] and v [B, H, T, D] -> [B, T, H, D]"""
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(distance < 0, float("-inf"))
    if sink_logits is not None:
        beside = sink_logits.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.softmax(torch.cat([scores, beside], -1), -1)[..., :-1]
    else:
        weights = torch.softmax(scores, -1)
    return (weights @ v).transpose(1, 2).contiguous()


def _usual(model, window: int, sinks: int) -> list:
    """Families whose attention calls `apply_rotary_pos_emb` and `eager_attention_forward` of their module."""
    module = sys.modules[type(model).__module__]
    turn = module.apply_rotary_pos_emb
    held: list = [None]
    undo: list = []

    def hold(q, k, cos, sin, *args, **kwargs):
        held[0] = (cos, sin)
        return q, k

    def attend(layer, q, k, v, mask, scaling, dropout=0.0, sliding_window=None, softcap=None, **kwargs):
        n = q.shape[2]
        angles, held[0] = held[0], None

        def turned(x, positions):
            if angles is None:  # a layer without rope
                return x
            cos, sin = (t[:, positions] for t in angles)
            return turn(x, x, cos, sin)[0]

        distance, far = _seen(n, window, sinks, sliding_window)
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        every = torch.arange(n)
        scores = turned(q, every) @ turned(k, every).transpose(2, 3)
        if far.any():
            capped = turned(q, torch.full((n,), window)) @ turned(k, torch.zeros(n, dtype=torch.long)).transpose(2, 3)
            scores = torch.where(far, capped, scores)
        return _weigh(scores * scaling, distance, v, cap=softcap, sink_logits=getattr(layer, "sinks", None)), None

    _set(undo, module, "apply_rotary_pos_emb", hold)
    _set(undo, module, "eager_attention_forward", attend)
    return undo


def _mpt(model, window: int, sinks: int) -> list:
    module = sys.modules[type(model).__module__]
    slopes = -_slopes(module, model.config)
    undo: list = []

    def forward(self, hidden_states, *args, **kwargs):
        b, n, _ = hidden_states.shape
        qkv = self.Wqkv(hidden_states)
        if self.clip_qkv:
            qkv = qkv.clamp(-self.clip_qkv, self.clip_qkv)
        q, k, v = (x.reshape(b, n, self.n_heads, self.head_dim).transpose(1, 2) for x in qkv.chunk(3, 2))
        distance, _ = _seen(n, window, sinks, None)
        scores = q @ k.transpose(2, 3) * self.softmax_scale - slopes[None, :, None, None] * distance.float()
        return self.out_proj(_weigh(scores, distance, v).reshape(b, n, -1)), None

    _set(undo, module.MptAttention, "forward", forward)
    return undo


def _slopes(module, config) -> torch.Tensor:
    """Minus the penalty of one token, per head, out of the model's own table."""
    table = module.build_mpt_alibi_tensor(config.n_heads, 2, config.attn_config.alibi_bias_max).reshape(config.n_heads, -1)
    return table[:, 0] - table[:, 1]


def _gptj(model, window: int, sinks: int) -> list:
    module = sys.modules[type(model).__module__]
    undo: list = []

    def forward(self, hidden_states, *args, **kwargs):
        b, n, _ = hidden_states.shape
        shape = (b, n, self.num_attention_heads, self.head_dim)
        q, k, v = (f(hidden_states).reshape(shape) for f in (self.q_proj, self.k_proj, self.v_proj))

        def turned(x, positions):
            sin, cos = self.embed_positions[positions].chunk(2, -1)
            part = module.apply_rotary_pos_emb(x[..., : self.rotary_dim], sin[None], cos[None])
            return torch.cat([part, x[..., self.rotary_dim :]], -1).transpose(1, 2)

        distance, far = _seen(n, window, sinks, None)
        every = torch.arange(n)
        scores = turned(q, every) @ turned(k, every).transpose(2, 3)
        capped = turned(q, torch.full((n,), window)) @ turned(k, torch.zeros(n, dtype=torch.long)).transpose(2, 3)
        scores = torch.where(far, capped, scores) / self.scale_attn
        return self.out_proj(_weigh(scores, distance, v.transpose(1, 2)).reshape(b, n, -1)), None

    _set(undo, module.GPTJAttention, "forward", forward)
    return undo
