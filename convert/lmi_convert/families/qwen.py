"""Qwen 2, 2.5 and 3, dense and with experts."""

from __future__ import annotations

from lmi.errors import UnsupportedModel

from lmi_convert.family import Build, Family
from lmi_convert.writer import u32


def qwen2(b: Build) -> None:
    _build(b, bias=True, head_norms=False)


def qwen2moe(b: Build) -> None:
    b.config.require(
        "norm_topk_prob", allowed=(False,), default=False, why="experts of the family qwen2moe are not weighted to a sum of one"
    )
    _build(b, bias=b.config.flag("qkv_bias", default=True), head_norms=False, shared=True)


def qwen3(b: Build) -> None:
    _build(b, bias=b.config.flag("attention_bias", default=False), head_norms=True)


def qwen3moe(b: Build) -> None:
    b.config.require(
        "norm_topk_prob", allowed=(True,), default=False, why="experts of the family qwen3moe are weighted to a sum of one"
    )
    _build(b, bias=b.config.flag("attention_bias", default=False), head_norms=True, shared=False)


def _build(b: Build, *, bias: bool, head_norms: bool, shared: bool | None = None) -> None:
    """`shared`: experts, with or without one that every token has; None: no experts."""
    c, s = b.config, b.shape()
    c.require("hidden_act", allowed=("silu",), default="silu", why="the family has SiLU")
    c.require(
        "use_sliding_window", allowed=(False,), default=False, why="windows of some layers only have no place in the file"
    )
    b.rms_norm()
    b.rope(s.head_dim)
    n = n_ff = n_shared = 0
    if shared is not None:
        n = c.integer("num_experts", "num_local_experts", high=1024)
        n_ff = c.integer("moe_intermediate_size", high=1048576)
        b.key("expert_count", u32(n))
        b.key("expert_used_count", u32(c.integer("num_experts_per_tok", high=n)))
        b.key("expert_feed_forward_length", u32(n_ff))
        if c.integer("decoder_sparse_step", default=1) != 1 or c.get("mlp_only_layers"):
            raise UnsupportedModel(
                "config.json: some layers have experts and some do not", "A GGUF file of this family has no place for it"
            )
    if shared:
        n_shared = c.integer("shared_expert_intermediate_size", high=1048576)
        b.key("expert_shared_feed_forward_length", u32(n_shared))

    b.embedding("model.embed_tokens.weight")
    for _, blk, hf in b.layers("model.layers"):
        b.norm(f"{blk}.attn_norm", f"{hf}.input_layernorm")
        b.attention(blk, f"{hf}.self_attn", bias=bias, out_bias=bias and head_norms)
        if head_norms:
            b.norm(f"{blk}.attn_q_norm", f"{hf}.self_attn.q_norm", s.head_dim)
            b.norm(f"{blk}.attn_k_norm", f"{hf}.self_attn.k_norm", s.head_dim)
        b.norm(f"{blk}.ffn_norm", f"{hf}.post_attention_layernorm")
        if shared is None:
            b.gated(blk, f"{hf}.mlp")
            continue
        b.add(f"{blk}.ffn_gate_inp.weight", b.read(f"{hf}.mlp.gate.weight", n, s.n_embd), exact=True)
        b.experts(blk, f"{hf}.mlp.experts", n, n_ff)
        if shared:
            gate = b.read(f"{hf}.mlp.shared_expert_gate.weight", 1, s.n_embd).shaped(s.n_embd)
            b.add(f"{blk}.ffn_gate_inp_shexp.weight", gate, exact=True)
            b.gated(blk, f"{hf}.mlp.shared_expert", n_shared, suffix="_shexp")
    b.norm("output_norm", "model.norm")
    b.output("lm_head", tied=False)


FAMILIES = [
    Family("qwen2", ("Qwen2ForCausalLM",), qwen2),
    Family("qwen2moe", ("Qwen2MoeForCausalLM",), qwen2moe),
    Family("qwen3", ("Qwen3ForCausalLM",), qwen3),
    Family("qwen3moe", ("Qwen3MoeForCausalLM",), qwen3moe),
]
