"""Recall and what happens to a session: threads, rewinding, saved states, budgets that run out, folders, foolish options."""

import resource

import door
import numpy as np
import pytest
from oracle import recall64, tiny_models

WINDOW, SINKS, BLOCK = 24, 3, 16
OPTIONS = {"window": WINDOW, "sinks": SINKS, "rollback": 8}
POLICIES = {
    "blocks": {"kind": "blocks", "n": 2, "block": BLOCK},
    "surprise": {"kind": "surprise", "n": 9},
    "topk": {"kind": "topk", "n": 5, "layer": 0},
}
EVERYTHING = {"kind": "blocks", "n": 64, "block": BLOCK, "distance": WINDOW}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Heads of 32, so that a q8_0 buffer is possible."""
    path = tmp_path_factory.mktemp("recall") / "tiny.gguf"
    return tiny_models.make_llama(path, n_embd=128, n_heads=4, n_kv_heads=2, n_layers=2, seed=11)


@pytest.fixture(scope="module")
def tokens(tiny):
    return tiny.random_tokens(400, seed=3)


@pytest.fixture(scope="module")
def model(native, tiny):
    with door.open_model(native, tiny.path) as model:
        yield model


def read_on(session, tokens) -> np.ndarray:
    """Logits after each of them, one by one."""
    rows = []
    for token in tokens:
        session.read([token])
        rows.append(session.logits())
    return np.array(rows)


def slot_bytes(model, kv: str = "f32", block: int = BLOCK) -> int:
    """Of the budget, what a block of the tiny model takes: found out by asking."""
    for budget in (1 << 20, 1 << 21):
        with model.session(**OPTIONS, kv=kv, recall={"kind": "blocks", "n": 1, "block": block, "budget": budget}) as session:
            slots = session.plan.recall_tokens // block
    return -(-(1 << 21) // slots)


# ---- threads and cutting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("policy", POLICIES)
def test_bit_identical_for_any_number_of_threads(native, tiny, tokens, policy, kv):
    for chunk in (1, WINDOW if policy == "surprise" else 100):
        found = []
        for threads in (1, 2, 3):
            with door.open_model(native, tiny.path, threads=threads) as model:
                found.append(model.rows(tokens[:200], **OPTIONS, kv=kv, chunk=chunk, recall=POLICIES[policy]))
        assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.mark.parametrize(("kv", "bound"), [("f32", 2e-5), ("f16", 5e-3), ("q8_0", 6e-2)])
def test_all_chosen_for_any_cutting(model, tokens, kv, bound):
    """Nobody chooses, so it does not matter who reads together; keys that leave a narrow buffer are rounded once more."""
    expected = model.rows(tokens, window=WINDOW, sinks=len(tokens), kv="f32")
    for chunk in (1, 7, 64, 100):
        rows = model.rows(tokens[:200], **OPTIONS, kv=kv, chunk=chunk, recall=EVERYTHING)
        assert door.relative_error(rows, expected[:200]) < bound, chunk
    rng = np.random.default_rng(0)
    with model.session(**OPTIONS, kv=kv, chunk=64, all_logits=False, recall=EVERYTHING) as session:
        at = 0
        while at < len(tokens):
            at = min(at + int(rng.integers(1, 90)), len(tokens))
            session.read(tokens[session.position : at])
            assert np.max(np.abs(session.logits() - expected[at - 1])) < bound * np.std(expected)


def test_the_last_token_of_a_call_chooses_for_itself(tiny, model, tokens):
    """Without all_logits: the call's last token is a chunk of its own, so that an answer looks for what it needs."""
    shape = recall64.Shape(WINDOW, SINKS, "blocks", 2, 12, BLOCK)
    reader = recall64.Reader(tiny, shape)
    with model.session(**OPTIONS, chunk=64, all_logits=False, recall=POLICIES["blocks"]) as session:
        for begin in range(0, 400, 50):
            session.read(tokens[begin : begin + 50])
            reader.read(tokens[begin : begin + 49])
            expected = reader.read(tokens[begin + 49 : begin + 50])
            assert door.relative_error(session.logits(), expected[0]) < 2e-5
    assert reader.close_call is None


# ---- undoing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f32", "q8_0"])
@pytest.mark.parametrize("policy", ["blocks", "topk"])
def test_rewind_and_read_again(model, tokens, policy, kv):
    """Other tokens are read, taken back, and the text goes on as if they had never been: across the borders of blocks."""
    options = {**OPTIONS, "kv": kv, "rollback": 40, "chunk": 4}
    with model.session(**options, recall=POLICIES[policy]) as straight:
        expected = read_on(straight, tokens[:200])
    with model.session(**options, recall=POLICIES[policy]) as session:
        for at in range(0, 200, 11):
            session.read(np.roll(tokens, 17)[:4])
            read_on(session, np.roll(tokens, 19)[:35])
            session.rewind(at)
            rows = read_on(session, tokens[at : min(at + 11, 200)])
            assert np.array_equal(rows, expected[at : at + 11]), at


@pytest.mark.parametrize("policy", POLICIES)
def test_another_text_after_rewinding_to_0(model, tokens, policy):
    """Nothing of the first one is left, in what is seen and in what is counted, also where the budget was used up."""
    recall = {**POLICIES[policy], "budget": 300 * slot_bytes(model)} if policy == "blocks" else POLICIES[policy]
    other = np.tile(np.roll(tokens, 29)[::-1], 13 if policy == "blocks" else 1)
    with model.session(**OPTIONS, chunk=20, recall=recall) as session:
        for _ in range(15 if policy == "blocks" else 1):
            session.read_rows(tokens)
        assert session.view.kept > 0 and (session.view.dropped > 0) == (policy == "blocks")
        session.rewind(0)
        assert (session.view.kept, session.view.dropped, session.view.forgotten) == (0, 0, 0)
        rows = session.read_rows(other)
    assert np.array_equal(rows, model.rows(other, **OPTIONS, chunk=20, recall=recall))


# ---- saved states -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("policy", ["blocks", "blocks of a small budget", "surprise", "topk"])
def test_saved_state_goes_on_bitwise(native, tiny, tokens, tmp_path, policy, kv):
    with door.open_model(native, tiny.path) as model:
        recall = POLICIES[policy.split()[0]]
        if "small" in policy:
            recall = {**recall, "budget": 9 * slot_bytes(model, kv)}
        options = {**OPTIONS, "kv": kv, "chunk": 16, "recall": recall}
        with model.session(**options) as session:
            for at in (10, WINDOW + SINKS + 1, 90, 250):
                session.read_rows(tokens[session.position : at])
                state = session.state()
                session.save(tmp_path / f"{at}")
                straight = session.read_rows(tokens[at : at + 60]), read_on(session, tokens[at + 60 : at + 100])
                view = session.view
                assert (view.dropped > 0) == ("small" in policy and at >= 90)
                for how in ("bytes", "file"):
                    with model.session(**options) as other:
                        other.read_rows(tokens[50:177])  # anything: it is replaced
                        other.load_state(state) if how == "bytes" else other.load(tmp_path / f"{at}")
                        assert other.position == at and other.state() == state
                        assert np.array_equal(other.read_rows(tokens[at : at + 60]), straight[0]), (at, how)
                        assert np.array_equal(read_on(other, tokens[at + 60 : at + 100]), straight[1]), (at, how)
                        assert (other.view.kept, other.view.dropped) == (view.kept, view.dropped)
                session.load_state(state)


def test_many_blocks_after_loading_and_after_another_text(native, tmp_path):
    """So many that a search does not look at all of them: what it looks at does not depend on what a slot held before."""
    made = tiny_models.make_llama(tmp_path / "micro.gguf", n_embd=32, n_heads=2, n_kv_heads=2, n_layers=1, n_ff=32, n_vocab=288)
    text = made.random_tokens(70000, seed=1)
    recall = {"kind": "blocks", "n": 1, "block": 16, "budget": 15 << 20}
    with door.open_model(native, made.path) as model:
        options = {"window": 16, "sinks": 0, "chunk": 256, "rollback": 40, "all_logits": False, "recall": recall}
        with model.session(**options) as session, model.session(**options) as other:
            assert 3000 < session.plan.recall_tokens // 16 < 4000
            for at in (40010, 40500, 70000):
                session.read(text[session.position : at])
                other.load_state(session.state())
                assert np.array_equal(read_on(session, text[:36]), read_on(other, text[:36]))
                session.rewind(at)
                session.read(text[at - 3 : at])
                other.load_state(session.state())
                assert np.array_equal(read_on(session, text[:36]), read_on(other, text[:36]))
            assert session.view.dropped > 0
            session.rewind(0)
            other.rewind(0)
            with model.session(**options) as fresh:
                for one in (session, other, fresh):
                    one.read(text[::-1][:30000])
                expected = read_on(fresh, text[:300])
                assert np.array_equal(read_on(session, text[:300]), expected)
                assert np.array_equal(read_on(other, text[:300]), expected)


def test_state_of_other_recall_is_refused(model, tokens):
    recall = {"kind": "blocks", "n": 2, "block": 16, "layer": 0, "distance": 12, "budget": 1 << 22, "decay": 0.9}
    with model.session(**OPTIONS, chunk=16, recall=recall) as session:
        session.read(tokens[:64])
        state = session.state()
    others = [None, {"kind": "surprise"}, {"kind": "topk", "n": 2}]
    others += [
        {**recall, **o} for o in ({"n": 3}, {"block": 32}, {"layer": 1}, {"distance": 11}, {"budget": 1 << 21}, {"decay": 0.5})
    ]
    for other in others:
        with model.session(**OPTIONS, chunk=16, recall=other) as session:
            session.read(tokens[:20])
            before = session.logits()
            with pytest.raises(door.DoorError, match="saved with recall blocks 2x16 .* this session has .*--recall") as e:
                session.load_state(state)
            assert e.value.status == -7 and session.position == 20
            assert np.array_equal(session.logits(), before)
    with model.session(**OPTIONS, chunk=16) as session:
        without = session.state()
    with (
        model.session(**OPTIONS, chunk=16, recall=recall) as session,
        pytest.raises(door.DoorError, match="saved with recall none"),
    ):
        session.load_state(without)


# ---- budgets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "rollback", "slots"), [(1, 1, 5), (7, 20, 8), (64, 1, 12)])
def test_the_block_that_was_not_chosen_for_longest_goes(tiny, model, tokens, chunk, rollback, slots):
    """As brute force says, and the view counts it."""
    recall = {**POLICIES["blocks"], "distance": 12, "budget": slots * slot_bytes(model)}
    shape = recall64.Shape(WINDOW, SINKS, "blocks", 2, 12, BLOCK, slots=slots, n_open=max(chunk, rollback) // BLOCK + 3)
    reader = recall64.Reader(tiny, shape)
    with model.session(window=WINDOW, sinks=SINKS, chunk=chunk, rollback=rollback, recall=recall) as session:
        assert session.plan.recall_tokens == slots * BLOCK
        for begin in range(0, 400, chunk):
            part = tokens[begin : begin + chunk]
            rows, expected = session.read_rows(part), reader.read(part)
            assert door.relative_error(rows, expected) < 2e-5, begin
            view, n = session.view, begin + len(part) - 1
            size = recall64.middle(shape, n)
            kept = sum(min(max(size - b * BLOCK, 0), BLOCK) for b in reader.blocks)
            assert (view.kept, view.dropped) == (kept, reader.dropped * BLOCK)
            assert view.forgotten == max(0, n + 1 - WINDOW - SINKS) - kept
        assert reader.dropped > 5 and reader.close_call is None
        assert session.hot_allocations == 0


def test_topk_says_when_its_budget_is_used_up(model, tokens):
    recall = {**POLICIES["topk"], "budget": 9 * slot_bytes(model)}
    with model.session(**OPTIONS, chunk=4, recall=recall) as session:
        room = session.plan.recall_tokens
        with pytest.raises(door.DoorError, match="budget is used up at token .*--recall-budget.*blocks") as e:
            session.read_rows(tokens)
        assert e.value.status == -5 and room - 16 < session.position - WINDOW - SINKS <= room
        at = session.position
        with pytest.raises(door.DoorError, match="budget"):
            session.read(tokens[:4])
        assert session.position == at
        session.rewind(0)
        rows = session.read_rows(tokens[:100])
    assert np.array_equal(rows, model.rows(tokens[:100], **OPTIONS, chunk=4, recall=recall))


@pytest.mark.parametrize("policy", ["blocks", "surprise"])
def test_memory_stays(native, tmp_path, policy):
    """200,000 tokens past a budget that was used up long before take no memory."""
    made = tiny_models.make_llama(tmp_path / "micro.gguf", n_embd=32, n_heads=1, n_kv_heads=1, n_layers=1, n_ff=32, n_vocab=288)
    text = made.random_tokens(20000, seed=1)
    recall = {"kind": policy, "n": 4 if policy == "blocks" else 64, "block": 32 if policy == "blocks" else 0, "budget": 1 << 18}
    with door.open_model(native, made.path) as model:
        with model.session(window=128, sinks=4, chunk=128, all_logits=False, recall=recall) as session:
            memory = model.ffi.new("lmi_memory *")

            def anonymous() -> int:
                model.lib.lmi_memory_now(memory)
                return memory.anonymous_bytes

            session.read(text)
            before = anonymous()
            for _ in range(10):
                session.read(text)
            assert anonymous() - before < 1 << 19
            assert session.hot_allocations == 0 and np.isfinite(session.logits()).all()
            assert (session.view.dropped > 0) == (policy == "blocks")


# ---- options ----------------------------------------------------------------------------------------------------

REFUSED = [
    ({"kind": 4}, {}, "recall 4 is not known"),
    ({"kind": 7}, {}, "not known"),
    ({"kind": "blocks", "n": -1}, {}, "between 1 and 4096"),
    ({"kind": "blocks", "n": 4097}, {}, "between 1 and 4096"),
    ({"kind": "topk", "n": 2**62}, {}, "between 1 and 4096"),
    ({"kind": "surprise", "n": 2**24 + 1}, {}, "between 1 and 16777216"),
    ({"kind": "surprise", "n": -(2**63)}, {}, "between"),
    ({"kind": "blocks", "block": 8}, {}, "multiple of 16"),
    ({"kind": "blocks", "block": 24}, {}, "multiple of 16"),
    ({"kind": "blocks", "block": -16}, {}, "multiple of 16"),
    ({"kind": "blocks", "block": 4112}, {}, "at most 4096"),
    ({"kind": "blocks", "block": 2**62}, {}, "at most 4096"),
    ({"kind": "blocks", "distance": -1}, {}, "distance .* between 1 and 24"),
    ({"kind": "topk", "distance": 25}, {}, "distance .* between 1 and 24"),
    ({"kind": "surprise", "distance": 2**62}, {}, "distance"),
    ({"kind": "blocks", "layer": 2}, {}, "layer .* between 0 and 1"),
    ({"kind": "blocks", "layer": -2}, {}, "layer .* between 0 and 1"),
    ({"kind": "topk", "layer": 2**31 - 1}, {}, "layer"),
    ({"kind": "blocks", "budget": 1}, {}, "room for 0 tokens.*--recall-budget"),
    ({"kind": "topk", "budget": 100000}, {"chunk": 4096}, "room for .*--recall-budget"),
    ({"kind": "blocks", "budget": 2**50 + 1}, {}, "more than any machine"),
    ({"kind": "blocks", "budget": 2**64 - 1}, {}, "more than any machine"),
    ({"kind": "surprise", "decay": -0.1}, {}, "decay"),
    ({"kind": "surprise", "decay": 1.0000001}, {}, "decay"),
    ({"kind": "surprise", "decay": float("nan")}, {}, "decay"),
    ({"kind": "surprise", "decay": float("inf")}, {}, "decay"),
    ({"kind": "surprise", "decay": 1e-300}, {}, "decay"),
    ({"kind": "surprise"}, {"chunk": WINDOW + 1}, "chunk must not be larger than the window.*--chunk 24"),
    ({"kind": "blocks"}, {"window": 1}, "window of at least 2"),
    ({"kind": "blocks"}, {"draft": 3, "all_logits": False}, "draft"),
    ({"kind": "blocks", "folder": "/no/such/folder"}, {}, "/no/such/folder: No such file.*--recall-folder"),
    ({"kind": "blocks", "folder": "/proc"}, {}, "cannot keep what is recalled in /proc.*--recall-folder"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: "-".join(f"{k}={v}" for k, v in {**case[0], **case[1]}.items()))
def test_foolish_options_are_refused(model, case):
    recall, others, message = case
    with pytest.raises(door.DoorError, match=message) as e:
        with model.session(**{**OPTIONS, "chunk": 16, **others}, recall=recall):
            pass
    assert e.value.status == (-2 if "folder" in recall else -1)


def test_a_budget_as_small_as_can_be(model, tokens):
    for chunk in (1, 16, 64):
        least = next(n for n in range(1, 99) if opens(model, chunk, n * slot_bytes(model)))
        with model.session(
            **OPTIONS, chunk=chunk, recall={**POLICIES["blocks"], "budget": least * slot_bytes(model)}
        ) as session:
            assert np.isfinite(session.read_rows(np.tile(tokens, 3))).all()


def opens(model, chunk: int, budget: int) -> bool:
    try:
        with model.session(**OPTIONS, chunk=chunk, recall={**POLICIES["blocks"], "budget": budget}):
            return True
    except door.DoorError:
        return False


# ---- folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_folder_changes_no_bit_and_leaves_nothing(model, tokens, tmp_path, policy):
    recall = {**POLICIES[policy], "budget": 1 << 22, "folder": tmp_path}
    with model.session(**OPTIONS, chunk=20, recall=recall) as session:
        assert session.plan.recall_file_bytes == session.plan.recall_bytes > 0
        rows = session.read_rows(tokens)
        assert [*tmp_path.iterdir()] == []
    in_memory = {k: v for k, v in recall.items() if k != "folder"}
    assert np.array_equal(rows, model.rows(tokens, **OPTIONS, chunk=20, recall=in_memory))
    assert [*tmp_path.iterdir()] == []


def test_a_full_disk_is_told_when_the_session_is_opened(model, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(door.DoorError, match=f"no room for .* in {tmp_path}.*--recall-budget") as e:
            with model.session(**OPTIONS, recall={**POLICIES["blocks"], "folder": tmp_path}):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert e.value.status == -10 and [*tmp_path.iterdir()] == []
