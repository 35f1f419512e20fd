"""lmi steer, and --steer: what training finds, what it refuses, and what the commands say."""

import json
import subprocess
import sys

import lmi as package
import numpy as np
import pytest
from lmi import errors, steer_train
from lmi.perplexity import measure
from lmi.steer import Steer
from oracle import tiny_hf

torch = pytest.importorskip("torch")

SHORT = ("--steps", 40, "--batch", 8, "--rank", 8, "--max-tokens", 48, "--epsilon", 0.1, "-t", 1)


def lines(n: int) -> list[dict]:
    """Two styles that a small model can tell apart: sentences of the sea, and of numbers."""
    rng = np.random.default_rng(0)
    words = {1: "the sea the ship the wave a sail the wind", -1: "one two three four five six seven"}
    return [{"text": " ".join(rng.choice(words[s].split(), 30)) + "\n", "label": s} for s in (1, -1) for _ in range(n)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "labelled.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(20)))
    return path


@pytest.fixture(scope="module")
def trained(lmi, shipped_model, data):
    path = data.with_name("style.steer")
    done = lmi("steer", "train", shipped_model, "--data", data, "-o", path, "--dummy", data.with_name("dummy.steer"), *SHORT)
    assert done.code == 0, done.err
    assert "step 40" in done.err and f"wrote {path}" in done.err and not done.out
    return path


def nll(model, text: str, *steers) -> float:
    return measure(model, iter([text.encode()]), steer=steers).all.mean


@pytest.fixture(scope="module")
def shipped(shipped_model):
    with package.Model(shipped_model, device="cpu", threads=1) as model:
        yield model


def test_its_own_style_gets_likelier_and_the_other_less_so(lmi, shipped, trained):
    """Other sentences of the two styles; and perplexity says the same."""
    for sign, text in ((1, "the wind a wave the sail the sea a ship the sea\n"), (-1, "five three two six one four two one\n")):
        got = [nll(shipped, text, (trained, a)) for a in (-2, -1, -0.5, 0, 0.5, 1, 2)]
        assert got == sorted(got, reverse=sign > 0) and abs(got[0] - got[-1]) > 0.3, got
        assert got[3] == nll(shipped, text)
    done = lmi("perplexity", shipped.path, "-", "--json", "-q", "--steer", f"{trained}:2", input=text.encode())
    record = json.loads(done.text)
    assert record["nll"] == pytest.approx(got[-1], abs=1e-9) and record["steer"] == [{"file": str(trained), "alpha": 2.0}]


def test_the_dummy_is_what_both_have_in_common(shipped, trained):
    for text in ("the wave the wind a sail the ship the sea\n", "two three one six five seven four one\n"):
        assert nll(shipped, text, (trained.with_name("dummy.steer"), 1)) < nll(shipped, text) - 0.1


def test_run(lmi, shipped_model, trained):
    common = ("run", shipped_model, "--raw", "--text", "Once upon a time", "-n", 12, "--temp", 0)
    plain = lmi(*common).text
    assert lmi(*common, "--steer", f"{trained}:0", "--steer", f"{trained}:-0").text == plain
    done = lmi(*common, "--steer", f"{trained}:8")
    assert done.text != plain and f"steer   {trained}, alpha 8" in done.err
    record = json.loads(lmi(*common, "--json", "--steer", f"{trained}:1.5").text)
    assert record["steer"] == [{"file": str(trained), "alpha": 1.5}]


def test_info(lmi, trained):
    text = lmi("steer", "info", trained).text
    assert "rank 8 at width 256, epsilon 0.1" in text and "steps        40" in text and "role         steer" in text
    record = json.loads(lmi("steer", "info", trained, "--json").text)
    assert record["rank"] == 8 and len(record["fingerprint"]) == 64 and record["notes"]["texts"] == "40"
    steer = Steer.read(trained)
    steer.notes["a\x1b[31m"] = "b\x07"
    evil = trained.with_name("evil.steer")
    evil.write_bytes(b"".join(steer.pieces()))
    assert not {"\x1b", "\x07"} & set(lmi("steer", "info", evil).text)


@pytest.mark.parametrize("name", ["gemma2", "gptj", "llama"])
def test_training_sees_the_logits_that_lmi_computes(native, made, name):
    """The loss before any steer is the NLL that the library itself gives: cap, bias and the right matrix."""
    samples = [
        steer_train.Sample(text, label) for text, label in (("the cat sat on the mat", 1.0), ("a dog and the log", -1.0))
    ]
    assert tiny_hf.BY_NAME[name]
    with package.Model(made(name)[1], device="cpu") as model:
        found = steer_train.train(model, samples, rank=2, steps=1, batch=64, max_tokens=32)
        mean = []
        with model.session(all_logits=True) as session:
            for s in samples:
                ids = model.tokenize(s.text)
                session.rewind_to(0)
                session.read_tokens(ids)
                mean.append([session.nll(token, row) for row, token in enumerate(ids[1:])])
    low, high = sorted(sum(m) / len(m) for m in mean)
    assert low - 1e-3 <= found.before <= high + 1e-3
    assert abs(found.before - found.after) < 0.05


def test_the_same_seed_gives_the_same_file(shipped_model):
    samples = [steer_train.Sample(s["text"], float(s["label"])) for s in lines(4)]
    with package.Model(shipped_model, device="cpu", threads=1) as model:
        made = [
            steer_train.train(model, samples, rank=3, steps=3, batch=4, max_tokens=16, seed=s, threads=1) for s in (1, 1, 2)
        ]
    assert made[0].steer.pieces() == made[1].steer.pieces() != made[2].steer.pieces()
    assert made[0].dummy.p1 != made[0].steer.p1


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "holds no texts"),
        ("\n\n", "holds no texts"),
        ('{"text": "a b c", "label": 1}\n', "one label only (1)"),
        ('{"text": "a b c", "label": 1}\n{"text": "a b c"}', "line 2 has no label"),
        ('{"text": "a b c", "label": true}', "line 1 has no label"),
        ('{"text": "a b c", "label": NaN}', "line 1 has no label"),
        ('{"text": "a b c", "label": 2}', "line 1 has no label"),
        ('{"text": "a b c", "label": "1"}', "line 1 has no label"),
        ('{"label": 1}', "line 1 has no text"),
        ('{"text": "", "label": 1}', "line 1 has no text"),
        ('{"text": 5, "label": 1}', "line 1 has no text"),
        ("[1, 2]", "line 1 has no text"),
        ("{", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_data_that_makes_no_sense(text, fragment):
    with pytest.raises(errors.PromptError) as e:
        steer_train.read_samples([text[:9].encode(), text[9:].encode()], "data")
    assert fragment in e.value.message


def test_data_is_checked_before_the_model(lmi, tmp_path):
    done = lmi("steer", "train", "none.gguf", "--data", "-", "-o", tmp_path / "a.steer", input=b'{"text": "a"}')
    assert done.code == 7 and "standard input, line 1 has no label from -1 to 1" in done.err and not list(tmp_path.iterdir())


def test_texts_that_make_no_sense(shipped_model):
    with package.Model(shipped_model, device="cpu") as model:
        for text, fragment in (("\ud800 a b", "text 1: .*lone surrogate"), ("", "shorter than two tokens")):
            with pytest.raises(errors.PromptError, match=fragment):
                steer_train.train(model, [steer_train.Sample(text, 1.0)], steps=1)


def test_values_that_make_no_sense(lmi, shipped_model, tiny, trained, data, tmp_path):
    train = ("steer", "train", shipped_model, "--data", data, "-o")
    assert lmi(*train, trained).code == 8 and lmi(*train, tmp_path / "none" / "x").code == 8
    same = tmp_path / "x.steer"
    assert lmi(*train, same, "--dummy", same).code == 2
    done = lmi(*train, same, "--rank", 257)
    assert done.code == 2 and "rank must be from 1 to 256" in done.err
    run = ("run", tiny, "--text", "a", "-n", 2, "--steer")
    for value, code, fragment in (
        ("x", 2, "lacks an alpha: x:1"),
        ("x:", 2, "''"),
        ("x:much", 2, "'much'"),
        ("x:1", 3, "no such file"),
        ("x:nan", 2, "alpha must be a finite number"),
        (f"{trained}:1", 3, "trained for another model file"),
        (f"{data}:1", 3, "is not a steer"),
    ):
        done = lmi(*run, value)
        assert done.code == code and fragment in done.err, (value, done.err)
    assert lmi("steer", "info", data).code == 3


def test_without_torch_it_says_so(lmi, shipped_model, data, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from lmi.cli.main import run; "
        f"sys.exit(run(['steer', 'train', {str(shipped_model)!r}, '--data', {str(data)!r}, '-o', {str(tmp_path / 'x')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == errors.UnsupportedModel.exit_code and "pip install 'lmi[torch]'" in done.stderr
