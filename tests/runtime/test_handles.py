"""Threads, closing, forking, cancelling: whatever the order, an exception and never a crash or a freeze."""

import gc
import os
import threading
import time

import lmi
import pytest

TEXT = "the quick brown fox jumps over the lazy dog\n"


@pytest.fixture
def open_model(tiny):
    with lmi.Model(tiny, threads=2) as m:
        yield m


def in_thread(body):
    """Runs body in a thread; returns (thread, list that gets its exception or result)."""
    outcome = []

    def run():
        try:
            outcome.append(body())
        except BaseException as e:
            outcome.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_second_thread_is_refused_and_not_frozen(open_model):
    with open_model.session(window=64, chunk=512) as s:
        entered = threading.Event()
        thread, outcome = in_thread(lambda: s.feed(TEXT * 2000, progress=lambda _: entered.set()))
        assert entered.wait(20)
        refused = 0
        while thread.is_alive() and refused < 5:
            try:
                s.view  # noqa: B018
            except lmi.SessionBusy as e:
                refused += thread.is_alive()  # answered at once, not when the other was done
                assert "another thread" in e.message
            assert s.position > 0  # may be asked by anyone
            time.sleep(0.001)
        s.cancel()
        thread.join(20)
        assert not thread.is_alive() and isinstance(outcome[0], lmi.Cancelled)
        assert refused
        s.feed("and on")  # cancelled, not broken


def test_the_gil_is_released(open_model):
    with open_model.session(window=64, chunk=512) as s:
        ids = [5] * 20_000
        thread, outcome = in_thread(lambda: s.read_tokens(ids))
        ticks = 0
        while thread.is_alive():
            ticks += 1
            time.sleep(0.0005)
        assert outcome == [20_000]
        assert ticks > 5  # Python ran beside it


def test_cancel_stops_between_layers(open_model):
    with open_model.session(window=64, chunk=512) as s:
        thread, outcome = in_thread(lambda: s.feed(TEXT * 20_000))
        while s.position == 0:
            time.sleep(0.001)
        s.cancel()
        asked = s.position
        thread.join(60)
        assert isinstance(outcome[0], lmi.Cancelled)
        assert s.position <= asked + 512  # the chunk in progress at most
        assert s.position % 512 == 0  # whole chunks
        n = s.position
        s.feed("x")
        assert s.position > n


def test_cancel_before_a_read_stops_the_next(open_model):
    with open_model.session() as s:
        s.cancel()
        with pytest.raises(lmi.Cancelled):
            s.feed("abc")
        assert s.feed("abc") > 0


def test_cancelled_generation_carries_what_there_was(open_model):
    with open_model.session() as s:
        events = s.stream("abc", max_tokens=1000, seed=1)
        first = [next(events) for _ in range(3)]
        s.cancel()
        with pytest.raises(lmi.Cancelled):
            for e in events:
                first.append(e)
        s.feed("x")
        position = s.position
        timer = threading.Timer(0.05, s.cancel)
        timer.start()
        with pytest.raises(lmi.Cancelled) as e:
            for _ in range(10_000):
                s.generate(max_tokens=1000, seed=1)
        timer.join()
        assert e.value.result is None or len(e.value.result.tokens) == e.value.result.stats.written
        assert s.position > position


def test_two_sessions_in_two_threads(open_model):
    def work(seed):
        with open_model.session(window=48, sinks=4) as s:
            return s.generate(TEXT * 4, max_tokens=30, seed=seed).tokens

    expected = [work(1), work(2)]
    for _ in range(3):
        threads = [in_thread(lambda seed=seed: work(seed)) for seed in (1, 2)]
        for thread, _ in threads:
            thread.join(60)
        assert [outcome[0] for _, outcome in threads] == expected


def test_closed_is_an_error_everywhere(tiny):
    m = lmi.Model(tiny)
    s = m.session()
    s.feed("abc")
    snapshot = s.snapshot()
    s.close()
    s.close()
    calls = [
        lambda: s.feed("x"),
        lambda: s.read_tokens([1]),
        lambda: s.read_token(5),
        lambda: s.generate("x"),
        lambda: list(s.stream("x")),
        lambda: s.logits(),
        lambda: s.nll(1),
        lambda: s.sample(),
        lambda: s.set_sampling(),
        lambda: s.view,
        lambda: s.rewind(1),
        lambda: s.rewind_to(0),
        lambda: s.start_at(5),
        lambda: s.snapshot(),
        lambda: s.restore(snapshot),
        lambda: s.save("/tmp/never"),
        lambda: s.load("/tmp/never"),
        lambda: s.cancel(),
        lambda: s.state_bytes,
        lambda: s.hot_allocations,
    ]
    for call in calls:
        with pytest.raises(lmi.ClosedError):
            call()
    assert s.plan.window and s.position == 4 and "closed" in repr(s)
    m.close()
    m.close()
    for call in (
        lambda: m.tokenize("a"),
        lambda: m.detokenize([5]),
        lambda: m.session(),
        lambda: m.plan(),
        lambda: list(m.tensors()),
        lambda: m.metadata("general.name"),
        lambda: m.token_text(5),
        lambda: m.is_end(5),
        lambda: m.complete("a"),
    ):
        with pytest.raises(lmi.ClosedError):
            call()
    assert "closed" in repr(m)


def test_closing_the_model_closes_what_is_open(tiny):
    m = lmi.Model(tiny)
    s = m.session()
    events = s.stream("abc", max_tokens=50, seed=1)
    next(events)
    tokens = m.iter_tokens(TEXT * 2000)
    next(tokens)
    m.close()
    assert s.closed
    with pytest.raises(lmi.ClosedError):
        next(events)
    with pytest.raises(lmi.ClosedError):
        list(tokens)


def test_closing_a_session_at_work_is_refused(open_model):
    s = open_model.session(window=64, chunk=512)
    entered = threading.Event()
    thread, outcome = in_thread(lambda: s.feed(TEXT * 20_000, progress=lambda _: entered.set()))
    assert entered.wait(20)
    refused = 0
    for _ in range(200):
        try:
            s.close()
            break
        except lmi.SessionBusy:
            refused += 1
            time.sleep(0.001)
    thread.join(0 if not s.closed else 20)
    if not s.closed:
        s.cancel()
        thread.join(20)
        s.close()
    assert refused or isinstance(outcome[0], lmi.ClosedError)


def test_ctrl_c_inside_a_call_is_what_the_caller_hears_of(tiny):
    """A signal's exception may come between two steps of Python and leave a use unfinished."""
    for open_handle in (lambda m: m, lambda m: m.session(window=32)):
        with lmi.Model(tiny) as m:
            with pytest.raises(KeyboardInterrupt):
                with open_handle(m) as handle:
                    handle.use().__enter__()
                    raise KeyboardInterrupt
            with pytest.raises(lmi.SessionBusy):
                with handle:
                    pass
            handle.use().__exit__(None, None, None)


def test_nothing_leaks_when_nothing_is_closed(tiny):
    import psutil

    def once():
        m = lmi.Model(tiny, threads=2)
        s = m.session()
        s.feed("abc")
        next(s.stream(max_tokens=3, seed=1))
        s.logits()

    def sizes():
        gc.collect()
        process = psutil.Process()
        return process.num_fds(), process.num_threads()

    for _ in range(3):
        once()
    before = sizes()
    for _ in range(10):
        once()
    assert sizes() == before


def test_child_of_a_fork_is_refused_and_harms_nothing(open_model):
    with open_model.session() as s:
        s.feed("abc")
        kept = s.logits().copy()
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                seen = []
                for call in (lambda: s.feed("x"), lambda: s.cancel(), lambda: open_model.tokenize("a")):
                    try:
                        call()
                        seen.append("no error")
                    except lmi.ClosedError as e:
                        seen.append("forked" if "forked" in e.message else e.message)
                s.close()
                open_model.close()
                gc.collect()
                os.write(write, ",".join(seen).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as f:
            assert f.read() == "forked,forked,forked"
        assert os.waitpid(pid, 0)[1] == 0
        assert (s.logits() == kept).all()
        s.feed("on")


def test_errors_carry_what_to_do():
    e = lmi.FileFormatError("what", "do this", 12)
    assert (str(e), e.message, e.remedy, e.offset, e.exit_code) == ("what\ndo this", "what", "do this", 12, 3)
    assert issubclass(lmi.OutOfMemory, MemoryError) and issubclass(lmi.InvalidArgument, ValueError)
    for name in (
        "FileFormatError",
        "UnsupportedModel",
        "OutOfMemory",
        "DeviceError",
        "Cancelled",
        "SessionBusy",
        "ClosedError",
    ):
        assert issubclass(getattr(lmi, name), lmi.Error)


def test_every_status_of_the_header_has_its_exception(native):
    """lmi.h may grow a status: it must then be decided here what it means."""
    from lmi.errors import _BY_STATUS, InternalError, from_status

    ffi, _ = native
    statuses = set(ffi.typeof("lmi_status").elements) - {0}
    assert statuses == set(_BY_STATUS)
    assert isinstance(from_status(-99, ""), InternalError)


def test_a_model_that_cannot_be_closed_closes_nothing(open_model):
    with open_model.session(window=64, chunk=512) as s:
        entered = threading.Event()
        thread, outcome = in_thread(lambda: s.feed(TEXT * 300, progress=lambda _: entered.set()))
        assert entered.wait(20)
        with pytest.raises(lmi.SessionBusy):
            while thread.is_alive():  # between two native calls the session is idle, its encoder too: only then it may close
                with s._guard:
                    if s._users:
                        open_model.close()
        thread.join(20)
        assert isinstance(outcome[0], int) and not open_model.closed and not s.closed


def test_a_path_with_a_nul_is_no_path(open_model, tmp_path):
    with open_model.session() as s:
        s.feed(TEXT)
        for call in (s.save, s.load):
            with pytest.raises(lmi.InvalidArgument, match="NUL"):
                call(f"{tmp_path}/state\0.txt")
    assert not list(tmp_path.iterdir())
    with pytest.raises(lmi.InvalidArgument, match="NUL"):
        open_model.plan(recall="blocks", recall_folder=f"{tmp_path}\0")


# ---- streams left behind ----


def test_what_was_given_out_stands_before_what_is_read_next(open_model):
    """Whatever becomes of the generator: kept, collected later, or collected with its session."""
    with open_model.session() as expected, open_model.session() as s:
        tokens = [e.token for e in expected.stream(TEXT, max_tokens=3, temperature=0) if e.token is not None]
        expected.feed("and on")
        stream = s.stream(TEXT, max_tokens=9, temperature=0)
        assert [next(stream).token for _ in range(3)] == tokens
        s.feed("and on")
        assert s.position == expected.position and (s.logits() == expected.logits()).all()
        with pytest.raises(lmi.InvalidArgument, match="something else while it streamed"):
            next(stream)
        del stream
        assert s.position == expected.position


def test_streams_and_sessions_are_collected_without_a_word(open_model, capfd):
    s = open_model.session()
    s.stream_of_its_own = s.stream(TEXT, max_tokens=9)
    next(s.stream_of_its_own)
    s.itself = s
    del s
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_a_stream_that_was_taken_back_does_not_go_on(open_model):
    with open_model.session() as s:
        stream = s.stream(TEXT, max_tokens=9)
        next(stream)
        position = s.position
        s.rewind(1)
        stream.close()
        assert s.position == position - 1
