"""Chat templates: Jinja from a model file, which is to say from a stranger.

A template sees messages, a few helpers and nothing else, and it has limits: its own size, the weight of every value it makes,
the length of what it writes, and time. Whatever it does ends as text or as TemplateError.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from dataclasses import dataclass

from lmi.errors import TemplateError
from lmi.sandbox import LIMIT, Sandbox, TemplateLimit, deadline

MAX_TEMPLATE = 256 * 1024  # bytes; real ones have at most some tens of thousands
SECONDS = 2.0


@dataclass(frozen=True)
class Segment:
    """A part of a rendered prompt. `kind`: "template" (written by the template: control tokens are recognised in it),
    "system" or "user" (what stands there is the user's: they are not)."""

    kind: str
    text: str


class ChatTemplate:
    """A compiled template. `bos` and `eos`: texts of these tokens, which templates may write.

    Raises TemplateError if it does not compile or is too large.
    """

    def __init__(self, source: str, *, bos: str = "", eos: str = ""):
        if len(source.encode("utf-8", "replace")) > MAX_TEMPLATE:
            raise TemplateError(f"the chat template has more than {MAX_TEMPLATE // 1024} KiB")
        self.source = source
        self._bos, self._eos = bos, eos
        with _as_template_error("does not compile"):
            self._template = Sandbox().from_string(source)

    @classmethod
    def of(cls, model) -> ChatTemplate | None:
        """The model's own, or None if its file has none."""
        source = model.chat_template
        return cls.for_vocabulary(model, source) if source else None

    @classmethod
    def for_vocabulary(cls, model, source: str) -> ChatTemplate:
        """A template for the special tokens of a model."""
        v = model.vocabulary
        texts = [model.token_text(i).decode("utf-8", "replace") if i is not None else "" for i in (v.bos, v.eos)]
        return cls(source, bos=texts[0], eos=texts[1])

    def render(self, messages: list[dict], *, add_generation_prompt: bool = True, **arguments) -> str:
        """The text of a conversation: messages are {"role": ..., "content": ...}. `arguments` are handed to the template.

        The output may have 4 times the length of the messages plus 1 MiB. Raises TemplateError."""
        return self._render(messages, time.monotonic() + SECONDS, {**arguments, "add_generation_prompt": add_generation_prompt})

    def _render(self, messages: list[dict], end: float, arguments: dict) -> str:
        known = {"tools": None, "documents": None, "bos_token": self._bos, "eos_token": self._eos}
        context = {**known, "add_generation_prompt": True, **arguments, "messages": messages}
        limit = 4 * len(json.dumps(messages, default=str)) + LIMIT
        parts, size = [], 0
        with _as_template_error("failed"), deadline(end):
            for part in self._template.generate(context):
                size += len(part)
                if size > limit:
                    raise TemplateLimit(f"writes more than {limit:,} characters")
                parts.append(part)
        return "".join(parts)

    def segments(
        self, *, system: str | None = None, before: list[dict] | None = None, **arguments
    ) -> tuple[list[Segment], bool]:
        """One user turn, cut where the user's words go, so that they can be streamed instead of rendered.

        Returns the segments, "user" (text "") standing for the words to come, and whether the template strips white space
        around them. A template without a system role gets the system text at the head of the user's. Raises TemplateError if
        the template does not show the user's words exactly once.
        """
        user_mark, system_mark = _mark(), _mark()
        messages = list(before or [])
        end = time.monotonic() + SECONDS  # for all renderings together

        def render(system_text: str | None, user_text: str) -> str:
            head = [{"role": "system", "content": system_text}] if system_text else []
            return self._render([*head, *messages, {"role": "user", "content": user_text}], end, arguments)

        text = None
        if system:
            try:
                text = render(system_mark, user_mark)
            except TemplateError:
                pass
            if text is not None and text.count(system_mark) != 1:
                text = None
            if text is None:  # no such role in this template
                text = render(None, f"{system_mark}\n\n{user_mark}")
        else:
            text = render(None, user_mark)
        if text.count(user_mark) != 1:
            raise TemplateError("the chat template does not show what the user says exactly once")
        segments = []
        for part in re.split(f"({user_mark}|{system_mark})", text):
            if part == user_mark:
                segments.append(Segment("user", ""))
            elif part == system_mark:
                segments.append(Segment("system", system or ""))
            elif part:
                segments.append(Segment("template", part))
        spaced = render(None, f" \n{user_mark}\n ")
        return segments, f" \n{user_mark}\n " not in spaced

    def begins_with_bos(self, segments: list[Segment]) -> bool:
        """True if the rendered text begins with the BOS token by itself, so that it must not be added again."""
        return bool(self._bos) and bool(segments) and segments[0].kind == "template" and segments[0].text.startswith(self._bos)


def _mark() -> str:
    return f"lmi{secrets.token_hex(12)}imL"


class _as_template_error:
    """Turns whatever a template raises into TemplateError. Only what ends the process passes."""

    def __init__(self, what: str):
        self._what = what

    def __enter__(self):
        return self

    def __exit__(self, kind, e, trace):
        if kind is None or not issubclass(kind, Exception) or issubclass(kind, TemplateError):
            return False
        if issubclass(kind, RecursionError):
            reason = "it is nested too deeply"
        elif issubclass(kind, MemoryError):
            reason = "it needs too much memory"
        else:
            reason = " ".join(str(e).split())[:200] or kind.__name__
            line = getattr(e, "lineno", None)
            reason = f"{reason} (line {line})" if line else reason
        raise TemplateError(
            f"the chat template {self._what}: {reason}", "Use --template FILE for another, or --raw for none"
        ) from None
