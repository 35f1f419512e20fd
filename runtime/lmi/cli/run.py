"""`lmi run`: read a text of any length, write what follows."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack

import click
from click.core import ParameterSource

from lmi import errors
from lmi.cli.console import Console, Interrupted, Progress
from lmi.cli.options import (
    OPENING,
    model_argument,
    model_options,
    open_model,
    output_options,
    recall_options,
    session_options,
    steer_option,
    steer_record,
    window_tokens,
)
from lmi.cli.signals import Interrupts
from lmi.formats import human_bytes
from lmi.generate import Sampling, Stats, generate
from lmi.plan import MOST_DRAFT
from lmi.prompt import SINK_CAP, Prompt, require_words
from lmi.session import state_options
from lmi.steer import load as load_steers
from lmi.summary import account_lines, plan_lines
from lmi.templates import ChatTemplate
from lmi.text import TextFile, typed
from lmi.tokens import Reader

LONG = 600  # seconds: from here on the user is told how to stop and go on
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repeat_last_n": "penalty_last",
    "seed": "seed",
}


@click.command(short_help="Read a text of any length and write what follows.")
@model_argument
@click.option(
    "-p", "--prompt", "files", multiple=True, metavar="FILE", help="A text file to read; - is standard input. Repeatable."
)
@click.option("--text", "texts", multiple=True, metavar="WORDS", help="Words to read, after the files.")
@click.option("-a", "--ask", metavar="QUESTION", help="A question, put after the text, where it is in view.")
@click.option("--system", metavar="WORDS", help="What the model is told about itself; stays in view.")
@click.option("-n", "--max-tokens", type=click.IntRange(0), default=512, show_default=True, help="Tokens to write at most.")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="Stop before this text. Repeatable.")
@click.option("--temp", type=float, help="Temperature; 0 takes the most likely token. [default: 0.8]")
@click.option("--top-k", type=int, help="Only the k most likely. [default: 40; 0: off]")
@click.option("--top-p", type=float, help="Only the likeliest that together have this much. [default: 0.95; 1: off]")
@click.option("--min-p", type=float, help="Only those this likely, relative to the best. [default: 0.05; 0: off]")
@click.option("--typical-p", type=float, help="Locally typical sampling. [default: 1: off]")
@click.option("--repeat-penalty", type=float, help="Divides the odds of tokens seen. [default: 1: off]")
@click.option("--frequency-penalty", type=float, help="For each time a token was seen. [default: 0]")
@click.option("--presence-penalty", type=float, help="For tokens seen at all. [default: 0]")
@click.option("--repeat-last-n", type=int, help="Tokens that penalties look back at. [default: 64]")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Of the random numbers. [default: random, and printed]")
@steer_option
@session_options
@recall_options
@click.option(
    "--draft",
    type=click.Choice(["none", "ngram"]),
    default="none",
    show_default=True,
    help="Guess ahead from what the text repeats: the same answer, sooner.",
)
@click.option("--require-fit", is_flag=True, help="Stop with exit code 9 rather than forget anything.")
@click.option("--raw", is_flag=True, help="Continue the text as it is: no chat template.")
@click.option("--template", "template_file", metavar="FILE", help="A chat template instead of the model's own.")
@click.option(
    "--template-arg",
    "template_args",
    multiple=True,
    metavar="NAME=VALUE",
    help="Handed to the template; VALUE is JSON or a word.",
)
@click.option("--special", is_flag=True, help="Recognise control tokens in the text. Not for text of strangers.")
@click.option(
    "--errors", "on_error", type=click.Choice(["strict", "replace"]), default="strict", help="For bytes that are not UTF-8."
)
@click.option("--allow-empty", is_flag=True, help="Start from nothing if the prompt is empty.")
@click.option("--save-state", metavar="FILE", help="Keep what was read of the text (not the question) for --load-state.")
@click.option("--save-answer", is_flag=True, help="With --save-state: keep the question and the answer too.")
@click.option("--load-state", metavar="FILE", help="Go on from a saved state.")
@click.option("--resume", is_flag=True, help="With --load-state: the text is the one whose reading was stopped; go on in it.")
@click.option("--force", is_flag=True, help="Overwrite the file of --save-state.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="One JSON object a token, and one at the end.")
@model_options
@output_options
def run(model, console, **o):
    """Read a text of any length and write what follows.

    \b
      lmi run model.gguf --prompt book.txt --ask "Who is the hero?"
      lmi run model.gguf --text "Once upon a time" -n 100 --seed 1
      cat notes.txt | lmi run model.gguf --ask "Summarize this." > answer.txt

    Read a book once, ask many times:

    \b
      lmi run model.gguf --prompt book.txt -n 0 --save-state book.state
      lmi run model.gguf --load-state book.state --ask "How does it end?"

    The answer goes to standard output, everything else to standard error. If the model has a chat template it is used, unless
    --raw.
    """
    if o["as_json"] and o["as_jsonl"]:
        raise click.UsageError("--json and --jsonl exclude each other.")
    if o["resume"] and not o["load_state"]:
        raise click.UsageError("--resume needs --load-state.")
    if o["save_answer"] and not o["save_state"]:
        raise click.UsageError("--save-answer needs --save-state.")
    if o["raw"] and o["template_file"]:
        raise click.UsageError("--raw and --template exclude each other.")
    for name in ("ask", "system"):
        o[name] = typed(o[name]) if o[name] is not None else None
    o["texts"], o["stops"] = [typed(t) for t in o["texts"]], [typed(t) for t in o["stops"]]
    with ExitStack() as stack:
        stop = stack.enter_context(Interrupts(o["save_state"]))
        try:
            return Run(model, console, stop, stack, o).go()
        except (errors.Cancelled, Interrupted):
            raise Interrupted(stop.number or 2) from None


class Run:
    """One run, step by step. `o`: the options by name."""

    def __init__(self, path, console: Console, stop: Interrupts, stack: ExitStack, o: dict):
        self.path, self.console, self.stop, self.stack, self.o = path, console, stop, stack, o
        self.stats = Stats()
        self.texts: list[str] = []
        self.tokens: list[int] = []
        self.reason = "length"
        self.began = time.perf_counter()

    def go(self) -> int:
        o = self.o
        documents = self._documents()
        self._check_state_target()
        self.model = self.stack.enter_context(
            open_model(self.path, self.console, **{name: o[name] for name in OPENING})
        )
        self.sampling = self._sampling()
        self.steers = load_steers(self.model, o["steers"])
        require_words(documents, o["ask"], o["allow_empty"] or bool(o["load_state"]))
        for d in documents:
            if isinstance(d, TextFile):
                d.check()
                if d.binary:
                    self.console.warn(f"{d.name} looks like a binary file: more than one byte in ten is a control character")
        prompt, how = self._prompt(documents)
        options = self._session_options(prompt)
        self._print_plan(self.model.plan(**options), prompt, how)
        self.session = self.stack.enter_context(self.model.session(**options))
        with self.stop.gently(self.session):
            try:
                self._work(prompt)
            except (errors.Cancelled, Interrupted):
                self.reason = "SIGTERM" if self.stop.number == 15 else "Ctrl-C"
        return self._finish()

    # ---- before ----

    def _documents(self) -> list:
        o = self.o
        names, texts = list(o["files"]), list(o["texts"])
        if not names and not texts and not o["load_state"]:
            if not _is_terminal(sys.stdin):
                names = ["-"]
            elif not o["ask"] and not o["allow_empty"]:
                raise click.UsageError(
                    "There is nothing to read. Give --prompt FILE, --text WORDS, --ask QUESTION, or pipe a text in."
                )
        if names.count("-") > 1:
            raise click.UsageError("Standard input can be read only once.")
        if "-" in names and sys.stdin is None:
            raise errors.PromptError("standard input is closed")
        common = {"errors": o["on_error"], "waiting": self.stop.waiting}
        return [
            TextFile(None, stream=sys.stdin.buffer, **common) if name == "-" else TextFile(name, **common) for name in names
        ] + texts

    def _check_state_target(self) -> None:
        """Refuses what could not be saved after an hour of reading, or would be a loss."""
        path = self.o["save_state"]
        if not path:
            return
        if os.path.lexists(path) and not os.path.isfile(path):
            raise errors.OutputError(f"cannot write {path}: it is not a plain file", "Choose the name of a new file")
        if os.path.exists(path):
            for read in (self.path, *self.o["files"]):
                if os.path.exists(read) and os.path.samefile(path, read):
                    raise errors.OutputError(f"{path} is read here: a state would replace it", "Choose another name")
            loaded = self.o["load_state"]
            same = loaded and os.path.exists(loaded) and os.path.samefile(path, loaded)
            if not self.o["force"] and not same:
                raise errors.OutputError(f"{path} exists already", "--force overwrites it")
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            raise errors.OutputError(f"cannot write {path}: there is no folder {folder}")
        if not os.access(folder, os.W_OK):
            raise errors.OutputError(f"cannot write {path}: folder {folder} is not writable")

    def _sampling(self) -> Sampling:
        """The model's own or the library's values, then the user's; a random seed if none was given."""
        given = {name: self.o[option] for option, name in SAMPLING.items() if self.o[option] is not None}
        return Sampling.for_model(self.model).but(**given).seeded()

    def _prompt(self, documents) -> tuple[Prompt, str]:
        """What will be read, and what the plan line says of the template. A broken template of the model's is a warning, one
        that the user gave an error."""
        o = self.o
        common = {
            "ask": o["ask"],
            "system": o["system"],
            "special": o["special"],
            "continuing": bool(o["load_state"]) and not o["resume"],
        }
        try:
            template, how = self._template()
            if template is None and o["template_args"]:
                raise click.UsageError("--template-arg: the text is read without a template.")
            return Prompt.build(
                self.model, documents, template=template, arguments=_arguments(o["template_args"]), **common
            ), how
        except errors.TemplateError as e:
            if o["template_file"]:
                raise
            self.console.warn(f"{e.message}; the text is continued as it is", e.remedy)
            return Prompt.build(self.model, documents, **common), "raw text (the chat template is broken)"

    def _template(self) -> tuple[ChatTemplate | None, str]:
        path = self.o["template_file"]
        if self.o["raw"]:
            return None, "raw text (--raw)"
        if path:
            with TextFile(path, kind="template") as file:
                source = b"".join(file.blocks()).decode()
            return ChatTemplate.for_vocabulary(self.model, source), f"template {path}"
        template = ChatTemplate.of(self.model)
        return template, "the model's chat template" if template else "raw text (the model has no chat template)"

    def _session_options(self, prompt: Prompt) -> dict:
        o = self.o
        window = window_tokens(self.model, o["window"], o["sinks"])
        given = {"window": window, "sinks": o["sinks"], "kv_type": o["kv_type"], "chunk": o["chunk"]}
        if o["load_state"] and not _typed("kv_type"):
            del given["kv_type"]  # the state's own, not this option's default
        given["draft"] = MOST_DRAFT if o["draft"] == "ngram" else None
        given["steer"] = self.steers or None
        options = {k: v for k, v in given.items() if v is not None} | o["recalling"]
        if o["load_state"]:
            return {**state_options(o["load_state"]), **options}
        if prompt.head and o["sinks"] is None:
            self._grow_sinks(prompt, options)
        return options

    def _grow_sinks(self, prompt: Prompt, options: dict) -> None:
        """System prompt and template head stay in view: sinks grow to cover them, up to a cap, and then keep their order."""
        n_head = prompt.head_tokens(self.model)
        usual = self.model.plan(**options).sinks
        if n_head <= usual:
            return
        cap = max(usual, min(SINK_CAP, self.model.info.trained_context // 4))
        options["sinks"] = min(n_head, cap)
        options["placement"] = "contiguous"
        self.console.detail(f"sinks   {options['sinks']} tokens in their order: the system prompt and the template's head")
        if n_head > cap:
            text = f"system prompt and template head have {n_head:,} tokens; only the first {cap:,} stay in view"
            self.console.warn(text, "A shorter --system, or more with --sinks")

    def _print_plan(self, plan, prompt: Prompt, how: str) -> None:
        names = [d.name if isinstance(d, TextFile) else "--text" for d in prompt.documents] or [
            "--ask" if prompt.ask else "nothing"
        ]
        what = names[0] if len(names) == 1 else f"{len(names)} texts"
        if prompt.documents and prompt.size is not None:
            what += f", {human_bytes(prompt.size)}"
        for line in plan_lines(self.model, plan, prompt=what, template=how):
            self.console.note(line)
        for steer, alpha in self.steers:
            self.console.note(f"steer   {steer.path}, alpha {alpha:g}")
        self.console.detail("sampling  " + ", ".join(f"{k} {v}" for k, v in self.sampling.as_dict().items()))
        if plan.fits and not plan.weights_fit:
            weights, free = human_bytes(plan.weight_bytes), human_bytes(plan.available_bytes)
            text = (
                f"weights of {weights} do not fit beside the rest in {free} free: they will be read from disk again and again"
            )
            self.console.warn(text, "Take a smaller quant, or close other programs")

    # ---- the work ----

    def _work(self, prompt: Prompt) -> None:
        o, session = self.o, self.session
        if o["load_state"]:
            session.load(o["load_state"])
            self.console.note(f"state   {o['load_state']}, {session.position:,} tokens read before")
        self._read(prompt)
        if not o["max_tokens"]:
            self.reason = "nothing to write (-n 0)"
            return
        room = max(0, session.plan.reach - session.position) if o["require_fit"] else None
        try:
            for event in generate(
                session,
                None,
                max_tokens=o["max_tokens"],
                stop=o["stops"],
                sampling=self.sampling,
                room=room,
                read_last=o["save_answer"],
            ):
                self._show(event)
        finally:
            if o["save_answer"] and sys.exc_info()[0] in (None, errors.Cancelled):
                self._save()

    def _read(self, prompt: Prompt) -> None:
        """Documents, the state to keep, then the question."""
        o, session = self.o, self.session
        before = session.position
        progress = Progress(self.console, "reading", prompt.size)
        started = time.perf_counter()
        advised = False

        def count():
            self.stats.read = session.position - before
            self.stats.read_seconds = time.perf_counter() - started

        def show(position):
            nonlocal advised
            count()
            progress.show(prompt.done, position - before)
            if not advised and (progress.remaining(prompt.done) or 0) > LONG:
                advised = True
                self.console.note("Ctrl-C stops" + ("" if o["save_state"] else "; --save-state keeps what was read"))

        reader = Reader(
            session,
            skip=before if o["resume"] else 0,
            limit=session.plan.reach if o["require_fit"] else None,
            progress=show,
        )
        keep = o["save_state"] and not o["save_answer"]
        try:
            prompt.read_documents(reader, began=bool(before) and not o["resume"])
            reader.flush()
        except (errors.Cancelled, Interrupted):
            if o["save_state"]:
                self._save()
            raise
        finally:
            count()
            self.console.clear()
        if reader.skip:
            text = f"{o['load_state']} has read {before:,} tokens, this text has only {reader.n_taken:,}"
            raise errors.StateError(text, "Leave out --resume to read the text after what was read before")
        if keep:
            self._save()
        if o["max_tokens"]:
            prompt.read_question(reader)
            reader.flush()
            count()

    def _save(self) -> None:
        path, session = self.o["save_state"], self.session
        session.save(path)
        self.console.note(f"saved   {path}, {session.position:,} tokens read")
        if self.stop.number is not None and not self.tokens:
            self.console.note(f"go on   the same command with --load-state {path} --resume")

    def _show(self, event) -> None:
        o, s = self.o, self.stats
        s.written, s.write_seconds = event.stats.written, event.stats.write_seconds
        if s.first_token_seconds is None and event.token is not None:
            s.first_token_seconds = time.perf_counter() - self.began
        self.reason = event.finish_reason or self.reason
        if event.token is not None:
            self.tokens.append(event.token)
        if o["as_jsonl"]:
            if event.token is not None or event.text:
                self.console.line(_json({"token": event.token, "text": event.text, "logprob": event.logprob}))
        elif o["as_json"]:
            self.texts.append(event.text)
        else:
            self.console.write(event.text)

    # ---- after ----

    def _finish(self) -> int:
        o = self.o
        stats = self.stats.update(self.session)
        stats.seed = self.sampling.seed
        if o["as_json"] or o["as_jsonl"]:
            account = {
                "finish_reason": self.reason,
                "stats": stats.as_dict(),
                "model": self.path,
                "isa": self.model.info.isa,
                "device": self.model.info.device if self.session.plan.device_layers else "",
                "plan": self.session.plan.as_dict(),
                "sampling": self.sampling.as_dict(),
                "steer": steer_record(self.steers),
            }
            if o["as_json"]:
                account = {"text": "".join(self.texts), "tokens": self.tokens, **account}
            self.console.line(_json(account))
        else:
            self.console.end_text()
        why = {"length": f"length ({stats.written})", "end": "the model ended", "stop": "a --stop text", "fit": "--require-fit"}
        self.console.note("--")
        for line in account_lines(stats, why.get(self.reason, self.reason)):
            self.console.note(line)
        if self.stop.number is not None:
            return 128 + self.stop.number
        if self.reason == "fit":
            text = f"the answer was cut after {stats.written:,} tokens: one more would put something out of view"
            raise errors.RequireFit(text, "Larger window: --window; or leave out --require-fit")
        return 0


def _typed(option: str) -> bool:
    """False where an option has its default."""
    return click.get_current_context().get_parameter_source(option) is not ParameterSource.DEFAULT


def _json(value) -> str:
    return json.dumps(value, ensure_ascii=False)


def _arguments(pairs) -> dict:
    values = {}
    for pair in pairs:
        name, eq, value = pair.partition("=")
        if not eq or not name.isidentifier():
            raise click.UsageError(f"--template-arg takes NAME=VALUE, not {pair!r}.")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def _is_terminal(stream) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return True  # closed: nothing can be read from it
