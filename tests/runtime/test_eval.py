"""Evaluations: the settings against a float64 oracle, prompts, scores, and what the commands print and write."""

import json
import math
import os
import signal
import subprocess
import time
from array import array

import lmi as package
import numpy as np
import pytest
from lmi.eval import needle, passkey, retrieval
from lmi.eval import perplexity as evaluation
from lmi.eval.record import require_writable
from lmi.eval.settings import NAMES, make_settings, require_room
from oracle import tiny_models, transformer64

WINDOW, SINKS, TOKENS = 24, 3, 150

# ---- settings -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_models.make_llama(tmp_path_factory.mktemp("llama") / "l.gguf", context=64, seed=5)


@pytest.fixture(scope="module")
def opened(native, llama):
    with package.Model(llama.path, threads=2) as m:
        yield m


@pytest.fixture(scope="module")
def text():
    return "".join(chr(97 + i * i % 23) + " "[: i % 3 == 0] for i in range(400)).encode()


ORACLE = {
    "ordinary": {},
    "window": {"window": WINDOW, "sinks": 0},
    "sinks": {"window": WINDOW, "sinks": SINKS, "placement": "true"},
    "limit": {"window": WINDOW, "sinks": TOKENS, "placement": "ceiling"},
    "lambda": {"window": WINDOW, "sinks": SINKS, "placement": "ceiling"},
}


def test_settings_are_what_they_are_called(llama, opened, text):
    """Every token's NLL against the definition of each setting in float64; and no two settings are alike."""
    ids = opened.tokenize(text)[:TOKENS]
    settings = make_settings(opened, NAMES, window=WINDOW, sinks=(SINKS,), kv_type="f32", chunk=40)
    results = evaluation.measure(opened, [lambda: iter([text])], settings, until=TOKENS, every=1)
    found = {r.setting.name: np.array([s.total for _, _, s in r.report.curve]) for r in results}
    assert list(found) == list(NAMES)
    for name, options in ORACLE.items():
        expected = transformer64.nll(transformer64.forward(llama, ids, **options), ids)
        assert np.abs(found[name] - expected).max() < 1e-4, name
    for a in NAMES:
        assert all(np.abs(found[a] - found[b]).max() > 1e-2 for b in NAMES if b != a), a


def test_sweeps_make_settings(opened):
    made = make_settings(opened, ("window", "lambda"), window=WINDOW, sinks=(0, 1, 200), kv_type="f32")
    assert [s.name for s in made] == ["window", "lambda G=0", "lambda G=1", "lambda G=200"]
    assert {s.options["window"] for s in made} == {WINDOW}
    assert made[-1].options == {"window": WINDOW, "sinks": 200, "placement": "ceiling", "kv_type": "f32"}
    recalling = make_settings(opened, ("lambda",), window=WINDOW, recall=("topk:5",), recall_budget=1 << 20)[1]
    assert recalling.name == "lambda+topk:5" and recalling.options["recall"] == "topk:5"
    assert recalling.options["recall_budget"] == 1 << 20
    assert made[1].for_length(10**6) is made[1]
    with pytest.raises(package.InvalidArgument, match="One of: ordinary"):
        make_settings(opened, ("lamda",))


def test_what_does_not_fit_is_refused_before_anything_is_read(opened, text):
    settings = make_settings(opened, ("lambda", "ordinary", "limit"))
    require_room(opened, settings[0], 10**12)
    for setting in settings[1:]:
        with pytest.raises(package.OutOfMemory, match=f"setting {setting.name} keeps all 1,000,000,000 tokens: it needs"):
            require_room(opened, setting, 10**9)
    done = []
    with pytest.raises(package.OutOfMemory):
        evaluation.measure(opened, [lambda: iter([text])], settings, until=10**9, done=done.append)
    with pytest.raises(package.InvalidArgument, match="must know its length"):
        evaluation.measure(opened, [lambda: iter([text])], settings, done=done.append)
    assert not done


# ---- perplexity ---------------------------------------------------------------------------------------------------------


def test_documents_are_joined():
    documents = [lambda: iter([b"a", b"b"]), lambda: iter([]), lambda: iter([b"c"])]
    assert b"".join(evaluation.cycled(documents, False)) == b"ab\n\nc"
    endless = evaluation.cycled(documents, True)
    assert b"".join(next(endless) for _ in range(9)) == b"ab\n\nc\n\nab\n\nc"
    assert list(evaluation.cycled([lambda: iter([])], True)) == []


def test_until_goes_round_the_documents(opened, text):
    setting = make_settings(opened, ("lambda",), window=WINDOW, kv_type="f32")
    three = b"\n\n".join([text] * 3)
    n = len(opened.tokenize(three))
    once = evaluation.measure(opened, [lambda: iter([three])], setting)[0].report.all
    round_and_round = evaluation.measure(opened, [lambda: iter([text])], setting, until=n)[0].report.all
    assert once.n == n - 1 and (once.n, once.total) == (round_and_round.n, round_and_round.total)


def test_rates_of_the_first_and_the_last_tenth(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: now[0])
    clock = evaluation._Clock()
    assert clock.tenths() is None
    for position in range(1000, 10_001_000, 1000):  # 10,000 marks, of which few are kept
        now[0] += 1.0 if position <= 5_000_000 else 2.0
        clock.mark(position)
    assert len(clock.marks) <= evaluation.MOST_MARKS
    assert clock.tenths() == pytest.approx((1000.0, 500.0), rel=1e-6)


# ---- prompts ------------------------------------------------------------------------------------------------------------


def whole(prompt) -> list[int]:
    return list(prompt.tokens(0, prompt.length))


def test_haystack_goes_round():
    h = retrieval.Haystack([array("i", [1, 2]), array("i", [3]), array("i", [4, 5, 6])])
    assert list(h.piece(4, 15)) == [5, 6, 1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert [h.end_before(i) for i in range(9)] == [0, 0, 2, 3, 3, 3, 6, 6, 8]
    assert [h.end_after(i) for i in range(9)] == [0, 2, 2, 3, 6, 6, 6, 8, 8]


@pytest.mark.parametrize("length", [120, 121, 122, 400, 1001])
def test_prompts_have_exactly_their_length_and_order(opened, length):
    head, haystack = passkey.head_of(opened), passkey.haystack_of(opened)
    sentences = opened.detokenize(haystack.piece(0, 500))
    assert sentences.startswith(" The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.")
    length += len(head) + 100  # random vocabularies spell words out
    before = -1
    for task in passkey.make_tasks(opened, length, 7, seed=1):
        prompt = retrieval.Prompt(head, haystack, task, length)
        ids = whole(prompt)
        assert len(ids) == length
        text = opened.detokenize(ids).lstrip()
        key = f" The pass key is {task.answer}. Remember it. {task.answer} is the pass key."
        assert text.startswith(passkey.TASK) and text.endswith(". What is the pass key? The pass key is")
        assert text.count(key) == 1 and 1 <= task.answer < 10**7
        assert opened.detokenize(ids[prompt.needle_at :]).lstrip().startswith(key.lstrip())
        assert prompt.shared == prompt.needle_at >= before  # deeper and deeper
        assert ids[: prompt.shared] == list(head + haystack.piece(0, prompt.shared - len(head)))
        before = prompt.shared
        cut = [t for begin in range(0, length, 13) for t in prompt.tokens(begin, min(length, begin + 13))]
        assert cut == ids


def test_needles_of_several_names(opened):
    book = "".join(f"Sentence {i} of it ends here. " for i in range(50)).encode()
    haystack = needle.haystack_of(opened, iter([book[:77], book[77:]]), 10**6)
    assert opened.detokenize(haystack.piece(0, 40)).startswith(" Sentence 0 of it ends here. Sent")
    head = passkey.head_of(opened)
    for task in needle.make_tasks(opened, 3000, 5, seed=1, keys=4):
        prompt = retrieval.Prompt(head, haystack, task, 3000)
        text = opened.detokenize(whole(prompt))
        assert len(whole(prompt)) == 3000 and text.count("Remember the pass key of ") == 4
        name = text.rpartition("The pass key of ")[2].removesuffix(" is")
        key = f"the pass key of {name}"
        asked = f"T{key[1:]} is {task.answer}. Remember {key}. {task.answer} is {key}."
        assert asked in text and opened.detokenize(whole(prompt)[prompt.needle_at :]).lstrip().startswith(asked)
    with pytest.raises(package.PromptError, match="no text to hide"):
        needle.haystack_of(opened, iter([b" \n"]), 100)
    with pytest.raises(package.InvalidArgument, match="keys must be from 1 to"):
        needle.measure(opened, [], [], haystack, keys=1000)


def test_too_short_a_prompt_says_what_it_needs(opened):
    settings = make_settings(opened, ("lambda",), window=WINDOW)
    with pytest.raises(package.InvalidArgument, match="a prompt of 30 tokens has no room for .* [0-9]+ tokens"):
        passkey.measure(opened, settings, [(30, 2)])


@pytest.mark.parametrize("kind", NAMES)
def test_sharing_a_beginning_changes_no_bit(opened, kind, monkeypatch):
    settings = make_settings(opened, (kind,), window=500, sinks=(SINKS,), chunk=32)
    length, read, logits, write = len(passkey.head_of(opened)) + 900, {}, [], retrieval._Asker._write

    def watched(asker, most):
        logits.append(asker._session.logits().tobytes())
        return write(asker, most)

    def ask(share):
        def progress(n_done, n_read):
            read[share] = n_read

        logits.clear()
        scores = passkey.measure(opened, settings, [(length, 5)], share=share, progress=progress)
        return scores[0].samples, list(logits)

    monkeypatch.setattr(retrieval._Asker, "_write", watched)
    assert ask(True) == ask(False)
    assert read[True] < 0.8 * read[False]
    assert len(set(logits)) == 5 or kind == "window"  # the key that stands first cannot be seen


def test_a_trained_model_finds_what_is_in_its_window(shipped_model):
    with package.Model(shipped_model, threads=2) as m:
        settings = make_settings(m, ("lambda",))
        scores = passkey.measure(m, settings, [(248, 8), (992, 8)])
    assert scores[0].accuracy >= 7 / 8 and scores[0].in_window == 1.0
    assert 0.25 <= scores[1].in_window <= 0.5 and abs(scores[1].accuracy - scores[1].in_window) <= 1 / 8
    assert [row[2] for row in scores[1].by_depth(4)] == [2, 2, 2, 2]
    assert scores[1].by_depth(4)[0][3] == 0 and scores[1].by_depth(4)[3][3] == 2


def test_intervals_and_numbers():
    assert retrieval.wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert retrieval.wilson(0, 20) == pytest.approx((0.0, 0.161125), abs=1e-6)
    assert retrieval.first_number(" is 0042. Then 7") == 42 and retrieval.first_number("none") is None
    assert retrieval.first_number("²٣ 5") == 5  # other scripts' digits are not what was asked for
    assert retrieval.depths(4) == [0.125, 0.375, 0.625, 0.875]


# ---- the commands -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def novel(tmp_path_factory):
    path = tmp_path_factory.mktemp("novel") / "novel.txt"
    path.write_text("".join(f"The quick brown fox met {i} lazy dogs. They slept.\n" for i in range(120)))
    return path


def test_perplexity_command(lmi, tiny, novel, tmp_path):
    out = tmp_path / "r.json"
    options = ("--until", "1k", "--window", 48, "--last", "100", "--json", out)
    done = lmi("eval", "perplexity", tiny, novel, "--setting", "all", *options)
    lines = done.text.splitlines()
    assert done.code == 0 and lines[0].split() == ["NLL", *NAMES]
    assert lines[1].startswith("positions 0–63 ") and any(line.startswith("last 100 ") for line in lines)
    record = json.loads(out.read_text())
    assert set(record) == {"evaluation", "lmi", "model", "machine", "arguments", "complete", "results"}
    assert record["complete"] and record["arguments"]["until"] == 1000
    assert [r["setting"] for r in record["results"]] == list(NAMES)
    for r in record["results"]:
        assert r["n"] == 999 and len(r["curve"]) == math.ceil(1000 / 64)
        assert {"nll", "buckets", "last", "plan", "resident_bytes_end", "tokens_per_second_last_tenth"} <= set(r)
    alone = json.loads(lmi("perplexity", tiny, novel, "-n", 1000, "--window", 48, "--json").text)
    assert record["results"][-1]["nll"] == pytest.approx(alone["nll"], abs=1e-9)
    again = lmi("eval", "perplexity", tiny, novel, "--json", out)
    assert again.code == 8 and "exists already" in again.err and "--force" in again.err


def test_retrieval_commands(lmi, tiny, novel, tmp_path):
    for command in (("passkey", tiny), ("needle", tiny, novel, "--keys", 2)):
        out = tmp_path / f"{command[0]}.json"
        options = ("--lengths", "600,16x", "--samples", "2,3", "--window", 50, "--depths", 2, "--json", out)
        done = lmi("eval", *command, "--setting", "lambda,ordinary", *options)
        lines = done.text.splitlines()
        assert done.code == 0, done.err
        assert lines[0].split()[:3] == ["setting", "tokens", "right"] and lines[0].rstrip().endswith("50–100 %")
        assert [line.split()[:2] for line in lines[1:]] == [
            [name, n] for n in ("600", "800") for name in ("lambda", "ordinary")
        ]
        results = json.loads(out.read_text())["results"]
        assert [(r["length"], r["n"], len(r["samples"])) for r in results] == [(600, 2, 2)] * 2 + [(800, 3, 3)] * 2
        for r in results:
            assert r["accuracy"] == r["right"] / r["n"] and r["low"] <= r["accuracy"] <= r["high"]
            assert sum(d["n"] for d in r["by_depth"]) == r["n"]


def test_speed_command(lmi, tiny, tmp_path):
    out = tmp_path / "s.json"
    options = ("--depths", "0,200,1M", "-p", 16, "-n", 2, "--rounds", 1, "--ordinary-most", 200, "--window", 48, "--json", out)
    done = lmi("eval", "speed", tiny, *options)
    assert done.code == 0 and len(done.text.splitlines()) == 4
    assert "ordinary at 1,000,000: left out: more than 200 tokens were not asked for" in done.err
    rows = json.loads(out.read_text())["results"]
    assert [[s["kind"] for s in row["settings"]] for row in rows] == [["lambda", "ordinary"]] * 2 + [["lambda"]]
    held = [row["settings"][0]["session_bytes"] for row in rows]
    assert held[0] == held[1] == held[2] and rows[1]["settings"][1]["session_bytes"] > held[1]
    assert all(s["read"] > 0 and s["write"] > 0 and len(s["read_samples"]) == 1 for row in rows for s in row["settings"])


def test_a_model_with_alibi_has_no_sinks_at_true_distance(native, made):
    with package.Model(made("mpt")[1]) as model:
        with pytest.raises(package.UnsupportedModel, match="setting sinks.* has ALiBi") as e:
            make_settings(model, NAMES)
        assert e.value.remedy == "Leave it out: --setting ordinary,window,limit,lambda"
        assert len(make_settings(model, ("ordinary", "window", "limit", "lambda"))) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("perplexity", "BOOK", "--setting", "ordinary"), 2, "Setting ordinary keeps the whole text in memory: say how much"),
        (("perplexity", "BOOK", "--setting", "lamda"), 2, "'lamda' is no setting. One of: ordinary, window"),
        (("perplexity", "BOOK", "--until", "many"), 2, "'many' is not a number of tokens such as 500, 16k or 10M"),
        (("perplexity", "-"), 2, "can be read once only"),
        (("perplexity", "BOOK", "--until", "900G"), 2, "not a number of tokens"),
        (("perplexity", "BOOK", "--setting", "limit", "--until", "9000M"), 5, "setting limit keeps all 9,000,000,000 tokens"),
        (("perplexity", "/no/such/file"), 7, "no such text file"),
        (("perplexity", "BOOK", "--json", "/no/such/folder/r.json"), 8, "there is no folder"),
        (("perplexity", "BOOK", "--plot", "r.jpeg2000"), 2, "End it with: .png, .svg, .pdf"),
        (("passkey", "--lengths", "0x"), 2, "'0x' is not a length such as 4x"),
        (("passkey", "--lengths", "1x,2x", "--samples", "1,2,3"), 2, "--samples has 3 numbers for 2 lengths"),
        (("passkey", "--lengths", "20"), 2, "has no room for what it hides"),
        (("needle", "BOOK", "--keys", "1000"), 2, "keys must be from 1 to"),
        (("speed", "-p", "0", "-n", "0"), 2, "Nothing to measure"),
    ],
)
def test_what_is_wrong_is_said(lmi, tiny, novel, arguments, code, words):
    name, *rest = (str(novel) if a == "BOOK" else a for a in arguments)
    done = lmi("eval", name, tiny, *rest)
    assert done.code == code and words in " ".join(done.err.split()) and not done.text


def test_what_was_ready_when_stopped_is_kept(lmi_command, tiny, tmp_path):
    out = tmp_path / "r.json"
    options = ("--lengths", "600,50M", "--samples", "1", "--window", 50, "--json", out)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(lmi_command("eval", "passkey", tiny, *map(str, options)), **pipes)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    text, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 3 and process.returncode == 130 and b"Traceback" not in err
    assert b"stopped: the results are of what was ready" in err
    assert len(text.splitlines()) == 2 and b"600" in text
    record = json.loads(out.read_text())
    assert not record["complete"] and [r["length"] for r in record["results"]] == [600]


def test_a_folder_or_a_device_is_no_file(tmp_path):
    with pytest.raises(package.OutputError, match="it is a folder"):
        require_writable(str(tmp_path), force=True)
    with pytest.raises(package.OutputError, match="it is not a regular file"):
        require_writable(os.devnull, force=True)


# ---- plots --------------------------------------------------------------------------------------------------------------


def test_plots_without_matplotlib(lmi, tiny, novel, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    paths = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    done = lmi("eval", "perplexity", tiny, novel, "--plot", tmp_path / "p.png", env={"PYTHONPATH": paths})
    assert done.code == 2 and "matplotlib, which is not installed" in done.err and "lmi[plot]" in done.err


def test_plots(lmi, tiny, novel, tmp_path):
    pytest.importorskip("matplotlib")
    from lmi.eval.plot import write_plot

    commands = {
        "perplexity": (novel, "--until", 500, "--setting", "window,lambda"),
        "passkey": ("--lengths", "600,700", "--samples", 2, "--setting", "window,lambda"),
        "speed": ("--depths", "0,100", "-p", 16, "-n", 2, "--rounds", 1, "--setting", "window,lambda"),
    }
    for name, options in commands.items():
        made, out = tmp_path / f"{name}.svg", tmp_path / f"{name}.json"
        done = lmi("eval", name, tiny, *options, "--window", 48, "--plot", made, "--json", out)
        assert done.code == 0, done.err
        text = made.read_text()
        assert "<svg" in text and "lambda" in text and "window" in text and "trained on 128 tokens" in text
        write_plot(str(tmp_path / "again.svg"), json.loads(out.read_text()))
        assert (tmp_path / "again.svg").read_text() == text
        write_plot(str(tmp_path / "again.png"), json.loads(out.read_text()))
        assert (tmp_path / "again.png").read_bytes().startswith(b"\x89PNG")
