"""Terms add up to the finest path whatever they are; the cheapest chain is the cheapest of all."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multilevel_sde.expectations.grids import Grids
from multilevel_sde.expectations.moments import Moments
from multilevel_sde.expectations.terms import Term, cheapest_chain, cheapest_rectangle, difference, total
from multilevel_sde.steps.rules import Heun, euler_maruyama

INDICES = list(itertools.product(range(3), range(3)))


def lengths(seed):
    """A length for every term, drawn once."""
    known, generator = {}, torch.Generator().manual_seed(seed)
    return lambda term: known.setdefault(term, float(torch.rand((), generator=generator)))


@pytest.mark.parametrize("seed", range(20))
def test_terms_add_up_to_the_last_index(seed):
    length, last = lengths(seed), (2, 2)
    for chosen in (cheapest_chain(INDICES, last, length), cheapest_rectangle(INDICES, last, length)):
        assert chosen is not None
        assert total(chosen[1]) == {last: 1}
        assert chosen[0] == pytest.approx(sum(length(term) for term in chosen[1]))


@pytest.mark.parametrize("seed", range(5))
def test_no_chain_is_shorter(seed):
    length, last = lengths(seed), (1, 2)
    indices = list(itertools.product(range(2), range(3)))
    every = []
    for count in range(len(indices)):
        for inner in itertools.combinations([index for index in indices if index != last], count):
            chain = [*inner, last]
            if all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(chain)):
                pairs = [difference(b, a) for a, b in itertools.pairwise(chain)]
                every.append(sum(map(length, [difference(chain[0]), *pairs])))
    assert cheapest_chain(indices, last, length)[0] == pytest.approx(min(every))


def test_a_rectangle_needs_two_levels_and_all_its_indices():
    assert cheapest_rectangle([(0, 0), (0, 1)], (0, 1), lambda term: 1.0) is None
    assert cheapest_rectangle([(0, 0), (1, 0), (1, 1)], (1, 1), lambda term: 1.0) is None


def test_a_term_costs_all_its_paths_and_knows_what_it_refines():
    term = Term((((1, 2), 1), ((0, 2), -1), ((1, 1), -1), ((0, 1), 1)))
    assert term.cost(lambda index: 10.0 * index[0] + index[1]) == 12 + 2 + 11 + 1
    assert term.refines == (1, 2)
    assert difference((1, 2), (0, 2)).refines is None


@given(st.integers(1, 300), st.integers(1, 40))
def test_coarse_grids_lie_in_fine_ones(steps, coarsest):
    times = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64).square()
    grids = Grids.of(times, False, euler_maruyama, min(coarsest, steps))
    assert torch.equal(grids.times[-1], times)
    assert grids.steps(0) >= min(coarsest, steps)
    for coarse, fine in itertools.pairwise(grids.times):
        assert len(coarse) < len(fine)
        assert set(coarse.tolist()) <= set(times.tolist())
        assert len(fine) - 1 <= 2 * (len(coarse) - 1)
        assert coarse[[0, -1]].tolist() == times[[0, -1]].tolist()


def test_saved_times_are_on_every_grid():
    times = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    grids = Grids.of(times, [0.37, 1.0], euler_maruyama, 1)
    assert len(grids) > 4
    for grid, kept in zip(grids.times, grids.kept, strict=True):
        assert grid[list(kept)].tolist() == pytest.approx([0.37, 1.0])


def test_a_rule_is_counted_by_its_evaluations():
    assert Grids.of([0.0, 0.5, 1.0], True, Heun(), 1).rows == (2, 4)


@pytest.mark.parametrize("pieces", [[5000], [1024, 3976], [2048, 1024, 1928]])
def test_moments_do_not_depend_on_pieces_of_whole_blocks(pieces):
    x = torch.randn(5000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp()
    moments = Moments(torch.ones(2, dtype=torch.float64))
    for piece in x.split(pieces):
        moments.add(piece)
    whole = Moments(torch.ones(2, dtype=torch.float64))
    whole.add(x)
    assert torch.equal(moments.mean, whole.mean)
    assert torch.equal(moments.variance, whole.variance)
    torch.testing.assert_close(moments.mean, x.mean(0))
    torch.testing.assert_close(moments.variance, x.var(0))
    centred = x - x.mean(0)
    torch.testing.assert_close(moments.kurtosis, centred.pow(4).mean(0) / centred.square().mean(0).square())
