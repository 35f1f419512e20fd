"""Steers of a session: logits against numpy in float64, composition, nothing where alpha is 0, and files that are not what they
claim to be."""

import json
import os
from dataclasses import replace

import lmi as package
import numpy as np
import pytest
from lmi import errors
from lmi.steer import Steer

# Odd things about the output: a bias, a tied embedding, a soft cap, layer norms, experts before it.
FAMILIES = ["llama", "llama-tied-biases", "gemma2", "gptj", "mpt", "gptneox", "qwen2", "gpt-oss"]


def make_steer(model, rank: int, seed: int = 0, size: float = 1.0, epsilon: float = 1e-3) -> Steer:
    p1, p2 = np.random.default_rng(seed).normal(size=(2, model.info.n_embd, rank)).astype(np.float32) * np.float32(size)
    return Steer("made", model.info.n_embd, rank, epsilon, model.fingerprint, {}, p1.tobytes(), p2.tobytes())


def factors(steer: Steer) -> list[np.ndarray]:
    return [np.frombuffer(p, np.float32).reshape(steer.n_embd, steer.rank).astype(np.float64) for p in (steer.p1, steer.p2)]


def steered(hidden: np.ndarray, steers) -> np.ndarray:
    """float64 [T][n_embd]: c + sum of epsilon alpha (c P1) P2^T."""
    hidden = np.asarray(hidden, np.float64)
    added = np.zeros_like(hidden)
    for steer, alpha in steers:
        p1, p2 = factors(steer)
        added += steer.epsilon * alpha * hidden @ (p1 @ p2.T)
    return hidden + added


def read_rows(session, tokens) -> tuple[np.ndarray, np.ndarray]:
    """Logits and hidden states of a text of at most a chunk, float32."""
    session.read_tokens(tokens)
    n = range(len(tokens))
    return np.array([session.logits(i).copy() for i in n]), np.array([session.hidden(i).copy() for i in n])


def error(got, expected) -> float:
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


# ---- what it computes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_steered_logits_are_the_published_formula(native, made, name):
    """Hidden states as transformers has them; logits from its output matrix, its bias and its cap, in float64."""
    import torch

    hf, path = made(name)
    tokens = np.random.default_rng(3).integers(1, 250, 60).tolist()
    with torch.no_grad():
        out = hf(input_ids=torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
    head = hf.get_output_embeddings()
    matrix = head.weight.detach().double().numpy()
    bias = head.bias.detach().double().numpy() if getattr(head, "bias", None) is not None else 0.0
    cap = getattr(hf.config, "final_logit_softcapping", None)

    def logits(hidden):
        z = hidden @ matrix.T + bias
        return cap * np.tanh(z / cap) if cap else z

    expected_hidden = out.hidden_states[-1][0].double().numpy()
    with package.Model(path, device="cpu") as model:
        steers = [(make_steer(model, 5, seed=1), 4.0), (make_steer(model, 19, seed=2, epsilon=0.02), -0.7)]
        with model.session(window=64, kv_type="f32", all_logits=True, all_hidden=True, steer=steers) as session:
            got, hidden = read_rows(session, tokens)
            assert error(hidden, expected_hidden) < 1e-4
            assert error(got, logits(steered(expected_hidden, steers))) < 1e-4
            assert error(got, logits(steered(hidden, steers))) < 1e-5
            assert error(got, logits(expected_hidden)) > 0.02  # the steers are seen
            session.rewind_to(0)
            session.read_tokens(tokens[:-1])
            session.read_token(tokens[-1])  # as when text is written
            assert error(session.logits(), got[-1]) < 1e-5


@pytest.fixture(scope="module")
def shipped(native, shipped_model):
    with package.Model(shipped_model, window=200, threads=2, device="cpu") as model:
        yield model


TEXT = "Once upon a time there was a little girl who lived in a house by the sea, and every day "


def test_alpha_zero_is_the_model_bit_for_bit(shipped):
    steer = make_steer(shipped, 16)
    tokens = shipped.tokenize(TEXT)
    options = {"all_logits": True, "all_hidden": True}
    with shipped.session(**options) as plain, shipped.session(**options, steer=[(steer, 0), (steer, 0.0)]) as session:
        expected, hidden = read_rows(plain, tokens)
        for steers, same in (([(steer, 0)], True), ([(steer, 2)], False), ([], True), ([(steer, -0.0)], True)):
            session.steer(steers)
            session.rewind_to(0)
            got, its_hidden = read_rows(session, tokens)
            assert np.array_equal(got, expected) == same
            np.testing.assert_array_equal(its_hidden, hidden)  # what is behind the last norm never changes


def test_only_logits_change(shipped):
    """What was read under a steer is what is read without one: keys, values, and logits once it is gone."""
    steer = make_steer(shipped, 8)
    with shipped.session() as plain, shipped.session(steer=[(steer, 3)]) as session:
        plain.feed(TEXT * 8)
        session.feed(TEXT * 8)
        before = session.logits().copy()
        assert not np.array_equal(before, plain.logits())
        session.steer()
        np.testing.assert_array_equal(session.logits(), before)  # from the next read on
        for s in (plain, session):
            s.read_token(77)
        np.testing.assert_array_equal(session.logits(), plain.logits())
        assert bytes(session.snapshot()._data) == bytes(plain.snapshot()._data)


def test_steers_add_up(shipped):
    """Two steers are one of both ranks; alphas are factors; order is nothing."""
    a, b = make_steer(shipped, 3, seed=1), make_steer(shipped, 6, seed=2)
    tokens = shipped.tokenize(TEXT)
    joined = [np.concatenate([2 * x if i == 0 else x, y], 1) for i, (x, y) in enumerate(zip(factors(a), factors(b)))]
    both = replace(a, rank=9, p1=joined[0].astype(np.float32).tobytes(), p2=joined[1].astype(np.float32).tobytes())
    found = []
    for steers in ([(a, 2), (b, 1)], [(b, 1), (a, 2)], [(both, 1)], [(a, 1), (b, 1), (a, 1)]):
        with shipped.session(all_logits=True, all_hidden=True, steer=steers) as session:
            found.append(read_rows(session, tokens)[0])
    for other in found[1:]:
        assert error(other, found[0]) < 0.02  # activations are 8 bits wide in this file: a rounding may fall elsewhere
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_reading_ahead_changes_no_bit(shipped, kv_type):
    steer = make_steer(shipped, 12)
    found = {}
    for draft in (0, 7):
        with shipped.session(draft=draft, kv_type=kv_type, steer=[(steer, 2)]) as session:
            session.feed(TEXT * 3)
            session.set_sampling(temperature=0)
            rows = []
            for i in range(150):
                if i % 7 == 6:  # guesses that were read under another alpha must not be taken
                    session.steer([(steer, 2 + i % 2)])
                session.read_token(session.sample().token)
                rows.append(session.logits().copy())
            found[draft] = np.array(rows)
            assert (session.draft_counts.true > 0) == (draft > 0) and session.hot_allocations == 0
    np.testing.assert_array_equal(found[7], found[0])


def test_no_state_holds_a_steer(shipped, tmp_path):
    steer = make_steer(shipped, 8)
    with shipped.session() as plain, shipped.session(steer=[(steer, 3)]) as session:
        plain.feed(TEXT)
        assert session.state_bytes == plain.state_bytes
        plain.save(tmp_path / "a.state")
        session.load(tmp_path / "a.state")
        np.testing.assert_array_equal(session.logits(), plain.logits())  # as saved
        plain.read_token(9)
        session.read_token(9)
        assert not np.array_equal(session.logits(), plain.logits()) and session.steers == [(steer, 3.0)]
        plain.steer([])
        plain.restore(session.snapshot())
        session.steer([])
        plain.read_token(8)
        session.read_token(8)
        np.testing.assert_array_equal(session.logits(), plain.logits())


def test_room_and_values(shipped):
    steer = make_steer(shipped, 8)
    plain = shipped.plan().work_bytes
    assert shipped.plan(steer=[(steer, 1)]).work_bytes >= plain + 2 * 8 * 256 * 4
    assert shipped.plan(all_hidden=True).work_bytes >= plain + 512 * 256 * 4
    with shipped.session(steer_rank=15) as session:
        session.steer([(steer, 1)])
        with pytest.raises(errors.InvalidArgument, match="add up to more than the session's steer_rank of 15") as e:
            session.steer([(steer, 1), (steer, 1)])
        assert "steer_rank" in e.value.remedy and len(session.steers) == 1
        for bad in (float("nan"), float("inf"), 1e7, "1", None, True):
            with pytest.raises(errors.InvalidArgument, match="alpha"):
                session.steer([(steer, bad)])
        for bad in (5, [5], [(steer,)], "ab"):
            with pytest.raises((errors.InvalidArgument, TypeError)):
                session.steer(bad)
        with pytest.raises(errors.InvalidArgument, match="all_hidden"):
            session.hidden()
    for options in ({"draft": 2, "all_hidden": True}, {"importance": True, "steer": [(steer, 1)]}, {"steer_rank": -1}):
        with pytest.raises(errors.InvalidArgument):
            shipped.session(**options)


def test_complete_takes_steers(shipped):
    """Where only one direction matters, the text follows it."""
    steer = make_steer(shipped, 32, seed=5)
    texts = [shipped.complete(TEXT, max_tokens=12, temperature=0, steer=s).text for s in ((), [(steer, 0)], [(steer, 20)])]
    assert texts[0] == texts[1] != texts[2]


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(shipped, tmp_path):
    """Writes a steer with changes: file(table -> table, data -> data) -> path."""

    def make(change=lambda table: table, data=lambda data: data, head=lambda head: head):
        _, header, *parts = make_steer(shipped, 4).pieces()
        header = json.dumps(change(json.loads(header))).encode()
        path = tmp_path / f"{len(os.listdir(tmp_path))}.steer"
        path.write_bytes(head(len(header).to_bytes(8, "little") + header) + data(b"".join(parts)))
        return path

    return make


def test_a_file_is_read_as_it_was_written(shipped, file):
    path = file()
    steer, made = Steer.read(path, shipped), make_steer(shipped, 4)
    assert (steer.p1, steer.p2, steer.rank, steer.epsilon) == (made.p1, made.p2, 4, 1e-3)
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(path)["p2"].astype(np.float64), factors(made)[1])

    def swapped(table):
        table["p1"]["data_offsets"], table["p2"]["data_offsets"] = table["p2"]["data_offsets"], table["p1"]["data_offsets"]
        return table

    steer = Steer.read(file(swapped))
    assert (steer.p1, steer.p2) == (made.p2, made.p1)


def _with(path: str, value):
    """A change of one place of the header: "p1.shape"."""

    def change(table):
        *folders, last = path.split(".")
        at = table
        for f in folders:
            at = at[f]
        if value is None:
            del at[last]
        else:
            at[last] = value
        return table

    return change


N = 4 * 256 * 4  # bytes of a factor


@pytest.mark.parametrize(
    "change",
    [
        _with("p1.dtype", "F16"),
        _with("p1.dtype", None),
        _with("p1.dtype", 5),
        _with("p1.shape", [256, 5]),
        _with("p1.shape", [4, 256]),
        _with("p1.shape", [1024]),
        _with("p1.shape", [-256, -4]),
        _with("p1.shape", [256.0, 4]),
        _with("p1.shape", [True, 4]),
        _with("p1.shape", [1 << 39, 1 << 39]),
        _with("p1.data_offsets", [0, N + 4]),
        _with("p1.data_offsets", [N, 2 * N]),
        _with("p1.data_offsets", [4, N + 4]),
        _with("p1.data_offsets", [-N, 0]),
        _with("p1.data_offsets", "ab"),
        _with("p1", 7),
        _with("p1", None),
        _with("p3", {"dtype": "F32", "shape": [0, 0], "data_offsets": [0, 0]}),
        _with("__metadata__", None),
        _with("__metadata__", []),
        _with("__metadata__.format", "pt"),
        _with("__metadata__.fingerprint", "00"),
        _with("__metadata__.fingerprint", None),
        _with("__metadata__.fingerprint", 3),
        _with("__metadata__.epsilon", "nan"),
        _with("__metadata__.epsilon", "-1"),
        _with("__metadata__.epsilon", "1e9"),
        _with("__metadata__.epsilon", "small"),
        lambda table: [table],
        lambda table: "p1",
    ],
)
def test_a_header_that_makes_no_sense(file, change):
    with pytest.raises(errors.FileFormatError, match="is not a steer"):
        Steer.read(file(change))


@pytest.mark.parametrize(
    "change",
    [
        {"data": lambda d: d[:-1]},
        {"data": lambda d: d + b"\0"},
        {"data": lambda d: b""},
        {"data": lambda d: d[:-4] + b"\x00\x00\xc0\x7f"},
        {"data": lambda d: b"\x00\x00\x80\x7f" + d[4:8] + b"\x00\x00\x80\xff" + d[12:]},
        {"head": lambda h: h[:4], "data": lambda d: b""},
        {"head": lambda h: b"", "data": lambda d: b""},
        {"head": lambda h: b"\xff" * 8 + h[8:]},
        {"head": lambda h: h[:8] + b"[" * (len(h) - 8)},
        {"head": lambda h: h.replace(b'"p1"', b'"p2"')},
        {"head": lambda h: h.replace(b"lmi", b"\xff\xff\xff")},
    ],
)
def test_bytes_that_make_no_sense(file, change):
    with pytest.raises(errors.FileFormatError, match="is not a steer"):
        Steer.read(file(**change))


def test_files_that_are_none(shipped, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe", "/dev/zero", "a\0b", shipped.path):
        with pytest.raises(errors.FileFormatError):
            shipped.session(steer=[(path, 1)])


def test_another_model_is_refused(shipped, file, tiny):
    path = file()
    with package.Model(tiny, device="cpu") as other:
        assert len(other.fingerprint) == 64 and other.fingerprint != shipped.fingerprint
        with pytest.raises(errors.StateError, match="trained for another model file") as e:
            other.session(steer=[(path, 1)])
        assert "lmi steer train" in e.value.remedy
        with pytest.raises(errors.StateError):
            other.plan(steer=[(make_steer(shipped, 2), 1)])
    wrong = file(_with("__metadata__.fingerprint", "0" * 64))
    with pytest.raises(errors.StateError):
        shipped.session(steer=[(wrong, 1)])
