"""Gemma 1, 2 and 3 (its text part). Norms store their weights less one; files have them as they are used."""

from __future__ import annotations

from lmi_convert.family import Build, Family
from lmi_convert.writer import f32

TANH = ("gelu_pytorch_tanh", "gelu_new")


def gemma(b: Build) -> None:
    _begin(b)
    b.rope(b.sizes.head_dim)
    _layers(b, sandwich=False, head_norms=False)


def gemma2(b: Build) -> None:
    c = b.config
    _begin(b)
    b.rope(b.sizes.head_dim)
    b.key("attn_logit_softcapping", f32(c.real("attn_logit_softcapping", default=50.0, low=1e-3, high=1e6)))
    b.key("final_logit_softcapping", f32(c.real("final_logit_softcapping", default=30.0, low=1e-3, high=1e6)))
    _scale(b)
    b.window(default=4096)
    b.require_windows(lambda i: i % 2 == 0)
    _layers(b, sandwich=True, head_norms=False)


def gemma3(b: Build) -> None:
    c = b.config
    for name, value in (("num_attention_heads", 8), ("num_key_value_heads", 4), ("max_position_embeddings", 131072)):
        c.values.setdefault(name, value)  # configs of the language part leave out what is usual
    _begin(b)
    c.require("attn_logit_softcapping", allowed=(None,), default=None, why="the family has no cap on attention")
    b.rope(b.sizes.head_dim, theta=1e6)
    b.key("rope.freq_base_swa", f32(_local_base(b)))
    if c.get("final_logit_softcapping") is not None:
        b.key("final_logit_softcapping", f32(c.real("final_logit_softcapping", low=1e-3, high=1e6)))
    _scale(b)
    b.window(default=4096)
    c.require(
        "sliding_window_pattern", "_sliding_window_pattern", allowed=(6,), default=6, why="every sixth layer sees everything"
    )
    b.require_windows(lambda i: (i + 1) % 6 != 0)
    _layers(b, sandwich=True, head_norms=True)
    b.weights.ignore(r"(^|\.)(vision_tower|multi_modal_projector)\.")


def _local_base(b: Build) -> float:
    """Base of the rope in layers with a window. Newer configs have it in a table of its own."""
    table = b.config.table("rope_parameters").get("sliding_attention")
    if isinstance(table, dict) and table.get("rope_theta") is not None:
        return b.config.rope("sliding_attention").real("rope_theta", low=1.001, high=1e15)
    return b.config.real("rope_local_base_freq", default=10000.0, low=1.001, high=1e15)


def _begin(b: Build) -> None:
    c = b.config
    c.values.setdefault("head_dim", 256)
    b.shape()
    c.require("hidden_activation", allowed=TANH, default=TANH[0], why="the family has GELU by tanh")
    b.rms_norm()


def _scale(b: Build) -> None:
    """What q is multiplied by. Readers that do not know the key take the root of the head size, as all published sizes but the
    largest have it."""
    scalar = b.config.real("query_pre_attn_scalar", default=float(b.sizes.head_dim), low=1e-3, high=1e9)
    b.key("attention.scale", f32(scalar**-0.5))


def _layers(b: Build, *, sandwich: bool, head_norms: bool) -> None:
    s = b.sizes
    bias = b.config.flag("attention_bias", default=False)
    b.embedding("model.embed_tokens.weight")
    for _, blk, hf in b.layers("model.layers"):
        b.norm(f"{blk}.attn_norm", f"{hf}.input_layernorm", plus=1.0)
        b.attention(blk, f"{hf}.self_attn", bias=bias, out_bias=bias)
        if head_norms:
            b.norm(f"{blk}.attn_q_norm", f"{hf}.self_attn.q_norm", s.head_dim, plus=1.0)
            b.norm(f"{blk}.attn_k_norm", f"{hf}.self_attn.k_norm", s.head_dim, plus=1.0)
        if sandwich:
            b.norm(f"{blk}.post_attention_norm", f"{hf}.post_attention_layernorm", plus=1.0)
            b.norm(f"{blk}.ffn_norm", f"{hf}.pre_feedforward_layernorm", plus=1.0)
        else:
            b.norm(f"{blk}.ffn_norm", f"{hf}.post_attention_layernorm", plus=1.0)
        b.gated(blk, f"{hf}.mlp")
        if sandwich:
            b.norm(f"{blk}.post_ffw_norm", f"{hf}.post_feedforward_layernorm", plus=1.0)
    b.norm("output_norm", "model.norm", plus=1.0)
    b.output("lm_head", tied=True)
    b.weights.ignore(r"\.rotary_emb\.inv_freq$")


FAMILIES = [
    Family("gemma", ("GemmaForCausalLM",), gemma),
    Family("gemma2", ("Gemma2ForCausalLM",), gemma2),
    Family(
        "gemma3",
        ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        gemma3,
        prefixes=("", "language_model.", "model.language_model."),
        truncates_vocabulary=True,
    ),
]
