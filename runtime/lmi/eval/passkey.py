"""A number hidden in sentences that say nothing: the pass key of LM-Infinite's table 2.

Its wording, filler and way of counting: a whole number from 1 to 9,999,999 is said twice between sentences that repeat, the
model continues the question with its most likely tokens, and the first number in them is compared (arXiv 2308.16137; the test
is of Mohtashami and Jaggi, arXiv 2305.16300). The paper draws depths at random; here they are spread evenly.
"""

from __future__ import annotations

from array import array

from lmi.eval import retrieval
from lmi.eval.retrieval import Haystack, Task

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there."
)
FILLER = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
MOST = 10_000_000  # keys are less
LEAST_ANSWER = 7  # tokens written, as in the paper; more where the key has more


def head_of(model) -> array:
    return retrieval.ids_of(model, TASK, begins=True)


def haystack_of(model) -> Haystack:
    return Haystack([retrieval.ids_of(model, f" {sentence}") for sentence in FILLER])


def needle_of(model, key: int, name: str = "") -> array:
    """The sentences that give a key. `name`: where there are several, whose it is."""
    of, it = (f" of {name}", f"the pass key of {name}") if name else ("", "it")
    needle = array("i")
    for part in (f" The pass key{of} is", f" {key}", f". Remember {it}.", f" {key}", f" is the pass key{of}."):
        needle += retrieval.ids_of(model, part)
    return needle


def question_of(model, name: str = "") -> array:
    key = f"pass key of {name}" if name else "pass key"
    return retrieval.ids_of(model, f" What is the {key}? The {key} is")


def answer_tokens(model, key: int) -> int:
    """How many an answer may take: one more than the key has, so that a longer number shows."""
    return max(LEAST_ANSWER, len(retrieval.ids_of(model, f" {key}")) + 1)


def make_tasks(model, length: int, n: int, seed: int) -> list[Task]:
    question = question_of(model)
    tasks = []
    for i, depth in enumerate(retrieval.depths(n)):
        key = retrieval.draws("passkey", seed, length, i).randrange(1, MOST)
        needle = needle_of(model, key)
        tasks.append(Task(depth, [(depth, needle)], question, key, answer_tokens(model, key)))
    return tasks


def measure(model, settings, lengths: list[tuple[int, int]], *, seed: int = 1, **watching) -> list[retrieval.Score]:
    """Scores of all lengths and settings; `lengths`: (tokens, samples), the rest as retrieval.measure."""
    return retrieval.measure(
        model,
        settings,
        lengths,
        lambda length, n: make_tasks(model, length, n, seed),
        head_of(model),
        haystack_of(model),
        **watching,
    )
