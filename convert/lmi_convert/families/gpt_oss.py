"""gpt-oss: experts in MXFP4, gate and up interleaved row by row; a learned logit per head beside the scores of attention."""

from __future__ import annotations

import numpy as np

from lmi_convert.family import Build, Family
from lmi_convert.matrix import Matrix
from lmi_convert.writer import u32

BLOCK = 32  # values under one scale of MXFP4


def build(b: Build) -> None:
    c = b.config
    c.values.setdefault("head_dim", 64)
    s = b.shape()
    b.rms_norm(default=1e-5)
    b.rope(s.head_dim, theta=150000.0)
    b.window(default=128)
    b.require_windows(lambda i: i % 2 == 0)
    n = c.integer("num_local_experts", "num_experts", high=1024)
    b.key("expert_count", u32(n))
    b.key("expert_used_count", u32(c.integer("num_experts_per_tok", "experts_per_token", high=n)))
    b.key("expert_feed_forward_length", u32(s.n_ff))

    b.embedding("model.embed_tokens.weight")
    for _, blk, hf in b.layers("model.layers"):
        b.norm(f"{blk}.attn_norm", f"{hf}.input_layernorm")
        b.attention(blk, f"{hf}.self_attn", bias=True, out_bias=True)
        b.vector(f"{blk}.attn_sinks.weight", f"{hf}.self_attn.sinks", s.n_heads)
        b.norm(f"{blk}.post_attention_norm", f"{hf}.post_attention_layernorm")
        b.add(f"{blk}.ffn_gate_inp.weight", b.read(f"{hf}.mlp.router.weight", n, s.n_embd), exact=True)
        b.vector(f"{blk}.ffn_gate_inp.bias", f"{hf}.mlp.router.bias", n)
        experts = f"{hf}.mlp.experts"
        _expert(b, f"{blk}.ffn_gate_exps", f"{experts}.gate_up_proj", n, s.n_ff, s.n_embd, half=0)
        _expert(b, f"{blk}.ffn_up_exps", f"{experts}.gate_up_proj", n, s.n_ff, s.n_embd, half=1)
        _expert(b, f"{blk}.ffn_down_exps", f"{experts}.down_proj", n, s.n_embd, s.n_ff, half=None)
    b.norm("output_norm", "model.norm")
    b.output("lm_head", tied=False)


def _expert(b: Build, ours: str, theirs: str, n: int, rows: int, cols: int, *, half: int | None) -> None:
    """`half`: 0 or 1 of rows that alternate (gate, up, gate, ...), None: all rows."""
    stored = rows if half is None else 2 * rows
    every = slice(None) if half is None else slice(half, None, 2)
    one_by_one = [(i, i + 1) for i in range(n)]
    if b.weights.has(f"{theirs}_blocks"):
        blocks = b.weights.source(f"{theirs}_blocks", (n, stored, cols // BLOCK, BLOCK // 2), floats=False)
        scales = b.weights.source(f"{theirs}_scales", (n, stored, cols // BLOCK), floats=False)

        def pieces():
            for i in range(n):
                yield mxfp4_blocks(blocks.read(i, i + 1)[0, every], scales.read(i, i + 1)[0, every])

        b.add(f"{ours}.weight", Matrix((n, rows, cols), "F32", pieces, blocks.name), packed_type="MXFP4")
    else:  # columns of these are outputs
        matrix = b.read(
            theirs, n, cols, stored, ranges=one_by_one, change=lambda x: x.swapaxes(1, 2)[:, every], result=(n, rows, cols)
        )
        b.add(f"{ours}.weight", matrix)
    bias = b.read(f"{theirs}_bias", n, stored, ranges=one_by_one, change=lambda x: x[:, every], result=(n, rows))
    b.add(f"{ours}.bias", bias, exact=True)


def mxfp4_blocks(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """[rows][blocks][16], [rows][blocks] -> [rows][17 * blocks], bytes of GGUF's type. A byte of the checkpoint holds two
    values that follow each other; GGUF's byte i holds values i and i + 16 of the block. Low half first in both."""
    low, high = values & 15, values >> 4
    flat = np.stack([low, high], -1).reshape(*values.shape[:-1], BLOCK)
    packed = flat[..., : BLOCK // 2] | flat[..., BLOCK // 2 :] << 4
    return np.concatenate([scales[..., None], packed], -1).reshape(len(values), -1)


FAMILIES = [Family("gpt-oss", ("GptOssForCausalLM",), build)]
