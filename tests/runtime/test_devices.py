"""Models on a GPU, through the package and the command: the GPU is one that is none (tests/native/fake_device.c), whose numbers
are the CPU's bit for bit. What the library itself does with devices is tested in C (test_devices.c)."""

import json
import os
from pathlib import Path

import lmi as package
import numpy as np
import pytest
from lmi import selftest

LAYERS = selftest.LAYERS
RESERVE = 256 << 20
QUICK = ("-n", "4", "--seed", "1")
TEXT = "the quick brown fox jumps over the lazy dog and then it sleeps"


@pytest.fixture(scope="module")
def library(native) -> str:
    path = Path(os.environ["LMI_LIBRARY"]).parent / "tests" / "liblmi_fake_cuda.so"
    if not path.is_file():
        pytest.fail(f"no library at {path}: make build")
    return str(path)


@pytest.fixture
def gpu(library, monkeypatch):
    """A GPU for this process."""
    monkeypatch.setenv("LMI_CUDA_LIBRARY", library)


@pytest.fixture
def none(monkeypatch):
    """No GPU, whatever this machine has."""
    monkeypatch.setenv("LMI_CUDA_LIBRARY", "/no/such/library.so")


@pytest.fixture
def run(lmi, library):
    """`lmi ARGUMENTS` on a machine with a GPU; `free` of its bytes, or one that refuses."""

    def start(*arguments, free=None, refuses=False, **options):
        env = {"LMI_CUDA_LIBRARY": library}
        env |= {"LMI_FAKE_BYTES": str(free)} if free is not None else {}
        env |= {"LMI_FAKE_REFUSES": "1"} if refuses else {}
        return lmi(*arguments, env=env, **options)

    return start


def needed(path, layers: int, **options) -> int:
    with package.Model(path, device="cuda", gpu_layers=layers) as m:
        return m.plan(**options).device_needed_bytes


# ---- the package ----


def test_two_halves_do_not_recall(gpu, tiny):
    """They say so, and what to do, before anything is copied; the session that comes next is as if nobody had asked. A GPU with
    all layers recalls."""
    options = {"window": 32, "chunk": 16}
    recall = {"recall": "blocks:2x16", "recall_budget": "1M"}
    with package.Model(tiny, device="cuda", gpu_layers=1) as m:
        with pytest.raises(package.DeviceError, match="one part and a GPU the other does not recall") as e:
            m.session(**options, **recall)
        assert "--device cpu" in e.value.remedy and "all layers on the GPU" in e.value.remedy
        with m.session(**options) as session:
            assert session.plan.device_layers == 1
    with package.Model(tiny) as m, package.Model(tiny, device="cpu") as cpu:
        with m.session(**options, **recall) as a, cpu.session(**options, **recall) as b:
            assert a.plan.device_layers == LAYERS and a.plan.recall_bytes == b.plan.recall_bytes > 0
            a.feed(TEXT), b.feed(TEXT)
            assert a.logits().tolist() == b.logits().tolist() and a.view == b.view and a.view.kept > 0


def test_find_device(gpu, monkeypatch):
    found = package.find_device()
    assert (found.name, found.index, found.compute, found.driver) == ("Fake GPU", 0, (9, 0), (13, 0))
    assert 0 < found.free <= found.total and "Fake GPU, compute 9.0, CUDA 13.0" in str(found)
    with pytest.raises(package.DeviceError, match="no GPU 3") as e:
        package.find_device(3)
    assert e.value.remedy
    monkeypatch.setenv("LMI_CUDA_LIBRARY", "/no/such/library.so")
    with pytest.raises(package.DeviceError, match="no usable CUDA device: cannot open the library"):
        package.find_device()


@pytest.mark.parametrize("layers", [None, *range(LAYERS + 2)])
def test_same_text_and_states(layers, gpu, tiny):
    def write(session):
        return session.generate(TEXT, max_tokens=40, seed=3).text

    options = {"window": 32, "sinks": 4, "chunk": 16, "rollback": 40}
    with package.Model(tiny, device="cpu") as cpu, package.Model(tiny, device="cuda", gpu_layers=layers) as m:
        n = LAYERS if layers is None else min(layers, LAYERS)
        plan = m.plan(**options)
        assert (m.info.device, m.info.no_device) == (("Fake GPU", "") if n else ("", ""))
        assert plan.device_layers == n and plan.fits and not plan.device_note
        with cpu.session(**options) as a, m.session(**options) as b:
            assert write(a) == write(b)
            assert b.plan.device_layers == n and b.hot_allocations == 0
            assert a.plan.context_bytes == b.plan.keys_and_values_bytes
            assert a.logits().tolist() == b.logits().tolist()
            here, there = a.snapshot(), b.snapshot()
            assert bytes(here._data) == bytes(there._data)
            a.read_tokens([5, 6, 7])
            a.restore(there)
            b.restore(here)
            assert a.generate(max_tokens=20, seed=4).text == b.generate(max_tokens=20, seed=4).text
            a.rewind(10)
            b.rewind(10)
            assert write(a) == write(b)


def test_auto_takes_it_and_does_without(gpu, tiny, monkeypatch):
    with package.Model(tiny) as m:
        assert m.plan().device_layers == LAYERS
    monkeypatch.setenv("LMI_CUDA_LIBRARY", "/no/such/library.so")
    with package.Model(tiny) as m:
        assert m.plan().device_layers == 0 and "cannot open" in m.info.no_device
        assert "cannot open" in m.plan().device_note
    with pytest.raises(package.DeviceError, match="cannot open"):
        package.Model(tiny, device="cuda")
    with package.Model(tiny, vocab_only=True, device="cuda") as m:
        assert m.info.device == "" and m.tokenize("a")


@pytest.mark.parametrize(
    "bad",
    [
        {"device": "cuda:"},
        {"device": "cuda:x"},
        {"device": "cuda:-1"},
        {"device": "cpu:1"},
        {"device": "CUDA"},
        {"device": None},
        {"gpu_layers": -1},
        {"gpu_layers": "all"},
        {"gpu_layers": 1, "device": "cpu"},
    ],
)
def test_bad_values(bad, gpu, tiny):
    with pytest.raises(package.InvalidArgument):
        package.Model(tiny, **bad)


def test_another_gpu(gpu, tiny):
    package.Model(tiny, device="cuda:0").close()
    with pytest.raises(package.DeviceError, match="no GPU 1"):
        package.Model(tiny, device="cuda:1")


def test_copying_is_watched(gpu, tiny):
    seen = []
    with package.Model(tiny, device="cuda", progress=lambda done, whole: seen.append((done, whole))) as m:
        whole = m.plan().device_weight_bytes
        assert not seen, "a plan copies nothing"
        with m.session():
            assert seen == sorted(seen) and seen[-1] == (whole, whole) and len(seen) > 3
        n = len(seen)
        with m.session():
            assert len(seen) == n, "once for a model"


def test_copying_can_be_stopped(gpu, tiny):
    stopped = []

    class Stop(BaseException):
        pass

    def stop(done, whole):
        stopped.append(done)
        if len(stopped) == 3:
            raise Stop

    with package.Model(tiny, device="cuda", progress=stop) as m:
        free = m.plan().device_available_bytes
        with pytest.raises(Stop):
            m.session()
        assert len(stopped) == 3 and m.plan().device_available_bytes == free
        with m.session() as s:  # the next attempt starts anew
            assert s.plan.device_layers == LAYERS


def test_importance_is_the_cpus(gpu, tiny):
    with package.Model(tiny) as m, m.session(importance=True) as s:
        assert s.plan.device_layers == 0 and "only the CPU" in s.plan.device_note
        s.feed(TEXT)
        assert s.importance()
    with package.Model(tiny, device="cuda") as m, pytest.raises(package.DeviceError, match="only the CPU"):
        m.session(importance=True)


@pytest.mark.parametrize("layers", range(1, LAYERS + 1))
def test_steers(layers, gpu, tiny):
    """Of the half that has the last layer, whatever runs the others."""
    options = {"window": 32, "sinks": 4, "chunk": 16, "steer_rank": 5, "all_logits": True, "all_hidden": True}
    with package.Model(tiny, device="cpu") as cpu, package.Model(tiny, device="cuda", gpu_layers=layers) as m:
        p1, p2 = np.random.default_rng(1).normal(size=(2, m.info.n_embd, 5)).astype(np.float32)
        steer = package.Steer("made", m.info.n_embd, 5, 1e-2, m.fingerprint, {}, p1.tobytes(), p2.tobytes())
        with cpu.session(**options) as a, m.session(**options) as b:
            assert b.plan.device_layers == layers
            rows = []
            for alpha in (0, 3, -2):
                for session in (a, b):
                    session.steer([(steer, alpha)])
                    session.feed(TEXT, bos=False)
                    session.read_token(7)
                    rows.append(np.concatenate([session.logits(), session.hidden()]))
                np.testing.assert_array_equal(rows[-1], rows[-2])


# ---- the command ----


def refused(done, code: int, *fragments: str) -> None:
    assert done.code == code and done.out == b"", (done.code, done.err)
    assert [line for line in done.err.splitlines() if line.startswith("error: ")], done.err
    for fragment in fragments:
        assert fragment in done.err, done.err


def test_run_shows_who_runs_what(run, tiny):
    cpu = run("run", tiny, "--text", TEXT, *QUICK, "--device", "cpu")
    assert "device  CPU, " in cpu.err and "gpu " not in cpu.err
    whole = run("run", tiny, "--text", TEXT, *QUICK)
    assert "device  Fake GPU\n" in whole.err and "\ngpu     weights " in whole.err and "\nmemory  work " in whole.err
    split = run("run", tiny, "--text", TEXT, *QUICK, "--gpu-layers", 1)
    assert f"device  Fake GPU, 1 of {LAYERS} layers, and CPU, " in split.err
    assert "\nmemory  weights " in split.err and "\ngpu     weights " in split.err
    assert cpu.out == whole.out == split.out and cpu.code == whole.code == split.code == 0
    for extra in (), ("--gpu-layers", "auto"), ("--gpu-layers", "0"), ("--device", "cuda:0"):
        record = json.loads(run("run", tiny, "--text", TEXT, *QUICK, "--json", *extra).text)
        none_there = extra == ("--gpu-layers", "0")
        assert record["device"] == ("" if none_there else "Fake GPU")
        assert record["plan"]["device_layers"] == (0 if none_there else LAYERS)


def test_what_does_not_fit_stays(run, gpu, tiny):
    most, one = needed(tiny, LAYERS), needed(tiny, 1)
    done = run("run", tiny, "--text", TEXT, *QUICK, free=RESERVE + most - 1)
    assert done.code == 0 and "\ngpu     needs " in done.err
    assert f"free: placing {LAYERS - 1} of {LAYERS} layers on the GPU" in done.err
    done = run("run", tiny, "--text", TEXT, *QUICK, free=RESERVE + one - 1)
    assert done.code == 0 and "not one layer fits" in done.err and "device  CPU" in done.err
    none = run("run", tiny, "--text", TEXT, *QUICK, "--device", "cuda", free=RESERVE + one - 1)
    refused(none, 6, "not one layer fits", "--device cpu")
    many = run("run", tiny, "--text", TEXT, *QUICK, "--gpu-layers", LAYERS, free=RESERVE + most - 1)
    refused(many, 5, f"on GPU 0 for {LAYERS} of {LAYERS} layers", "--gpu-layers", "--window")
    done = run("run", tiny, "--text", TEXT, *QUICK, "--recall", "blocks", "--recall-budget", "9M", free=RESERVE + most)
    assert done.code == 0 and "device  CPU" in done.err and "does not recall" in done.err


def test_a_gpu_that_refuses(run, tiny):
    refused(run("run", tiny, "--text", "a", *QUICK, "--device", "cuda", refuses=True), 6, "told to fail")
    done = run("run", tiny, "--text", "a", *QUICK, refuses=True)
    assert done.code == 0 and "device  CPU" in done.err and "\ngpu     the fake device was told to fail" in done.err


def test_wrong_usage(run, tiny):
    for bad in ["--device", "gpu"], ["--device", "cuda:x"], ["--gpu-layers", "most"], ["--gpu-layers", "-1"]:
        done = run("run", tiny, "--text", "a", *bad)
        assert done.code == 2 and "Usage: " in done.err, done.err
    refused(run("run", tiny, "--text", "a", "--device", "cpu", "--gpu-layers", 1), 2, "Leave out --gpu-layers")


def test_no_driver_is_quiet_unless_it_was_asked_for(lmi, tiny, none):
    try:
        os.environ.pop("LMI_CUDA_LIBRARY")
        package.find_device()
    except package.DeviceError as e:
        if "libcuda.so.1 not found" not in e.message:
            pytest.skip("this machine has a driver")
    else:
        pytest.skip("this machine has a GPU")
    line = "error: no usable CUDA device: driver library libcuda.so.1 not found\n  Use --device cpu.\n"
    assert lmi("run", tiny, "--text", "a", "--device", "cuda").err == line
    done = lmi("run", tiny, "--text", "a", *QUICK)
    assert done.code == 0 and "gpu" not in done.err and "CUDA" not in done.err
    assert "\ncuda        none: driver library libcuda.so.1 not found\n" in lmi("doctor").text


def test_states_move(run, tiny, tmp_path):
    state, same = tmp_path / "state", ("--text", TEXT, "-n", "0", "--raw", "--window", "48", "--sinks", "4")
    assert run("run", tiny, *same, "--save-state", state).code == 0
    on_gpu = state.read_bytes()
    assert run("run", tiny, *same, "--save-state", state, "--force", "--device", "cpu").code == 0
    assert state.read_bytes() == on_gpu
    texts = {run("run", tiny, "--load-state", state, *QUICK, "--gpu-layers", n).out for n in range(LAYERS + 1)}
    assert len(texts) == 1 and texts != {b""}


def test_measurements(run, tiny, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text(TEXT)
    scores = [
        json.loads(run("perplexity", tiny, book, "--json", *extra).text)["nll"]
        for extra in (("--device", "cpu"), ("--device", "cuda"), ("--gpu-layers", "1"))
    ]
    assert scores[0] == scores[1] == scores[2]
    rows = [
        json.loads(run("bench", tiny, "-p", "8", "-n", "2", "-r", "1", "-o", "json", *extra).text)
        for extra in (("--device", "cpu"), ("--gpu-layers", "1"), ())
    ]
    assert [r[0]["backend"] for r in rows] == ["CPU", "CUDA", "CUDA"]
    assert [r[0]["n_gpu_layers"] for r in rows] == [0, 1, LAYERS]
    assert [bool(r[1]["read_speed"]) for r in rows] == [True, False, False]  # it cannot say
    table = run("bench", tiny, "-p", "8", "-n", "2", "-r", "1", "--gpu-layers", "1").text
    assert f"| CUDA 1/{LAYERS} + CPU " in table


def test_imatrix(run, tiny, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text(TEXT)
    arguments = ("imatrix", tiny, "-f", book, "-o", tmp_path / "out.gguf")
    refused(run(*arguments, "--device", "cuda"), 6, "only the CPU keeps sums", "--device cpu")
    assert run(*arguments).code == 0 and (tmp_path / "out.gguf").exists()


def test_info(run, tiny):
    text = run("info", tiny, "--gpu-layers", 1).text
    assert f"device      Fake GPU, 1 of {LAYERS} layers, and CPU" in text and "\ngpu         weights " in text
    record = json.loads(run("info", tiny, "--json").text)
    assert record["device"] == "Fake GPU" and record["plan"]["device_layers"] == LAYERS
    assert "does not fit" in run("info", tiny, "--gpu-layers", 1, free=RESERVE + 1).text


def test_doctor(run):
    text = run("doctor").text
    assert "\ncuda        Fake GPU, compute 9.0" in text and "ok          run Q8_0 on the GPU" in text
    record = json.loads(run("doctor", "--json").text)
    assert record["passed"] and record["device"]["name"] == "Fake GPU"
    text = run("doctor", refuses=True).text
    assert "\ncuda        none: the fake device was told to fail" in text and "on the GPU" not in text
