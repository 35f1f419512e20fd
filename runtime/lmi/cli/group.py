"""`lmi`: the group of commands, by name; a command's module is imported when it is called."""

from __future__ import annotations

import importlib

import click

from lmi import __version__

# Name -> (module, what `lmi --help` says). A command's module is imported when the command is used, so that help is instant.
COMMANDS = {
    "run": ("run", "Read a text of any length and write what follows."),
    "info": ("info", "Show what a model file holds and what it would need."),
    "tokenize": ("tokenize", "Turn text into tokens."),
    "bench": ("bench", "Measure reading and writing speed, at any depth."),
    "perplexity": ("perplexity", "Measure how well a model predicts a text, by position."),
    "eval": ("eval", "Compare kinds of attention: prediction, retrieval, speed."),
    "doctor": ("doctor", "Check this installation and this machine."),
    "convert": ("convert", "Turn a checkpoint folder into a GGUF file."),
    "quantize": ("quantize", "Write a GGUF file with smaller weights."),
    "steer": ("steer", "Learn a style from labelled texts, for --steer."),
    "imatrix": ("imatrix", "Find out from a text which weights matter, for quantize."),
}

EPILOG = """\b
Exit codes:
  0 done                 5 not enough memory      9 --require-fit failed
  1 a bug in lmi         6 device                 130 Ctrl-C
  2 wrong usage          7 prompt                 141 reader of our output left
  3 model or state file  8 output                 143 terminated
  4 unsupported model

Every option can be set in the environment: LMI_RUN_WINDOW=1024 is --window 1024 of lmi run.
"""


class Lazy(click.Group):
    """Knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, name):
        if name not in COMMANDS:
            return None
        module = COMMANDS[name][0]
        return getattr(importlib.import_module(f"lmi.cli.{module}"), name)

    def resolve_command(self, ctx, args):
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as e:
            import difflib

            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if close and "Did you mean" not in e.format_message():
                e.message = f"{e.message.rstrip('.')}. Did you mean {close[0]!r}?"
            raise

    def format_commands(self, ctx, formatter):
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.command(cls=Lazy, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "LMI"})
@click.version_option(__version__, "-V", "--version", message="lmi %(version)s")
def lmi():
    """Run language models on texts of any length, in constant memory.

    \b
      lmi run model.gguf --prompt book.txt --ask "Who is the hero?"
      lmi run model.gguf --text "Once upon a time" -n 100
      cat notes.txt | lmi run model.gguf > answer.txt
      lmi info model.gguf

    Each token sees the first tokens and the last ones of the text; what lies between is read and then forgotten. Every run says
    what is still in view.
    """
