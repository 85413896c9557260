"""Laws of the draws: marginals, evenness, how levels hang together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multilevel_sde as mls
import multilevel_sde.plans.draws
from multilevel_sde.testing import grids, ladders, probabilities

DRAWS = [mls.independent, mls.nested, mls.systematic]
NAMES = ["independent", "nested", "systematic"]
TABLE = torch.tensor([[1.0, 0.7, 0.7, 0.1], [1.0, 0.4, 0.9, 0.9], [1.0, 1.0, 0.35, 0.02], [1.0, 0.05, 0.5, 0.5]])


@st.composite
def tables(draw, max_steps=60, max_levels=4):
    """Probabilities in (0, 1], the lowest level 1."""
    return draw(probabilities(draw(ladders(max_levels=max_levels)), draw(grids(max_steps=max_steps))))


def many(draw, table, count, seed=0):
    return draw(table.double(), torch.Generator().manual_seed(seed), count)


@pytest.mark.parametrize("draw", DRAWS, ids=NAMES)
def test_marginals_are_the_probabilities(draw):
    count = 40_000
    hits = many(draw, TABLE, count)
    assert hits.dtype == torch.bool
    assert hits.shape == (4, count, 4)
    p = TABLE.double()
    error = (hits.double().mean(1) - p).abs() / (p * (1 - p) / count).sqrt().clamp_min(1e-12)
    assert error.max() < 4  # 16 frequencies, 4 standard errors


@pytest.mark.parametrize("draw", DRAWS, ids=NAMES)
def test_shared_draws_have_the_marginals_too(draw):
    generator, count = torch.Generator().manual_seed(1), 4000
    mean = sum(draw(TABLE.double(), generator).double() for _ in range(count)) / count
    p = TABLE.double()
    assert ((mean - p).abs() <= 4 * (p * (1 - p) / count).sqrt()).all()


@pytest.mark.parametrize("draw", DRAWS, ids=NAMES)
def test_neighbouring_levels_hit_together_as_often_as_said(draw):
    count = 40_000
    hits = many(draw, TABLE, count, seed=2)
    p, q = TABLE[:, :-1].double(), TABLE[:, 1:].double()
    either = (hits[..., :-1] | hits[..., 1:]).double().mean(1)
    expected = draw.either(p, q)
    error = (expected * (1 - expected) / count).clamp_min(0).sqrt()
    assert ((either - expected).abs() <= 4 * error + 1e-12).all()


@given(table=tables(), seed=st.integers(0, 2**31))
def test_systematic_hits_in_any_window_differ_from_their_expectation_by_less_than_one(table, seed):
    hits = mls.systematic(table, torch.Generator().manual_seed(seed))
    zero = torch.zeros(1, table.shape[1], dtype=torch.float64)
    excess = torch.cat([zero, (hits.double() - table).cumsum(0)])
    windows = excess[:, None] - excess[None, :]
    assert windows.abs().max() < 1 + 1e-9  # 1e-9 for the rounding of the sums


@given(table=tables(), seed=st.integers(0, 2**31), samples=st.sampled_from([None, 1, 3]))
def test_a_sure_hit_is_never_lost(table, seed, samples):
    for draw in DRAWS:
        hits = draw(table, torch.Generator().manual_seed(seed), samples)
        sure = table == 1 if samples is None else (table == 1)[:, None].expand_as(hits)
        assert hits[sure].all()


def test_nested_hits_imply_those_of_likelier_levels():
    hits = many(mls.nested, TABLE, 5000)
    likelier = TABLE[:, None, :, None] >= TABLE[:, None, None, :]
    assert (hits[..., :, None] | ~hits[..., None, :] | ~likelier).all()


def test_independent_steps_and_systematic_levels_are_uncorrelated():
    count, p = 40_000, torch.full((3, 3), 0.5)
    steps = many(mls.independent, p, count).double()[:, :, 1] - 0.5
    levels = many(mls.systematic, p, count).double()[1, :, 1:].T - 0.5
    for pair in (steps[:2], steps[::2], levels):
        correlation = (pair[0] * pair[1]).mean() / 0.25
        assert abs(correlation) < 4 / count**0.5


def test_shared_systematic_levels_have_phases_of_their_own():
    p, count, generator = torch.tensor([[1.0, 0.5, 0.5]]).double(), 4000, torch.Generator().manual_seed(8)
    hits = torch.cat([mls.systematic(p, generator) for _ in range(count)]).double() - 0.5
    assert abs((hits[:, 1] * hits[:, 2]).mean() / 0.25) < 4 / count**0.5


def test_rounding_of_the_running_sum_loses_no_sure_hit(monkeypatch):
    # Just below 1 - p the sum passes the integer one step early, by rounding, and not again at the sure hit.
    table = torch.tensor([[1.0, 0.04828532922378648, 1.0, 1.0, 1.0]], dtype=torch.float64).T
    phase = torch.full((1, 1), 0.9517146707762135, dtype=torch.float64)
    monkeypatch.setattr(multilevel_sde.plans.draws, "_uniform", lambda shape, generator: phase)
    hits = mls.systematic(table, torch.Generator())
    assert hits[table == 1].all()


@pytest.mark.parametrize("draw", DRAWS, ids=NAMES)
def test_samples_draw_for_themselves(draw):
    count = 20_000
    hits = many(draw, torch.tensor([[1.0, 0.5]]), count)[0, :, 1].double() - 0.5
    assert abs((hits[1:] * hits[:-1]).mean() / 0.25) < 4 / count**0.5


@pytest.mark.parametrize("draw", DRAWS, ids=NAMES)
def test_the_generator_decides_alone(draw):
    table = TABLE.double()
    first = draw(table, torch.Generator().manual_seed(5), 7)
    torch.manual_seed(99)
    assert torch.equal(first, draw(table, torch.Generator().manual_seed(5), 7))
    assert not torch.equal(first, draw(table, torch.Generator().manual_seed(6), 7))
    state = torch.random.get_rng_state()
    draw(table, torch.Generator().manual_seed(5))
    assert torch.equal(state, torch.random.get_rng_state())
