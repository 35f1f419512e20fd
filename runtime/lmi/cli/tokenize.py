"""`lmi tokenize`: text to tokens."""

from __future__ import annotations

import json
import sys

import click

from lmi import errors
from lmi.cli.options import model_argument, open_model, output_options
from lmi.cli.signals import Interrupts
from lmi.text import TextFile, typed, utf8_blocks


@click.command(short_help="Turn text into tokens.")
@model_argument
@click.option("-p", "--prompt", "file", metavar="FILE", help="A text file; - is standard input.")
@click.option("--text", metavar="WORDS", help="Words.")
@click.option("--ids", "form", flag_value="ids", help="Ids only, separated by spaces.")
@click.option("--count", "form", flag_value="count", help="Only how many.")
@click.option("--json", "form", flag_value="json", help="A JSON list of ids.")
@click.option("--bos", is_flag=True, help="Add what the model begins a text with.")
@click.option("--special", is_flag=True, help="Recognise control tokens in the text.")
@click.option(
    "--errors", "on_error", type=click.Choice(["strict", "replace"]), default="strict", help="For bytes that are not UTF-8."
)
@output_options
def tokenize(model, console, file, text, form, bos, special, on_error):
    """Turn text into tokens.

    \b
      lmi tokenize model.gguf --text "Hello world"
      lmi tokenize model.gguf --prompt book.txt --count
      cat book.txt | lmi tokenize model.gguf --ids > ids.txt

    Prints one a line, id and text, unless told otherwise. Works on vocabulary-only files too. The text is read as a stream,
    whatever its size.
    """
    if file is not None and text is not None:
        raise click.UsageError("Give --prompt or --text, not both.")
    with Interrupts() as stop, open_model(model, vocab_only=True) as m:
        if text is None:
            if file is None and _is_terminal():
                raise click.UsageError("There is no text. Give --prompt FILE, --text WORDS, or pipe a text in.")
            if file in (None, "-"):
                if sys.stdin is None:
                    raise errors.PromptError("standard input is closed")
                source = TextFile(None, stream=sys.stdin.buffer, errors=on_error, waiting=stop.waiting)
            else:
                source = TextFile(file, errors=on_error)
            blocks = source.blocks()
        else:
            blocks = utf8_blocks(typed(text), name="--text", errors=on_error)
        lists = m.iter_tokens_of_blocks(blocks, bos=None if bos else False, special=special)
        _print(console, m, lists, form)


def _print(console, model, lists, form) -> None:
    if form == "count":
        console.line(str(sum(len(ids) for ids in lists)))
    elif form in ("ids", "json"):
        comma, end = (" ", "") if form == "ids" else (", ", "]")
        lead = "" if form == "ids" else "["
        for ids in lists:
            console.write(lead + comma.join(map(str, ids)))
            lead = comma
        console.line(("" if lead == comma or form == "ids" else "[") + end)
    else:
        for ids in lists:
            console.write("".join(f"{i:>7}  {json.dumps(_shown(model, i), ensure_ascii=False)}\n" for i in ids))


def _shown(model, token: int) -> str:
    """Text of a token, bytes that are no text as \\xNN."""
    return model.token_text(token).decode("utf-8", "backslashreplace")


def _is_terminal() -> bool:
    try:
        return sys.stdin.isatty()
    except (AttributeError, ValueError):
        return True
