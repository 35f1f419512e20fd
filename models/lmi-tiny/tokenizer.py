"""Trains the vocabulary: SentencePiece BPE, 4096 pieces, byte fallback, single digits, identity normalisation.

    python tokenizer.py --books BOOKS_DIR_OR_TAR --work WORK

writes WORK/lmi-tiny.model and the list of chosen books WORK/books.txt.
"""
import argparse
from pathlib import Path

import sentencepiece as spm

import data


def train(lines, path: Path):
    """lines: iterator of single text lines, each without its newline.

    The books are hard-wrapped and a newline is a byte token, so the first word of each line has no
    space before it. Training on lines *without* the dummy prefix gives the pieces the right counts.
    data.py writes the one space at the start of a text itself; the GGUF says add_space_prefix.
    """
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(path.with_suffix("")), model_type="bpe",
        vocab_size=4096, byte_fallback=True, split_digits=True, character_coverage=0.9999,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        max_sentence_length=100000, num_threads=2, minloglevel=1)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--books", required=True)
    p.add_argument("--work", required=True, type=Path)
    p.add_argument("--share", type=float, default=0.55, help="share of the text to keep, simplest books first")
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    books = data.simplest(data.read_books(a.books), a.share)
    (a.work / "books.txt").write_text("".join(name + "\n" for name, _ in books))
    lines = [l for _, text in books for l in text.split("\n") if l][::12]  # every 12th line: about 15 MB
    train(lines, a.work / "lmi-tiny.model")
    data.encode_books(books, a.work / "lmi-tiny.model", a.work / "books.u16")
