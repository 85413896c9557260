"""Fits of one network alone, and which of the plans and pilots that a folder keeps are found again."""

import shutil

import pytest
import torch

import multilevel_sde as mls
from multilevel_diffusion.networks.image_ladders import OwnLadder
from multilevel_diffusion.networks.store import load_ladder, save_ladder, shipped_ladder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.reverse_process import Process
from multilevel_diffusion.sampling.one_network import alone_plans, fit_alone
from multilevel_diffusion.sampling.origins import load_plan, made_for
from multilevel_diffusion.sampling.pilots_and_fits import fit, run_pilot
from multilevel_diffusion.sampling.stored import stored_pilot, stored_plan
from multilevel_diffusion.sampling.trajectories import reference
from multilevel_sde.cli import main
from multilevel_sde.fitting.perturbed_runs import Parts
from multilevel_sde.pilots.trial import typical


@pytest.fixture(scope="module")
def digits():
    return load_ladder(shipped_ladder("digits"))


@pytest.fixture(scope="module")
def process(digits):
    return Process(digits.schedule, 0.0, uniform(digits.schedule, 1000))


@pytest.fixture(scope="module")
def one(digits):
    """The smallest of the digits' networks alone, as a network of one's own, in 60 steps of the ODE."""
    own = OwnLadder(mls.Ladder(digits.ladder.drifts[:1], [1.0]), digits.schedule, digits.image_shape)
    return own, Process(digits.schedule, 0.0, uniform(digits.schedule, 60))


@pytest.fixture(scope="module")
def fits(one):
    return {steps: fit_alone(*one, steps, samples=16) for steps in (6, 7)}


def test_one_network_is_fitted_below_every_method_it_began_with(one, fits):
    """On samples that took no part."""
    images, process = one
    seeds = range(24)
    start, target = process.start(seeds, images.image_shape), reference(images, process, seeds)

    def error(found):
        y = mls.solve(images.ladder, start, found.times, found.plan, **process.arguments(seeds)).y
        return typical((y - target).square().flatten(1).mean(1))

    for steps, found in fits.items():
        begun = [error(plan) for plan in alone_plans(images, process, steps)]
        assert len(begun) == 24
        assert error(found) < 0.8 * min(begun)
        assert found.plan.evaluations.tolist() == [steps]
        assert Parts.of(found.plan).base.shape == (steps, 4)


def test_the_fit_of_a_ladder_of_one_is_that_of_its_network(one, fits):
    found = fit(*one, 6.9, samples=16)
    assert found.plan == fits[6].plan
    assert found.held_out == fits[6].held_out
    assert found.cost == fits[6].cost
    with pytest.raises(ValueError, match=r'"budget" must pay an evaluation of the network, .* got 0\.5'):
        fit(*one, 0.5, samples=16)


def test_the_fit_of_a_ladder_is_never_worse_than_that_of_its_largest_network(digits):
    """By the samples kept out; both are fitted on the same. A level that says nothing leaves the network alone."""
    small, large = digits.ladder.drifts[:2]
    process = Process(digits.schedule, 0.0, uniform(digits.schedule, 40))
    target, chosen = None, []
    for cheap, budget in ((small, 2), (small, 6), (lambda x, t: torch.zeros_like(x), 6)):
        two = mls.Ladder([cheap, large], [0.2, 1.0])
        images = OwnLadder(two, digits.schedule, digits.image_shape)
        if target is None:
            target = reference(images, process, range(1_000_000, 1_000_008))
        alone = fit_alone(images, process, budget, samples=8, target=target)
        found = fit(images, process, budget, samples=8, steps=6, target=target)
        assert found.held_out[1] <= alone.held_out[1]
        assert found.plan.cost(two) <= budget * two.costs[-1] * (1 + 1e-9)
        assert found.cost > alone.cost
        chosen.append(found.levels == alone.levels)
    assert chosen[-1]
    assert not chosen[0]


def test_a_network_of_ones_own_is_fitted_kept_and_found_by_neighbouring_budgets(digits, tmp_path, capsys):
    save_ladder(tmp_path / "mine", digits.networks[:1], digits.schedule, batch=1)
    words = ["--ladder", str(tmp_path / "mine"), "--mode", "ddim", "--threads", "1"]
    assert main(["plan", *words, "--budget", "6", "--fit", "--samples", "8", "--price", "flops", "--save"]) == 0
    path = tmp_path / "mine" / "plan_ddim_6.safetensors"
    assert str(path) in capsys.readouterr().out
    mine = load_ladder(tmp_path / "mine")
    kept, _ = load_plan(path, mine, Process(mine.schedule, 0.0, uniform(mine.schedule, 1000)))
    assert kept.evaluations.tolist() == [6]
    for budget, found in ((6, True), (6.9, True), (7.5, True), (7.6, False), (5.9, False)):
        assert (stored_plan(mine, "ddim", budget) is not None) == found
    assert stored_plan(mine, "ddim", 7)[0] == kept
    assert stored_plan(mine, "ddpm", 6) is None


def test_one_network_takes_any_budget_and_says_how_to_fit_it(digits, tmp_path, capsys):
    save_ladder(tmp_path / "mine", digits.networks[:1], digits.schedule, batch=1)
    own = ["--ladder", str(tmp_path / "mine"), "--mode", "ddim", "--threads", "1"]
    for method, budget in (("ml-em", "6.6"), ("em", "6.6"), ("ml-em", "2000")):
        out = ["--budget", budget, "--method", method, "--count", "1", "--out", str(tmp_path / method / budget)]
        assert main(["sample", *own, *out]) == 0
        steps = min(1000, int(float(budget)))
        assert mls.Plan.load(tmp_path / method / budget / "plan.safetensors").evaluations.tolist() == [steps]
        advice = f"multilevel-sde plan --ladder {tmp_path / 'mine'} --mode ddim --budget {budget} --fit --save"
        assert (advice in capsys.readouterr().err) == (method == "ml-em")
    for words, message in ((["--fit", "--steps", "9"], "takes as many as"), ([], "give --fit")):
        assert main(["plan", *own, "--budget", "6", *words, "--out", str(tmp_path / "plan")]) == 2
        assert message in capsys.readouterr().err


def test_a_fit_at_a_scale_of_guidance_does_not_pass_for_one_without(tmp_path):
    shutil.copytree(shipped_ladder("digits"), tmp_path / "digits", ignore=shutil.ignore_patterns("plan_*"))
    kept, folder = shipped_ladder("digits") / "plan_ddim_8.safetensors", tmp_path / "digits"
    shutil.copy(kept, folder / "plan_ddim_guidance_2_8.safetensors")
    assert stored_plan(load_ladder(folder), "ddim", 8) is None
    shutil.copy(kept, folder / "plan_ddim_8.safetensors")
    assert stored_plan(load_ladder(folder), "ddim", 8) is not None


def test_an_own_ladder_in_measured_seconds_is_known_again(digits, tmp_path):
    """Its costs are others every time; what was kept of it holds, at the costs of now."""

    def own(*seconds):
        ladder = mls.Ladder(digits.ladder.drifts[:2], mls.GivenCost(seconds, "seconds"))
        return OwnLadder(ladder, digits.schedule, digits.image_shape, folder=tmp_path)

    before, now = own(1e-3, 3e-3), own(1.1e-3, 4e-3)
    assert before.digest == now.digest
    process = Process(digits.schedule, 0.0, uniform(digits.schedule, 1000))
    run_pilot(before, "ddim", steps=20, samples=2, candidates=8).save(
        tmp_path / "pilot_ddim.safetensors", made_for(before, process)
    )
    assert stored_pilot(now, "ddim").costs == now.ladder.costs


def test_a_plan_of_another_network_does_not_hide_those_of_this_one(digits, process, tmp_path):
    """Of those that cost as much, the one fitted for the largest budget is taken, whatever the order of the folder."""
    own = OwnLadder(mls.Ladder(digits.ladder.drifts[:1], [1.0]), digits.schedule, (1, 8, 8), folder=tmp_path)
    told, other = made_for(own, process), {**made_for(own, process), "ladder": "another"}
    for name, start, steps, mine in (
        ("10", 0.9, 9, told),
        ("9", 0.8, 9, told),
        ("9.5", 0.7, 9, told),
        ("11", 1, 10, other),
    ):
        times = torch.linspace(start, 0.0, steps + 1, dtype=torch.float64)
        mls.em_plan(own.ladder, times).save(tmp_path / f"plan_ddim_{name}.safetensors", times, mine)
    words = "--ladder MODULE:FUNCTION --mode ddim --budget 11 --fit"
    with pytest.warns(UserWarning, match=f'plan_ddim_11.safetensors" was made before .*{words}') as seen:
        _, times = stored_plan(own, "ddim", 10)
    assert len(seen) == 1
    assert times[0] == 0.9


def test_keeping_needs_a_fit_and_a_folder(tmp_path, capsys):
    assert main(["plan", "--ladder", "digits", "--mode", "ddim", "--budget", "5", "--save"]) == 2
    assert '"--save" is True, but belongs to --fit' in capsys.readouterr().err
