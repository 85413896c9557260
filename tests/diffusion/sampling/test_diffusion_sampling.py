"""Sampling by seeds, and the pictures of samples."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import multilevel_sde as mls
from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
from multilevel_diffusion.process.grids import uniform
from multilevel_diffusion.process.reverse_process import MODES, Process
from multilevel_diffusion.process.schedules import CosineSchedule
from multilevel_diffusion.process.steps import ExponentialStep
from multilevel_diffusion.sampling.pictures import image_grid, save_grid, save_rows
from multilevel_diffusion.sampling.samples import batch_for, sample
from multilevel_diffusion.sampling.stored import stored_pilot

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
