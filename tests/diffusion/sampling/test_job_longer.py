"""Jobs that grow, jobs of own ladders, jobs with conditions: an image depends on its seed and its row alone."""

import pytest
import torch
from job_processes import job

import multilevel_sde as mls
from multilevel_diffusion import CosineSchedule, DataDenoiser, OwnLadder, Process, karras, sample, uniform
from multilevel_diffusion.sampling import Job, fit, run_pilot
from multilevel_diffusion.sampling.job_folder import close_folder, finish, open_folder, run, stored_job
from multilevel_diffusion.sampling.origins import load_plan, made_for
from multilevel_diffusion.sampling.shards import load_images, read_manifest

SCHEDULE = CosineSchedule()
SHAPE = (2, 4, 4)


def denoiser(level):
    """A tiny nonlinear denoiser, told a label and a shift; rows are independent."""

    def data(x, t, label=None, shift=None):
        told = 0.0 if label is None else label.to(x)[:, None, None, None] / 2
        told = told if shift is None else told + shift
        return torch.tanh(x * (1 - 0.3 / (level + 1)) + told)

    return DataDenoiser(data, SCHEDULE)


def own(classes=("a", "b", "c")):
    return OwnLadder(mls.Ladder([denoiser(0), denoiser(1)], [1.0, 4.0]), SCHEDULE, SHAPE, classes)


def task(count, images=None, **changes):
    times = uniform(SCHEDULE, 12)[::4]
    plan = mls.Plan(torch.ones(3, 2, dtype=torch.bool), torch.tensor([1.0, 0.5]).expand(3, 2))
    known = {"fine": 12, "batch": 4, "shard": 8, "threads": 1} | changes
    return Job(images or own(), times, plan, range(5, 5 + count), **known)


# -- longer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [3, 8, 10])
def test_a_longer_job_keeps_what_is_there(first, tmp_path):
    run(task(first), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("shard_*")}
    images = load_images(tmp_path)
    assert run(task(20), tmp_path).images == 20 - first
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert torch.equal(load_images(tmp_path)[:first], images)
    run(task(20), tmp_path / "whole")
    torch.testing.assert_close(load_images(tmp_path), load_images(tmp_path / "whole"))
    assert run(task(20), tmp_path).images == 0
    assert run(task(23), tmp_path).images == 3
    assert len(load_images(tmp_path)) == 23
    assert stored_job(tmp_path, own()).shards[0].last <= 5 + first or first == 8
    with pytest.raises(ValueError, match=r"another job \(seeds \[5, 28\] against \[5, 15\]\)"):
        run(task(10), tmp_path)


def test_growth_in_whole_shards_gives_the_same_bytes(tmp_path):
    run(task(8), tmp_path / "grown")
    run(task(16), tmp_path / "grown")
    run(task(16), tmp_path / "whole")
    assert (tmp_path / "grown" / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()


def test_a_longer_job_that_was_killed_goes_on(tmp_path):
    run(task(10), tmp_path)
    opened = open_folder(task(20), tmp_path)
    assert [(shard.first, shard.last) for shard in opened.shards] == [(5, 13), (13, 15), (15, 23), (23, 25)]
    finish(opened, tmp_path, opened.shards[2])
    with pytest.raises(ValueError, match="holds no finished job"):
        load_images(tmp_path)
    assert run(task(20), tmp_path).images == 2
    close_folder(opened, tmp_path, [shard.find(tmp_path) for shard in opened.shards])
    assert len(load_images(tmp_path)) == 20


def test_a_changed_argument_is_named(tiny_ladder, tmp_path):
    run(job(tiny_ladder), tmp_path, arguments={"--budget": 8.0, "--mode": "ddpm"})
    assert read_manifest(tmp_path)["told"]["arguments"] == {"--budget": 8.0, "--mode": "ddpm"}
    with pytest.raises(ValueError, match="made with other arguments: --budget 8 against 12; give another folder"):
        run(job(tiny_ladder, steps=6), tmp_path, arguments={"--budget": 12.0, "--mode": "ddpm"})
    run(job(tiny_ladder), tmp_path, arguments={"--budget": 12.0, "--mode": "ddpm"})  # the same images after all


# -- conditions --------------------------------------------------------------------------------------------------------


def test_the_image_of_a_seed_and_its_label_does_not_depend_on_the_batch():
    images, process = own(), Process(SCHEDULE, 1.0, uniform(SCHEDULE, 12))
    made = task(9)
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 1, 1, 0])
    draw = {"conditions": {"label": labels}}
    known = (images.ladder, process, made.times, made.plan)
    whole = sample(*known, range(5, 14), SHAPE, **draw).images
    parts = sample(*known, range(5, 14), SHAPE, batch=2, **draw).images
    torch.testing.assert_close(parts, whole)
    order = [7, 2, 4]
    chosen = sample(*known, [5 + i for i in order], SHAPE, conditions={"label": labels[order]}).images
    torch.testing.assert_close(chosen, whole[order])
    other = sample(*known, range(5, 14), SHAPE, conditions={"label": (labels + 1) % 3}).images
    assert (other - whole).abs().amin(0).max() > 0
    with pytest.raises(ValueError, match='"conditions" has "label" of shape'):
        sample(*known, range(5, 14), SHAPE, conditions={"label": labels[:3]})


def test_a_job_hands_its_rows_to_their_seeds(tmp_path):
    labels = torch.tensor([0, 1, 2] * 4)
    made = task(12, conditions={"label": labels})
    run(made, tmp_path)
    expected = sample(
        made.images.ladder, made.process, made.times, made.plan, made.seeds, SHAPE, conditions={"label": labels}
    )
    torch.testing.assert_close(load_images(tmp_path), expected.images)
    longer = task(14, conditions={"label": torch.cat([labels, torch.tensor([2, 2])])})
    assert run(longer, tmp_path).images == 2
    assert stored_job(tmp_path, own(), longer.conditions).digest == read_manifest(tmp_path)["digest"]
    for conditions in (None, {"label": 2 - longer.conditions["label"]}):
        with pytest.raises(ValueError, match="other conditions of the same images"):
            run(task(14, conditions=conditions), tmp_path)


def test_conditions_of_a_job_are_in_its_digests():
    rows = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    plain, told, other = task(9), task(9, conditions={"label": rows}), task(9, conditions={"label": 2 - rows})
    assert len({plain.digest, told.digest, other.digest}) == 3
    assert len({made.shards[0].job for made in (plain, told, other)}) == 3
    assert plain.series == told.series
    with pytest.raises(ValueError, match='"conditions" has "label"'):
        task(9, conditions={"label": rows[:4]})


# -- own ladders -------------------------------------------------------------------------------------------------------


def test_pilot_fit_sample_and_job_work_on_a_ladder_of_ones_own(tmp_path):
    images, process = own(), Process(SCHEDULE, 0.0, uniform(SCHEDULE, 24))
    pilot = run_pilot(images, process, samples=6, candidates=8)
    assert pilot.costs == images.ladder.costs
    best = pilot.plan(budget=16.0)
    labels = torch.tensor([0, 1, 2, 0, 1])
    result = sample(images.ladder, process, best.times, best.plan, range(5), SHAPE, conditions={"label": labels})
    assert result.images.shape == (5, *SHAPE)
    fitted = fit(images, process, 4.0, samples=8, steps=8)
    assert fitted.plan.cost(images.ladder) <= 16
    made = Job(images, best.times, best.plan, range(5), 0.0, 24, conditions={"label": labels}, threads=1)
    run(made, tmp_path)
    torch.testing.assert_close(load_images(tmp_path), result.images)


def test_a_job_takes_the_grid_of_any_process(tmp_path):
    fine = karras(SCHEDULE, 24)
    images = own(())
    made = Job(images, fine[::4], mls.em_plan(images.ladder, fine[::4]), range(3), 0.0, fine, threads=1)
    run(made, tmp_path)
    with pytest.raises(ValueError, match='"fine" is missing'):
        stored_job(tmp_path, images)
    assert stored_job(tmp_path, images, fine=fine).digest == made.digest
    same = uniform(SCHEDULE, 24)
    by_number, by_grid = (
        Job(images, same, mls.em_plan(images.ladder, same), range(3), 0.0, grid, threads=1) for grid in (24, same)
    )
    assert by_number.digest == by_grid.digest


# -- where plans come from ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tau": 1.0}, "holds a plan for mode ddim, this run has mode ddpm; give --mode ddim or another plan"),
        (
            {"fine": 24},
            "holds a plan for a finest grid of 12 steps, this run has a finest grid of 24 steps; give --fine 12",
        ),
        ({"images": OwnLadder(own().ladder, SCHEDULE, SHAPE, version="2")}, "holds a plan for another ladder"),
        (
            {"images": OwnLadder(own().ladder, CosineSchedule(offset=0.01), SHAPE)},
            "holds a plan for the schedule .*0.008.*, this run has the schedule .*0.01",
        ),
    ],
)
def test_a_plan_for_something_else_is_refused(tmp_path, change, words):
    def run_of(tau=0.0, fine=12, images=None):
        images = images or OwnLadder(own().ladder, SCHEDULE, SHAPE)
        return images, Process(images.schedule, tau, uniform(images.schedule, fine))

    made, path = task(4), tmp_path / "plan.safetensors"
    made.plan.save(path, made.times, made_for(*run_of()))
    plan, times = load_plan(path, *run_of())
    assert plan == made.plan
    assert torch.equal(times, made.times)
    with pytest.raises(ValueError, match=words):
        load_plan(path, *run_of(**change))


def test_plans_that_do_not_say_are_taken_where_they_fit(tmp_path):
    made, path = task(4), tmp_path / "plan.safetensors"
    made.plan.save(path, made.times)
    assert load_plan(path, made.images, made.process)[0] == made.plan
    with pytest.raises(ValueError, match="has times that are not on the finest grid of 7 steps"):
        load_plan(path, made.images, Process(SCHEDULE, 1.0, uniform(SCHEDULE, 7)))
    with pytest.raises(ValueError, match="was made for 2 levels"):
        load_plan(path, OwnLadder(made.images.ladder.top(), SCHEDULE, SHAPE), made.process)
