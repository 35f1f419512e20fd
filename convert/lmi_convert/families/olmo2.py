"""OLMo 2: norms behind attention and feed-forward instead of before, and over the whole of q and of k."""

from __future__ import annotations

from lmi_convert.family import Build, Family


def build(b: Build) -> None:
    c, s = b.config, b.shape()
    c.require("hidden_act", allowed=("silu",), default="silu", why="the family has SiLU")
    b.rms_norm(default=1e-5)
    b.rope(s.head_dim)
    bias = c.flag("attention_bias", default=False)

    b.embedding("model.embed_tokens.weight")
    for _, blk, hf in b.layers("model.layers"):
        b.attention(blk, f"{hf}.self_attn", bias=bias, out_bias=bias)
        b.norm(f"{blk}.attn_q_norm", f"{hf}.self_attn.q_norm", s.q)
        b.norm(f"{blk}.attn_k_norm", f"{hf}.self_attn.k_norm", s.kv)
        b.norm(f"{blk}.post_attention_norm", f"{hf}.post_attention_layernorm")
        b.gated(blk, f"{hf}.mlp")
        b.norm(f"{blk}.post_ffw_norm", f"{hf}.post_feedforward_layernorm")
    b.norm("output_norm", "model.norm")
    b.output("lm_head", tied=False)


FAMILIES = [Family("olmo2", ("Olmo2ForCausalLM",), build)]
