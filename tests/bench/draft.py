"""What `--draft ngram` gains where an answer repeats its prompt: a text is read, then an edited version of it is written.

    python tests/bench/draft.py model.gguf before.c after.c
    git show HEAD~9:native/backend/cpu.c > before.c && python tests/bench/draft.py model.gguf before.c native/backend/cpu.c

The edited version is given, token by token, as if the model had chosen it: the speed is that of a model that makes this very
edit, whatever the model knows. `--vocab` names a file whose tokenizer is used instead, for a model with random weights. Without
and with drafting take turns; medians.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "runtime"))

import lmi  # noqa: E402


def written(model: lmi.Model, prompt: list[int], answer: list[int], draft: int, window: int) -> tuple[float, object]:
    """Tokens a second, and what became of the guesses."""
    with model.session(draft=draft, window=window) as session:
        session.read_tokens(prompt)
        began = time.perf_counter()
        for token in answer:
            session.read_token(token)
        return len(answer) / (time.perf_counter() - began), session.draft_counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--vocab", type=Path)
    parser.add_argument("-n", type=int, default=400, help="at most so many tokens of the edited version")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--window", type=int, default=4096)
    options = parser.parse_args()
    model = lmi.Model(options.model, threads=options.threads)
    words = lmi.Model(options.vocab, vocab_only=True) if options.vocab else model
    prompt, answer = (words.tokenize(path.read_text()) for path in (options.before, options.after))
    speeds: dict[int, list[float]] = {0: [], 7: []}
    for _ in range(options.rounds):
        for draft, list_of in speeds.items():
            speed, counts = written(model, prompt, answer[: options.n], draft, options.window)
            list_of.append(speed)
    plain, drafted = (statistics.median(list_of) for list_of in speeds.values())
    print(
        f"{options.after.name}: prompt {len(prompt)}, written {len(answer[: options.n])} tokens; {plain:.1f} t/s, with "
        f"drafting {drafted:.1f} ({drafted / plain:.2f}x); {counts.true} of {counts.guessed} guesses came true "
        f"in {counts.passes} passes"
    )


if __name__ == "__main__":
    main()
