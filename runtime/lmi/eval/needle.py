"""A pass key hidden in a book instead of filler; or several of different names, of which one is asked for.

With one the test asks whether the number is still there when what stands around it says something; with several also whether
the right one is taken (the multi-key form of RULER, arXiv 2404.06654). The wording is that of `passkey`, with a name to each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lmi.errors import InvalidArgument, PromptError
from lmi.eval import passkey, retrieval
from lmi.eval.retrieval import Haystack, Task

PLACES = (
    "Aberdeen", "Antwerp", "Athens", "Barcelona", "Belfast", "Berlin", "Bombay", "Boston", "Bristol", "Brussels", "Cairo",
    "Calcutta", "Canton", "Chicago", "Copenhagen", "Cork", "Dover", "Dresden", "Dublin", "Edinburgh", "Florence", "Geneva",
    "Genoa", "Glasgow", "Hamburg", "Havana", "Jerusalem", "Lisbon", "Liverpool", "London", "Madrid", "Manchester", "Milan",
    "Moscow", "Munich", "Naples", "New York", "Odessa", "Oxford", "Paris", "Philadelphia", "Plymouth", "Prague", "Quebec",
    "Rome", "Rotterdam", "Seville", "Stockholm", "Sydney", "Tokyo", "Toronto", "Turin", "Venice", "Vienna", "Warsaw",
    "York", "Zurich",
)  # fmt: skip
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])[\"'”’)]*(?=\s)|(?=\n\s*\n)")


def haystack_of(model, blocks: Iterator[bytes], most: int, name: str = "the book") -> Haystack:
    """Sentences of a text, each with the space before it as it is there; of the first `most` tokens, then again from the start.
    Raises PromptError for a text without any."""
    sentences, n = [], 0
    for text in _sentences(blocks):
        ids = retrieval.ids_of(model, text)
        if not ids:
            continue
        sentences.append(ids)
        n += len(ids)
        if n >= most:
            break
    if not sentences:
        raise PromptError(f"{name} holds no text to hide anything in", "Name a book")
    return Haystack(sentences)


def _sentences(blocks: Iterator[bytes]) -> Iterator[str]:
    """Pieces of a text that end where a sentence or a paragraph does, and together are the text."""
    import codecs

    decoder, rest = codecs.getincrementaldecoder("utf-8")(), ""
    for block in blocks:
        text = rest + decoder.decode(block)
        cuts = [m.end() for m in _SENTENCE_ENDS.finditer(text) if 0 < m.end() < len(text) - 2]
        for begin, end in zip([0, *cuts], cuts):
            yield _spaced(text[begin:end])
        rest = text[cuts[-1] :] if cuts else text
    if rest.strip():
        yield _spaced(rest.rstrip())


def _spaced(text: str) -> str:
    return text if text[:1].isspace() else f" {text}"


def make_tasks(model, length: int, n: int, seed: int, keys: int) -> list[Task]:
    tasks = []
    for i, depth in enumerate(retrieval.depths(n)):
        draw = retrieval.draws("needle", seed, length, keys, i)
        names = draw.sample(PLACES, keys) if keys > 1 else [""]
        numbers = draw.sample(range(1, passkey.MOST), keys)
        places = [depth, *(draw.random() for _ in names[1:])]
        needles = [(place, passkey.needle_of(model, key, name)) for name, key, place in zip(names, numbers, places)]
        question = passkey.question_of(model, names[0])
        tasks.append(Task(depth, needles, question, numbers[0], passkey.answer_tokens(model, numbers[0])))
    return tasks


def measure(
    model, settings, lengths: list[tuple[int, int]], haystack: Haystack, *, keys: int = 1, seed: int = 1, **watching
) -> list[retrieval.Score]:
    """Scores of all lengths and settings; `lengths`: (tokens, samples); `keys`: needles; the rest as retrieval.measure."""
    if not 1 <= keys <= len(PLACES):
        raise InvalidArgument(f"keys must be from 1 to {len(PLACES)}, not {keys}")

    def tasks(length: int, n: int) -> list[Task]:
        return make_tasks(model, length, n, seed, keys)

    return retrieval.measure(model, settings, lengths, tasks, passkey.head_of(model), haystack, **watching)
