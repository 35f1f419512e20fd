"""Small models and a way to run the command as a user does: as a process."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from lmi import selftest


@dataclass
class Done:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "lmi", *map(str, arguments)]


def run_lmi(*arguments, input=b"", env=None, cwd=None, stdout=subprocess.PIPE, timeout=120, prefix=()) -> Done:
    """`lmi ARGUMENTS`, with `input` piped in. Whatever happens, a user never sees a traceback."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LMI_") or k == "LMI_LIBRARY"} | (env or {})
    done = subprocess.run(
        [*prefix, *command(*arguments)],
        input=input,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=cwd,
        timeout=timeout,
        check=False,
    )
    err = done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in err, err
    assert "internal error" not in err or "--debug" in err
    return Done(done.returncode, done.stdout or b"", err)


@pytest.fixture(scope="session")
def lmi():
    return run_lmi


@pytest.fixture(scope="session")
def lmi_command():
    """The same as a list of arguments, for tests that start it themselves."""
    return command


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, native):
    """Path of a llama of random weights: trained context 128, 320 tokens."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    selftest.write_model(str(path))
    return path


@pytest.fixture(scope="session")
def tiny_f32(tmp_path_factory):
    """The same weights as F32: no rounding of activations, so that results can be compared closely."""
    path = tmp_path_factory.mktemp("tiny") / "f32.gguf"
    selftest.write_model(str(path), selftest.TYPE_F32)
    return path


@pytest.fixture(scope="session")
def model(tiny):
    import lmi as package

    with package.Model(tiny, threads=2) as m:
        yield m


@pytest.fixture
def session(model):
    with model.session(window=48, sinks=8, chunk=32, rollback=32) as s:
        yield s


@pytest.fixture(scope="session")
def chat(tmp_path_factory):
    """Makes the tiny model with a chat template or other metadata: chat(source, *(key, type, value)) -> path."""
    folder = tmp_path_factory.mktemp("chat")

    def make(template: str | None = None, *keys):
        extra = [("tokenizer.chat_template", selftest.STRING, template)] if template is not None else []
        path = folder / f"{len(list(folder.iterdir()))}.gguf"
        selftest.write_model(str(path), extra=[*extra, *keys])
        return path

    return make


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """A text of some ten thousand tokens."""
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("the quick brown fox jumps over the lazy dog and then it sleeps\n" * 160)
    return path
