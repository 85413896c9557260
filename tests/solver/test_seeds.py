"""States and noise that do not follow from their seeds are refused wherever several runs must see the same ones."""

from functools import partial

import pytest
import torch

import multilevel_sde as mls

TIMES = torch.linspace(0.0, 1.0, 17, dtype=torch.float64)
LADDER = mls.Ladder([lambda x, t: -x, lambda x, t: -torch.sin(x)], costs=[1.0, 8.0])
STATES = '"y0_source" gave other states when it was asked for'
NOISE = '"brownian_source" gave other noise when it was asked for the same seeds again'
SEEDS = '"brownian_source" gave the same noise for other seeds'


def seeded(seeds):
    return mls.seeded_normal(seeds, (3,), dtype=torch.float64)


def fresh(seeds):
    """A path that is another one whenever it is asked for."""
    return lambda t, s: abs(s - t) ** 0.5 * torch.randn(len(seeds), 3, dtype=torch.float64)


def learned(y0_source, brownian_source):
    given = {"delta": 0.1, "regularisation": 1e-3, "budget": 60.0, "steps": 1, "batch": 4}
    given |= {"generator": torch.Generator().manual_seed(0), "diffusion": 0.3, "brownian_source": brownian_source}
    return mls.learn(LADDER, y0_source, TIMES, **given)


def best(y0_source, brownian_source):
    given = {"calibration": range(8), "held_out": range(100, 108), "candidates": 2, "diffusion": 0.3}
    given |= {"generator": torch.Generator().manual_seed(0), "brownian_source": brownian_source}
    return mls.best_plan(LADDER, torch.ones(16, 2, dtype=torch.float64), y0_source, TIMES, **given)


@pytest.mark.parametrize("ask", [learned, best])
@pytest.mark.parametrize(
    ("y0_source", "brownian_source", "message"),
    [
        (lambda seeds: torch.randn(len(seeds), 3, dtype=torch.float64), mls.BrownianPath, STATES),
        (lambda seeds: seeded(range(5)), mls.BrownianPath, STATES),
        (seeded, fresh, NOISE),
        (seeded, lambda seeds: mls.BrownianPath(range(len(seeds))), SEEDS),
    ],
    ids=["states", "as many as it likes", "noise", "seeds"],
)
def test_sources_must_follow_their_seeds(ask, y0_source, brownian_source, message):
    assert ask(seeded, mls.BrownianPath)
    with pytest.raises(ValueError, match=message):
        ask(y0_source, brownian_source)


def test_one_path_for_all_runs_of_a_pilot_and_of_a_fit():
    y0 = seeded(range(8))
    plans = mls.pilot(LADDER, y0, TIMES, diffusion=0.3, brownian=mls.BrownianPath(range(8))).plans(budget=60.0)
    fit = partial(mls.fit_plan, LADDER, y0, plans, y0)
    for run in (partial(mls.pilot, LADDER, y0, TIMES), fit):
        run(diffusion=0.3, brownian=mls.BrownianPath(range(8)))
        with pytest.raises(ValueError, match='"brownian" gave other noise when it was asked for the same interval'):
            run(diffusion=0.3, brownian=fresh(range(8)))
