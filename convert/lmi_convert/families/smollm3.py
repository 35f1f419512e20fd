"""SmolLM 3: Llama, but every fourth layer has no rope."""

from __future__ import annotations

from lmi.errors import UnsupportedModel

from lmi_convert.family import Build, Family
from lmi_convert.matrix import adjacent_pairs


def build(b: Build) -> None:
    c, s = b.config, b.shape()
    c.require("hidden_act", allowed=("silu",), default="silu", why="the family has SiLU")
    c.require(
        "use_sliding_window", allowed=(False,), default=False, why="windows of some layers only have no place in the file"
    )
    turning = [int((i + 1) % 4 != 0) for i in range(s.n_layers)]
    if c.get("no_rope_layers", default=turning) != turning or c.integer("no_rope_layer_interval", default=4) != 4:
        raise UnsupportedModel(
            "config.json: no_rope_layers is not every fourth layer", "A GGUF file of this family has no place for it"
        )
    b.rms_norm()
    b.rope(s.head_dim, theta=2e6)
    bias, ff_bias = c.flag("attention_bias", default=False), c.flag("mlp_bias", default=False)

    b.embedding("model.embed_tokens.weight")
    for _, blk, hf in b.layers("model.layers"):
        b.norm(f"{blk}.attn_norm", f"{hf}.input_layernorm")
        b.attention(blk, f"{hf}.self_attn", bias=bias, out_bias=bias, order=adjacent_pairs)
        b.norm(f"{blk}.ffn_norm", f"{hf}.post_attention_layernorm")
        b.gated(blk, f"{hf}.mlp", bias=ff_bias)
    b.norm("output_norm", "model.norm")
    b.output("lm_head", tied=True)


FAMILIES = [Family("smollm3", ("SmolLM3ForCausalLM",), build)]
