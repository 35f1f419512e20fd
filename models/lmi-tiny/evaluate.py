"""Measures a checkpoint: perplexity on held-out books, passkey accuracy inside the context, a sample.

    python evaluate.py --work WORK --valid BOOKS_VALID [--checkpoint WORK/last.pt|lmi-tiny.gguf]
"""
import argparse
import math
from pathlib import Path

import numpy as np
import torch

import data
from model import Config, Model


def book_windows(path, vocabulary, per_book, size=512):
    """Held-out text -> ids int64 [N, size] and the UTF-8 bytes that each window's targets spell [N].

    Takes `per_book` windows, evenly spread, of each book; each begins with BOS, then running text.
    """
    sp = data.spm.SentencePieceProcessor(model_file=str(vocabulary))
    rows, sizes = [], []
    for _, text in data.read_books(path):
        step = len(text) // (per_book + 1)
        for i in range(1, per_book + 1):
            part = text[i * step: i * step + 8 * size]
            ids = sp.encode(part)[:size - 1]
            rows.append([data.BOS] + ids)
            sizes.append(len(sp.decode(ids).encode()))
    return torch.tensor(rows), np.array(sizes)


@torch.no_grad()
def nats_per_byte(model, ids, sizes):
    """Returns nats per byte and nats per token."""
    total = 0.0
    for part in ids.split(8):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(part[:, :-1])
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), part[:, 1:].flatten(), reduction="sum").item()
    return total / sizes.sum(), total / ids[:, 1:].numel()


@torch.no_grad()
def passkey(model, exercises, length, count, seed):
    """Share of right answers in `count` prompts of about `length` tokens, key positions evenly spread.

    Greedy decoding is right exactly when every answer token is the arg max after the true ones before it
    (and what follows is no digit), so one forward pass tells. Also returns rightness by prompt.
    """
    rng = np.random.default_rng([seed, length])
    right = []
    for i in range(count):
        segments, n = exercises.passkey(rng, length, depth=(i + 0.5) / count, plain=True)
        ids = [data.BOS] + exercises.encode(segments)[0]
        answer = exercises.encode([(f" {n}", 0)])[0]
        best = model(torch.tensor([ids]))[0].argmax(-1).tolist()
        k = len(answer)
        after = exercises.sp.id_to_piece(best[-1])
        right.append(best[-k - 1:-1] == answer and not after.strip("▁")[:1].isdigit())
    return sum(right) / count, right


@torch.no_grad()
def sample(model, sp, prompt, count, temperature=0.8, top_p=0.9, seed=1):
    """Plain sampling; the sequence stays inside the trained context."""
    generator = torch.Generator().manual_seed(seed)
    ids = [data.BOS] + sp.encode(" " + prompt)
    for _ in range(count):
        p = (model(torch.tensor([ids]))[0, -1].float() / temperature).softmax(-1)
        s, order = p.sort(descending=True)
        s[s.cumsum(0) - s > top_p] = 0
        ids.append(int(order[torch.multinomial(s, 1, generator=generator)]))
    return sp.decode(ids[1:]).lstrip(" ")


def load(path):
    """A checkpoint, or a GGUF file (what its rounded weights do in the same torch model)."""
    if str(path).endswith(".gguf"):
        import gguf

        from export import names
        ours = {theirs: mine for mine, theirs in names(Config.layers).items()}
        model, state = Model(Config()), None
        model.load_state_dict({ours[t.name]: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy())
                               for t in gguf.GGUFReader(path).tensors})
    else:
        saved = torch.load(path, weights_only=True)
        state = saved["state"]
        if "family" in saved["config"]:
            from siblings import Sibling
            model = Sibling(**saved["config"])
        else:
            model = Model(Config(**saved["config"]))
        model.load_state_dict(saved["model"])
    return model.eval(), state


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--valid", required=True)
    p.add_argument("--checkpoint", type=Path)
    p.add_argument("--per-book", type=int, default=20, help="windows of each held-out book")
    p.add_argument("--prompts", type=int, default=100, help="passkey prompts of each length")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    model, state = load(a.checkpoint or a.work / "last.pt")
    exercises = data.Exercises(a.work / "lmi-tiny.model", np.fromfile(a.work / "books.u16", np.uint16))
    if state:
        print(f"{state['tokens'] / 1e6:.1f}M tokens, {state['seconds'] / 60:.0f} minutes")
    byte, token = nats_per_byte(model, *book_windows(a.valid, a.work / "lmi-tiny.model", a.per_book))
    print(f"books: {byte:.4f} nats per byte (perplexity {math.exp(byte):.3f}), "
          f"{token:.4f} per token (perplexity {math.exp(token):.1f})")
    for length in (150, 200, 250, 300, 350, 400, 450, 500):
        print(f"passkey, {length} tokens: {passkey(model, exercises, length, a.prompts, seed=1)[0]:.3f}")
    print(sample(model, exercises.sp, "Once upon a time there was a little girl", 200))
