"""lmi-tiny's siblings: the paper's other three families, of lmi-tiny's width and depth, as transformers has them.

    python train.py --work WORK --family gptneox|gptj|mpt ...
    python siblings.py --work WORK --out FOLDER          # a checkpoint for `lmi convert FOLDER`

GPT-NeoX turns a quarter of each head, in halves; GPT-J half of it, in adjacent pairs; MPT turns nothing and has ALiBi.
"""
import argparse
import shutil
from pathlib import Path

import torch.nn.functional as F
import transformers
from torch import nn

import evaluate

DIM, LAYERS, HEADS, CONTEXT = 256, 6, 4, 512
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}


def config(family, vocab):
    if family == "gptneox":
        return transformers.GPTNeoXConfig(
            vocab_size=vocab, hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * DIM,
            max_position_embeddings=CONTEXT, rotary_pct=0.25, **TOKENS)
    if family == "gptj":
        return transformers.GPTJConfig(
            vocab_size=vocab, n_embd=DIM, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, rotary_dim=DIM // HEADS // 2,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **TOKENS)
    return transformers.MptConfig(
        vocab_size=vocab, d_model=DIM, n_layers=LAYERS, n_heads=HEADS, expansion_ratio=4, max_seq_len=CONTEXT, no_bias=True,
        **TOKENS)


FAMILIES = ("gptneox", "gptj", "mpt")
OUTPUTS = ("attention.dense", "dense_4h_to_h", "out_proj", "fc_out", "down_proj")  # what a layer adds ends with one of them


class Sibling(nn.Module):
    """Called and trained like model.Model."""

    def __init__(self, family, vocab):
        super().__init__()
        self.net = transformers.AutoModelForCausalLM.from_config(config(family, vocab))
        self.blocks = next(m for m in self.net.modules() if isinstance(m, nn.ModuleList))
        for name, part in self.blocks.named_modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0 if name.endswith(OUTPUTS) else DIM ** -0.5 / 2)

    def forward(self, ids):
        """ids [B, T] -> logits [B, T, V]."""
        return self.net(ids, use_cache=False).logits

    def loss(self, ids, targets, weight):
        """Mean over all positions of weight * negative log-likelihood; each [B, T]."""
        nll = F.cross_entropy(self(ids).flatten(0, 1).float(), targets.flatten(), reduction="none")
        return (nll * weight.flatten()).mean()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    evaluate.load(a.work / "last.pt")[0].net.save_pretrained(a.out)
    shutil.copy(a.work / "lmi-tiny.model", a.out / "tokenizer.model")


if __name__ == "__main__":
    main()
