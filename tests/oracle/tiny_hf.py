"""Small transformers models of every family, random in all their weights, saved as checkpoint folders.

Shapes are scaled down; what is odd about a family is on: grouped heads, biases, windows, caps, experts, tied embeddings. Norms
and biases are random too: a converter that forgets one of them, or what is done to it, is seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

N_VOCAB = 320


@dataclass(frozen=True)
class Case:
    """`window`: the family's own, where layers have one. `reach`: tokens up to which ordinary attention is what the model does
    (its trained context)."""

    name: str
    config: str
    options: dict = field(default_factory=dict)
    architecture: str = ""
    window: int = 0

    @property
    def reach(self) -> int:
        return self.options.get("max_position_embeddings") or self.options.get("n_positions") or self.options["max_seq_len"]


_USUAL = dict(
    vocab_size=N_VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=192,
    tie_word_embeddings=False,
    bos_token_id=0,
    eos_token_id=0,
)


def _case(name: str, config: str, architecture: str = "", window: int = 0, *, drop=(), **options) -> Case:
    merged = {k: v for k, v in {**_USUAL, **options}.items() if k not in drop}
    return Case(name, config, merged, architecture or name, window)


def _rope(**parameters) -> dict:
    return {"rope_theta": 10000.0, **parameters}


_LONG = [1.0 + 0.7 * i for i in range(8)]
_SHORT = [1.0 + 0.05 * i for i in range(8)]

CASES = [
    _case("llama", "LlamaConfig"),
    _case("llama-tied-biases", "LlamaConfig", "llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    _case("llama-head-dim", "LlamaConfig", "llama", head_dim=32, num_key_value_heads=4, num_attention_heads=4),
    _case(
        "llama-3",
        "LlamaConfig",
        "llama",
        rope_parameters=_rope(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
        ),
    ),
    _case("llama-linear", "LlamaConfig", "llama", rope_parameters=_rope(rope_type="linear", factor=4.0)),
    _case(
        "llama-yarn",
        "LlamaConfig",
        "llama",
        rope_parameters=_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=48),
    ),
    _case("mistral-window", "MistralConfig", "llama", window=48, sliding_window=48),
    _case("mixtral", "MixtralConfig", "llama", num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    Case(
        "gptj",
        "GPTJConfig",
        dict(vocab_size=N_VOCAB, n_positions=192, n_embd=64, n_layer=3, n_head=4, rotary_dim=8, bos_token_id=0, eos_token_id=0),
        "gptj",
    ),
    Case(
        "mpt",
        "MptConfig",
        dict(vocab_size=N_VOCAB, d_model=48, n_heads=6, n_layers=3, max_seq_len=192, attn_config={"clip_qkv": 1.5}),
        "mpt",
    ),
    _case(
        "gptneox",
        "GPTNeoXConfig",
        drop=("num_key_value_heads",),
        rotary_pct=0.5,
        use_parallel_residual=True,
        rope_parameters=_rope(partial_rotary_factor=0.5, rope_type="default"),
    ),
    _case(
        "gptneox-sequential",
        "GPTNeoXConfig",
        "gptneox",
        drop=("num_key_value_heads",),
        use_parallel_residual=False,
        rope_parameters=_rope(partial_rotary_factor=1.0, rope_type="default"),
    ),
    _case("qwen2", "Qwen2Config", tie_word_embeddings=True),
    _case(
        "qwen2moe",
        "Qwen2MoeConfig",
        moe_intermediate_size=32,
        shared_expert_intermediate_size=48,
        num_experts=6,
        num_experts_per_tok=3,
        decoder_sparse_step=1,
        norm_topk_prob=False,
    ),
    _case("qwen3", "Qwen3Config", head_dim=32, tie_word_embeddings=True),
    _case(
        "qwen3moe",
        "Qwen3MoeConfig",
        head_dim=32,
        moe_intermediate_size=32,
        num_experts=6,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        norm_topk_prob=True,
    ),
    _case("gemma", "GemmaConfig", head_dim=32, num_key_value_heads=1, tie_word_embeddings=True),
    _case(
        "gemma2",
        "Gemma2Config",
        window=40,
        head_dim=32,
        sliding_window=40,
        num_hidden_layers=4,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=2.0,
        tie_word_embeddings=True,
    ),
    _case(
        "gemma3",
        "Gemma3TextConfig",
        window=40,
        head_dim=32,
        sliding_window=40,
        num_hidden_layers=7,
        query_pre_attn_scalar=24,
        tie_word_embeddings=True,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    _case("phi3", "Phi3Config", window=48, sliding_window=48, pad_token_id=0),
    _case(
        "phi3-longrope",
        "Phi3Config",
        "phi3",
        pad_token_id=0,
        sliding_window=None,
        max_position_embeddings=192,
        original_max_position_embeddings=64,
        rope_parameters=_rope(
            rope_type="longrope",
            long_factor=_LONG,
            short_factor=_SHORT,
            original_max_position_embeddings=64,
            partial_rotary_factor=1.0,
        ),
    ),
    _case(
        "phi4",
        "Phi3Config",
        "phi3",
        pad_token_id=0,
        sliding_window=None,
        tie_word_embeddings=True,
        rope_parameters=_rope(rope_type="default", partial_rotary_factor=0.5),
    ),
    _case(
        "gpt-oss",
        "GptOssConfig",
        window=40,
        head_dim=32,
        sliding_window=40,
        num_local_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=4,
        intermediate_size=64,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 48,
        },
    ),
    _case("smollm3", "SmolLM3Config", num_hidden_layers=5, tie_word_embeddings=True, pad_token_id=0),
    _case("olmo2", "Olmo2Config", pad_token_id=0),
    _case("starcoder2", "Starcoder2Config", window=48, sliding_window=48, use_bias=True, tie_word_embeddings=True),
]
BY_NAME = {case.name: case for case in CASES}


def make_model(case: Case, seed: int = 0):
    """A transformers model in float32, in evaluation, every parameter random."""
    import torch
    import transformers

    config = getattr(transformers, case.config)(**case.options)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                around_one = "norm" in name or "ln_" in name
                p.copy_(noise * 0.3 + (1.0 if around_one and name.endswith("weight") and "gemma" not in case.name else 0.0))
            elif "experts" in name and name.endswith("bias"):
                p.copy_(noise * 0.3)
            elif "embed" in name or "wte" in name:
                p.copy_(noise * (0.3 if "gemma" in case.name else 1.0))
            else:
                p.copy_(noise * 1.5 / p.shape[-1] ** 0.5)
        # torch 2.13's first pass in a process is off by 0.005 in one run of ten (float64 agrees with all later ones): not ours.
        model(input_ids=torch.arange(case.reach)[None], use_cache=False)
    return model


def save(model, folder: Path, *, dtype: str = "float32", max_shard_size: str = "5GB") -> Path:
    """The checkpoint as transformers writes it, with a tokenizer."""
    import torch

    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Byte-level BPE with a few merges, padded to the size of the models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB - 8,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog sat on the log " * 4], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}))
