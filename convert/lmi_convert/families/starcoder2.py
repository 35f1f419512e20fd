"""StarCoder 2: layer norms, biases everywhere, a plain feed-forward."""

from __future__ import annotations

from lmi_convert.family import Build, Family


def build(b: Build) -> None:
    c, s = b.config, b.shape()
    c.require(
        "hidden_act", allowed=("gelu_pytorch_tanh", "gelu_new"), default="gelu_pytorch_tanh", why="the family has GELU by tanh"
    )
    c.require("mlp_type", allowed=("default",), default="default", why="the family has a plain feed-forward")
    b.layer_norm("norm_epsilon")
    b.rope(s.head_dim)
    b.window()
    bias = c.flag("use_bias", default=True)

    b.embedding("model.embed_tokens.weight")
    for _, blk, hf in b.layers("model.layers"):
        b.norm(f"{blk}.attn_norm", f"{hf}.input_layernorm", bias=True)
        b.attention(blk, f"{hf}.self_attn", bias=bias, out_bias=bias)
        b.norm(f"{blk}.ffn_norm", f"{hf}.post_attention_layernorm", bias=True)
        b.linear(f"{blk}.ffn_up", f"{hf}.mlp.c_fc", s.n_ff, s.n_embd, bias=bias)
        b.linear(f"{blk}.ffn_down", f"{hf}.mlp.c_proj", s.n_embd, s.n_ff, bias=bias)
    b.norm("output_norm", "model.norm", bias=True)
    b.output("lm_head", tied=True)


FAMILIES = [Family("starcoder2", ("Starcoder2ForCausalLM",), build)]
