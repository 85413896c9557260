"""Numerical soundness: float32 against float64, and the same bits with any number of threads."""

import hashlib
import inspect
import json
import subprocess
import sys

import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion import uniform
from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
from multilevel_diffusion.process.reverse_process import Process
from multilevel_diffusion.sampling.samples import sample
from multilevel_diffusion.sampling.stored import stored_pilot

DOUBLE = torch.float64
EPS = torch.finfo(torch.float32).eps
MEANS = [[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0]]
PROBLEMS = {
    "scaling_law": {"gamma": 3.0, "levels": 4, "diffusion": 0.3},
    "quadrature": {"dimension": 2},
    "ornstein_uhlenbeck": {"sigma": 0.3},
    "geometric_brownian_motion": {},
    "decaying_noise": {},
    "double_well": {},
    "gaussian_mixture": {"means": MEANS, "stochastic": True},
}


def test_every_problem_is_here():
    made = {name for name in mls.problems.__all__ if inspect.isfunction(getattr(mls.problems, name))}
    assert made == set(PROBLEMS)


@pytest.mark.parametrize("steps", [60, 250])
@pytest.mark.parametrize("name", PROBLEMS)
def test_float32_errs_by_its_roundings(name, steps):
    """The same noise and plan in both. Each step rounds the state, at most by half an eps of the largest value; these
    add up like a random walk where the flow does not expand, so the RMS difference is sqrt(N) eps / (2 sqrt(3)) of it
    at most, about 0.3. Measured are 0.03 to 0.12; a diffusion constant in half precision is found.
    """
    problem = getattr(mls.problems, name)(**PROBLEMS[name])
    times, y0 = problem.times(steps), problem.y0(32)
    p = torch.tensor([2.0**-k for k in range(len(problem.ladder))]).expand(steps, -1)
    plan = mls.draw_plan(p, generator=torch.Generator().manual_seed(0))
    noise = {}
    if problem.diffusion is not None:
        noise = {"diffusion": problem.diffusion, "brownian": mls.BrownianPath(range(32))}
    exact, rounded = (
        mls.solve(problem.ladder, y0.to(dtype), times, plan, save=True, **noise).ys for dtype in (DOUBLE, torch.float32)
    )
    assert rounded.dtype == torch.float32
    distance = (rounded[-1].double() - exact[-1]).square().mean().sqrt()
    assert 0 < distance < 0.3 * steps**0.5 * EPS * exact.abs().max()


@pytest.fixture(scope="module")
def digits():
    return {dtype: load_ladder(shipped_ladder("digits"), dtype) for dtype in (torch.float32, DOUBLE)}


def test_the_networks_of_the_digits_in_float32(digits):
    """x_0 = (x - sigma eps) / alpha divides the roundings of the network by alpha: 100 eps / alpha, before the clip.

    Measured are 1 to 20 eps.
    """
    x = torch.linspace(-2.0, 2.0, 4 * 64, dtype=DOUBLE).reshape(4, 1, 8, 8)
    schedule = digits[DOUBLE].schedule
    for time in (0.05, 0.3, 0.6, 0.95):
        t = torch.tensor(time, dtype=DOUBLE)
        for exact, rounded in zip(digits[DOUBLE].denoisers, digits[torch.float32].denoisers, strict=True):
            distance = (rounded(x.float(), t).double() - exact(x, t)).abs().max()
            assert 0 < distance < 100 * EPS / float(schedule.alpha(t))


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_images_of_the_digits_in_float32(digits, tau):
    """RMS over pixels in [-1, 1], which are written in steps of 8e-3. Roundings of 1e-6 grow up to a hundredfold where
    an image decides between two digits: measured are 4e-4 at worst of 16 images and 3e-5 in the median.
    """
    fine = uniform(digits[DOUBLE].schedule, 1000)
    process = Process(digits[DOUBLE].schedule, tau, fine)
    best = stored_pilot(digits[torch.float32], "ddpm").plan(budget=6 * digits[DOUBLE].ladder.costs[-1])
    times = process.grid(10)
    for grid, plan in ((times, mls.em_plan(digits[DOUBLE].ladder, times)), (best.times, best.plan)):
        exact, rounded = (
            sample(digits[dtype].ladder, process, grid, plan, range(8), (1, 8, 8), dtype=dtype).images.double()
            for dtype in (DOUBLE, torch.float32)
        )
        distances = (rounded - exact).square().mean((1, 2, 3)).sqrt()
        assert 0 < distances.median() < 1e-4
        assert distances.max() < 2e-3


# -- threads ----------------------------------------------------------------------------------------------------------


def digest(*tensors):
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()


def bits(threads):
    """Digests of what the core computes, on states large enough that torch divides the work."""
    torch.set_num_threads(threads)
    found = {"threads": str(torch.get_num_threads())}
    plan = mls.draw_plan(torch.tensor([1.0, 0.5]).expand(4, 2), generator=torch.Generator().manual_seed(0))
    own = mls.draw_plan(torch.tensor([1.0, 0.5]).expand(4, 2), generator=torch.Generator(), samples=1201)
    ladder = mls.Ladder([lambda x, t: -x, lambda x, t: -torch.sin(x) * (1 + t.to(x))], costs=[1.0, 8.0])
    times = torch.linspace(0.0, 1.0, 5, dtype=DOUBLE)
    for dtype in (torch.float32, DOUBLE):
        y0 = mls.seeded_normal(range(1201), (33,), dtype=dtype)
        noise = mls.BrownianPath(range(1201))
        found[f"start {dtype}"] = digest(y0)
        found[f"noise {dtype}"] = digest(*noise.like(y0).increments(times))
        for name, drawn in (("shared", plan), ("per sample", own)):
            solution = mls.solve(ladder, y0, times, drawn, diffusion=0.5, brownian=noise)
            found[f"solve {name} {dtype}"] = digest(solution.y)
        found[f"ode {dtype}"] = digest(mls.solve(ladder, y0, times, plan).y)
    problem = mls.problems.scaling_law(3.0, levels=3)
    pilot = mls.pilot(problem.ladder, problem.y0(8), problem.times(32), candidates=16)
    found["pilot"] = digest(pilot.gram, pilot.plan(budget=2 * pilot.least_budget).plan.weights)
    return found


def test_the_core_gives_the_same_bits_with_any_number_of_threads():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True)
    one, two = json.loads(done.stdout)
    assert [found.pop("threads") for found in (one, two)] == ["1", "2"]
    assert len(one) == 11
    assert one == two


if __name__ == "__main__":
    print(json.dumps([bits(threads) for threads in (1, 2)]))
