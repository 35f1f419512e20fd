"""LLaMA, Llama 2 and 3.x, Mistral, Mixtral and what has their shape: TinyLlama, SmolLM 2, Vicuna, Yi, ..."""

from __future__ import annotations

from lmi_convert.family import Build, Family
from lmi_convert.matrix import adjacent_pairs
from lmi_convert.writer import u32


def build(b: Build) -> None:
    c, s = b.config, b.shape()
    c.require("hidden_act", allowed=("silu", "swish"), default="silu", why="the family has SiLU")
    b.rms_norm()
    b.rope(s.head_dim)
    mistral = c.get("model_type") == "mistral"
    if mistral or c.get("model_type") == "mixtral":
        # A config without the key means the 4096 of Mistral v0.1; later ones have null there.
        b.window(default=4096 if mistral and "sliding_window" not in c.values else None)
    n_experts = c.integer("num_local_experts", default=0, low=0, high=1024)
    if n_experts:
        b.key("expert_count", u32(n_experts))
        b.key("expert_used_count", u32(c.integer("num_experts_per_tok", high=n_experts)))
    attention_bias = c.flag("attention_bias", default=False)
    ff_bias = c.flag("mlp_bias", default=False)

    b.embedding("model.embed_tokens.weight")
    for _, blk, hf in b.layers("model.layers"):
        b.norm(f"{blk}.attn_norm", f"{hf}.input_layernorm")
        b.attention(blk, f"{hf}.self_attn", bias=attention_bias, out_bias=attention_bias, order=adjacent_pairs)
        b.norm(f"{blk}.ffn_norm", f"{hf}.post_attention_layernorm")
        if n_experts:
            moe = f"{hf}.block_sparse_moe" if b.weights.has(f"{hf}.block_sparse_moe.gate.weight") else f"{hf}.mlp"
            b.add(f"{blk}.ffn_gate_inp.weight", b.read(f"{moe}.gate.weight", n_experts, s.n_embd), exact=True)
            b.experts(blk, f"{moe}.experts", n_experts, s.n_ff, names=("w1", "w3", "w2"))
        else:
            b.gated(blk, f"{hf}.mlp", bias=ff_bias)
    b.norm("output_norm", "model.norm")
    b.output("lm_head", tied=False)
    b.weights.ignore(r"\.rotary_emb\.inv_freq$")


FAMILIES = [
    Family(
        "llama",
        ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"),
        build,
    )
]
