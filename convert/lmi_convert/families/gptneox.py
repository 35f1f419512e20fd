"""GPT-NeoX: Pythia, RedPajama-INCITE, Dolly 2. q, k and v lie interleaved by head; a part of each head turns."""

from __future__ import annotations

from lmi_convert.family import Build, Family
from lmi_convert.writer import boolean


def build(b: Build) -> None:
    c, s = b.config, b.shape()
    c.require("hidden_act", allowed=("gelu",), default="gelu", why="the family has the exact GELU")
    b.layer_norm("layer_norm_eps", "layer_norm_epsilon")
    b.key("use_parallel_residual", boolean(c.flag("use_parallel_residual", default=True)))
    part = c.rope().real("partial_rotary_factor", default=c.real("rotary_pct", default=0.25, high=1.0), high=1.0)
    if c.get("rope_theta") is None and c.get("rotary_emb_base") is not None:
        c.values["rope_theta"] = c.get("rotary_emb_base")
    b.rope(int(part * s.head_dim))
    bias = c.flag("attention_bias", default=True)
    # Head after head: its q, its k, its v. The file has all q, then all k, then all v.
    spans = [((3 * h + part) * s.head_dim, (3 * h + part + 1) * s.head_dim) for part in range(3) for h in range(s.n_heads)]

    b.embedding("gpt_neox.embed_in.weight")
    for _, blk, hf in b.layers("gpt_neox.layers"):
        b.norm(f"{blk}.attn_norm", f"{hf}.input_layernorm", bias=True)
        qkv = f"{hf}.attention.query_key_value"
        b.add(f"{blk}.attn_qkv.weight", b.read(f"{qkv}.weight", 3 * s.n_embd, s.n_embd, ranges=spans))
        if bias:
            b.add(f"{blk}.attn_qkv.bias", b.read(f"{qkv}.bias", 3 * s.n_embd, ranges=spans), exact=True)
        b.linear(f"{blk}.attn_output", f"{hf}.attention.dense", s.n_embd, s.n_embd, bias=bias)
        b.norm(f"{blk}.ffn_norm", f"{hf}.post_attention_layernorm", bias=True)
        b.linear(f"{blk}.ffn_up", f"{hf}.mlp.dense_h_to_4h", s.n_ff, s.n_embd, bias=True)
        b.linear(f"{blk}.ffn_down", f"{hf}.mlp.dense_4h_to_h", s.n_embd, s.n_ff, bias=True)
    b.norm("output_norm", "gpt_neox.final_layer_norm", bias=True)
    b.output("embed_out" if b.weights.has("embed_out.weight") else "lm_head", tied=False)
    b.weights.ignore(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$")


FAMILIES = [Family("gptneox", ("GPTNeoXForCausalLM",), build)]
