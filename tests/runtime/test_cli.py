"""The command line as a user meets it: exit codes, what goes to which stream, messages. `lmi` fails on any traceback."""

import json
import os
import struct
import subprocess
import sys

import click
import lmi as package
import pytest
from lmi import selftest

CHAT = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}<|model|>"
QUICK = ("--seed", 1, "-n", 8)


@pytest.fixture
def damaged(tiny, tmp_path):
    """Writes a changed copy of the tiny model: damaged(bytes -> bytes) -> path."""

    def make(change):
        path = tmp_path / "model.gguf"
        path.write_bytes(change(tiny.read_bytes()))
        return path

    return make


def refused(done, code: int, *fragments: str) -> None:
    assert done.code == code, (done.code, done.err)
    assert done.out == b""
    for fragment in fragments:
        assert fragment in done.err, done.err
    lines = done.err.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert all(len(line) < 400 for line in lines)


# ---- wrong usage: 2 ----


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "Usage: lmi"),
        (["rum"], "Did you mean 'run'?"),
        (["run"], "Missing argument 'MODEL'"),
        (["run", "MODEL", "--wndow", "5"], "No such option"),
        (["run", "MODEL", "--text", "a", "--window", "0"], "--window"),
        (["run", "MODEL", "--text", "a", "--window", "big"], "--window"),
        (["run", "MODEL", "--text", "a", "-n", "-1"], "-n"),
        (["run", "MODEL", "--text", "a", "--json", "--jsonl"], "exclude each other"),
        (["run", "MODEL", "--text", "a", "--raw", "--template", "x"], "exclude each other"),
        (["run", "MODEL", "--resume", "--text", "a"], "--resume needs --load-state"),
        (["run", "MODEL", "--text", "a", "--save-answer"], "--save-answer needs --save-state"),
        (["run", "MODEL", "--text", "a", "--threads", "257"], "--threads"),
        (["run", "MODEL", "--text", "a", "--recall", "blocks", "--recall-budget", "999999999999T"], "is not a size"),
        (["run", "MODEL", "--prompt", "-", "--prompt", "-"], "only once"),
        (["run", "MODEL", "--text", "a", "--template-arg", "x"], "NAME=VALUE"),
        (["run", "MODEL", "--raw", "--text", "a", "--template-arg", "x=1"], "without a template"),
        (["bench", "MODEL", "-p", "0", "-n", "0"], "nothing to measure"),
        (["tokenize", "MODEL", "--text", "a", "--prompt", "b"], "not both"),
        (["bench", "MODEL", "-d", "1,x"], "-d"),
        (["perplexity", "MODEL", "MODEL", "--last", "99999999999"], "--last takes at most"),
    ],
)
def test_wrong_usage(lmi, tiny, chat, arguments, fragment):
    model = chat(CHAT) if "--template-arg" in arguments else tiny
    done = lmi(*[model if a == "MODEL" else a for a in arguments])
    assert done.code == 2 and fragment in done.err + done.text


@pytest.mark.parametrize(
    "option", ["--temp=-1", "--top-p=2", "--top-k=-5", "--min-p=nan", "--repeat-last-n=9999", "--typical-p=-1"]
)
def test_sampling_out_of_range(lmi, tiny, option):
    refused(lmi("run", tiny, "--text", "a", option), 2, "must be")


# ---- the model file: 3 ----


def test_missing_model(lmi, tmp_path):
    (tmp_path / "model.gguf").touch()
    refused(
        lmi("run", "modle.gguf", "--text", "a", cwd=tmp_path),
        3,
        "error: no such file: modle.gguf",
        "  similar here: model.gguf",
    )
    for command in ("info", "bench", "tokenize"):
        refused(lmi(command, "modle.gguf", cwd=tmp_path), 3, "no such file")
    refused(lmi("run", "no/such/folder.gguf", "--text", "a", cwd=tmp_path), 3, "no such file", "there is no folder")


def test_directory(lmi, tmp_path):
    refused(
        lmi("run", tmp_path, "--text", "a"),
        3,
        "is a directory",
        "For a Hugging Face folder: ",
    )


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (b"<!DOCTYPE html><html>" + b" " * 100, "web page"),
        (b"PK\x03\x04" + b" " * 100, "zip"),
        (b"\x80\x02}q\x00." + b" " * 100, "pickle"),
        (b"\x7fELF" + b" " * 100, "ELF"),
        (struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}      ' + b" " * 100, "safetensors"),
        (b"", ""),
        (b"hello", "not a GGUF file"),
    ],
)
def test_not_gguf(lmi, damaged, data, fragment):
    refused(lmi("run", damaged(lambda _: data), "--text", "a"), 3, fragment)


@pytest.mark.parametrize("version", [1, 4, 0x03000000])
def test_other_versions(lmi, damaged, version):
    done = lmi("run", damaged(lambda d: d[:4] + struct.pack("<I", version) + d[8:]), "--text", "a")
    refused(done, 3, "version" if version < 100 else "endian")


def test_truncated(lmi, damaged):
    refused(
        lmi("run", damaged(lambda d: d[: len(d) * 2 // 3]), "--text", "a"), 3, "incomplete", "needs bytes up to", "Download"
    )


def test_damaged(lmi, damaged):
    refused(lmi("run", damaged(lambda d: d[:24] + struct.pack("<Q", 2**62) + d[32:]), "--text", "a"), 3, "damaged", "byte")


def test_who_reads_a_file_refuses_it(lmi):
    """click would, with exit code 2, where the user may not read it; that cannot be tried as root."""
    from lmi.cli import group

    def commands(names):
        for c in names:
            yield c
            yield from commands(getattr(c, "commands", {}).values())

    top = [group.lmi.get_command(None, name) for name in group.COMMANDS]
    paths = [p.type for c in commands(top) for p in c.params if isinstance(p.type, click.Path)]
    assert len(paths) > 15 and not any(t.readable or t.exists for t in paths)


def test_damaged_state(lmi, tiny, tmp_path):
    state = tmp_path / "s"
    assert lmi("run", tiny, "--text", "abc", "-n", 0, "--save-state", state).code == 0
    state.write_bytes(state.read_bytes()[:-1])
    refused(lmi("run", tiny, "--load-state", state, "-n", 1, "-q"), 3)
    refused(lmi("run", tiny, "--load-state", tmp_path / "none", "-n", 1, "-q"), 3, "none")
    refused(lmi("run", tiny, "--load-state", tmp_path, "-n", 1, "-q"), 3, "is a directory", "a file that lies in it")
    folder = tmp_path / "none"
    refused(lmi("run", tiny, "--text", "a", "--recall", "blocks", "--recall-folder", folder, "-q"), 8, "cannot keep")
    state.write_text("hello")
    refused(lmi("run", tiny, "--load-state", state, "-n", 1, "-q"), 3)


# ---- what cannot run: 4, 5, 6 ----


def test_unsupported_architecture(lmi, damaged):
    done = lmi("run", damaged(lambda d: d.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1)), "--text", "a")
    refused(done, 4, 'architecture "mamba" is not supported', "llama")


def test_unsupported_quant(lmi, damaged):
    name = b"blk.0.ffn_up.weight"

    def change(d):
        at = d.index(name) + len(name) + 4 + 16  # dimension count, two dimensions
        return d[:at] + struct.pack("<I", 16) + d[at + 4 :]  # IQ2_XXS

    done = lmi("run", damaged(change), "--text", "a")
    assert done.code in (3, 4) and "blk.0.ffn_up.weight" in done.err


def test_not_enough_memory(lmi, tiny):
    done = lmi("run", tiny, "--text", "a", "--window", 10**11, "-q")
    refused(done, 5, "error: needs ", " free", "  Smaller window: --window ", " saves ", "; or a smaller quant")


def test_no_cuda(lmi, tiny):
    env = {"LMI_CUDA_LIBRARY": "/no/such/library.so"}  # whatever this machine has
    done = lmi("run", tiny, "--text", "a", "--device", "cuda", env=env)
    refused(done, 6, "error: no usable CUDA device", "Use --device cpu")
    assert lmi("run", tiny, "--text", "a", "--device", "auto", *QUICK, env=env).code == 0


def test_instruction_set_that_is_not_here(lmi, tiny):
    missing = next(i for i in ("neon", "avx512", "avx2") if i not in package.machine.available_isas())
    assert lmi("run", tiny, "--text", "a", "--isa", missing).code in (4, 6)
    done = lmi("run", tiny, "--text", "a", "--json", *QUICK, env={"LMI_ISA": "ref"})
    assert json.loads(done.text)["isa"] == "ref"


# ---- the prompt: 7 ----


def test_missing_prompt(lmi, tiny, tmp_path):
    refused(
        lmi("run", tiny, "--prompt", "x.txt", cwd=tmp_path),
        7,
        "no such prompt file: x.txt",
        "for literal text use --text".capitalize(),
    )
    refused(lmi("run", tiny, "--prompt", tmp_path), 7, "is a directory")


def test_prompt_that_is_not_utf8(lmi, tiny, tmp_path):
    (tmp_path / "book.txt").write_bytes(b"line\n" * 213 + b"x\xe9")
    for done in (
        lmi("run", tiny, "--prompt", "book.txt", cwd=tmp_path),
        lmi("perplexity", tiny, "book.txt", cwd=tmp_path),
        lmi("tokenize", tiny, "--prompt", "book.txt", "--count", cwd=tmp_path),
    ):
        refused(done, 7, "book.txt is not UTF-8: byte 0xE9 at offset 1,066 (line 214)", "iconv -f latin1", "--errors replace")
    assert lmi("run", tiny, "--prompt", "book.txt", "--errors", "replace", *QUICK, cwd=tmp_path).code == 0
    done = lmi("run", tiny, input=b"abc\xff")
    assert done.code == 7 and "standard input is not UTF-8: byte 0xFF at offset 3" in done.err
    refused(lmi("run", tiny, "-q", input="héllo".encode("utf-16")), 7, "UTF-16", "iconv -f utf-16")


def test_byte_order_mark_is_skipped(lmi, tiny):
    plain = lmi("run", tiny, *QUICK, input=b"hello").out
    assert plain and lmi("run", tiny, *QUICK, input=b"\xef\xbb\xbfhello").out == plain


def test_empty_prompt(lmi, tiny, tmp_path):
    (tmp_path / "empty").touch()
    refused(lmi("run", tiny, input=b""), 7, "error: prompt is empty", "--allow-empty")
    refused(lmi("run", tiny, "--prompt", tmp_path / "empty"), 7, "prompt is empty")
    refused(lmi("run", tiny, "--text", ""), 7, "prompt is empty")
    assert lmi("run", tiny, "--allow-empty", *QUICK, input=b"").code == 0
    refused(lmi("perplexity", tiny, tmp_path / "empty", "-q"), 7)


def test_control_bytes_pass_and_binary_files_are_pointed_out(lmi, tiny, tmp_path):
    done = lmi("run", tiny, *QUICK, input=b"a\0b\x01c and some more words to be text")
    assert done.code == 0 and "warning" not in done.err
    (tmp_path / "b").write_bytes(bytes(range(32)) * 100 + b"text")
    done = lmi("run", tiny, "--prompt", tmp_path / "b", *QUICK)
    assert done.code == 0 and "looks like a binary file" in done.err


def test_remedies_for_text_without_a_name(lmi, tiny, tmp_path):
    refused(lmi("run", tiny, "-q", input=b"caf\xe9"), 7, "standard input is not", "through: iconv -f latin1", "--errors")
    refused(lmi("run", tiny, "-q", "--text", b"caf\xe9".decode("utf-8", "surrogateescape")), 7, "typed is not", "--prompt")
    (tmp_path / "a b.txt").write_bytes("abc".encode("utf-32"))
    refused(lmi("run", tiny, "-q", "--prompt", "a b.txt", cwd=tmp_path), 7, "UTF-32", "utf-32 -t utf-8 'a b.txt'")


# ---- output: 8, 141 ----


def test_full_disk(lmi, tiny):
    with open("/dev/full", "wb") as full:
        for extra in ((), ("--json",), ("--jsonl",)):
            done = lmi("run", tiny, "--text", "abc", "-q", *QUICK, *extra, stdout=full)
            assert done.code == 8 and done.err.startswith("error: cannot write to standard output: no space left")
        for command in (("info", tiny), ("tokenize", tiny, "--text", "a"), ("perplexity", tiny, __file__), ("doctor",)):
            assert lmi(*command, stdout=full).code == 8, command
        for command in (("--help",), ("run", "--help"), ("--version",)):  # which click prints
            done = lmi(*command, stdout=full)
            assert done.code == 8 and done.err.startswith("error: cannot write to standard output"), command


@pytest.mark.parametrize("arguments", [("tokenize",), ("run", "-n", "100000", "--temp", "0", "-q")])
def test_closed_pipe_is_silent(lmi_command, tiny, book, arguments):
    shell = " ".join(map(str, [*lmi_command(arguments[0], tiny, "--prompt", book), *arguments[1:]]))
    line = f"{shell} | head -c 10; echo ${{PIPESTATUS[0]}} >&2"
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=100, check=False)
    assert done.stderr.decode().strip() == "141" and len(done.stdout) == 10


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("--version",)])
def test_help_into_a_closed_pipe(lmi, arguments):
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as pipe:
        done = lmi(*arguments, stdout=pipe)
    assert done.code == 141 and done.err == ""


def test_closed_streams(lmi, tiny):
    shell = ["bash", "-c", 'exec "$@" <&- 2>&-', "bash"]
    assert lmi("run", tiny, "--text", "a", *QUICK, prefix=shell).code == 0
    done = lmi("run", tiny, "--text", "a", *QUICK, prefix=["bash", "-c", 'exec "$@" >&-', "bash"])
    assert done.code == 8 and "standard output" in done.err
    done = lmi("run", tiny, "--prompt", "-", *QUICK, prefix=["bash", "-c", 'exec "$@" <&-', "bash"])
    assert done.code == 7 and "standard input is closed" in done.err


def test_state_is_not_overwritten(lmi, tiny, tmp_path):
    state = tmp_path / "s"
    state.write_text("precious")
    refused(lmi("run", tiny, "--text", "a", "--save-state", state), 8, "exists already", "--force")
    assert state.read_text() == "precious"
    assert lmi("run", tiny, "--text", "a", "-n", 0, "--save-state", state, "--force").code == 0
    assert lmi("run", tiny, "--text", "b", "-n", 0, "--load-state", state, "--save-state", state).code == 0
    refused(lmi("run", tiny, "--text", "a", "--save-state", tmp_path / "no" / "s"), 8, "there is no folder")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_state_does_not_replace_what_is_read(lmi, tiny, tmp_path):
    text, model = tmp_path / "t.txt", tmp_path / "m.gguf"
    text.write_text("abc")
    model.write_bytes(tiny.read_bytes())
    for path in (text, model):
        refused(lmi("run", model, "--prompt", text, "--save-state", path, "--force", "-q"), 8, "is read here")
    refused(lmi("run", model, "--prompt", text, "--save-state", tmp_path, "--force", "-q"), 8, "not a plain file")
    assert text.read_text() == "abc" and model.read_bytes() == tiny.read_bytes()


# ---- require-fit: 9 ----


def test_require_fit(lmi, tiny, book):
    refused(lmi("run", tiny, "--prompt", book, "--require-fit", "-q", *QUICK), 9, "does not fit", "--window")
    assert lmi("run", tiny, "--text", "abc", "--require-fit", *QUICK).code == 0
    done = lmi(
        "run", tiny, "--text", "abc", "--require-fit", "--window", 12, "--sinks", 2, "-n", 100, "--temp", 1.5, "--seed", 1, "-q"
    )
    assert done.code == 9 and done.out and "cut after" in done.err


# ---- a bug: 1 ----


def test_broken_installation(tiny, tmp_path):
    (tmp_path / "liblmi.so").write_text("no library")
    for library in (tmp_path / "liblmi.so", tmp_path / "none.so"):
        env = os.environ | {"LMI_LIBRARY": str(library)}
        done = subprocess.run(
            [sys.executable, "-m", "lmi", "run", tiny, "--text", "a"],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_internal_error_has_a_traceback_only_with_debug(monkeypatch, capsys):
    from lmi.cli import doctor, main

    def broken(*_, **__):
        raise RuntimeError("something that\nshould not be")

    monkeypatch.setattr(doctor.doctor, "callback", broken)
    assert main.run(["doctor"]) == 1
    err = capsys.readouterr().err
    assert "internal error (RuntimeError: something that should not be)" in err and "report" in err and "--debug" in err
    with pytest.raises(RuntimeError):
        main.run(["doctor", "--debug"])


# ---- what a good run gives ----


def test_output_is_text_only(lmi, tiny, book):
    arguments = ("run", tiny, "--temp", 1.2, "--seed", 7, "-n", 60)
    with open(book, "rb") as f:
        text = f.read()
    piped = lmi(*arguments, input=text)
    named = lmi(*arguments, "--prompt", book)
    record = json.loads(lmi(*arguments, "--prompt", book, "--json").text)
    lines = [json.loads(line) for line in lmi(*arguments, "--prompt", book, "--jsonl").text.splitlines()]
    assert piped.code == named.code == 0
    assert piped.out == named.out == record["text"].encode() == "".join(x.get("text", "") for x in lines).encode()
    assert [x["token"] for x in lines if x.get("token") is not None] == record["tokens"]
    assert record["finish_reason"] == "length" and record["stats"]["written"] == 60 and record["stats"]["seed"] == 7
    assert record["stats"]["forgotten"] > 0 and record["stats"]["in_view"][0] == [0, 16]
    assert lines[-1]["stats"]["position"] == record["stats"]["position"]
    for fragment in (
        "model   ",
        "memory  weights",
        "context first 16 + last",
        "in view: tokens 0–15 and",
        "no longer visible",
        "seed 7",
    ):
        assert fragment in named.err
    assert "--prompt" not in named.err and str(book) in named.err
    quiet = lmi(*arguments, "--prompt", book, "-q")
    assert quiet.err == "" and quiet.out == named.out


def test_same_seed_same_text_and_the_seed_is_printed(lmi, tiny):
    first = lmi("run", tiny, "--text", "abc", "-n", 20, "--temp", 1)
    seed = first.err.split("seed ")[-1].strip()
    assert lmi("run", tiny, "--text", "abc", "-n", 20, "--temp", 1, "--seed", seed).out == first.out
    assert lmi("run", tiny, "--text", "abc", "-n", 20, "--temp", 1, "--seed", seed, "--threads", 1).out == first.out


def test_verbose_shows_the_values_in_force(lmi, chat):
    path = chat(None, ("general.sampling.temp", selftest.F32, 0.25))
    err = lmi("run", path, "--text", "a", "-v", "--top-k", 9, *QUICK).err
    assert "temperature 0.25" in err and "top_k 9" in err and "min_p 0.05" in err


def test_options_come_from_the_environment(lmi, tiny):
    record = json.loads(
        lmi("run", tiny, "--text", "a", "--json", *QUICK, env={"LMI_RUN_WINDOW": "33", "LMI_RUN_KV_TYPE": "f32"}).text
    )
    assert record["plan"]["window"] == 33
    record = json.loads(lmi("run", tiny, "--text", "a", "--json", "--window", "max", "--sinks", 10, *QUICK).text)
    assert record["plan"]["window"] + 10 == selftest.CONTEXT


@pytest.mark.parametrize(
    "environment",
    [{"LANG": "C", "LC_ALL": "C"}, {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {"TERM": "dumb"}],
)
def test_output_does_not_depend_on_the_locale(lmi, tiny, environment):
    arguments = ("run", tiny, "--text", "ä€", "-n", 30, "--seed", 5, "--temp", 2, "--top-k", 0, "--min-p", 0, "--top-p", 1)
    done = lmi(*arguments, env=environment)
    assert done.code == 0 and done.out == lmi(*arguments).out
    done.out.decode("utf-8")


def test_stop_text(lmi, tiny):
    text = lmi("run", tiny, "--text", "abc", "-n", 30, "--seed", 3, "--temp", 1.5, "-q").text
    stop = text[4:6]
    done = lmi("run", tiny, "--text", "abc", "-n", 30, "--seed", 3, "--temp", 1.5, "--stop", stop, "--stop", "zzzz")
    assert done.text == text[: text.index(stop)] and "stopped: a --stop text" in done.err


def test_nothing_to_write(lmi, tiny):
    done = lmi("run", tiny, "--text", "abc", "-n", 0)
    assert done.code == 0 and done.out == b"" and "nothing to write" in done.err


def test_prompts_are_joined(lmi, tiny, tmp_path):
    (tmp_path / "a").write_text("one\n")
    parts = lmi(
        "run",
        tiny,
        "--prompt",
        tmp_path / "a",
        "--prompt",
        "-",
        "--text",
        "three",
        "--ask",
        "why",
        "--json",
        *QUICK,
        input=b"two",
    )
    whole = lmi("run", tiny, "--text", "one\ntwo\nthree\n\n", "--ask", "why", "--json", *QUICK)
    assert json.loads(parts.text)["tokens"] == json.loads(whole.text)["tokens"]


def test_pipe_with_a_question(lmi, tiny):
    assert lmi("run", tiny, "--ask", "why", *QUICK, input=b"the document").code == 0
    assert lmi("run", tiny, "--ask", "why", *QUICK, input=b"").code == 0


# ---- templates ----


def test_template_is_used_unless_raw(lmi, chat, tmp_path):
    path = chat(CHAT)
    done = lmi("run", path, "--text", "hello", *QUICK)
    raw = lmi("run", path, "--text", "hello", "--raw", *QUICK)
    assert "the model's chat template" in done.err and "raw text (--raw)" in raw.err and done.out != raw.out
    (tmp_path / "t.jinja").write_text(CHAT)
    plain = chat()
    assert "no chat template" in lmi("run", plain, "--text", "hello", *QUICK).err
    given = lmi("run", plain, "--text", "hello", "--template", tmp_path / "t.jinja", *QUICK)
    assert given.out == done.out
    assert lmi("run", plain, "--text", "a", "--template", tmp_path / "none").code == 7
    (tmp_path / "t.jinja").write_text("{% nonsense %}")
    refused(lmi("run", plain, "--text", "a", "--template", tmp_path / "t.jinja"), 7, "chat template does not compile")


@pytest.mark.parametrize(
    "source", ["{% nonsense %}", "{{ 1/0 }}", "nothing of the user", "{{ messages.__class__ }}", "{{ 'a' * 10**9 }}"]
)
def test_broken_template_is_a_warning(lmi, chat, source):
    path = chat(source)
    done = lmi("run", path, "--text", "hello", *QUICK)
    assert done.code == 0 and done.err.count("warning: ") == 1 and "continued as it is" in done.err
    assert done.out == lmi("run", path, "--text", "hello", "--raw", *QUICK).out


def test_system_prompt_stays_in_view(lmi, chat, book):
    source = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}<|model|>"
    system = "remember that my name is anna"
    done = lmi("run", chat(source), "--prompt", book, "--system", system, "--json", "-v", *QUICK)
    record = json.loads(done.text)
    with package.Model(chat(source)) as m:
        n = len(m.tokenize(f"<|user|>{system}<|end|><|user|>", special=True))
    assert record["plan"]["sinks"] == n > 16 and record["stats"]["in_view"][0] == [0, n]
    assert "in their order" in done.err
    long = lmi("run", chat(source), "--text", "a", "--system", "word " * 100, "--json", *QUICK)
    assert json.loads(long.text)["plan"]["sinks"] == selftest.CONTEXT // 4 and "only the first 32 stay in view" in long.err
    own = lmi("run", chat(source), "--text", "a", "--system", system, "--sinks", 5, "--json", *QUICK)
    assert json.loads(own.text)["plan"]["sinks"] == 5


def test_template_arguments(lmi, chat):
    path = chat("{{ messages[0].content }}{% if think %} yes{% endif %}")
    assert (
        lmi("run", path, "--text", "a", "--template-arg", "think=true", *QUICK).out
        != lmi("run", path, "--text", "a", *QUICK).out
    )


# ---- states ----


def test_read_once_ask_many_times(lmi, tiny, book, tmp_path):
    state = tmp_path / "book.state"
    saved = lmi("run", tiny, "--prompt", book, "-n", 0, "--save-state", state)
    assert saved.code == 0 and "saved   " in saved.err
    size = state.stat().st_size
    arguments = ("--ask", "who", "--seed", 2, "-n", 12, "--json")
    whole = json.loads(lmi("run", tiny, "--prompt", book, *arguments).text)
    loaded = lmi("run", tiny, "--load-state", state, *arguments)
    assert json.loads(loaded.text)["stats"]["position"] <= whole["stats"]["position"]
    assert loaded.code == 0 and "tokens read before" in loaded.err
    again = lmi("run", tiny, "--load-state", state, *arguments)
    assert json.loads(again.text)["tokens"] == json.loads(loaded.text)["tokens"]
    short = tmp_path / "short.state"
    assert lmi("run", tiny, "--text", "abc", "-n", 0, "--save-state", short).code == 0
    assert short.stat().st_size == size  # the same after three tokens and ten thousand
    mismatch = lmi("run", tiny, "--load-state", state, "--window", 40, *arguments)
    assert mismatch.code == 3 and "window" in mismatch.err and "Open it as it was saved: window " in mismatch.err


def test_state_brings_its_options(lmi, tiny, tmp_path):
    state = tmp_path / "s"
    options = ("--window", 48, "--sinks", 8, "--kv-type", "f32", "--chunk", 32)
    assert lmi("run", tiny, "--text", "abc", "-n", 0, "--save-state", state, *options).code == 0
    loaded = json.loads(lmi("run", tiny, "--load-state", state, "--ask", "who", "--json", *QUICK).text)
    assert [loaded["plan"][k] for k in ("window", "sinks", "chunk")] == [48, 8, 32]
    refused(lmi("run", tiny, "--load-state", state, "--kv-type", "f16", *QUICK, "-q"), 3, "kv_type f32")


def test_resume_goes_on_in_the_same_text(lmi, tiny, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    state = tmp_path / "s"
    tail = ("--ask", "who", "--seed", 2, "-n", 12, "--json")
    whole = json.loads(lmi("run", tiny, "--prompt", text, *tail).text)
    with package.Model(tiny) as m, m.session() as s:  # as if it had been stopped after 1,000 tokens
        ids = m.tokenize(text.read_text())[:1000]
        s.read_tokens(ids)
        s.save(state)
    resumed = json.loads(lmi("run", tiny, "--prompt", text, "--load-state", state, "--resume", *tail).text)
    assert resumed["tokens"] == whole["tokens"] and resumed["stats"]["position"] == whole["stats"]["position"]
    done = lmi("run", tiny, "--text", "short", "--load-state", state, "--resume", *tail)
    assert done.code == 3 and "has read 1,000 tokens, this text has only" in done.err


def test_save_answer(lmi, tiny, tmp_path):
    state = tmp_path / "s"
    first = lmi("run", tiny, "--text", "abc", "-n", 5, "--temp", 0, "--save-state", state, "--save-answer", "-q")
    second = lmi("run", tiny, "--load-state", state, "-n", 5, "--temp", 0, "-q")
    assert first.text + second.text == lmi("run", tiny, "--text", "abc", "-n", 10, "--temp", 0, "-q").text
