"""Reading ahead: the same tokens and the same bits, whatever is guessed, sampled, stopped, taken back or saved."""

import json
import subprocess
import sys

import numpy as np
import pytest
from lmi import Model, errors
from oracle import tiny_models

WORDS = "one two three four five six seven eight nine ten " * 12


@pytest.fixture(scope="module")
def model(native, shipped_model):
    with Model(shipped_model, window=200, threads=2) as m:
        yield m


def stream(session, n: int) -> tuple[list[int], np.ndarray]:
    tokens, rows = [], []
    for _ in range(n):
        tokens.append(session.sample().token)
        session.read_token(tokens[-1])
        rows.append(session.logits().copy())
    return tokens, np.array(rows)


@pytest.mark.parametrize("temperature", [0, 0.9])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_the_same_bits(model, temperature, kv_type):
    """Over a text that repeats itself, past the window, so that guesses come true, fail, and wrap round the ring."""
    found = {}
    for draft in (0, 1, 7):
        with model.session(draft=draft, kv_type=kv_type, chunk=32) as session:
            session.feed(WORDS)
            session.set_sampling(temperature=temperature, seed=5)
            found[draft] = stream(session, 300)
            counts = session.draft_counts
            assert session.hot_allocations == 0
            assert (counts.guessed > 0) == (draft > 0) and counts.true <= counts.guessed
            assert counts.true + counts.passes == (300 if draft else 0)
    for draft in (1, 7):
        assert found[draft][0] == found[0][0]
        np.testing.assert_array_equal(found[draft][1], found[0][1])


def test_guesses_come_true_on_repetition(model):
    """Given a text that it has seen, token by token: nearly every guess is right, and passes are saved."""
    tokens = model.tokenize(WORDS)
    with model.session(draft=7) as session:
        session.read_tokens(tokens)
        for token in tokens[:100]:
            session.read_token(token)
        counts = session.draft_counts
    assert counts.true > 0.5 * counts.guessed > 0 and counts.passes < 80


def test_taking_back(model):
    """A rewind into what was read ahead, and right behind it."""
    tokens = model.tokenize(WORDS)
    other = model.tokenize(" A quite different end.")
    with model.session(draft=7) as session, model.session() as plain:
        for n_back in (0, 1, 3, 9, 20):
            for s in (session, plain):
                s.rewind_to(0)
                s.read_tokens(tokens)
                for token in tokens[:30]:
                    s.read_token(token)
                s.rewind(n_back)
                for token in other:
                    s.read_token(token)
                assert s.position == len(tokens) + 30 - n_back + len(other)
            np.testing.assert_array_equal(session.logits(), plain.logits())


def test_saved_states(model, tmp_path):
    """Kept while something is read ahead, and loaded with and without guessing."""
    tokens = model.tokenize(WORDS)
    with model.session(draft=7) as session:
        session.read_tokens(tokens)
        for token in tokens[:25]:
            session.read_token(token)
        state = session.snapshot()
        session.save(tmp_path / "a.state")
        expected = session.logits().copy()
        _, rows = stream(session, 20)
    with model.session() as plain, model.session(draft=7) as other:
        for s in (plain, other):
            s.load(tmp_path / "a.state")
            np.testing.assert_array_equal(s.logits(), expected)
            s.restore(state)
            s.set_sampling(seed=9)
        assert stream(plain, 20)[0] == stream(other, 20)[0]


def test_writing(model):
    """Stop texts and limits end at the same place, and what follows goes on alike."""
    results = {}
    for draft in (0, 7):
        with model.session(draft=draft) as session:
            session.feed(WORDS)
            parts = [
                session.generate(max_tokens=n, temperature=0.7, seed=3, stop=stop)
                for n, stop in ((40, ()), (60, "a"), (25, ()))
            ]
            results[draft] = [(r.text, r.tokens, r.logprobs, r.finish_reason) for r in parts]
            if draft:
                assert parts[-1].stats.guessed > 0
    assert results[0] == results[7]


def test_families_without_early_guesses(native, tmp_path):
    """Nothing is guessed while the first tokens, which become sinks, are read; and a chunk bounds what is guessed."""
    tiny_models.make_llama(tmp_path / "m.gguf")
    with Model(tmp_path / "m.gguf") as model, model.session(window=60, sinks=40, chunk=3, draft=7) as session:
        for _ in range(20):
            session.read_token(7)
        assert session.draft_counts.guessed == 0
        for i in range(60):
            session.read_token(7 + i % 2)
        counts = session.draft_counts
        assert 0 < counts.guessed <= 2 * counts.passes


def test_refused(model):
    with pytest.raises(errors.InvalidArgument, match="all_logits"):
        model.session(draft=3, all_logits=True)
    with pytest.raises(errors.InvalidArgument, match="from 0 to 7"):
        model.session(draft=8)


def test_command(native, shipped_model):
    texts = []
    for draft in ("none", "ngram"):
        command = [sys.executable, "-m", "lmi", "run", shipped_model, "--text", WORDS, "--draft", draft, "--json"]
        done = subprocess.run([*command, "--temp", "0", "-n", "60"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        texts.append(answer["text"])
        assert (answer["stats"]["guessed"] > 0) == (draft == "ngram")
        assert ("guesses came true" in done.stderr) == (draft == "ngram")
    assert texts[0] == texts[1]
