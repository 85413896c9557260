"""Laws of the sparse level: what it must equal, and where it may differ from the dense network."""

import pytest
import torch
import torch.nn.functional as F
from sparse_networks import NETWORKS, Everything, T, convolution, edited, made, square, states, unet
from torch import Tensor, nn

import multilevel_sde as mls
from multilevel_diffusion.sparse.drift import Reference, SparseDrift
from multilevel_diffusion.sparse.layout import Geometry, tile_at

ROUNDING = 1e-13  # float64, of the largest output
BY_TILES = 2.0  # as dense_above: never run a resolution as a whole


@pytest.fixture(params=NETWORKS)
def net(request):
    return made(NETWORKS[request.param])


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal up to rounding."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= ROUNDING * expected.abs().max()


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
