"""A trained model, byte for byte: what stories260K says must not depend on who runs it."""

import json

import door
import numpy as np
import pytest
from oracle import transformer64

BOS = 1


@pytest.fixture(scope="module", params=["ref", "avx2", "avxvnni", "avx512", "amx", "neon"])
def model(request, native, stories):
    if request.param not in door.available_isas(native):
        pytest.skip(f"no {request.param} here")
    with door.open_model(native, stories.path, isa=request.param) as model:
        yield model


@pytest.mark.parametrize("kv", ["f32", "f16"])
def test_greedy_text(model, data, kv):
    expected = (data / "stories260K" / "EXPECTED_GREEDY.txt").read_bytes()
    text, token = b"", BOS
    with model.session(all_logits=False, kv=kv) as session:
        for _ in range(200):
            session.read([token])
            token = int(np.argmax(session.logits()))
            text += model.token_text(token)
    assert text.removeprefix(b" ") == expected


def test_reference_logits(model, data):
    reference = json.loads((data / "stories260K" / "REFERENCE.json").read_text())
    ids = reference["ids_with_bos"]
    assert [BOS, *model.encode(reference["text"])] == ids
    rows = model.rows(ids, window=512, sinks=0, chunk=512)
    nll = transformer64.nll(rows.astype(np.float64), ids)
    assert np.max(np.abs(nll - np.array(reference["nll"]))) < 1e-4
    for row, name in ((rows[0], "first_logits_top5"), (rows[-1], "last_logits_top5")):
        for token, value in reference[name]:
            assert abs(row[token] - value) < 1e-4


def test_nll_of_the_library_equals_that_of_its_logits(model, data):
    ids = json.loads((data / "stories260K" / "REFERENCE.json").read_text())["ids_with_bos"][:20]
    with model.session(all_logits=False) as session:
        for token, following in zip(ids, ids[1:]):
            session.read([token])
            row = session.logits().astype(np.float64)
            expected = np.log(np.exp(row - row.max()).sum()) + row.max() - row[following]
            assert session.nll(following) == pytest.approx(expected, abs=1e-9)
