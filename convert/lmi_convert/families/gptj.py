"""GPT-J: pairs of a part of each head turn, attention and feed-forward read the same norm, the output has a bias."""

from __future__ import annotations

from lmi_convert.family import Build, Family


def build(b: Build) -> None:
    c = b.config
    s = b.shape(ff_default=4, embd=("n_embd", "hidden_size"))
    c.require(
        "activation_function", allowed=("gelu_new", "gelu_pytorch_tanh"), default="gelu_new", why="the family has GELU by tanh"
    )
    b.layer_norm("layer_norm_epsilon")
    n_rot = c.integer("rotary_dim", default=64, low=2, high=s.head_dim)
    c.values = {k: v for k, v in c.values.items() if k != "rope_scaling"}  # some tools note the kind of rope there
    b.rope(n_rot)

    b.embedding("transformer.wte.weight")
    for _, blk, hf in b.layers("transformer.h"):
        b.norm(f"{blk}.attn_norm", f"{hf}.ln_1", bias=True)
        b.attention(blk, f"{hf}.attn", out="out_proj")
        b.linear(f"{blk}.ffn_up", f"{hf}.mlp.fc_in", s.n_ff, s.n_embd, bias=True)
        b.linear(f"{blk}.ffn_down", f"{hf}.mlp.fc_out", s.n_embd, s.n_ff, bias=True)
    b.norm("output_norm", "transformer.ln_f", bias=True)
    b.output("lm_head", tied=False, bias=True)
    b.weights.ignore(r"\.attn\.(bias|masked_bias|embed_positions)$")


FAMILIES = [Family("gptj", ("GPTJForCausalLM",), build)]
