"""The sampler against the float64 chain of tests/oracle/sampler64.py: the same tokens, draw by draw."""

import math

import numpy as np
import pytest
from oracle import sampler64
from oracle.sampler64 import Options

VOCABULARIES = [1, 2, 3, 16, 17, 63, 64, 65, 500, 1000, 4097]

# Each link alone, then together.
CHAINS = {
    "temperature": dict(temperature=(0.05, 3.0)),
    "top-k": dict(top_k=(1, 120)),
    "top-p": dict(top_p=(0.01, 0.999)),
    "min-p": dict(min_p=(0.001, 0.9)),
    "typical": dict(typical_p=(0.05, 0.99)),
    "repeat": dict(repeat_penalty=(0.5, 2.0), penalty_last=(1, 64)),
    "frequency": dict(frequency_penalty=(-1.0, 2.0), penalty_last=(1, 64)),
    "presence": dict(presence_penalty=(-1.0, 2.0), penalty_last=(1, 64)),
    "cuts": dict(top_k=(2, 200), typical_p=(0.5, 0.99), top_p=(0.5, 0.99), min_p=(0.001, 0.1)),
    "default": dict(temperature=(0.8, 0.8), top_k=(40, 40), top_p=(0.95, 0.95), min_p=(0.05, 0.05)),
    "all": dict(
        temperature=(0.3, 2.0),
        top_k=(0, 300),
        typical_p=(0.5, 1.0),
        top_p=(0.5, 1.0),
        min_p=(0.0, 0.1),
        repeat_penalty=(0.8, 1.5),
        frequency_penalty=(-0.5, 0.5),
        presence_penalty=(-0.5, 0.5),
        penalty_last=(0, 4096),
    ),
}


def random_options(random: np.random.Generator, ranges: dict) -> Options:
    values = {}
    for name, (low, high) in ranges.items():
        whole = isinstance(low, int)
        values[name] = int(random.integers(low, high + 1)) if whole else float(np.float32(random.uniform(low, high)))
    return Options(seed=int(random.integers(0, 1 << 63)), **values)


def random_logits(random: np.random.Generator, n: int) -> np.ndarray:
    """Sharp, flat, with ties, with holes."""
    z = random.standard_normal(n) * random.choice([0.01, 1.0, 4.0, 20.0])
    kind = random.integers(0, 7)
    if kind == 0:
        z = np.round(z)  # many equal ones
    elif kind == 1:
        z[random.random(n) < 0.3] = -np.inf
    elif kind == 2:
        z[random.random(n) < 0.3] = np.nan
    elif kind == 3:
        z[:] = z[0]
    elif kind == 4:
        z[random.integers(0, n, 3)] = np.inf
    if not np.any(z > -np.inf):
        z[random.integers(0, n)] = 0.0
    return z.astype(np.float32)


@pytest.mark.parametrize("chain", CHAINS)
def test_same_tokens_as_the_oracle(make_sampler, chain):
    """About 1,000 draws a chain: 200 sets of options and logits, 5 draws each, at any place in a text."""
    random = np.random.default_rng([7, len(chain), ord(chain[0])])
    differing, cut, n_draws = [], 0, 0
    for trial in range(200):
        n_vocab = VOCABULARIES[trial % len(VOCABULARIES)]
        o = random_options(random, CHAINS[chain])
        sampler, numbers = make_sampler(n_vocab), sampler64.generator(o.seed)
        sampler.set(o)
        for _ in range(5):
            logits = random_logits(random, n_vocab)
            recent = random.integers(0, n_vocab, int(random.choice([0, 1, 5, 64, 5000]))).tolist()
            position = len(recent) + int(random.choice([0, 1, 4095, 2**31 - 3, 2**53]))
            tokens, logprobs = sampler.draw(logits, recent, position=position)
            known = recent[-sampler64.HISTORY :]
            expected = sampler64.draw(logits, known, o, numbers)
            if tokens[0] != expected:
                differing.append((trial, o, n_vocab, int(tokens[0]), expected))
            exact = sampler64.log_probability(logits, int(tokens[0]))
            assert logprobs[0] == exact or logprobs[0] == pytest.approx(exact, abs=3e-7, rel=2e-7)
            cut += len(sampler64.candidates(logits, known, o)[0]) < np.sum(logits > -np.inf)
            n_draws += 1
    assert not differing, f"{len(differing)} of {n_draws} draws differ, first: {differing[0]}"
    assert cut > 100 or chain in ("temperature", "repeat", "frequency", "presence"), "the chain cut nothing"


def test_same_tokens_from_a_real_vocabulary(make_sampler):
    """152k tokens, where blocks are skipped and fronts are long."""
    n_vocab = 151_936
    sampler, random = make_sampler(n_vocab), np.random.default_rng(3)
    for ranges in list(CHAINS.values()) * 2:
        o = random_options(random, ranges)
        numbers, logits = sampler64.generator(o.seed), (random.standard_normal(n_vocab) * 3).astype(np.float32)
        recent = random.integers(0, n_vocab, 300).tolist()
        sampler.set(o)
        for _ in range(3):
            assert sampler.draw(logits, recent)[0][0] == sampler64.draw(logits, recent, o, numbers), o


def test_numpy_draws_the_same_numbers(make_sampler):
    """A flat distribution over 2^16 tokens shows 16 bits of each number; NumPy's PCG64, given the state, has the same."""
    n_vocab, n = 1 << 16, 50
    sampler = make_sampler(n_vocab)
    for seed in (0, 1, 2**32, 2**64 - 1, 0x123456789ABCDEF):
        sampler.set(Options(seed=seed))
        tokens, _ = sampler.draw(np.zeros(n_vocab, np.float32), n=n)
        assert np.array_equal(tokens, np.floor(sampler64.generator(seed).random(n) * n_vocab))


def test_state_is_the_generators(make_sampler):
    """The first 32 bytes of a saved sampler are NumPy's `state` and `inc`, upper halves first, after any number of draws."""
    sampler, numbers = make_sampler(4), sampler64.generator(99)
    sampler.set(Options(seed=99))
    for _ in range(5):
        high, low, stream_high, stream_low = np.frombuffer(sampler.state[:32], "<u8").tolist()
        state = numbers.bit_generator.state["state"]
        assert (high << 64 | low, stream_high << 64 | stream_low) == (state["state"], state["inc"])
        sampler.draw(np.zeros(4, np.float32), n=3)
        numbers.random(3)


def test_frequencies(make_sampler):
    """Chi-square of 200,000 draws against the probabilities; 0.999 quantile by Wilson and Hilferty."""
    random, n = np.random.default_rng(11), 200_000
    for o in (
        Options(seed=5),
        Options(seed=6, temperature=0.7, top_p=0.9),
        Options(seed=7, typical_p=0.8),
        Options(seed=8, top_k=7),
    ):
        logits = (random.standard_normal(40) * 1.5).astype(np.float32)
        sampler = make_sampler(40)
        sampler.set(o)
        tokens, _ = sampler.draw(logits, n=n)
        ids, p = sampler64.candidates(logits, [], o)
        counts = np.bincount(tokens, minlength=40)
        assert counts.sum() == counts[ids].sum() == n
        chi2, df = np.sum((counts[ids] - n * p) ** 2 / (n * p)), len(ids) - 1
        assert chi2 < df * (1 - 2 / (9 * df) + 3.09 * math.sqrt(2 / (9 * df))) ** 3, (o, chi2, df)


def test_seed_and_state(make_sampler):
    logits = np.linspace(0, 2, 300).astype(np.float32)
    one, other = make_sampler(300), make_sampler(300)
    for sampler in (one, other):
        sampler.set(Options(seed=42, temperature=0.9))
    first = one.draw(logits, n=500)[0]
    assert np.array_equal(first, other.draw(logits, n=500)[0])
    other.set(Options(seed=43, temperature=0.9))
    assert not np.array_equal(first, other.draw(logits, n=500)[0])
    other.state = one.state  # goes on where the first one is, options included
    assert np.array_equal(one.draw(logits, n=100)[0], other.draw(logits, n=100)[0])


def test_greedy(make_sampler):
    sampler = make_sampler(6)
    for o in (Options(temperature=0.0), Options(top_k=1)):
        sampler.set(o)
        before = sampler.state
        assert sampler.draw(np.array([0, 3, 1, 3, 3, 2]))[0][0] == 1  # ties: the lowest id
        assert sampler.draw(np.array([-0.0, 0.0, -0.0, 0.0, -1, -2]))[0][0] == 0
        assert sampler.draw(np.array([np.nan, -5, np.nan, -4, -np.inf, -6]))[0][0] == 3
        assert sampler.draw(np.array([1, np.inf, 2, np.inf, 0, 0]))[0][0] == 1
        assert sampler.state == before, "a random number was used"


def test_what_has_no_probability(make_sampler):
    sampler = make_sampler(4)
    for o in (Options(temperature=0.0), Options(), Options(top_k=2, top_p=0.5, min_p=0.1, typical_p=0.5)):
        sampler.set(o)
        for nothing in ([np.nan] * 4, [-np.inf] * 4, [np.nan, -np.inf] * 2):
            before = sampler.state
            with pytest.raises(ValueError, match="-3: no token can be drawn: all 4 logits are NaN or -infinity"):
                sampler.draw(np.array(nothing))
            assert sampler.state == before
        assert sampler.draw(np.array([0, np.nan, np.inf, -np.inf]))[0][0] == 2


def test_nll(make_sampler):
    sampler, random = make_sampler(1), np.random.default_rng(5)
    for n in (1, 2, 1000, 32_000):
        logits = (random.standard_normal(n) * 5).astype(np.float32)
        for token in {0, n // 2, n - 1}:
            exact = -sampler64.log_probability(logits, token)
            assert sampler.nll(logits, token) == pytest.approx(exact, abs=1e-12, rel=1e-13)
    assert sampler.nll(np.zeros(4), -1) == sampler.nll(np.zeros(4), 4) == math.inf
    assert sampler.nll(np.array([np.inf, np.inf, 0]), 1) == pytest.approx(math.log(2))
    assert sampler.nll(np.array([np.inf, 0]), 1) == math.inf
    assert sampler.nll(np.array([0, -np.inf]), 1) == math.inf
    assert math.isnan(sampler.nll(np.array([0, np.nan]), 0))


BAD = [
    ("temperature", [-1e-6, 100.1, math.nan, math.inf, -math.inf]),
    ("top_k", [-1, -(2**31)]),
    ("top_p", [0.0, -0.1, 1.0001, math.nan]),
    ("min_p", [-0.1, 1.1, math.nan]),
    ("typical_p", [0.0, 1.1, math.nan]),
    ("repeat_penalty", [0.0, -1.0, 10.1, math.nan, math.inf]),
    ("frequency_penalty", [-10.1, 10.1, math.nan]),
    ("presence_penalty", [-10.1, 10.1, math.nan]),
    ("penalty_last", [-1, 4097, 2**31 - 1]),
]


@pytest.mark.parametrize(("name", "values"), BAD)
def test_ranges(make_sampler, name, values):
    sampler = make_sampler(4)
    sampler.set(Options(seed=1, temperature=0.5))
    before = sampler.state
    for value in values:
        with pytest.raises(ValueError, match=rf"^-1: {name} must be .*not {'-?' if math.isnan(value) else ''}"):
            sampler.set(Options(**{name: value}))
        assert sampler.state == before, "a refused option changed something"


def test_damaged_states(make_sampler):
    sampler = make_sampler(4)
    sampler.set(Options(temperature=0.5, top_k=3))
    good = sampler.state
    sampler.state = good
    for at, value in (
        (24, b"\x00"),
        (40, b"\xff\xff\xff\xff"),
        (44, b"\x00\x00\x00\x00"),
        (68, b"\xff\xff\xff\xff"),
        (76, b"\x01"),
    ):
        bad = good[:at] + value + good[at + len(value) :]
        with pytest.raises(ValueError, match="-3: the saved .* damaged"):
            sampler.state = bad
        assert sampler.state == good
