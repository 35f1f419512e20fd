"""What `lmi run` reads: a template's head, the user's documents as a stream, the question, the template's tail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lmi.errors import PromptError
from lmi.templates import ChatTemplate, Segment
from lmi.text import TextFile, utf8_blocks
from lmi.tokens import Reader

SINK_CAP = 1024  # tokens of system prompt and template head that are kept in view, at most
WHITE = b" \t\r\n"


@dataclass
class Prompt:
    """`head` and `tail`: segments around the user's words; `documents`: files and literal texts, joined with a line break
    where one lacks it; `ask`: the question, after a blank line. `bos`: tokens that a text begins with. `special`: control
    tokens are recognised in the user's words too. `strip`: white space around the user's words goes, as the template has it."""

    documents: list[TextFile | str]
    ask: str | None
    head: list[Segment]
    tail: list[Segment]
    bos: list[int]
    special: bool = False
    strip: bool = False

    @classmethod
    def build(
        cls,
        model,
        documents,
        *,
        ask=None,
        system=None,
        template: ChatTemplate | None = None,
        special=False,
        continuing=False,
        arguments=None,
    ) -> Prompt:
        """`continuing`: the head was read before (a loaded state), only the rest is wanted. Raises TemplateError."""
        if template is None:
            head = [Segment("system", f"{system}\n\n")] if system and not continuing else []
            return cls(documents, ask, head, [], [] if continuing else model.bos_tokens(), special)
        segments, strip = template.segments(system=None if continuing else system, **(arguments or {}))
        at = next(i for i, s in enumerate(segments) if s.kind == "user")
        bos = [] if continuing or template.begins_with_bos(segments) else model.bos_tokens()
        return cls(documents, ask, [] if continuing else segments[:at], segments[at + 1 :], bos, special, strip)

    @property
    def size(self) -> int | None:
        """Bytes of the documents, or None if one of them is a pipe."""
        sizes = [len(d.encode()) if isinstance(d, str) else d.size for d in self.documents]
        return None if None in sizes else sum(sizes)

    @property
    def done(self) -> int:
        """Bytes of files that were read until now."""
        return sum(d.done for d in self.documents if isinstance(d, TextFile))

    def head_tokens(self, model) -> int:
        """Tokens before the user's words: what sinks should cover."""
        counter = _Counter(model)
        self._read_head(counter)
        return counter.n

    def read_documents(self, reader: Reader, *, began: bool) -> None:
        """Head and documents. `began`: something was read before, so the text continues it."""
        if not began:
            self._read_head(reader)
        reader.text(self._words(self._moved()), self.special, continues=began or bool(self.head))

    def read_question(self, reader: Reader) -> None:
        """Question and tail. Templates end the user's turn here, and begin the model's."""
        if self.ask:
            reader.text(utf8_blocks(self.ask.strip() if self.strip else self.ask, name="--ask"), self.special, continues=True)
        for segment in self.tail:
            reader.text(iter([segment.text.encode()]), segment.kind == "template", continues=True)

    def _read_head(self, reader) -> None:
        reader.ids(self.bos)
        last = len(self.head) - 1
        for i, s in enumerate(self.head):
            text = s.text.encode()
            if i == last:
                text = text.rstrip(WHITE)
            if text:
                reader.text(utf8_blocks(text, name="--system"), s.kind == "template", continues=i > 0)

    def _moved(self) -> bytes:
        """White space at the end of the head: it is tokenized with what follows, as in one text."""
        if not self.head:
            return b""
        text = self.head[-1].text.encode()
        return text[len(text.rstrip(WHITE)) :]

    def _words(self, lead: bytes) -> Iterator[bytes]:
        """The documents as one stream, with the blank line that the question needs before it."""
        if lead:
            yield lead
        tail = b""
        for block in _stripped(self._joined()) if self.strip else self._joined():
            tail = (tail + block)[-2:]
            yield block
        if self.ask and tail:
            yield b"\n" * (2 - len(tail) + len(tail.rstrip(b"\n")))

    def _joined(self) -> Iterator[bytes]:
        last = b"\n"
        for i, d in enumerate(self.documents):
            if i and last != b"\n":
                yield b"\n"
            for block in utf8_blocks(d, name="--text") if isinstance(d, str) else d.blocks():
                last = block[-1:]
                yield block


def _stripped(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Without white space at the start and the end."""
    held, started = [], False
    for block in blocks:
        if not started:
            block = block.lstrip(WHITE)
            started = bool(block)
        body = block.rstrip(WHITE)
        if body:
            yield from held
            yield body
            held = []
        if len(body) < len(block):
            held.append(block[len(body) :])


class _Counter:
    """Counts as a Reader would read."""

    def __init__(self, model):
        self._model = model
        self.n = 0

    def ids(self, tokens) -> None:
        self.n += len(tokens)

    def text(self, blocks, special=False, continues=False) -> None:
        from lmi.tokens import continuation, encode_blocks

        lead, drop = continuation(self._model) if continues else (b"", 0)

        def led():
            if lead:
                yield lead
            yield from blocks

        self.n += sum(map(len, encode_blocks(self._model, led(), special))) - drop


def require_words(documents: list, ask: str | None, allow_empty: bool) -> None:
    """Raises PromptError if there is nothing to read: no text in files and words, no question. Waits for a pipe's first
    bytes."""
    if allow_empty or ask:
        return
    for d in documents:
        if d if isinstance(d, str) else d.has_bytes():
            return
    raise PromptError("prompt is empty", "--allow-empty starts from nothing")
