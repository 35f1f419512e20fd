"""Reads the GGUF back and runs it with a separate numpy network; compares with the checkpoint.

    python check.py lmi-tiny.gguf [--checkpoint WORK/last.pt]

Prints the file's keys, the mean loss on a text from the file alone, and the greatest difference of logits
from the torch model (what 8-bit weights and bf16-free arithmetic make of them).
"""
import argparse
from pathlib import Path

import gguf
import numpy as np


class File:
    def __init__(self, path):
        r = gguf.GGUFReader(path)
        self.keys = {k: f.contents() for k, f in r.fields.items() if not k.startswith("GGUF.")}
        self.weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in r.tensors}
        self.types = {t.name: t.tensor_type.name for t in r.tensors}

    def logits(self, ids):
        """ids [T] -> logits [T, V] in float64, written from the GGUF conventions alone."""
        k, w = lambda s: self.keys["llama." + s], self.weights
        h, kv, eps = k("attention.head_count"), k("attention.head_count_kv"), k("attention.layer_norm_rms_epsilon")
        t, e = len(ids), k("rope.dimension_count")
        angle = np.arange(t)[:, None] * k("rope.freq_base") ** (-np.arange(0, e, 2) / e)
        turn = np.exp(1j * angle)[:, None]  # [T, 1, E/2]; a pair of values is a complex number

        def norm(x, name):
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w[name]

        def heads(x, n, rotate):
            x = x.reshape(t, n, e)
            if rotate:
                z = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
                x = np.stack([z.real, z.imag], -1).reshape(t, n, e)
            return x

        x = w["token_embd.weight"][ids]
        for i in range(k("block_count")):
            b = f"blk.{i}."
            n = norm(x, b + "attn_norm.weight")
            q = heads(n @ w[b + "attn_q.weight"].T, h, True)
            key = heads(n @ w[b + "attn_k.weight"].T, kv, True).repeat(h // kv, 1)
            val = heads(n @ w[b + "attn_v.weight"].T, kv, False).repeat(h // kv, 1)
            s = np.einsum("qhe,khe->hqk", q, key) / np.sqrt(e)
            s[:, np.triu(np.ones((t, t), bool), 1)] = -np.inf
            p = np.exp(s - s.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            x = x + np.einsum("hqk,khe->qhe", p, val).reshape(t, -1) @ w[b + "attn_output.weight"].T
            n = norm(x, b + "ffn_norm.weight")
            g = n @ w[b + "ffn_gate.weight"].T
            x = x + (g / (1 + np.exp(-g)) * (n @ w[b + "ffn_up.weight"].T)) @ w[b + "ffn_down.weight"].T
        return norm(x, "output_norm.weight") @ w.get("output.weight", w["token_embd.weight"]).T

    def encode(self, text):
        """SentencePiece BPE from the file's tokens and scores: BOS, then the best-scored merges."""
        tokens = {t: i for i, t in enumerate(self.keys["tokenizer.ggml.tokens"])}
        scores = self.keys["tokenizer.ggml.scores"]
        parts = list((" " + text).replace(" ", "▁"))
        while True:
            best = max((j for j in range(len(parts) - 1) if parts[j] + parts[j + 1] in tokens),
                       key=lambda j: (scores[tokens[parts[j] + parts[j + 1]]], -j), default=None)
            if best is None:
                break
            parts[best:best + 2] = [parts[best] + parts[best + 1]]
        ids = [self.keys["tokenizer.ggml.bos_token_id"]]
        for p in parts:
            ids += [tokens[p]] if p in tokens else [tokens[f"<0x{b:02X}>"] for b in p.encode()]
        return ids


TEXT = """Once upon a time there was a little girl who lived with her mother in a small house
near the wood. "Take this basket," said her mother, "and go to your grandmother."

The pass key is 90417. Remember it. 90417 is the pass key.
What is the pass key? The pass key is 90417."""

if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("gguf", type=Path)
    p.add_argument("--checkpoint", type=Path)
    a = p.parse_args()
    f = File(a.gguf)
    for key, value in f.keys.items():
        print(key, "=", f"[{len(value)} items]" if isinstance(value, list) else repr(value))
    shapes = {n: w.shape for n, w in f.weights.items() if "blk" not in n or "blk.0." in n}
    print(len(f.weights), "tensors:", sorted(set(f.types.values())), shapes)
    ids = f.encode(TEXT)
    logits = f.logits(ids)
    z = logits - logits.max(-1, keepdims=True)
    nll = np.log(np.exp(z).sum(-1))[:-1] - z[np.arange(len(ids) - 1), ids[1:]]
    print(f"{len(ids)} ids, mean loss {nll.mean():.4f}; of the last number: {nll[-6:-1].mean():.4f}")
    if a.checkpoint:
        import torch

        from evaluate import load
        model, _ = load(a.checkpoint)
        with torch.no_grad():
            other = model(torch.tensor([ids]))[0].double().numpy()
        print(f"greatest difference of logits {np.abs(other - logits).max():.4f}, standard deviation of logits "
              f"{logits.std():.2f}, same best token at {(other.argmax(-1) == logits.argmax(-1)).mean():.1%}")
