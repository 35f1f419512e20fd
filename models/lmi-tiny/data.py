"""Text and recall exercises for training.

Every window begins with BOS, as every text that the runtime reads does: the first tokens are the ones
that attention keeps for ever, so the model must know them as its place to look when nothing else fits.
"""
import re
import tarfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import sentencepiece as spm

BOS, EOS = 1, 2


# ---------------------------------------------------------------- books

def read_books(path):
    """A folder of .txt files, or a tar of them -> [(name, text)] sorted by name."""
    path, books = Path(path), []
    if path.is_dir():
        books = [(f.name, f.read_text("utf-8", "replace")) for f in path.rglob("*.txt")]
    else:
        with tarfile.open(path) as tar:
            for m in tar:
                if m.isfile() and m.name.endswith(".txt"):
                    books.append((Path(m.name).name, tar.extractfile(m).read().decode("utf-8", "replace")))
    return sorted((n, t.replace("\r\n", "\n")) for n, t in books)


def simplest(books, share):
    """The simplest books that make up `share` of the text.

    Simple = most of its words are among the 2000 commonest of the whole collection. A model of a few
    million parameters learns to write sentences from these; foreign and technical texts fall out.
    """
    samples, counts = {}, Counter()
    for name, text in books:
        middle = text[len(text) // 4: len(text) // 4 + 60000]
        samples[name] = re.findall(r"[^\W\d_]+|\d", middle.lower())
        counts.update(samples[name])
    common = {w for w, _ in counts.most_common(2000)}
    score = {n: sum(w in common for w in s) / max(1, len(s)) for n, s in samples.items()}
    left, kept = share * sum(len(t) for _, t in books), []
    for name, text in sorted(books, key=lambda b: (-score[b[0]], b[0])):
        if left <= 0:
            break
        kept.append((name, text))
        left -= len(text)
    return sorted(kept)


def _encode(job):
    model, text = job
    sp = spm.SentencePieceProcessor(model_file=str(model))
    return np.array([BOS] + sp.encode(" " + text) + [EOS], np.uint16)


def encode_books(books, model, out):
    """All books one after the other as uint16 ids, each between BOS and EOS."""
    with ProcessPoolExecutor(2) as pool:
        ids = list(pool.map(_encode, [(model, t) for _, t in books], chunksize=8))
    np.concatenate(ids).tofile(out)


# ---------------------------------------------------------------- recall exercises

TASK = ("There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
        "I will quiz you about the important information there.")
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
QUESTION = "What is the pass key? The pass key is"

# Weight of a token in the loss. What cannot be known (a number's first mention) teaches nothing: 0.
NONE, LITTLE, PLAIN, ANSWER = 0.0, 0.1, 1.0, 6.0


class Exercises:
    """Makes windows [T + 1] of ids and weights from which recall is learnt."""

    def __init__(self, model_path, books):
        """books: uint16 ids of all books, for real text to copy and to hide things in."""
        self.sp = spm.SentencePieceProcessor(model_file=str(model_path))
        self.books = books
        self.vocab = self.sp.vocab_size()
        pieces = [self.sp.id_to_piece(i) for i in range(self.vocab)]
        self.words = [p[1:] for p in pieces if re.fullmatch("▁[A-Za-z]{3,}", p)]
        self.plain = np.array([i for i in range(3, self.vocab) if not self.sp.is_byte(i)])
        self.filler_len = len(self.sp.encode(" " + FILLER))

    def encode(self, segments):
        """[(text, weight)] -> ids, weights. A segment must begin at a space or at a digit's edge, where
        no piece can straddle, so that the ids are those of the whole text."""
        ids, weights = [], []
        for text, w in segments:
            e = self.sp.encode(text)
            ids += e
            weights += [w] * len(e)
        return ids, weights

    def passage(self, rng, n):
        """n ids of running text from a book."""
        i = int(rng.integers(len(self.books) - n))
        return [int(t) for t in self.books[i:i + n] if t > EOS]

    def passkey(self, rng, length, depth=None, plain=False):
        """One passkey text of about `length` tokens (never more): segments, answer number.

        plain: always the usual form, as the evaluation has it. Otherwise separators, filler and
        wording of the frame vary a little, so that it is the recall and not the frame that is learnt.
        """
        n = int(rng.integers(1, 10_000_000))
        depth = rng.random() if depth is None else depth
        sep = " " if plain else str(rng.choice([" ", " ", "\n", "\n\n"]))
        task = " " + TASK + sep if plain or rng.random() < 0.85 else " "
        info = [("The pass key is", LITTLE), (f" {n}", NONE), (". Remember it.", LITTLE),
                (f" {n}", PLAIN), (" is the pass key.", LITTLE)]
        room = length - len(self.encode([(task, 0), *info, (sep + sep + QUESTION + f" {n}.", 0)])[0])
        room = max(0, room - 4)  # a few tokens of slack: cuts can split words
        if plain or rng.random() < 0.85:
            parts = re.findall(r"[^.]+\.", " " + FILLER)  # the five sentences
            count = room * len(parts) // self.filler_len
            parts = parts * (count // len(parts) + 1)
            cut = round(depth * count)
            before, after = "".join(parts[:cut]).strip(), "".join(parts[cut:count]).strip()
        else:
            text = self.sp.decode(self.passage(rng, room // 2)).strip() if room > 1 else ""
            cut = int(depth * len(text))
            cut = text.rfind(" ", 0, cut + 1) + 1
            before, after = text[:cut].strip(), text[cut:].strip()
        head = (task + before + sep if before else task) + info[0][0]
        tail = (sep + after if after else "") + sep + QUESTION
        return [(head, LITTLE), *info[1:-1], (info[-1][0] + tail, LITTLE), (f" {n}", ANSWER)], n

    def key_values(self, rng, length):
        """A list of pairs, then some of the keys again, each with its value."""
        before, space, middle, between = [
            ("", "", ":", "\n"), ("", "", " =", "\n"), (" The", " ", " is", "."),
            ("", " ", " lives at number", "."), (" The word for", " ", " is", ".")][rng.integers(5)]
        words = rng.choice(self.words, 400, replace=False)
        digits = rng.random() < 0.6
        wide = int(rng.integers(1, 7))
        pairs, size = [], 0
        while size < length * 0.6 and len(pairs) < 150:
            value = " " + (str(rng.integers(10 ** wide)) if digits else words[200 + len(pairs)])
            pairs.append((space + words[len(pairs)], value))
            size += len(self.sp.encode(before + pairs[-1][0] + middle + value + between))
        asked = [pairs[i] for i in rng.permutation(len(pairs))]
        segments = []
        for seen, group in ((False, pairs), (True, asked)):
            for key, value in group:
                segments += [(before, LITTLE)] if before else []
                segments += [(key, LITTLE), (middle, LITTLE), (value, ANSWER if seen else NONE), (between, LITTLE)]
        return segments

    def window(self, rng, size):
        """One exercise as ids and weights [size + 1], beginning with BOS; weights are those of predicting the id."""
        kind = rng.random()
        if kind < 0.6:
            # mostly as long as the window, else the far half of the distances would hardly be met
            ids, weights = [], []
            while len(ids) < size and (not ids or size - len(ids) > 100):
                room = size - len(ids)
                low = min(80, room)
                length = room if rng.random() < 0.4 else int(rng.integers(low, room + 1))
                i, w = self.encode(self.passkey(rng, length)[0])
                dot, end = self.encode([(".", ANSWER)])[0], self.encode([("\n\n", LITTLE)])[0]
                ids += i + dot + end
                weights += w + [ANSWER] + [LITTLE] * len(end)
        elif kind < 0.75:
            ids, weights = self.encode(self.key_values(rng, size))
        else:
            # something said once and then again and again: any tokens, running text, or digits
            n = int(rng.integers(8, size // 2 + 1))
            which = rng.random()
            if which < 0.15:
                first = [int(t) for t in rng.choice(self.plain, n)]
            elif which < 0.55:
                first = self.sp.encode(" " + "".join(str(d) for d in rng.integers(0, 10, n)))
            else:
                first = self.passage(rng, n)
            times = size // max(1, len(first)) + 1
            ids = first * times
            weights = [PLAIN if which >= 0.55 else NONE] * len(first) + [PLAIN] * len(first) * (times - 1)
        if len(ids) < size:  # the rest of the window: running text
            more = self.passage(rng, size - len(ids) + 8)
            ids, weights = ids + more, weights + [PLAIN] * len(more)
        return [BOS] + ids[:size], [NONE] + weights[:size]


def batch(exercises, rng, size, count, recall, position):
    """`count` windows, `recall` of them exercises, the rest books from token `position` on.

    Returns ids, targets int64 [count, size], weights float32 [count, size], and the new position.
    Books are read in blocks of 512 in a fixed shuffled order; shorter windows are parts of a block.
    """
    rows = []
    books, block = exercises.books, 512
    blocks = len(books) // block
    position += -position % size  # where the window grows, begin at a whole one
    for _ in range(count - recall):
        turn, at = divmod(position // block, blocks)
        if getattr(exercises, "turn", None) != turn:
            exercises.turn = turn
            exercises.order = np.random.default_rng([7, turn]).permutation(blocks)
        start = int(exercises.order[at]) * block + position % block
        rows.append(([BOS] + books[start:start + size].astype(np.int64).tolist(), [PLAIN] * (size + 1)))
        position += size
    rows += [exercises.window(rng, size) for _ in range(recall)]
    ids = np.array([r[0] for r in rows], np.int64)
    weights = np.array([r[1] for r in rows], np.float32)
    return ids[:, :-1], ids[:, 1:], weights[:, 1:], position
