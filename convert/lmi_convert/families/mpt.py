"""MPT: a penalty on distance (ALiBi) instead of rope, q, k and v in one matrix, usually no biases at all."""

from __future__ import annotations

from lmi.errors import UnsupportedModel

from lmi_convert.family import Build, Family
from lmi_convert.writer import f32


def build(b: Build) -> None:
    c = b.config
    s = b.shape(
        layers=("n_layers", "num_hidden_layers"),
        embd=("d_model", "hidden_size"),
        ff=("ffn_hidden_size",),
        ff_default=c.integer("expansion_ratio", default=4, high=64),
        heads=("n_heads", "num_attention_heads"),
        context=("max_seq_len",),
    )
    attention = c.table("attn_config")
    kv = attention.integer("kv_n_heads", default=s.n_heads, high=1024)
    if kv != s.n_heads:
        raise UnsupportedModel(f"config.json: attn_config has {kv} key-value heads for {s.n_heads} heads", "Supported: as many")
    for name in ("prefix_lm", "qk_ln", "attn_uses_sequence_id"):
        attention.require(name, allowed=(False,), default=False, why="the family has plain causal attention")
    attention.require("alibi", allowed=(True,), default=True, why="the family has ALiBi")
    attention.require("softmax_scale", allowed=(None,), default=None, why="the family divides by the root of the head size")
    b.layer_norm("layer_norm_epsilon")
    b.key("attention.max_alibi_bias", f32(attention.real("alibi_bias_max", default=8.0, high=1e3)))
    clip = attention.real("clip_qkv", default=0.0, high=1e6)
    if clip:
        b.key("attention.clamp_kqv", f32(clip))

    b.embedding("transformer.wte.weight")
    for _, blk, hf in b.layers("transformer.blocks"):
        b.norm(f"{blk}.attn_norm", f"{hf}.norm_1", bias=None)
        b.linear(f"{blk}.attn_qkv", f"{hf}.attn.Wqkv", 3 * s.n_embd, s.n_embd, bias=None)
        b.linear(f"{blk}.attn_output", f"{hf}.attn.out_proj", s.n_embd, s.n_embd, bias=None)
        b.norm(f"{blk}.ffn_norm", f"{hf}.norm_2", bias=None)
        b.linear(f"{blk}.ffn_up", f"{hf}.ffn.up_proj", s.n_ff, s.n_embd, bias=None)
        b.linear(f"{blk}.ffn_down", f"{hf}.ffn.down_proj", s.n_embd, s.n_ff, bias=None)
    b.norm("output_norm", "transformer.norm_f", bias=None)
    b.output("lm_head", tied=True)


FAMILIES = [Family("mpt", ("MPTForCausalLM", "MptForCausalLM"), build)]
