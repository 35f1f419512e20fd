"""The Python API against the real library."""

import io
import math
import time

import lmi
import numpy as np
import pytest
from lmi import selftest
from lmi.tokens import Reader

TEXT = "the quick brown fox jumps over the lazy dog\n"


# ---- model ----


def test_what_a_model_is(model, tiny):
    info = model.info
    assert (info.architecture, info.n_layers, info.n_embd, info.n_heads, info.n_kv_heads) == ("llama", 2, 64, 4, 2)
    assert info.trained_context == 128 and info.n_threads == 2 and info.file_bytes == tiny.stat().st_size
    v = model.vocabulary
    assert (v.kind, v.bos, v.eos, v.unk, v.add_bos) == ("spm", 1, 2, 0, True)
    assert model.metadata("general.name") == "lmi self-test"
    assert model.metadata("llama.block_count") == 2
    assert model.metadata("tokenizer.ggml.add_bos_token") is True
    assert model.metadata("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5, rel=1e-6)
    assert model.metadata("no.such.key") is None and model.metadata("no.such.key", 3) == 3
    assert model.metadata("tokenizer.ggml.tokens")[:3] == ["<unk>", "<s>", "</s>"]
    items = {key: value for key, _, value in model.metadata_items(5)}
    assert len(items) == info.n_metadata and len(items["tokenizer.ggml.scores"]) == 5

    tensors = list(model.tensors())
    assert len(tensors) == info.n_tensors == 2 * 9 + 3
    assert tensors[0].name == "token_embd.weight" and tensors[0].shape == (64, info.n_vocab) and tensors[0].type == "Q8_0"
    assert sum(t.n_bytes for t in tensors) == info.weight_bytes
    assert model.chat_template is None


def test_metadata_of_a_large_vocabulary(chat):
    """Arrays of strings are read once through, not from their beginning for each element."""
    words = [f"word {i}" for i in range(50_000)]
    began = time.monotonic()
    with lmi.Model(chat(None, ("x.words", (selftest.ARRAY, selftest.STRING), words)), vocab_only=True) as m:
        assert m.metadata("x.words") == words
    assert time.monotonic() - began < 3


def test_tokens_there_and_back(model):
    text = "hello wörld\n\tä €"
    ids = model.tokenize(text)
    assert ids[0] == 1 and ids[1:] == model.tokenize(text, bos=False)
    assert model.detokenize(ids).strip() == text
    for source in (text.encode(), io.StringIO(text), io.BytesIO(text.encode()), [text[:4], text[4:]]):
        assert model.tokenize(source) == ids
    assert [i for part in model.iter_tokens(text * 500) for i in part] == model.tokenize(text * 500)
    end = model.tokenize("<|end|>", bos=False, special=True)
    assert len(end) == 1 and model.detokenize(end) == "" and model.detokenize(end, special=True) == "<|end|>"
    assert end[0] not in model.tokenize("<|end|>", bos=False)
    assert model.token_text(end[0]) == b"<|end|>" and model.token_text(end[0], special=False) == b""
    assert model.token_text(10**9) == b""
    assert model.is_end(2) and not model.is_end(300)
    for bad in (-1, model.info.n_vocab, "a", 1.5):
        with pytest.raises(lmi.InvalidArgument):
            model.detokenize([bad])


def test_real_vocabularies_as_in_one_piece(data):
    """The llama vocabulary of the real world: text that continues another has the ids of the text in one piece."""
    with lmi.Model(data / "vocabs" / "ggml-vocab-llama-spm.gguf", vocab_only=True) as m:
        from lmi.tokens import continuation, encode_blocks

        lead, drop = continuation(m)
        for first, second in (
            ("Hello", " world, how are you?"),
            ("line\n", "next line"),
            ("user:\n", "  two spaces"),
            ("a", "\n\nb"),
        ):
            whole = m.tokenize(first + second, bos=False)
            parts = m.tokenize(first, bos=False)
            parts += [i for ids in encode_blocks(m, iter([lead, second.encode()]), False) for i in ids][drop:]
            assert parts == whole


def test_vocabulary_only(tiny):
    with lmi.Model(tiny, vocab_only=True) as m:
        assert m.info.vocab_only and m.tokenize("abc")
        with pytest.raises(lmi.Error):
            m.session()
        with pytest.raises(lmi.Error):
            m.plan()


def test_open_errors(tmp_path):
    with pytest.raises(lmi.FileFormatError, match="no such file"):
        lmi.Model(tmp_path / "none.gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(lmi.FileFormatError) as e:
        lmi.Model(tmp_path / "modle.gguf")
    assert e.value.remedy == "similar here: model.gguf"
    with pytest.raises(lmi.FileFormatError):
        lmi.Model(tmp_path / "model.gguf")
    with pytest.raises(lmi.FileFormatError, match="is a directory"):
        lmi.Model(tmp_path)
    with pytest.raises(lmi.FileFormatError, match="cannot open"):
        lmi.Model("a\0b")
    with pytest.raises(lmi.FileFormatError, match="not a plain file"):
        lmi.Model("/dev/null")


@pytest.mark.parametrize(
    "bad", [{"threads": 0}, {"isa": "mmx"}, {"device": "tpu"}, {"threads": "two"}, {"sink": 1, "sinks": 2}]
)
def test_open_with_bad_values(bad, tiny):
    with pytest.raises(lmi.InvalidArgument):
        lmi.Model(tiny, **bad)


def test_cuda_is_a_device_error(tiny, monkeypatch):
    monkeypatch.setenv("LMI_CUDA_LIBRARY", "/no/such/library.so")  # whatever this machine has
    with pytest.raises(lmi.DeviceError, match="no usable CUDA device"):
        lmi.Model(tiny, device="cuda")


def test_defaults_of_the_model_are_its_sessions(tiny):
    with lmi.Model(tiny, window=32, sink=4, kv_type="f32", chunk=16) as m:
        plan = m.plan()
        assert (plan.window, plan.sinks, plan.chunk) == (32, 4, 16)
        assert m.plan(window=40).window == 40
        with m.session() as s:
            assert (s.plan.window, s.plan.sinks) == (32, 4)


def test_without_mapping(tiny, model):
    with lmi.Model(tiny, mmap=False, threads=2) as m:
        assert not m.plan().weights_mapped
        with m.session(window=48) as a, model.session(window=48) as b:
            a.feed(TEXT)
            b.feed(TEXT)
            assert np.array_equal(a.logits(), b.logits())


# ---- plan ----


def test_plan_is_known_before_and_true_after(model):
    plan = model.plan(window=64, sinks=4)
    assert plan.window == 64 and plan.sinks == 4 and plan.reach == 68
    assert plan.total_bytes == plan.weight_bytes + plan.context_bytes + plan.work_bytes + plan.tokenizer_bytes
    with model.session(window=64, sinks=4) as s:
        assert s.plan.context_bytes == plan.context_bytes
    assert model.plan(window=128).context_bytes > plan.context_bytes
    assert model.plan(window=64, sinks=4, kv_type="f32").context_bytes > 1.9 * plan.context_bytes


@pytest.mark.parametrize(
    "bad",
    [
        {"window": 0},
        {"window": -1},
        {"window": 1.5},
        {"window": True},
        {"sinks": -1},
        {"sinks": 2**63},
        {"chunk": 0},
        {"rollback": 0},
        {"kv_type": "f64"},
        {"placement": "here"},
    ],
)
def test_sessions_with_bad_values(bad, model):
    with pytest.raises(lmi.InvalidArgument):
        model.session(**bad)
    with pytest.raises(lmi.InvalidArgument):
        model.plan(**bad)


def test_too_large_is_refused_before_anything_is_taken(model):
    before = lmi.memory().resident
    with pytest.raises(lmi.OutOfMemory) as e:
        model.session(window=10**11)
    assert lmi.memory().resident - before < 64 << 20
    error = e.value
    assert error.message.startswith("needs ") and "free" in error.message
    assert error.window and error.saving > 0
    assert model.plan(window=error.window).fits and f"{error.window} saves" in error.remedy
    assert not model.plan(window=4 * error.window).fits  # the largest that would do, not the smallest
    assert isinstance(error, MemoryError)


# ---- reading ----


def test_any_source_reads_the_same(model, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(TEXT * 20)
    sources = [TEXT * 20, (TEXT * 20).encode(), io.StringIO(TEXT * 20), [TEXT] * 20, path.open("rb"), path.open()]
    seen = []
    for source in sources:
        with model.session(window=48, sinks=4, chunk=32) as s:
            n = s.feed(source)
            assert n == s.position == len(model.tokenize(TEXT * 20))
            seen.append(s.logits().copy())
    assert all(np.array_equal(seen[0], other) for other in seen)


def test_feeds_go_on_from_each_other(model):
    """Two feeds read what one does, but for joins across the cut; BOS comes once, and no space is added."""
    with model.session(chunk=32) as one, model.session(chunk=32) as two:
        assert one.feed("abc\ndef") == two.feed("abc\n") + two.feed("def")
        assert np.array_equal(one.logits(), two.logits())


def test_progress_and_its_exceptions(session):
    seen = []
    n = session.feed(TEXT * 10, progress=seen.append)
    assert seen[-1] == n == session.position and seen[:2] == [32, 64]

    class Enough(Exception):
        pass

    def stop(position):
        raise Enough

    at = session.position
    with pytest.raises(Enough):
        session.feed(TEXT * 10, progress=stop)
    assert session.position == at + 32  # what was read stays read


def test_wrong_bytes(session):
    with pytest.raises(lmi.PromptError) as e:
        session.feed(b"abc\xffdef")
    assert e.value.offset == 3
    assert session.feed(b"abc\xffdef", errors="replace") > 0


def test_require_fit_to_the_token(model):
    ids = [5] * 49
    for n, forgets in ((48, False), (49, True)):
        with model.session(window=40, sinks=8, chunk=16) as s:
            reader = Reader(s, limit=s.plan.reach)
            if forgets:
                with pytest.raises(lmi.RequireFit):
                    reader.ids(ids[:n])
            else:
                reader.ids(ids[:n])
                reader.flush()
                assert s.position == n and s.view.forgotten == 0


def test_require_fit(model):
    with model.session(window=40, sinks=8, chunk=16) as s:
        with pytest.raises(lmi.RequireFit):
            s.feed(TEXT * 10, require_fit=True)
        assert s.view.forgotten == 0


def test_read_tokens(session):
    ids = np.arange(3, 43, dtype=np.int32)
    assert session.read_tokens(ids) == 40
    first = session.logits().copy()
    session.rewind_to(0)
    for i in ids.tolist():
        session.read_token(i)
    assert np.allclose(session.logits(), first, rtol=1e-4, atol=1e-4)
    for bad in ([-1], [10**6], ["a"], [2.5]):
        with pytest.raises(lmi.InvalidArgument):
            session.read_tokens(bad)


def test_view(model):
    with model.session(window=40, sinks=8, chunk=16) as s:
        assert str(s.view) == "in view: nothing was read" and s.view.ranges == []
        s.read_tokens(range(3, 33))
        assert s.view.ranges == [(0, 30)] and str(s.view) == "in view: all 30 tokens"
        s.read_tokens([5] * 100)
        view = s.view
        (a, b), (c, d) = view.ranges
        assert (a, b, d) == (0, 8, 130) and view.forgotten == 130 - 8 - (d - c)
        assert str(view) == f"in view: tokens 0–7 and {c}–129; {view.forgotten} read and no longer visible"
        assert s.in_view == view


# ---- logits ----


def test_logits_are_a_view(session):
    with pytest.raises(lmi.InvalidArgument):
        session.logits()
    session.feed("abc")
    view = session.logits()
    assert view.dtype == np.float32 and view.shape == (session.model.info.n_vocab,) and not view.flags.writeable
    kept = view.copy()
    session.feed("d")
    assert not np.array_equal(view, kept)  # it shows what the session has now
    for bad in (0.5, -2, "a"):
        with pytest.raises(lmi.InvalidArgument):
            session.logits(bad)


def test_logits_outlive_session_and_model(tiny):
    m = lmi.Model(tiny)
    s = m.session()
    s.feed("abc")
    view = s.logits()
    kept = view.copy()
    m.close()
    assert s.closed
    import gc

    del s, m
    gc.collect()
    assert np.array_equal(view, kept)


def test_nll_is_the_log_softmax(session):
    session.feed("abc")
    logits = session.logits().astype(np.float64)
    expected = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[7]
    assert session.nll(7) == pytest.approx(expected, abs=1e-6)
    assert session.nll(10**6) == math.inf


def test_all_logits(model):
    with model.session(window=64, chunk=16, all_logits=True) as rows, model.session(window=64, chunk=16) as last:
        ids = list(range(10, 26))
        rows.read_tokens(ids)
        for i, token in enumerate(ids):
            last.read_token(token)
            assert np.allclose(rows.logits(i), last.logits(), rtol=1e-3, atol=1e-3)
        with pytest.raises(lmi.InvalidArgument):
            rows.logits(16)


# ---- writing ----


def test_generate(model, session):
    result = session.generate("abc", max_tokens=9, temperature=0, stop=[])
    assert result.finish_reason in ("length", "end") and len(result.tokens) == result.stats.written <= 9
    assert result.stats.read == len(model.tokenize("abc"))
    assert session.position == result.stats.read + result.stats.written  # all that was given out was read
    assert result.stats.in_view == [(0, session.position)] and result.stats.forgotten == 0
    assert result.stats.peak_bytes > 0 and result.stats.context_bytes == session.plan.context_bytes
    assert result.text == model.detokenize(result.tokens)
    assert all(p <= 0 for p in result.logprobs)
    assert model.complete("abc", max_tokens=9, temperature=0).tokens == result.tokens


def test_greedy_is_the_largest_logit(session):
    session.feed("abc")
    session.set_sampling(temperature=0)
    token, _ = session.sample()
    assert token == int(session.logits().argmax())


def test_stream(model):
    events = list(model.stream("abc", max_tokens=7, temperature=0))
    assert [e.token for e in events[:-1]] == model.complete("abc", max_tokens=7, temperature=0).tokens
    assert events[-1].token is None and events[-1].finish_reason == "length"
    assert events[0].stats is events[-1].stats
    assert list(model.stream("abc", max_tokens=0))[0].finish_reason == "length"


def test_stop_text(session):
    session.feed("abc")
    start = session.snapshot()
    text = session.generate(max_tokens=30, seed=3, temperature=1.5).text
    assert len(text) > 4
    session.restore(start)
    stop = text[3:5]
    result = session.generate(max_tokens=30, seed=3, temperature=1.5, stop=stop)
    assert result.finish_reason == "stop" and result.text == text[: text.index(stop)]


def test_leaving_a_stream_keeps_the_timeline_whole(session):
    session.feed("abc")
    at = session.position
    for i, _ in enumerate(session.stream(max_tokens=20, seed=1)):
        if i == 4:
            break
    assert session.position == at + 5


def test_generating_without_a_prompt_fails_clearly(session):
    with pytest.raises(lmi.Error):
        session.generate(max_tokens=2)
    with pytest.raises(lmi.InvalidArgument):
        session.generate("a", max_tokens=-1)


# ---- going back and keeping ----


def test_rewind(session):
    session.read_tokens(range(3, 43))
    kept = session.logits().copy()
    session.read_tokens([50, 51, 52])
    session.rewind(3)
    session.rewind(1)
    session.read_token(42)
    assert np.allclose(session.logits(), kept, rtol=1e-3, atol=1e-3) and session.position == 40
    with pytest.raises(lmi.InvalidArgument):
        session.rewind(41)
    session.read_tokens([7] * 200)
    session.rewind(32)  # the rollback of this session
    with pytest.raises(lmi.StateError):
        session.rewind(1)
    session.rewind(208)
    assert session.position == 0


def test_snapshot(session):
    session.feed(TEXT * 3)
    snapshot, kept = session.snapshot(), session.logits().copy()
    after = session.generate(max_tokens=10, seed=1).tokens
    session.feed("something else" * 20)
    session.restore(snapshot)
    assert session.position == snapshot.position and np.array_equal(session.logits(), kept)
    assert session.generate(max_tokens=10, seed=1).tokens == after
    assert snapshot.n_bytes == session.state_bytes


def test_snapshot_of_another_kind_is_refused(model, session):
    session.feed("abc")
    kept = session.logits().copy()
    with model.session(window=32) as other:
        other.feed("xyz")
        with pytest.raises(lmi.StateError):
            session.restore(other.snapshot())
    assert np.array_equal(session.logits(), kept)


def test_save_and_load(session, model, tmp_path):
    from lmi.session import state_options

    session.feed(TEXT * 4)
    path = tmp_path / "s.lmi"
    session.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["s.lmi"]
    assert path.stat().st_size == session.state_bytes
    options = state_options(path)
    assert (options["window"], options["sinks"], options["kv_type"]) == (48, 8, "f16")
    with model.session(**options) as other:
        other.load(path)
        assert other.position == session.position
        one = session.generate(max_tokens=8, seed=5)
        assert other.generate(max_tokens=8, seed=5).tokens == one.tokens
    with pytest.raises(lmi.FileFormatError):
        session.load(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"hello")
    with pytest.raises(lmi.FileFormatError):
        session.load(tmp_path / "bad")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "bad").write_bytes(damaged)
    position = session.position
    with pytest.raises(lmi.FileFormatError):
        session.load(tmp_path / "bad")
    assert session.position == position
    with pytest.raises(lmi.OutputError):
        session.save(tmp_path / "no" / "s.lmi")


def test_far_positions(session):
    session.start_at(2**40)
    session.feed(TEXT)
    assert session.position > 2**40
    with pytest.raises(lmi.InvalidArgument):
        session.start_at(5)


def test_no_allocations_while_reading(session):
    session.feed(TEXT * 20)
    session.generate(max_tokens=10, seed=1)
    assert session.hot_allocations == 0


# ---- what it is not ----


def test_names_are_lazy_and_documented():
    import subprocess
    import sys

    code = "import sys, lmi; print([m for m in ('numpy', 'cffi', 'jinja2', 'gguf', 'torch', 'click') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    for name in lmi.__all__:
        assert getattr(lmi, name).__doc__, name
    with pytest.raises(AttributeError):
        _ = lmi.nothing
    for kind in (lmi.Model, lmi.Session):
        for name in dir(kind):
            if not name.startswith("_"):
                assert getattr(kind, name).__doc__, f"{kind.__name__}.{name}"


def test_nothing_is_printed(model, capfd):
    with model.session(window=32) as s:
        s.feed(TEXT * 5)
        s.generate(max_tokens=5, seed=1)
        with pytest.raises(lmi.Error):
            s.load("/nonexistent")
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")
