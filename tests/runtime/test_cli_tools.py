"""info, tokenize, bench, perplexity, doctor, help."""

import csv
import io
import json
import math
import subprocess
import sys
import time

import lmi as package
import numpy as np
import pytest
from lmi import selftest

# ---- help ----


def test_help_is_there_for_all_and_says_what_the_group_says(lmi):
    from lmi.cli.group import COMMANDS

    group = lmi("--help").text
    for name in COMMANDS:
        text = lmi(name, "--help").text
        assert f"  {name}" in group and COMMANDS[name][1] in group
        assert COMMANDS[name][1] in text, f"lmi {name} --help does not say what lmi --help says of it"
        assert f"lmi {name}" in text.partition("Options:")[0].replace("Usage: lmi", "")  # an example
    assert "Exit codes" in group
    assert lmi("--version").text.strip() == f"lmi {package.__version__}"


def test_help_is_instant():
    """0.15 s of processor time; the machine may be busy with other things, so the best of some."""
    code = (
        "import resource, sys; from lmi.cli.main import run; run(['--help']); u = resource.getrusage(0); "
        "print(u.ru_utime + u.ru_stime, file=sys.stderr)"
    )
    best = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr) for _ in range(5)
    )
    assert best < 0.15


@pytest.mark.parametrize(
    "command", [["--help"], ["run", "--help"], ["run", "MODEL", "--text", "a", "-n", "3"], ["info", "MODEL"]]
)
def test_nothing_heavy_is_imported(tiny, command):
    """A model without a chat template runs without numpy, gguf, torch; jinja2 comes only with `run`."""
    command = [str(tiny) if c == "MODEL" else c for c in command]
    code = (
        f"import sys; from lmi.cli.main import run; run({command!r}); "
        "print([m for m in ('numpy', 'torch', 'gguf', 'psutil') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert done.stderr.splitlines()[-1] == "[]"


# ---- info ----


def test_info(lmi, tiny, chat):
    text = lmi("info", tiny).text
    for fragment in (
        "lmi self-test",
        "GGUF 3",
        "llama",
        "2 layers",
        "4 heads of 16 (2 for keys and values)",
        "Q8_0",
        "spm",
        "begins with BOS",
    ):
        assert fragment in text
    assert "context     first 16 + last 112 tokens, any length" in text and "memory      weights" in text
    record = json.loads(lmi("info", tiny, "--json", "--window", 64, "--metadata", "--tensors").text)
    assert record["n_layers"] == 2 and record["plan"]["window"] == 64 and record["types"]["Q8_0"]["tensors"] == 16
    assert record["metadata"]["llama.block_count"] == 2 and len(record["tensors"]) == record["n_tensors"]
    assert len(record["metadata"]["tokenizer.ggml.tokens"]) == record["n_vocab"]
    long = lmi("info", tiny, "--metadata", "--tensors").text
    assert "llama.block_count = 2  (u32)" in long and "blk.1.ffn_down.weight" in long and "in all]" in long
    path = chat("template {{ messages }}")
    assert "template    23 characters, sha256 " in lmi("info", path).text
    assert lmi("info", path, "--template").text == "template {{ messages }}\n"
    assert lmi("info", tiny, "--template").code == 4


def test_info_of_vocabularies(lmi, data):
    done = lmi("info", data / "vocabs" / "ggml-vocab-llama-spm.gguf")
    assert done.code == 0 and "32,000 tokens" in done.text and "vocabulary only" in done.text


def test_info_of_a_large_vocabulary_is_small(lmi, data):
    """150,000 tokens stay where they are in the file: less than 60 MB in all, the interpreter's own included."""
    path = max((data / "vocabs").glob("*.gguf"), key=lambda p: p.stat().st_size)
    code = (
        f"import sys; from lmi.cli.main import run; run(['info', {str(path)!r}]); "
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')); "
        "print(peak, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stderr) < 60 * 1024


# ---- tokenize ----


def test_tokenize(lmi, tiny, book):
    with package.Model(tiny, vocab_only=True) as m:
        plain, bos = m.tokenize("hello <|end|>", bos=False), m.tokenize("hello <|end|>", special=True)
        assert lmi("tokenize", tiny, "--text", "hello <|end|>", "--ids").text == " ".join(map(str, plain)) + "\n"
        assert json.loads(lmi("tokenize", tiny, "--text", "hello <|end|>", "--json", "--bos", "--special").text) == bos
        whole = m.tokenize(book.read_text(), bos=False)
    assert lmi("tokenize", tiny, "--prompt", book, "--count").text == f"{len(whole)}\n"
    assert [int(i) for i in lmi("tokenize", tiny, "--ids", input=book.read_bytes()).text.split()] == whole
    lines = lmi("tokenize", tiny, "--text", "a\n\x01ä").text.splitlines()
    assert len(lines) == len(set(lines)) and all(json.loads(line.split(None, 1)[1]) is not None for line in lines)
    for form, empty in (("--ids", "\n"), ("--json", "[]\n"), ("--count", "0\n")):
        assert lmi("tokenize", tiny, form, input=b"").text == empty
    assert lmi("tokenize", tiny, "--text", "", "--ids").text == "\n"


def test_tokenize_published_vectors(lmi, data):
    """The vocabulary-only files, with the ids that their makers give, through the command."""
    for vectors in sorted((data / "vocabs").glob("ggml-vocab-*.gguf.out")):
        path = vectors.with_suffix("")
        if not path.exists():
            continue
        cases = path.with_name(path.name + ".inp").read_text().split("\n__ggml_vocab_test__\n")
        expected = vectors.read_text().splitlines()
        for i in range(3, len(expected), 17):
            done = lmi("tokenize", path, "--ids", "--prompt", "-", input=cases[i].encode())
            assert done.text.split() == expected[i].split(), (path.name, cases[i])


# ---- bench ----


def test_bench(lmi, tiny):
    arguments = ("bench", tiny, "-p", "32", "-n", 4, "-r", 2, "-d", "0,100,5000,1000000")
    table = lmi(*arguments)
    assert table.code == 0
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.text.splitlines()]
    assert [r[5] for r in rows[2:]] == [f"{t}{d}" for d in ("", " @ d100", " @ d5000", " @ d1000000") for t in ("pp32", "tg4")]
    records = json.loads(lmi(*arguments, "-o", "json").text)
    assert len(records) == 8 and all(len(r["samples_ts"]) == 2 and r["median_ts"] > 0 for r in records)
    assert all((r["read_speed"] > 0) == (r["n_gen"] > 0) for r in records)
    assert records[-1]["n_depth"] == 1_000_000 and records[-1]["n_gen"] == 4 and records[-1]["bytes_per_token"] > 0
    lines = lmi(*arguments, "-o", "jsonl").text.splitlines()
    assert [json.loads(line)["test"] for line in lines] == [r["test"] for r in records]
    parsed = list(csv.DictReader(io.StringIO(lmi(*arguments, "-o", "csv").text)))
    assert [r["test"] for r in parsed] == [r["test"] for r in records] and parsed[0]["isa"] == records[0]["isa"]


def test_depth_is_reached_with_a_full_buffer(model):
    from lmi.bench import Tokens, reach_depth

    for depth in (0, 7, 100, 5000, 10**9):
        with model.session(window=48, sinks=8, chunk=32) as s:
            reach_depth(s, depth, Tokens(model))
            assert s.position == depth
            if depth > 200:
                view = s.view
                assert view.position - view.window_begin >= 47 and view.forgotten > 0


def test_bytes_of_a_step(model):
    from lmi.bench import step_bytes

    embedding = next(t.n_bytes for t in model.tensors() if t.name == "token_embd.weight")
    assert step_bytes(model) == model.info.weight_bytes - embedding


# ---- perplexity ----


def reference_nll(model, ids, **options) -> list[float]:
    """Token by token, the softmax in float64."""
    out = []
    with model.session(**options) as s:
        for before, token in zip(ids, ids[1:], strict=False):
            s.read_token(before)
            logits = s.logits().astype(np.float64)
            top = logits.max()
            out.append(top + math.log(np.exp(logits - top).sum()) - logits[token])
    return out


def test_perplexity_against_token_by_token(lmi, tiny_f32, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 12)
    with package.Model(tiny_f32) as m:
        ids = m.tokenize(text.read_text())
        expected = reference_nll(m, ids, window=48, sinks=4, kv_type="f32")
    options = ("--window", 48, "--sinks", 4, "--kv-type", "f32", "--chunk", 32, "--last", "10,100", "--every", 100)
    record = json.loads(lmi("perplexity", tiny_f32, text, "--json", *options).text)
    assert record["n"] == len(ids) - 1 and record["nll"] == pytest.approx(np.mean(expected), abs=1e-4)
    for bucket in record["buckets"]:
        mine = [expected[p - 1] for p in range(max(1, bucket["begin"]), bucket["end"])]
        assert bucket["n"] == len(mine) and bucket["nll"] == pytest.approx(np.mean(mine), abs=1e-4)
        assert bucket["nll_error"] == pytest.approx(np.std(mine, ddof=1) / math.sqrt(len(mine)), abs=1e-4)
    assert [b["begin"] for b in record["buckets"]] == [0, 64, 128, 256, 512][: len(record["buckets"])]
    assert record["buckets"][-1]["end"] == len(ids)
    for entry in record["last"]:
        assert entry["n"] == entry["last"] and entry["nll"] == pytest.approx(np.mean(expected[-entry["last"] :]), abs=1e-4)
    assert sum(c["n"] for c in record["curve"]) == record["n"]
    assert record["forgotten"] > 0 and record["perplexity"] == pytest.approx(math.exp(record["nll"]))


def test_perplexity_does_not_depend_on_the_chunk(tiny_f32, book):
    from lmi.perplexity import measure
    from lmi.text import utf8_blocks

    text = book.read_text()[:3000]
    with package.Model(tiny_f32) as m:
        runs = [measure(m, utf8_blocks(text), window=48, sinks=4, kv_type="f32", chunk=c) for c in (1, 7, 64)]
    assert len({r.all.n for r in runs}) == 1
    assert runs[0].all.mean == pytest.approx(runs[1].all.mean, abs=1e-5) == pytest.approx(runs[2].all.mean, abs=1e-5)


def test_perplexity_table(lmi, tiny, book):
    done = lmi("perplexity", tiny, book, "-n", 1000, "--last", "100")
    lines = done.text.splitlines()
    assert lines[1].startswith("positions 0–63 ") and lines[-1].startswith("all ") and lines[-2].startswith("last 100 ")
    assert "no longer visible" in done.err and "nan" not in done.text
    assert lmi("perplexity", tiny, "-", "-n", 100, input=book.read_bytes()).code == 0


def test_perplexity_of_nothing(lmi, tiny, tmp_path):
    path = tmp_path / "t"
    path.write_text("")
    done = lmi("perplexity", tiny, path)
    assert done.code == 7 and "too short" in done.err


def test_perplexity_of_the_trained_model_is_what_an_independent_one_gives(data, stories):
    """stories260K: NLL per token in float64 is in REFERENCE.json."""
    reference = json.loads((data / "stories260K" / "REFERENCE.json").read_text())
    ids = next((v for k, v in reference.items() if "id" in k and isinstance(v, list)), None)
    nll = next((v for k, v in reference.items() if "nll" in k.lower() and isinstance(v, list)), None)
    if not ids or not nll:
        pytest.skip("the reference has another form")
    with package.Model(stories.path) as m, m.session(kv_type="f32", all_logits=True) as s:
        s.read_tokens(ids)
        for i, expected in enumerate(nll[: len(ids) - 1]):
            assert s.nll(ids[i + 1], row=i) == pytest.approx(expected, abs=2e-3)


# ---- doctor ----


def test_doctor(lmi):
    done = lmi("doctor")
    assert done.code == 0 and "FAILED" not in done.text and "free of" in done.text
    record = json.loads(lmi("doctor", "--json").text)
    assert record["passed"] and {o["name"] for o in record["selftest"]} >= {"decode Q8_0", "run F32 with ref", "save and go on"}


def test_doctor_sees_what_is_wrong(monkeypatch):
    monkeypatch.setattr(selftest, "EXACT", 0.0)
    outcomes = selftest.run()
    assert any(not o.passed for o in outcomes)
    monkeypatch.undo()
    monkeypatch.setattr(selftest, "write_model", lambda path, kind=8: open(path, "wb").close())
    assert all(not o.passed for o in selftest.run()[1:])


def test_selftest_takes_seconds():
    began = time.process_time()
    assert all(o.passed for o in selftest.run())
    assert time.process_time() - began < 10


# ---- files of strangers ----

ESCAPE = "\x1b[2J\x1b]0;x\x07\x9b1m\r"


def test_names_in_a_file_move_no_terminal(lmi, chat):
    path = chat("{{ raise_exception('" + ESCAPE + "') }}", (f"k{ESCAPE}", selftest.STRING, ESCAPE))
    path.write_bytes(path.read_bytes().replace(b"lmi self-test", b"evil\x1b[2J\x07\xc2\x9b1m"))
    for command in (("info", path, "--metadata", "--tensors"), ("run", path, "--text", "a", "-n", 1), ("bench", path, "-r", 1)):
        done = lmi(*command, *(("-p", 8, "-n", 0) if command[0] == "bench" else ()))
        assert done.code == 0 and "evil" in done.err + done.text
        shown = set(done.err + (done.text if command[0] != "run" else "")) - {"\n"}
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown), command


def test_metadata_of_other_types_than_usual(lmi, chat):
    """A size that is true, a file type and a template that are lists: shown, not stumbled over."""
    keys = [("general.size_label", selftest.BOOL, True)]
    keys += [(k, (selftest.ARRAY, selftest.STRING), ["a"]) for k in ("general.file_type", "tokenizer.chat_template")]
    path = chat(None, *keys)
    done = lmi("info", path, "--metadata")
    assert done.code == 0 and "Q8_0" in done.text and "template    none" in done.text
    assert lmi("run", path, "--text", "a", "-n", 1).code == 0


def test_check_tensors(lmi, tiny, tmp_path):
    assert "all values finite" in lmi("info", tiny, "--check-tensors").text
    data = bytearray(tiny.read_bytes())
    with package.Model(tiny) as m:
        tensors = {t.name: t for t in m.tensors()}
    norm, matrix = tensors["output_norm.weight"], tensors["blk.1.ffn_down.weight"]
    data[norm.offset + 4 * 5 : norm.offset + 4 * 6] = np.float32(np.nan).tobytes()
    assert matrix.type == "Q8_0" and matrix.shape[0] % 32 == 0
    block = matrix.offset + 34 * (3 * (matrix.shape[0] // 32) + 1)  # of row 3, the second
    data[block : block + 2] = np.float16(np.inf).tobytes()
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    done = lmi("info", path, "--check-tensors")
    assert done.code == 3 and "2 of 21 tensors" in done.err
    assert "output_norm.weight: a value is not finite, first in row 0, column 5" in done.text
    assert "blk.1.ffn_down.weight: 32 values are not finite, first in row 3, column 32" in done.text
