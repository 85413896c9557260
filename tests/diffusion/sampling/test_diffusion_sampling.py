"""Sampling by seeds, the command `sample`, the demo, and their pictures."""

import argparse
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import multilevel_sde as mls
from multilevel_diffusion.commands import demo as demo_module
from multilevel_diffusion.commands import sample as sample_command
from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.reverse_process import MODES, Process
from multilevel_diffusion.process.schedules import CosineSchedule
from multilevel_diffusion.process.steps import ExponentialStep
from multilevel_diffusion.sampling.pictures import image_grid, save_grid, save_rows
from multilevel_diffusion.sampling.samples import batch_for, sample
from multilevel_diffusion.sampling.stored import stored_pilot
from multilevel_sde import cli

SHAPE = (2, 3, 3)


def toy():
    """Pointwise denoisers of data N(0.2, 0.3^2) under the cosine schedule, the first one wrong."""
    schedule = CosineSchedule()

    def exact(x, t):
        alpha, sigma = schedule.alpha(float(t)), schedule.sigma(float(t))
        return 0.2 + 0.09 * alpha / (0.09 * alpha**2 + sigma**2) * (x - 0.2 * alpha)

    return mls.Ladder([lambda x, t: exact(x, t) + 0.1 * torch.sin(3 * x), exact], costs=[1.0, 10.0])


def process(mode="ddpm", fine=40):
    return Process(CosineSchedule(), MODES[mode], uniform(CosineSchedule(), fine))


def drawn(times):
    table = torch.tensor([1.0, 0.3]).expand(len(times) - 1, 2)
    return mls.draw_plan(table, mls.systematic, generator=torch.Generator().manual_seed(0))


# -- seeds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_image_of_a_seed_does_not_depend_on_its_batch(mode):
    times = process(mode).grid(20)
    arguments = {"times": times, "plan": drawn(times), "shape": SHAPE, "dtype": torch.float64}
    together = sample(toy(), process(mode), seeds=[3, 1, 4, 15], **arguments)
    split = sample(toy(), process(mode), seeds=[3, 1, 4, 15], batch=3, **arguments)
    reordered = sample(toy(), process(mode), seeds=[15, 4], **arguments)
    assert torch.equal(together.images, split.images)
    assert torch.equal(together.images[[3, 2]], reordered.images)
    assert len(together.images.flatten(1).unique(dim=0)) == 4
    assert together.images.shape == (4, *SHAPE)
    assert together.evaluations.tolist() == [20, 6]
    assert together.cost == 20 * 1.0 + 6 * 10.0


def test_networks_give_the_same_image_in_any_batch_to_rounding():
    digits = load_ladder(shipped_ladder("digits"))
    chain = Process(digits.schedule, 1.0, uniform(digits.schedule, 100))
    times = chain.grid(20)
    plan = mls.em_plan(digits.ladder.subset([0]), times)
    one, two = (
        sample(digits.ladder.subset([0]), chain, times, plan, range(5), digits.image_shape, batch=batch).images
        for batch in (5, 2)
    )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


def test_a_sub_grid_sees_the_noise_of_the_finest_grid():
    """For a constant estimate the DDPM step is exact, so at any common time the paths of all step counts agree."""
    ladder = mls.Ladder([lambda x, t: torch.full_like(x, 0.3)], costs=[1.0])
    chain, ends = process(fine=60), []
    assert torch.equal(chain.grid(60), chain.fine_times)
    for steps in (6, 12, 60):
        times = chain.grid(steps)[: steps // 2 + 1]
        result = sample(ladder, chain, times, mls.em_plan(ladder, times), range(4), SHAPE, dtype=torch.float64)
        ends.append(result.images)
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ends[1], ends[2], rtol=1e-10, atol=1e-10)
    assert (ends[0][0] - ends[0][1]).abs().min() > 1e-3


@pytest.mark.parametrize("steps", [7, 13, 39])
def test_a_grid_is_as_even_as_the_finest_one_allows(steps):
    times = process().grid(steps)
    assert set(times.tolist()) <= set(process().fine_times.tolist())
    assert (times - torch.linspace(1, 0, steps + 1, dtype=torch.float64)).abs().max() <= 0.5 / 40 + 1e-12


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_loaded_networks_make_no_graph(tau):
    digits, saved = load_ladder(shipped_ladder("digits")), []
    process = Process(digits.schedule, tau, uniform(digits.schedule, 40))
    times = process.grid(4)
    plan = mls.Plan(torch.ones(4, 5, dtype=torch.bool), 1.5 * torch.ones(4, 5) - 0.1 * torch.arange(5))  # all levels
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
        result = sample(digits.ladder, process, times, plan, range(2), digits.image_shape)
    assert result.evaluations.tolist() == [4] * 5
    assert not saved


def test_starting_noise_is_apart_from_the_path():
    """Unit variance at t = 1 (chi-squared, level 1e-4) and no correlation with the first increment (4 deviations)."""
    chain, seeds, shape = process(), range(2000), (4,)
    start = chain.start(seeds, shape, dtype=torch.float64).flatten() / chain.schedule.sigma(1.0)
    path = chain.arguments(seeds)["brownian"].like(start.reshape(2000, 4))
    normal = path(float(chain.fine_times[0]), float(chain.fine_times[1])).flatten() * 40**0.5
    for values in (start, normal):
        assert abs(float(values.square().mean()) - 1) < 4 * (2 / len(values)) ** 0.5
    assert abs(float((start * normal).mean())) < 4 / len(start) ** 0.5


def test_the_ode_has_no_noise():
    assert process("ddim").arguments([0]) == {
        "step": ExponentialStep(CosineSchedule(), 0.0),
        "diffusion": None,
        "brownian": None,
    }


def test_sampling_refuses_what_it_cannot_do():
    times = process().grid(4)
    with pytest.raises(ValueError, match='"seeds" must not be empty'):
        sample(toy(), process(), times, drawn(times), [], SHAPE)
    with pytest.raises(ValueError, match='"batch" at least 1, got 1 seeds and batch 0'):
        sample(toy(), process(), times, drawn(times), [0], SHAPE, batch=0)
    for steps in (0, 41):
        with pytest.raises(ValueError, match=f'"steps" must lie between 1 and 40 .*, got {steps}'):
            process().grid(steps)


@pytest.mark.parametrize(("shape", "expected"), [((1, 8, 8), 256), ((3, 256, 256), 21), ((3, 4096, 4096), 1)])
def test_a_batch_is_bounded_in_memory(shape, expected):
    assert batch_for(shape) == expected


def test_a_ladder_without_a_pilot_has_none(tmp_path):
    digits = load_ladder(shipped_ladder("digits"))
    assert {mode: stored_pilot(digits, mode) is None for mode in MODES} == {"ddpm": False, "ddim": False}
    folder = tmp_path / "digits"
    shutil.copytree(shipped_ladder("digits"), folder, ignore=shutil.ignore_patterns("pilot_ddim*"))
    assert stored_pilot(load_ladder(folder), "ddim") is None
    assert stored_pilot(load_ladder(folder), "ddpm") is not None


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_a_grid_puts_every_image_in_its_place():
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    page = image_grid(values.reshape(5, 1, 1, 1).expand(5, 1, 2, 3), 3, scale=2, gap=1)
    assert page.shape == (2 * 4 + 1, 3 * 6 + 2, 3)
    assert page.dtype == torch.uint8
    expected = torch.full((9, 20), 255, dtype=torch.uint8)
    for index, grey in enumerate([0, 64, 128, 191, 255]):
        top, left = 5 * (index // 3), 7 * (index % 3)
        expected[top : top + 4, left : left + 6] = grey
    assert torch.equal(page, expected[..., None].expand(-1, -1, 3))


def test_colours_and_values_outside_the_box():
    image = torch.tensor([-3.0, 0.0, 7.0]).reshape(1, 3, 1, 1)
    assert image_grid(image).tolist() == [[[0, 128, 255]]]
    assert image_grid(torch.zeros(5, 1, 8, 8)).shape == (2 * 8 + 2, 3 * 8 + 4, 3)  # about square


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 2, 8, 8), (0, 1, 8, 8)])
def test_a_grid_refuses_what_is_no_images(shape):
    with pytest.raises(ValueError, match='"images" must have shape'):
        image_grid(torch.zeros(shape))


def test_saved_pictures_hold_the_pixels(tmp_path):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_grid(tmp_path / "grid.png", images, scale=2)
    assert np.array_equal(np.array(Image.open(tmp_path / "grid.png")), image_grid(images, scale=2).numpy())
    save_rows(tmp_path / "rows.png", [("first", images), ("second", -images)], "title", scale=5)
    page = np.array(Image.open(tmp_path / "rows.png").convert("RGB"))
    strip = image_grid(images, 4, scale=5)
    red, green, blue = strip[20, 20].tolist()  # inside the first image
    assert (np.abs(page.astype(int) - [red, green, blue]).max(-1) <= 2).any()
    assert page.shape[0] > 2 * strip.shape[0]
    assert page.shape[1] > strip.shape[1]


# -- commands ----------------------------------------------------------------------------------------------------------


def run(module, *words):
    parser = argparse.ArgumentParser()
    module.register(parser.add_subparsers(required=True))
    arguments = parser.parse_args(list(words))
    return arguments.run(arguments)


def sampled(tmp_path, *words):
    base = ["sample", "--ladder", "digits", "--count", "3", "--out", str(tmp_path), "--threads", "1"]
    assert run(sample_command, *base, *words) == 0
    return json.loads((tmp_path / "record.json").read_text())


def test_sample_by_euler_maruyama(tmp_path, capsys):
    record = sampled(tmp_path, "--method", "em", "--budget", "4", "--seed", "7")
    assert record["method"] == "Euler-Maruyama on the largest network"
    assert record["evaluations"] == [0, 0, 0, 0, 4]
    assert record["cost"]["largest network's evaluations"]["FLOPs"] == 4
    assert (record["mode"], record["steps"], record["seeds"], record["fine"]) == ("ddpm", 4, [7, 10], 1000)
    assert record["versions"]["multilevel_sde"] == mls.__version__
    assert record["pages"] == ["samples_000007.png"]
    assert Image.open(tmp_path / "samples_000007.png").size == (2 * 64 + 2, 2 * 64 + 2)
    assert "3 images by Euler-Maruyama" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "budget", "method"),
    [("ddpm", 5, "the pilot's plan"), ("ddim", 7, "the pilot's plan"), ("ddim", 5, "a fitted plan")],
)
def test_sample_by_a_plan_keeps_to_its_budget(tmp_path, mode, budget, method):
    record = sampled(tmp_path, "--budget", str(budget), "--mode", mode)
    assert record["method"] == f"ML-EM, {method}"
    digits = load_ladder(shipped_ladder("digits"))
    cost = sum(n * cost for n, cost in zip(record["evaluations"], digits.ladder.costs, strict=True))
    assert record["cost"]["FLOPs per image"] == pytest.approx(cost)
    assert 0.8 * budget < cost / digits.ladder.costs[-1] <= budget
    assert record["status"].startswith("completed")


def test_sample_repeats_a_plan_and_a_page_of_seeds(tmp_path):
    """The plan that was written gives the same images again; a seed alone gives its image of the page."""
    first = sampled(tmp_path / "first", "--budget", "4", "--steps", "12", "--fine", "60", "--mode", "ddim")
    assert first["method"] == "ML-EM, p = C / T, systematic"
    plan = ["--plan", str(tmp_path / "first" / "plan.safetensors"), "--fine", "60", "--mode", "ddim"]
    again = sampled(tmp_path / "again", *plan)
    assert again["method"] == "plan plan.safetensors"
    assert again["evaluations"] == first["evaluations"]
    pages = [np.array(Image.open(tmp_path / name / "samples_000000.png")) for name in ("first", "again")]
    assert np.array_equal(*pages)
    sampled(tmp_path / "one", *plan, "--seed", "1", "--count", "1")
    one = np.array(Image.open(tmp_path / "one" / "samples_000001.png")).astype(int)
    assert np.abs(one - pages[0][:64, 66:130]).max() <= 1  # the second image of the page, to rounding


@pytest.mark.parametrize(
    ("words", "told"), [(["--fine", "10"], True), (["--steps", "100"], True), (["--fine", "1000"], False)]
)
def test_sample_says_where_it_does_not_use_the_plan_of_the_pilot(words, told, tmp_path, capsys):
    record = sampled(tmp_path, "--count", "1", "--budget", "9", *words)
    assert record["method"].endswith("p = C / T, systematic") == told
    note = (
        "note: the plans of the ladder's pilot are for --fine 1000 without --steps, so another one is drawn at random"
    )
    assert (note in capsys.readouterr().err) == told


def test_many_images_make_several_pages(tmp_path):
    record = sampled(tmp_path, "--budget", "1", "--steps", "2", "--count", "66", "--method", "em", "--budget", "2")
    assert record["pages"] == ["samples_000000.png", "samples_000064.png"]
    assert Image.open(tmp_path / "samples_000064.png").size == (2 * 64 + 2, 64)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], '"--budget" is missing'),
        (["--budget", "5", "--plan", "PLAN"], '"--plan" already says what runs'),
        (["--method", "em", "--plan", "PLAN"], '"--plan" already says what runs'),
        (["--method", "em", "--steps", "9", "--budget", "5"], '"--steps" is 9, more than the "--budget" of 5'),
        (["--budget", "5", "--steps", "2000"], '"steps" must lie between 1 and 1000'),
        (["--budget", "5", "--ladder", "no-such-ladder"], "\"--ladder\" is 'no-such-ladder'"),
        (["--plan", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(words, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["sample", "--ladder", "digits", "--count", "1", "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("multilevel-sde sample: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_the_demo_writes_its_table_and_pictures(tmp_path, capsys):
    words = [
        "--ladder",
        "digits",
        "--images",
        "4",
        "--steps",
        "20",
        "--budgets",
        "6",
        "--seed",
        "3",
        "--out",
        str(tmp_path),
    ]
    assert run(demo_module, "demo", *words) == 0
    record = json.loads((tmp_path / "demo.json").read_text())
    assert (record["images"], record["seed"], record["version"]) == (4, 3, mls.__version__)
    assert [row["method"] for row in record["rows"]] == ["EM", "one network, chosen", "ML-EM, p = C/T", "ML-EM, pilot"]
    costs = load_ladder(shipped_ladder("digits")).ladder.costs
    for row in record["rows"]:
        spent = sum(n * cost for n, cost in zip(row["evaluations"], costs, strict=True)) / costs[-1]
        assert row["cost"] == pytest.approx(spent)
        assert row["budget"] == 6
        assert row["mse"] > 0
        assert row["median"] <= 4 * row["mse"]
    assert record["rows"][0]["evaluations"] == [0, 0, 0, 0, 6]
    assert max(record["rows"][row]["cost"] for row in (1, 3)) <= 6
    assert len([n for n in record["rows"][1]["evaluations"] if n]) == 1
    assert Image.open(tmp_path / "samples.png").size == (2 * 6 * 8 + 2, 2 * 6 * 8 + 2)
    width, height = Image.open(tmp_path / "compare.png").size
    assert width > 4 * 5 * 8  # four images beside their label, in a row for the reference and each method
    assert height > 4 * 5 * 8
    assert Image.open(tmp_path / "error.png").size == (900, 400)
    assert "distance to 20 steps of the largest network" in capsys.readouterr().out


def test_the_demo_reaches_its_reference_at_the_references_budget(tmp_path):
    """EM with as many steps as the reference is the reference."""
    digits = load_ladder(shipped_ladder("digits"))
    process = Process(digits.schedule, 1.0, uniform(digits.schedule, 8))
    rows = demo_module.demo(digits, process, tmp_path, 2, [8.0])
    assert rows[0].mse == 0
    assert rows[0].cost == 8


def test_the_demos_report_says_what_its_table_shows(tmp_path):
    """What pays by the report is nearer to the reference than the best network alone, and about as near as it says.

    By the typical image: of 32 a few turn into another digit whatever the method, and dominate its mean.
    """
    digits = load_ladder(shipped_ladder("digits"))
    process = Process(digits.schedule, 1.0, uniform(digits.schedule, 1000))
    rows = demo_module.demo(digits, process, tmp_path, 32, [6.0, 12.0])
    advice = json.loads((tmp_path / "report.json").read_text())["advice"]
    assert [one["budget_in_top"] for one in advice] == pytest.approx([6.0, 12.0])
    for one in advice:
        found = {row.method: row for row in rows if row.budget == pytest.approx(one["budget_in_top"])}
        assert one["pays"] == (found["ML-EM, pilot"].median < found["one network, chosen"].median)
        told = float(re.search(r"expected mean squared error ([\d.e-]+)", one["text"])[1])
        assert 1 / 5 < found["ML-EM, pilot"].mse / told < 2
        assert "evaluations of the top level" in one["text"]
