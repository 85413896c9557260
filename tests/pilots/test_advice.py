"""The law of advice: all single levels and the plan are run, and what the pilot says before is what comes out.

On fourteen ladders the levels run alone on twenty numbers of steps each. The speed-up of a plan is the cost at which
the best of them reaches its error, over its own. Where that is above 1.15 the pilot must say that the ladder pays,
below 0.85 that it does not; a speed-up is above or below by two standard errors, from four parts of the samples. What
it recommends must cost no more than 1.05 times the best choice, of the plan and all single levels; so must a single
level that it names. Three of four predictions on a ladder hold to a factor 2.1.
"""

import math
import statistics

import pytest
import torch

import multilevel_sde as mls

TEST, PILOT = 256, 64  # samples; those of the pilot are others
STATES = torch.linspace(-2, 2, TEST, dtype=torch.float64)[
    torch.randperm(TEST, generator=torch.Generator().manual_seed(0))
][:, None]
UNIT = torch.linspace(0, 1, 513, dtype=torch.float64)
BUDGETS = (4, 8, 16, 32)


def steep(middle, price, low=0.3):
    """Levels of -3 tanh(2 y): the cheapest, a middle one of this error and price, and the exact one at 64."""

    def level(error):
        return lambda y, t: -3 * torch.tanh(2 * y) + error * torch.cos(3 * y)

    return mls.Ladder([level(low), level(middle), level(0.0)], [1.0, price, 64.0])


def sine(*costs):
    return mls.Ladder([lambda y, t: -y, lambda y, t: -torch.sin(y)], list(costs))


def pair_forces(cutoff):
    def force(y, t):
        apart = y[:, None] - y[:, :, None]
        weight = torch.exp(-apart.square())
        if cutoff is not None:
            weight = torch.where(apart.abs() < cutoff, weight - math.exp(-(cutoff**2)), 0.0)
        return -(apart * weight).mean(1)

    return force


def of(problem, steps):
    return problem.ladder, problem.y0(TEST), problem.times(steps), problem.diffusion


def particles():
    start = torch.randn(TEST, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ladder = mls.Ladder([pair_forces(1.0), pair_forces(2.0), pair_forces(None)], [1.0, 3.0, 10.0])
    return ladder, start, torch.linspace(0, 2, 257, dtype=torch.float64), 0.2


def useless():
    return mls.Ladder([lambda y, t: 5 * torch.cos(30 * y + 50 * t.to(y)), lambda y, t: -torch.sin(y)], [1.0, 1.5])


PROBLEMS = {
    "nearly exact middle, SDE": lambda: (steep(0.002, 4.0), STATES, UNIT, 0.5),
    "nearly exact middle, ODE": lambda: (steep(0.002, 4.0), STATES, UNIT, None),
    "useless middle, SDE": lambda: (steep(0.3, 30.0), STATES, UNIT, 0.5),
    "useless middle, ODE": lambda: (steep(0.3, 30.0), STATES, UNIT, None),
    "useful middle": lambda: (steep(0.05, 8.0), STATES, UNIT, 0.3),
    "useless ladder": lambda: (useless(), STATES, UNIT, 0.3),
    "general noise": lambda: (sine(1.0, 30.0), STATES, UNIT, lambda y, t: 0.2 * torch.cos(y)),
    "cheap level hardly cheaper": lambda: (sine(10.0, 12.0), STATES, UNIT, 0.1),
    "scaling law 3, ODE": lambda: of(mls.problems.scaling_law(3.0, levels=4), 512),
    "scaling law 2.5, SDE": lambda: of(mls.problems.scaling_law(2.5, levels=4, diffusion=0.5), 512),
    "scaling law 1, SDE": lambda: of(mls.problems.scaling_law(1.0, levels=3, diffusion=0.5), 512),
    "quadrature": lambda: of(mls.problems.quadrature(5, (1, 2, 4)), 400),
    "double well": lambda: of(mls.problems.double_well(), 512),
    "pair forces": particles,
}


class Trials:
    """A problem with its pilot, and what every single level errs on other samples."""

    def __init__(self, ladder, y0, fine, diffusion):
        self.ladder, self.y0, self.fine, self.diffusion = ladder, y0, fine, diffusion
        self.pilot = mls.pilot(ladder, y0, fine, samples=PILOT, **self.noise(0))
        self.target = self.run(ladder, fine, mls.em_plan(ladder, fine))
        self.curves = [self.curve(level) for level in range(len(ladder))]

    def noise(self, first):
        if self.diffusion is None:
            return {}
        path = mls.BrownianPath(range(first, first + TEST), grid=self.fine)
        return {"diffusion": self.diffusion, "brownian": path}

    def run(self, ladder, times, plan):
        return mls.solve(ladder, self.y0, times, plan, **self.noise(9000)).y

    def errors(self, best):
        return (self.run(self.ladder, best.times, best.plan) - self.target).square().mean(1)

    def curve(self, level):
        """(cost, errors of all samples) of a level alone, on about twenty numbers of steps."""
        one, finest, found = self.ladder.subset([level]), len(self.fine) - 1, []
        for steps in sorted({round(2 ** (j / 2)) for j in range(2, 19)} | {finest}):
            cost = steps * self.ladder.costs[level]
            if steps > finest or cost > 2 * max(BUDGETS) * self.ladder.costs[-1]:
                break
            times = self.fine[torch.linspace(0, finest, steps + 1).round().long()]
            try:
                end = self.run(one, times, mls.em_plan(one, times))
            except mls.NonFiniteError:
                continue
            found.append((cost, (end - self.target).square().mean(1)))
        return found

    def cost(self, mse, part=slice(None)):
        """The cost at which the best single level reaches an error on these samples, interpolated in logarithms."""
        best = math.inf
        for curve in self.curves:
            before = None
            for cost, errors in curve:
                error = float(errors[part].mean())
                if error <= mse:
                    if before is not None and error > 0:
                        share = math.log(before[1] / mse) / math.log(before[1] / error)
                        cost = before[0] * (cost / before[0]) ** share
                    best = min(best, cost)
                    break
                before = cost, error
        return best

    def speed_up(self, best, errors):
        """Least and most that the speed-up of a plan is likely to be: two standard errors below and above."""
        parts = [slice(place, None, 4) for place in range(4)]
        gains = [self.cost(float(errors[part].mean()), part) / best.predicted.cost for part in parts]
        logs = [math.log(min(gain, 1000.0)) for gain in gains]  # infinite where no level comes so near
        middle, spread = statistics.mean(logs), statistics.stdev(logs)
        return math.exp(middle - spread), math.exp(middle + spread)  # of the mean of four: 2 / sqrt(4) times the spread


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_pilot_says_before_the_run_what_is_best(name):
    """One test a problem, as its runs take most of the time."""
    trials, holds = Trials(*PROBLEMS[name]()), []
    for budget in BUDGETS:
        advice = trials.pilot.advise(budget=budget * trials.ladder.costs[-1])
        best, single = advice.best, advice.single
        all_errors = trials.errors(best), trials.errors(single)
        errors = [float(some.mean()) for some in all_errors]
        for error, predicted in zip(errors, (best.predicted, single.predicted), strict=True):
            holds.append(1 / 2.1 < error / predicted.mse < 2.1)
        least, most = trials.speed_up(best, all_errors[0])
        if len(best.levels) > 1 and (least > 1.15 or most < 0.85):
            assert advice.pays == (least > 1.15), f"measured speed-up {least:.3g} to {most:.3g}: {advice.text}"
        if not advice.pays:
            named = f"level {single.levels[0] + 1} alone with {len(single.times) - 1} step"
            assert f"does not pay here: use {named}" in advice.text
            assert single.predicted.cost <= 1.05 * trials.cost(errors[1]), advice.text
        used, error = advice.use, errors[0] if advice.pays else errors[1]
        others = [trials.cost(error), *([best.predicted.cost] if errors[0] <= error else [])]
        assert used.predicted.cost <= 1.05 * min(others), advice.text
    assert sum(holds) >= 0.75 * len(holds)
