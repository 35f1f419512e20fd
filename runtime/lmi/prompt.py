"""What `lmi run` reads: a template's head, the user's documents as a stream, the question, the template's tail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lmi.errors import PromptError
from lmi.templates import ChatTemplate, Segment
from lmi.text import TextFile, utf8_blocks
from lmi.tokens import Counter, TokenStream

SINK_CAP = 1024  # tokens of system prompt and template head that are kept in view, at most
WHITE = b" \t\r\n"


@dataclass
class Prompt:
    """`head` and `tail`: segments around the user's words; `documents`: files and literal texts, joined with a line break
    where one lacks it; `ask`: the question, after a blank line. `bos`: tokens that a text begins with. `special`: control
    tokens are recognised in the user's words too. `strip`: white space around the user's words goes, as the template has it."""

    model: object
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
            return cls(model, documents, ask, head, [], [] if continuing else model.bos_tokens(), special)
        segments, strip = template.segments(system=None if continuing else system, **(arguments or {}))
        at = next(i for i, s in enumerate(segments) if s.kind == "user")
        bos = [] if continuing or template.begins_with_bos(segments) else model.bos_tokens()
        return cls(model, documents, ask, [] if continuing else segments[:at], segments[at + 1 :], bos, special, strip)

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
        counter = Counter(model)
        self._read_head(counter)
        return counter.n_taken

    def read_documents(self, reader: TokenStream, *, began: bool) -> None:
        """Head and documents. `began`: the head was read before."""
        lead, eaten = b"", False
        if not began:
            self._read_head(reader)
            lead, eaten = self._moved()
        reader.text(self._words(lead, eaten), self.special)

    def read_question(self, reader: TokenStream) -> None:
        """Question and tail. Templates end the user's turn here, and begin the model's."""
        if self.ask:
            reader.text(utf8_blocks(self.ask.strip() if self.strip else self.ask, name="--ask"), self.special)
        for segment in self.tail:
            reader.text(iter([segment.text.encode()]), segment.kind == "template")

    def _read_head(self, reader: TokenStream) -> None:
        reader.ids(self.bos)
        last = len(self.head) - 1
        for i, s in enumerate(self.head):
            text = s.text.encode()
            if i == last:
                text = text.rstrip(WHITE)
            if text:
                reader.text(utf8_blocks(text, name="--system"), s.kind == "template")

    def _moved(self) -> tuple[bytes, bool]:
        """White space at the end of the head: it is tokenized with the words that follow, as in one text. Or nothing, and True,
        where the head ends in a token that swallows what white space comes after it."""
        if not self.head:
            return b"", False
        text = self.head[-1].text.encode()
        body = text.rstrip(WHITE)
        if body != text and self.head[-1].kind == "template":
            ids = [self.model.tokenize(t, bos=False, special=True) for t in (body, text)]
            if ids[0] == ids[1]:
                return b"", True
        return text[len(body) :], False

    def _words(self, lead: bytes, eaten: bool) -> Iterator[bytes]:
        """The documents as one stream, with the blank line that the question needs before it."""
        if lead:
            yield lead
        tail = b""
        blocks = self._joined()
        if self.strip or eaten:
            blocks = _stripped(blocks, end=self.strip)
        for block in blocks:
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


def _stripped(blocks: Iterator[bytes], end: bool) -> Iterator[bytes]:
    """Without white space at the start, and at the end too if `end`."""
    held, started = [], False
    for block in blocks:
        if not started:
            block = block.lstrip(WHITE)
            started = bool(block)
        body = block.rstrip(WHITE) if end else block
        if body:
            yield from held
            yield body
            held = []
        if len(body) < len(block):
            held.append(block[len(body) :])


def require_words(documents: list, ask: str | None, allow_empty: bool) -> None:
    """Raises PromptError if there is nothing to read: no text in files and words, no question. Waits for a pipe's first
    bytes."""
    if allow_empty or ask:
        return
    for d in documents:
        if d if isinstance(d, str) else d.has_bytes():
            return
    raise PromptError("prompt is empty", "--allow-empty starts from nothing")
