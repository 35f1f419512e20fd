"""Phi-3, 3.5 and 4: q, k, v in one matrix and gate, up in another, which stay so; factors of a stretched rope, long and
short."""

from __future__ import annotations

import math

from lmi_convert.family import Build, Family
from lmi_convert.matrix import constant
from lmi_convert.writer import f32, u32


def build(b: Build) -> None:
    c, s = b.config, b.shape()
    c.require("hidden_act", allowed=("silu",), default="silu", why="the family has SiLU")
    b.rms_norm(default=1e-5)
    part = c.rope().real("partial_rotary_factor", default=1.0, low=1e-3, high=1.0)
    n_rot = int(s.head_dim * part)
    p = b.rope(n_rot, stretched=("longrope", "su"))
    context = c.integer("max_position_embeddings")
    original = p.integer("original_max_position_embeddings", default=context, low=2)
    b.key("rope.scaling.original_context_length", u32(original))
    if p.get("rope_type") in ("longrope", "su"):
        scale = context / original
        magnitude = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        b.key("rope.scaling.attn_factor", f32(p.real("attention_factor", default=magnitude, low=0.01, high=100.0)))
        for kind in ("long", "short"):
            b.add(f"rope_factors_{kind}.weight", constant(p.reals(f"{kind}_factor", n_rot // 2)), exact=True)
    # 0 says that there is none: readers take a missing key for that of Phi-3 mini.
    b.key("attention.sliding_window", u32(min(c.integer("sliding_window", default=0, low=0, high=1 << 40), (1 << 32) - 1)))

    b.embedding("model.embed_tokens.weight")
    for _, blk, hf in b.layers("model.layers"):
        b.norm(f"{blk}.attn_norm", f"{hf}.input_layernorm")
        b.linear(f"{blk}.attn_qkv", f"{hf}.self_attn.qkv_proj", s.q + 2 * s.kv, s.n_embd)
        b.linear(f"{blk}.attn_output", f"{hf}.self_attn.o_proj", s.n_embd, s.q)
        b.norm(f"{blk}.ffn_norm", f"{hf}.post_attention_layernorm")
        b.linear(f"{blk}.ffn_up", f"{hf}.mlp.gate_up_proj", 2 * s.n_ff, s.n_embd)
        b.linear(f"{blk}.ffn_down", f"{hf}.mlp.down_proj", s.n_embd, s.n_ff)
    b.norm("output_norm", "model.norm")
    b.output("lm_head", tied=False)


FAMILIES = [Family("phi3", ("Phi3ForCausalLM",), build)]
