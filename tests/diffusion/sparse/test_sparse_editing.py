"""Laws of edits by the sparse level, and what it refuses: networks, masks, and references that do not fit."""

import pytest
import torch
from sparse_networks import T, convolution, made, square, states
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.networks.store import load_ladder, shipped_ladder
from multilevel_diffusion.sparse.drift import Reference, SparseDrift, changed_region
from multilevel_diffusion.sparse.editing import Edit, compare, paint

# -- edits -------------------------------------------------------------------------------------------------------------


def test_changed_region_counts_any_channel_beyond_the_tolerance():
    x = torch.zeros(1, 3, 8, 8)
    y = x.clone()
    y[0, 1, 2, 3], y[0, 2, 5, 5] = 0.02, 0.005
    assert changed_region(x, y).nonzero().tolist() == [[0, 2, 3]]
    assert int(changed_region(x, y, tolerance=0.001).sum()) == 2
    assert int(changed_region(x, y, grow=2).sum()) == 25


@pytest.mark.parametrize("area", [0.001, 0.05, 0.2, 0.5])
def test_paint_covers_about_the_area_in_every_image(area):
    x = torch.zeros(20, 3, 32, 32)
    shares = (paint(x, area, 1) != 0).any(1).double().mean((1, 2))
    assert bool(shares.min() > 0)
    assert abs(float(shares.mean()) - area) < 0.1 * area + 1e-3
    assert torch.equal(paint(x, area, 1), paint(x, area, 1))
    assert not torch.equal(paint(x, area, 1), paint(x, area, 2))


@pytest.fixture(scope="module")
def scene():
    ladder = load_ladder(shipped_ladder("deadleaves32"))
    original = 0.5 * torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)).repeat_interleave(8, 2)
    original = original.repeat_interleave(8, 3) - 0.2
    return Edit(ladder.denoisers[-1], ladder.schedule, original, paint(original, 0.05), 0.4, 12, 1.0, range(3))


def test_the_multilevel_sum_removes_what_the_sparse_level_leaves_out(scene):
    drift = SparseDrift(scene.reference(tile=2), scene.region)
    results = compare(scene, drift, [3, 12])
    flops = mls.FlopCost(scene.noised(scene.edited), t=0.4)([drift, scene.denoiser])
    rows = {row.method: row for row, _ in results}
    sparse, some, all_ = rows["sparse only"], rows["multilevel, 3 corrections"], rows["multilevel, 12 corrections"]
    assert some.mse < sparse.mse / 2
    assert all_.mse < 1e-10  # every step corrected with weight 1 is the dense path
    assert sparse.cost == pytest.approx(12 * flops[0] / flops[1])
    assert flops[0] < 0.6 * flops[1]
    assert abs(some.cost - (sparse.cost + 3)) < 1e-9
    assert 0 < sparse.inside < sparse.outside


def test_noised_images_have_the_schedules_signal_and_each_seeds_noise(scene):
    alpha, sigma = scene.schedule.alpha(0.4), scene.schedule.sigma(0.4)
    noise = mls.seeded_normal(range(3), (3, 32, 32))
    torch.testing.assert_close(scene.noised(scene.edited), alpha * scene.edited + sigma * noise)


def test_the_original_without_paint_follows_its_reference(scene):
    reference = scene.reference(tile=2)
    sparse = SparseDrift(reference, scene.region)
    alone = scene.ladder(sparse).subset([0])
    path = scene.run(scene.original, alone, scene.times, mls.em_plan(alone, scene.times))
    dense = scene.run(scene.original, *scene.dense())
    torch.testing.assert_close(path.y, dense.y, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"middle": 0.0}, '"middle" is 0.0'),
        ({"steps": 0}, '"steps" is 0'),
        ({"seeds": [1]}, '"seeds" has 1 entries'),
        ({"edited": torch.zeros(2, 3, 8, 8)}, '"edited" equals "original"'),
    ],
)
def test_edit_refuses(change, message, scene):
    x = torch.zeros(2, 3, 8, 8)
    arguments = {"original": x, "edited": x + 1, "middle": 0.4, "steps": 4, "tau": 1.0, "seeds": [0, 1], **change}
    with pytest.raises(ValueError, match=message):
        Edit(scene.denoiser, scene.schedule, **arguments)


def test_compare_refuses_more_corrections_than_steps(scene):
    with pytest.raises(ValueError, match='"corrections" has 13'):
        compare(scene, SparseDrift(scene.reference(tile=4), scene.region), [13])


# -- what is refused ---------------------------------------------------------------------------------------------------


def reference_of(network=None, count: int = 1) -> Reference:
    conv = made(convolution)
    return Reference(network or (lambda x, t: conv(x)), [0.5], [states(count)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reference("net", [0.5], [states()]), '"drift" is a str'),  # type: ignore[arg-type]
        (lambda: Reference(lambda x, t: x, [0.5, 0.4], [states()]), '"states" has 1 entries'),
        (lambda: Reference(lambda x, t: x, [], []), '"states" has 0 entries'),
        (lambda: Reference(lambda x, t: x, [0.5], [states()[0]]), '"states" have shapes'),
        (lambda: Reference(lambda x, t: x, [0.5], [states()], tile=0), '"tile" is 0'),
        (lambda: SparseDrift(reference_of(), square(side=16)), '"mask" is torch.bool of shape'),
        (lambda: SparseDrift(reference_of(), square().float()), '"mask" is torch.float32'),
        (lambda: SparseDrift(reference_of(), square(3, 3)), '"mask" marks no pixel'),
        (lambda: SparseDrift(reference_of(), square(), margin=-1), '"margin" is -1'),
        (lambda: SparseDrift(reference_of(), square())(states(), T / 2), '"t" is 0.25'),
        (lambda: SparseDrift(reference_of(), square())(states(side=16), T), '"x" is torch.float64 of shape'),
        (lambda: SparseDrift(reference_of(), square())(states().float(), T), '"x" is torch.float32'),
        (lambda: SparseDrift(reference_of(count=2), square())(states(3), T), '"x" is torch.float64 of shape'),
        (lambda: SparseDrift(reference_of(), square())(states().requires_grad_(), T), '"x" requires a gradient'),
        (lambda: changed_region(states(), states(2)), '"edited" has shape'),
        (lambda: changed_region(states(), states(), grow=-1), '"tolerance" is 0.01 and "grow" -1'),
        (lambda: paint(states(), 0.9), '"area" is 0.9'),
    ],
)
def test_errors_are_one_sentence(make, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_that_writes_into_an_image_is_refused():
    conv = made(convolution)
    with pytest.raises(ValueError, match=r"changes an image in place by aten\.fill_"):
        reference_of(lambda x, t: conv(x).fill_(1.0))


def test_a_network_that_keeps_a_tensor_is_refused():
    conv, kept = made(convolution), []

    def drift(x: Tensor, t: Tensor) -> Tensor:
        kept.append(conv(x))
        return kept[0]

    reference_of(drift)
    with pytest.raises(ValueError, match="kept a tensor of a sparse evaluation"):
        kept[0].exp()
