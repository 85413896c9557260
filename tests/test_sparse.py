"""Laws of the sparse level: what it must equal, and where it may differ from the dense network."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion.sparse import Reference, SparseDrift, changed_region
from multilevel_diffusion.sparse_edit import Edit, compare, paint
from multilevel_diffusion.sparse_layout import Geometry, tile_at
from multilevel_diffusion.store import load_ladder, shipped_ladder
from multilevel_diffusion.unet import UNet, UNetConfig

T = torch.tensor(0.5, dtype=torch.float64)
ROUNDING = 1e-13  # float64, of the largest output
BY_TILES = 2.0  # as dense_above: never run a resolution as a whole


class Everything(nn.Module):
    """What sparse runs know: strides, dilation, groups, affine group norms, both upsamplings, skips, in-place forms."""

    def __init__(self, extent: int = 2):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8)
        self.down, self.short = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(8, 12, 1, stride=2)
        self.middle = nn.Sequential(nn.GroupNorm(3, 12), nn.SiLU(inplace=True), nn.Conv2d(12, 12, 1, groups=2))
        self.shrink = nn.Conv2d(12, 8, 2, stride=2)
        self.grow = nn.ConvTranspose2d(8, 8, extent, stride=2, padding=(extent - 2) // 2)
        self.wider = nn.Sequential(nn.Conv2d(8, 8, 1, padding=1), nn.Conv2d(8, 8, 3))
        self.out = nn.Conv2d(16 + 12, 3, 3, padding=1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale = (1 + t.to(x.dtype)).reshape(1, 1, 1, 1).expand(len(x), 8, 1, 1)
        h = F.gelu(self.norm(self.stem(x)) * scale)
        h = self.wider(h + self.depthwise(h))
        low = self.middle(self.down(h)) + self.short(h)
        lower = self.between(self.shrink(low))
        low = torch.cat([F.interpolate(low, scale_factor=2.0), F.interpolate(self.grow(lower), scale_factor=2.0)], 1)
        return self.out(torch.cat([h, low], dim=1)) - 0.5 * torch.sigmoid(x)


class Attention(Everything):
    """With operations that need whole images."""

    def between(self, h: Tensor) -> Tensor:
        h = h * torch.sigmoid(self.wider[0](h.mean((2, 3), keepdim=True))[:, :, 1:2, 1:2])
        h = h * torch.sigmoid(F.conv2d(h.mean((2, 3), keepdim=True), self.wider[0].weight))
        tokens = h.flatten(2).transpose(1, 2)
        tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
        h = h + tokens.transpose(1, 2).reshape(h.shape)
        return F.pad(h, (0, 1, 0, 1), mode="replicate")[:, :, 1:, 1:] * h.mean((2, 3), keepdim=True)


def unet() -> UNet:
    net = UNet(UNetConfig(base_dim=4, bottom_depth=1, mid_depth=1, levels=2, image_size=32))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


class OtherBatches(Everything):
    """With convolutions of one tensor for all images, and of two copies of each."""

    def between(self, h: Tensor) -> Tensor:
        shared = self.short(torch.ones(1, 8, 2 * h.shape[2], 2 * h.shape[3], dtype=h.dtype))[:, :8]
        both = self.stem(torch.cat([h, -h])[:, :3])
        return both.chunk(2)[1] * shared


NETWORKS = {
    "unet": unet,
    "everything": Everything,
    "overlapping": lambda: Everything(4),
    "attention": Attention,
    "batches": OtherBatches,
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """A float64 network with weights from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make().double().eval().requires_grad_(False)


@pytest.fixture(params=NETWORKS)
def net(request):
    return made(NETWORKS[request.param])


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal up to rounding."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= ROUNDING * expected.abs().max()


def convolution() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1)


def states(batch: int = 1, side: int = 32) -> Tensor:
    return torch.randn(batch, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def square(first: int = 9, last: int = 13, side: int = 32) -> Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[first:last, first:last] = True
    return mask


def edited(x: Tensor, mask: Tensor) -> Tensor:
    return x + mask * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))


# -- what equals the dense network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [1, 2, 4, 8])
def test_all_tiles_active_is_the_dense_network_to_rounding(net, tile):
    x = states(2)
    sparse = SparseDrift(Reference(net, [0.5], [x], tile=tile), torch.ones(32, 32).bool(), dense_above=BY_TILES)
    y = states(4)[2:]
    assert_same(sparse(y, T), net(y, T))


def test_all_tiles_active_run_as_a_whole_is_the_dense_network_bit_for_bit(net):
    sparse = SparseDrift(Reference(net, [0.5], [states()]), torch.ones(32, 32).bool())
    y = states(2)[1:]
    assert torch.equal(sparse(y, T), net(y, T))


@pytest.mark.parametrize("tile", [2, 4])
def test_at_the_reference_it_is_the_dense_network(net, tile):
    x = states(2)
    sparse = SparseDrift(Reference(net, [0.5], [x], tile=tile), square(), dense_above=BY_TILES)
    assert min(sparse.shares().values()) < 0.3
    assert_same(sparse(x, T), net(x, T))


@pytest.mark.parametrize("shape", [(32, 24), (8, 40)])
def test_rectangular_images(shape):
    net, x, mask = made(Everything), states(side=40)[..., : shape[0], : shape[1]], square(side=40)
    mask = mask[: shape[0], : shape[1]].clone()
    mask[3, 1] = True
    reference = Reference(net, [0.5], [x])
    sparse = SparseDrift(reference, mask, dense_above=BY_TILES)
    assert_same(sparse(x, T), net(x, T))
    y = edited(x, mask)
    everywhere = SparseDrift(reference, torch.ones_like(mask), dense_above=BY_TILES)
    assert_same(everywhere(y, T), net(y, T))


class TwoConvolutions(nn.Module):
    """Reads two pixels away."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.b(F.silu(self.a(x)))


@pytest.mark.parametrize(("margin", "exact"), [(2, True), (1, False)])
def test_exact_where_the_margin_covers_what_the_network_reads(margin, exact):
    net, x, mask = made(TwoConvolutions), states(), square()
    y = edited(x, mask)
    sparse = SparseDrift(Reference(net, [0.5], [x], tile=1), mask, margin=margin)
    error = (sparse(y, T) - net(y, T)).abs().max()
    assert bool(error < ROUNDING * net(y, T).abs().max()) is exact
    assert error < (net(x, T) - net(y, T)).abs().max()


def test_an_edit_at_the_border_reads_zeros_outside():
    net, x, mask = made(TwoConvolutions), states(), square(0, 3)
    y = edited(x, mask)
    sparse = SparseDrift(Reference(net, [0.5], [x]), mask, margin=2)
    assert_same(sparse(y, T), net(y, T))


# -- what it is elsewhere ----------------------------------------------------------------------------------------------


def test_outside_the_tiles_the_network_is_the_references_and_the_input_its_own():
    conv, x, mask = made(convolution), states(), square(8, 12)
    y = states(2)[1:]
    out = SparseDrift(Reference(lambda x, t: 2 * x + conv(x), [0.5], [x]), mask, margin=0)(y, T)
    active = square(8, 12)[None, None]
    assert_same(out, 2 * y + torch.where(active, conv(y), conv(x)))


def normalised() -> nn.Sequential:
    norm = nn.GroupNorm(2, 6, eps=0.1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Conv2d(3, 6, 1), norm, nn.Conv2d(6, 3, 1))


@pytest.mark.parametrize("update", [True, False])
def test_group_normalisation_of_the_composite_or_by_the_references_numbers(update):
    net = made(normalised)
    x, mask = states(2), square(8, 16)
    y = 3 + 2 * edited(x, mask)
    sparse = SparseDrift(Reference(lambda x, t: net(x), [0.5], [x]), mask, margin=0, update_statistics=update)
    composite = torch.where(mask, net[0](y), net[0](x))
    if update:
        expected = net[2](net[1](composite))
    else:
        groups = net[0](x).view(2, 2, -1)
        mean, variance = groups.mean(2), groups.var(2, correction=0)
        mean, deviation = (v.repeat_interleave(3, 1)[:, :, None, None] for v in (mean, (variance + 0.1).sqrt()))
        affine = net[1].weight[:, None, None] * (composite - mean) / deviation + net[1].bias[:, None, None]
        expected = net[2](affine)
    expected = torch.where(mask, expected, net(x))
    assert_same(sparse(y, T), expected)


def test_a_wider_margin_errs_less():
    x, mask = states(), square()
    network, y = made(unet), edited(x, mask)
    reference = Reference(network, [0.5], [x], tile=1)
    errors = [
        float((SparseDrift(reference, mask, margin=margin)(y, T) - network(y, T)).square().mean())
        for margin in (0, 1, 3)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


# -- batches, times, costs ---------------------------------------------------------------------------------------------


def test_images_of_a_batch_have_their_own_masks_and_copies_their_own_values(net):
    x = states(2)
    masks = torch.stack([square(2, 6), square(20, 29)])
    both = SparseDrift(Reference(net, [0.5], [x]), masks, dense_above=BY_TILES)
    y = torch.cat([edited(x, masks[:, None]), x + masks[:, None]])
    out = both(y, T)
    for image in range(4):
        alone = Reference(net, [0.5], [x[image % 2 : image % 2 + 1]])
        expected = SparseDrift(alone, masks[image % 2], dense_above=BY_TILES)(y[image : image + 1], T)
        assert_same(out[image : image + 1], expected)


def test_each_time_has_its_reference_and_evaluations_leave_it_alone(net):
    path, mask = [states(2)[:1], states(2)[1:]], square()
    sparse = SparseDrift(Reference(net, [0.75, 0.5], path), mask)
    first = sparse(path[1], T)
    sparse(edited(path[0], mask), torch.tensor(0.75, dtype=torch.float64))
    assert torch.equal(sparse(path[1], T), first)
    assert_same(first, net(path[1], T))


def test_flops_of_convolutions_are_the_active_share_of_the_dense_ones():
    network, x, mask = made(TwoConvolutions).float(), states().float(), square(8, 12)
    sparse = SparseDrift(Reference(network, [0.5], [x]), mask, margin=0)
    costs = mls.FlopCost(x, t=0.5)([sparse, network])
    assert sparse.shares() == {(32, 32): 1 / 64}
    assert costs[0] == costs[1] / 64


def test_a_resolution_above_the_share_runs_as_a_whole():
    mask = square(0, 16)[None]
    assert Geometry(mask, 1, 4, 0, 0.25).layout((32, 32)) is not None
    assert Geometry(mask, 1, 4, 0, 0.24).layout((32, 32)) is None
    assert Geometry(mask, 1, 4, 0, 0.24).layout((1, 1)) is None


def test_tiles_divide_every_resolution():
    assert [tile_at(4, size) for size in [(32, 32), (6, 8), (7, 7)]] == [4, 2, 1]


def test_what_is_kept_for_an_edit_is_small_and_outlives_the_reference(net):
    x, mask = states(), square()
    reference = Reference(net, [0.5], [x])
    sparse = SparseDrift(reference, mask)
    before = sparse(edited(x, mask), T)
    assert sparse.memory < reference.memory
    again = Reference(net, [0.5], [x], keep=False)
    assert again.memory == 8 * x.numel()
    assert torch.equal(SparseDrift(again, mask)(edited(x, mask), T), before)
    for slot in reference.tape(0).values():
        (slot if isinstance(slot, Tensor) else slot.sums).fill_(torch.nan)
    assert torch.equal(sparse(edited(x, mask), T), before)


def test_inference_mode_and_float32(net):
    network, x, mask = net.float(), states().float(), square()
    sparse = SparseDrift(Reference(network, [0.5], [x]), mask)
    outside = sparse(x, T)
    with torch.inference_mode():
        assert torch.equal(sparse(x, T), outside)
    assert outside.dtype == torch.float32
    assert outside.is_contiguous()
    torch.testing.assert_close(outside, network(x, T), rtol=1e-4, atol=1e-4)


def test_a_unet_of_diffusers_with_attention():
    diffusers = pytest.importorskip("diffusers")
    shape = {
        "sample_size": 32,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    model = made(lambda: diffusers.UNet2DModel(**shape))

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t * 1000).sample

    x, mask = states(), square()
    reference = Reference(drift, [0.5], [x])
    y = edited(x, mask)
    everywhere = SparseDrift(reference, torch.ones(32, 32).bool(), dense_above=BY_TILES)
    assert_same(everywhere(y, T), drift(y, T))
    sparse = SparseDrift(reference, mask)
    assert_same(sparse(x, T), drift(x, T))
    assert mls.FlopCost(x, t=0.5)([sparse])[0] < 0.7 * mls.FlopCost(x, t=0.5)([drift])[0]


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
