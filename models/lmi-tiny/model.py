"""The network: exactly what GGUF calls `llama`, so that the export is a plain copy.

Shapes: B windows, T positions, D = dim, H query heads, K key/value heads, E = D/H, F = ffn, V = vocab.
RoPE turns adjacent pairs (2i, 2i+1), the layout that GGUF's llama expects of q and k; a model trained
like this needs no permutation at export.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab: int = 4096
    dim: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 768
    context: int = 512
    theta: float = 10000.0
    eps: float = 1e-5


def rope_table(c: Config, length: int):
    """cos and sin, each [T, E/2] float32."""
    e = c.dim // c.heads
    freq = c.theta ** (-torch.arange(0, e, 2, dtype=torch.float64) / e)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * freq
    return angle.cos().float(), angle.sin().float()


def rope(x, cos, sin):
    """x [B, heads, T, E]; pair (2i, 2i+1) is turned by cos/sin [T, E/2]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)


class Norm(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c.dim))
        self.eps = c.eps

    def forward(self, x):  # [B, T, D] -> [B, T, D]; the mean square is taken in float32
        f = x.float()
        return (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + self.eps) * self.weight).type_as(x)


class Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        e = c.dim // c.heads
        self.c = c
        self.attn_norm, self.ffn_norm = Norm(c), Norm(c)
        self.q = nn.Linear(c.dim, c.heads * e, bias=False)
        self.k = nn.Linear(c.dim, c.kv_heads * e, bias=False)
        self.v = nn.Linear(c.dim, c.kv_heads * e, bias=False)
        self.o = nn.Linear(c.heads * e, c.dim, bias=False)
        self.gate = nn.Linear(c.dim, c.ffn, bias=False)
        self.up = nn.Linear(c.dim, c.ffn, bias=False)
        self.down = nn.Linear(c.ffn, c.dim, bias=False)

    def forward(self, x, cos, sin):  # [B, T, D] -> [B, T, D]
        b, t, _ = x.shape
        n = self.attn_norm(x)
        q = rope(self.q(n).view(b, t, self.c.heads, -1).transpose(1, 2), cos, sin)  # [B, H, T, E]
        k = rope(self.k(n).view(b, t, self.c.kv_heads, -1).transpose(1, 2), cos, sin)  # [B, K, T, E]
        v = self.v(n).view(b, t, self.c.kv_heads, -1).transpose(1, 2)
        g = self.c.heads // self.c.kv_heads  # query head h reads key/value head h // g
        k, v = k.repeat_interleave(g, 1), v.repeat_interleave(g, 1)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(b, t, -1))
        n = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(n)) * self.up(n))


class Model(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c.vocab, c.dim)  # also the output matrix (tied)
        self.blocks = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = Norm(c)
        nn.init.normal_(self.embed.weight, std=0.02)
        for block in self.blocks:
            for w in (block.q, block.k, block.v, block.gate, block.up):
                nn.init.normal_(w.weight, std=c.dim ** -0.5 / 2)
            nn.init.zeros_(block.o.weight)  # every layer begins as the identity
            nn.init.zeros_(block.down.weight)

    def forward(self, ids):
        """ids [B, T] -> logits [B, T, V]."""
        cos, sin = rope_table(self.c, ids.shape[1])
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.linear(self.norm(x), self.embed.weight)

    def loss(self, ids, targets, weight):
        """Mean over all positions of weight * negative log-likelihood; each [B, T]."""
        nll = F.cross_entropy(self(ids).flatten(0, 1).float(), targets.flatten(), reduction="none")
        return (nll * weight.flatten()).mean()
