"""Laws of the noise: Brownian motion, one seed a path, whatever the batch and the step size.

Statistical tests have fixed seeds and state their level.
"""

import gc
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import multilevel_sde as mls
from multilevel_sde.noise.counter import CounterNormals, hash_seeds
from multilevel_sde.noise.trees import TICKS

DOUBLE = torch.float64


def path(seeds, shape=(3,), **options):
    return mls.BrownianPath(seeds, shape=shape, **{"dtype": DOUBLE, **options})


def grid_of(steps, start=0.0, end=1.0):
    return torch.linspace(start, end, steps + 1, dtype=DOUBLE)


UNEVEN = torch.cat(
    [torch.zeros(1, dtype=DOUBLE), torch.rand(60, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)]
)
UNEVEN = UNEVEN.cumsum(0) / UNEVEN.sum()


# -- the law ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [None, grid_of(50)], ids=["stated", "given"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_increments_are_independent_normals_of_variance_dt(grid, start, end):
    times = grid_of(50, start, end)
    increments = torch.stack(list(path(range(200), (20,), grid=grid).increments(times)))
    unit = (increments / times.diff().abs().sqrt()[:, None, None]).flatten(1)  # 50 steps of 4000
    count = unit.numel()
    assert stats.kstest(unit.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(unit.mean()) < 4 / count**0.5
    assert abs(unit.square().mean() - 1) < 4 * (2 / count) ** 0.5
    assert abs(unit.pow(4).mean() - 3) < 4 * (96 / count) ** 0.5
    covariance = unit @ unit.T / unit.shape[1]
    off = (covariance - torch.eye(50, dtype=DOUBLE)) * unit.shape[1] ** 0.5
    assert off.abs().max() < 5.5  # 1275 entries, level 5e-5; the diagonal has deviation sqrt(2)


def test_every_step_has_its_variance_also_on_uneven_times():
    times = torch.tensor([-0.3, 0.0, 0.001, 0.25, 0.9, 2.5, 2.7], dtype=DOUBLE)
    increments = torch.stack(list(path(range(5000), (4,)).increments(times)))
    count = 20_000
    ratio = increments.flatten(1).square().mean(1) / times.diff()
    assert ((ratio - 1).abs() < 4 * (2 / count) ** 0.5).all()


@pytest.mark.parametrize(
    "seeds", [range(2000), range(0, 2000 << 32, 1 << 32), range(-1000, 1000)], ids=["consecutive", "high", "signed"]
)
def test_seeds_elements_and_times_are_uncorrelated(seeds):
    """Products of neighbours have mean 0: seeds, elements, steps, and four at the corners of a rectangle of them."""
    z = torch.stack(list(path(seeds, (30,)).increments(grid_of(10)))) * 10**0.5
    products = {
        "seeds": z[:, 1:] * z[:, :-1],
        "elements": z[..., 1:] * z[..., :-1],
        "steps": z[1:] * z[:-1],
        "pairs of one word": z[..., :15] * z[..., 15:],
        "corners": z[:, 1:, 1:] * z[:, :-1, 1:] * z[:, 1:, :-1] * z[:, :-1, :-1],
        "corners in time": z[1:, 1:] * z[:-1, 1:] * z[1:, :-1] * z[:-1, :-1],
    }
    for name, product in products.items():
        assert abs(product.mean()) * product.numel() ** 0.5 < 4, name
    squares = (z[:, 1:].square() - 1) * (z[:, :-1].square() - 1) / 2
    assert abs(squares.mean()) * squares.numel() ** 0.5 < 4


def test_raw_normals_reach_their_tails_and_no_further():
    z = CounterNormals(hash_seeds(range(1000)), 2001)(11, 1.0).flatten()
    count = z.numel()
    for threshold in (1.0, 2.0, 3.0, 4.0):
        for side in (z > threshold, z < -threshold):
            p = stats.norm.sf(threshold)
            assert abs(side.double().mean() - p) < 4 * (p * (1 - p) / count) ** 0.5
    assert 4.8 < z.abs().max() <= math.sqrt(62 * math.log(2)) + 1e-5
    assert z.isfinite().all()


def test_bits_of_the_words_are_fair():
    """Sines and cosines of the angle, by octant, and the radius, by quantile: chi squared at level 1e-3."""
    z = CounterNormals(hash_seeds(range(500)), 400)(torch.tensor([3, 4]), torch.ones(2)).double()
    x, y = z[..., :200].flatten(), z[..., 200:].flatten()
    octant = (torch.atan2(y, x) / (math.pi / 8)).floor().long() % 16
    assert stats.chisquare(torch.bincount(octant, minlength=16).numpy()).pvalue > 1e-3
    quantile = (torch.exp(-(x * x + y * y) / 2) * 64).long().clamp_max(63)
    assert stats.chisquare(torch.bincount(quantile, minlength=64).numpy()).pvalue > 1e-3
    both = octant * 4 + quantile // 16
    assert stats.chisquare(torch.bincount(both, minlength=64).numpy()).pvalue > 1e-3


def test_scales_scale_exactly():
    keys = hash_seeds([1, 2])
    unit = CounterNormals(keys, 5)(torch.tensor([4, 5, 6]), torch.ones(3))
    scaled = CounterNormals(keys, 5)(torch.tensor([4, 5, 6]), torch.tensor([2.0, -0.25, 1.0]))
    assert torch.equal(scaled, unit * torch.tensor([2.0, -0.25, 1.0])[:, None, None])
    assert torch.equal(CounterNormals(keys, 5)(5, -0.25)[0], scaled[1])


def test_large_seeds_and_large_nodes_are_taken_modulo_2_to_the_64():
    assert torch.equal(path([2**64 + 5])(0.0, 1.0), path([5])(0.0, 1.0))
    assert not torch.equal(path([-5])(0.0, 1.0), path([5])(0.0, 1.0))


# -- one seed, one path -----------------------------------------------------------------------------------------------

SHAPES = [(), (1,), (5,), (3, 31, 33)]


@pytest.mark.parametrize("grid", [None, grid_of(14)], ids=["stated", "given"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16])
def test_a_path_does_not_depend_on_its_batch(shape, grid, dtype):
    """Bit for bit; batches above and below the size where intervals are refined all at once, of odd sizes."""
    seeds, times = [7, -1, 10**15, *range(100, 140)], grid_of(14)
    whole = torch.stack(list(path(seeds, shape, grid=grid, dtype=dtype).increments(times)))
    assert whole.dtype == dtype
    for part in (slice(0, 1), slice(1, 4), slice(4, 43)):
        alone = torch.stack(list(path(seeds[part], shape, grid=grid, dtype=dtype).increments(times)))
        assert torch.equal(alone, whole[:, part])
    order = torch.randperm(len(seeds), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = torch.stack(list(path([seeds[i] for i in order], shape, grid=grid, dtype=dtype).increments(times)))
    assert torch.equal(shuffled, whole[:, order])


@pytest.mark.parametrize("shape", [(5,), (3, 63, 65)])
def test_a_path_does_not_depend_on_the_threads(shape):
    times = grid_of(6)
    one = torch.stack(list(path(range(9), shape, dtype=torch.float32).increments(times)))
    torch.set_num_threads(2)
    try:
        two = torch.stack(list(path(range(9), shape, dtype=torch.float32).increments(times)))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one, two)


@given(
    seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=6),
    steps=st.integers(1, 40),
    size=st.integers(1, 9),
)
def test_any_split_of_any_batch_is_the_same(seeds, steps, size):
    times = grid_of(steps)
    whole = torch.stack(list(path(seeds, (size,)).increments(times)))
    alone = [torch.stack(list(path([seed], (size,)).increments(times)))[:, 0] for seed in seeds]
    assert torch.equal(whole, torch.stack(alone, dim=1))


def test_equal_seeds_are_equal_paths_and_others_are_not():
    increment = path([3, 4, 3])(0.0, 0.5)
    assert torch.equal(increment[0], increment[2])
    assert not torch.equal(increment[0], increment[1])


def test_half_precision_is_the_rounded_path():
    times = grid_of(20)
    for dtype in (torch.bfloat16, torch.float16):
        for low, full in zip(
            path([1, 2], dtype=dtype).increments(times),
            path([1, 2], dtype=torch.float32).increments(times),
            strict=True,
        ):
            assert torch.equal(low, full.to(dtype))


def test_the_path_of_a_seed_stays_what_it_is():
    """The same in every release and on every machine, to the rounding of logarithm and cosine."""
    seeds = [0, 1, -7]
    stated = [
        [0.0343199, -0.1839927, -0.1887206],
        [0.0473291, 0.0559710, -0.1418224],
        [0.0988876, 0.1564704, -0.0521996],
    ]
    given = [
        [-0.7842490, -2.5993551, 0.4118261],
        [0.8039852, -0.9751733, -2.0439745],
        [0.2521991, 1.4682954, 0.0062008],
    ]
    torch.testing.assert_close(path(seeds)(0.35, 0.36), torch.tensor(stated, dtype=DOUBLE), rtol=0, atol=1e-6)
    on_grid = path(seeds, grid=[0.0, 0.5, 2.0])(0.0, 2.0)
    torch.testing.assert_close(on_grid, torch.tensor(given, dtype=DOUBLE), rtol=0, atol=1e-6)


def test_a_path_keeps_no_state_and_uses_no_global_one():
    noise, state = path([1]), torch.random.get_rng_state()
    first = noise(0.25, 0.5)
    noise(0.0, 1.0)
    assert torch.equal(noise(0.25, 0.5), first)
    torch.manual_seed(5)
    assert torch.equal(noise(0.25, 0.5), first)
    torch.random.set_rng_state(state)


# -- refinement -------------------------------------------------------------------------------------------------------


def assert_nested(coarse, fine, coarse_times, fine_times, tolerance=1e-12):
    """Every coarse increment is the sum of the fine ones inside."""
    fine = torch.stack(list(fine.increments(fine_times)))
    total = torch.cat([torch.zeros_like(fine[:1]), fine.cumsum(0)])
    place = [int((fine_times - time).abs().argmin()) for time in coarse_times]
    for n, increment in enumerate(coarse.increments(coarse_times)):
        torch.testing.assert_close(increment, total[place[n + 1]] - total[place[n]], rtol=0, atol=tolerance)


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(
    ("coarse", "fine"),
    [
        (1, 10),
        (10, 100),
        (7, 35),
        (20, 1000),
        (50, 500),
        (64, 128),
        (1, 256),
        (11, 33),
        (125, 250),
        (8, 1000),
        (3, 999),
    ],
)
def test_a_coarse_increment_is_the_sum_of_the_fine_ones(coarse, fine, down):
    ends = (1.0, 0.0) if down else (0.0, 1.0)
    coarse_times, fine_times = grid_of(coarse, *ends), grid_of(fine, *ends)
    noise = path([1, 2])  # thirds, sevenths and elevenths are rounded to the same ticks in both grids
    assert_nested(noise, noise, coarse_times, fine_times)


@given(
    cuts=st.lists(st.integers(-1_500_000, 2_500_000), min_size=3, max_size=40, unique=True),
    keep=st.integers(2, 5),
    down=st.booleans(),
)
def test_any_sub_grid_of_ticks_sees_the_same_path(cuts, keep, down):
    fine = torch.tensor(sorted(cuts, reverse=down), dtype=DOUBLE) / 1_024_000
    coarse = fine[torch.linspace(0, len(fine) - 1, min(keep, len(fine))).long()]
    noise = path([5], (2,))
    assert_nested(noise, noise, coarse, fine)


@pytest.mark.parametrize("down", [False, True])
def test_a_given_grid_can_be_uneven(down):
    fine_times = UNEVEN.flip(0) if down else UNEVEN
    coarse_times = fine_times[[0, 1, 5, 30, 31, 60]]
    for grid in (UNEVEN, UNEVEN.flip(0)):
        noise = path([1, 2], grid=grid)
        assert_nested(noise, noise, coarse_times, fine_times)
        variance = torch.stack(list(path(range(4000), (4,), grid=grid).increments(coarse_times))).flatten(1).var(1)
        ratio = variance / coarse_times.diff().abs()
        assert ((ratio - 1).abs() < 4 * (2 / 16_000) ** 0.5).all()


@pytest.mark.parametrize("grid", [None, UNEVEN], ids=["stated", "given"])
def test_going_down_is_minus_going_up(grid):
    times = grid_of(40) if grid is None else UNEVEN
    noise = path([1, 2], grid=grid)
    up, down = list(noise.increments(times)), list(noise.increments(times.flip(0)))
    for a, b in zip(up, reversed(down), strict=True):
        torch.testing.assert_close(a, -b, rtol=0, atol=1e-14)


def test_single_calls_are_additive_and_agree_with_increments_in_a_row():
    noise, times = path([1, 2]), [0.0, 0.1, 0.35, 1.0, 1.5]
    for (t, s), increment in zip(itertools.pairwise(times), noise.increments(times), strict=True):
        torch.testing.assert_close(noise(t, s), increment, rtol=0, atol=1e-13)
    torch.testing.assert_close(noise(0.1, 0.35) + noise(0.35, 1.5), noise(0.1, 1.5), rtol=0, atol=1e-13)


@pytest.mark.parametrize("unit", [0.01, 7.0, 1000.0])
def test_the_unit_is_a_length_of_time(unit):
    times = grid_of(10, 0.0, unit)
    increments = torch.stack(list(path(range(4000), (4,), unit=unit).increments(times))).flatten(1)
    assert ((increments.var(1) / (unit / 10) - 1).abs() < 4 * (2 / 16_000) ** 0.5).all()
    assert_nested(path([1], unit=unit), path([1], unit=unit), times[[0, 5, 10]], times, 1e-10)


def test_float32_times_round_to_the_same_path():
    times = torch.linspace(0.0, 1.0, 1001)
    for a, b in zip(path([1]).increments(times), path([1]).increments(grid_of(1000)), strict=True):
        assert torch.equal(a, b)


def test_small_steps_keep_their_digits_in_float32():
    times = torch.arange(101, dtype=DOUBLE) / 1_024_000 + 0.7
    single = torch.stack(list(path([1], dtype=torch.float32).increments(times)))
    double = torch.stack(list(path([1]).increments(times)))
    scale = (1 / 1_024_000) ** 0.5
    assert ((single - double).abs() < 1e-4 * scale).all()


def large_storages(size):
    """Number of live pieces of memory of tensors with at least so many elements."""
    tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.numel() >= size]
    return len({tensor.untyped_storage().data_ptr() for tensor in tensors})


def test_memory_is_of_the_depth_not_of_the_steps():
    """Large states are refined one by one: what is alive does not grow with the number of steps."""
    size, most = 140_000, []
    for steps in (20, 200):
        increments = path([1], (size,), dtype=torch.float32).increments(grid_of(steps))
        most.append(max(large_storages(size) for n, _ in enumerate(increments) if n % (steps // 10) == 0))
    assert most[1] <= most[0] + 8  # four more splits, two halves each
    assert most[1] <= 32


# -- use in solve -----------------------------------------------------------------------------------------------------


def test_like_takes_shape_dtype_and_checks_the_batch():
    noise = mls.BrownianPath([1, 2, 3])
    y = torch.zeros(3, 2, 2, dtype=DOUBLE)
    assert noise.like(y)(0.0, 1.0).shape == y.shape
    assert noise.like(y)(0.0, 1.0).dtype == DOUBLE
    assert mls.BrownianPath([1, 2, 3], shape=(7,)).like(y)(0.0, 1.0).shape == (3, 7)


def test_increments_may_be_changed_in_place_by_their_owner():
    times = grid_of(6)
    expected = [increment.clone() for increment in path([1]).increments(times)]
    changed = []
    for increment in path([1]).increments(times):
        changed.append(increment.clone())
        increment.mul_(0.0)
    assert torch.equal(torch.stack(expected), torch.stack(changed))


# -- near the tick ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ticks", [0.4, 0.92, 1.024, 1.23, 4.5])
def test_steps_that_rounding_would_make_much_longer_are_refused(ticks):
    times = torch.arange(50, dtype=DOUBLE) * (ticks / TICKS)
    with pytest.raises(ValueError, match=r'"times" have a step of .* ticks .* give the path grid=times'):
        path([0]).increments(times).__next__()
    assert len(list(path([0], grid=times).increments(times))) == 49


def test_steps_that_rounding_makes_somewhat_longer_are_warned_of():
    times = torch.tensor([0.0, 0.5, 0.5 + 20.4 / TICKS, 1.0], dtype=DOUBLE)
    with pytest.warns(UserWarning, match=r"at index 1, which is 20.4 ticks .* off by 2%; give the path grid=times"):
        list(path([0]).increments(times))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ticks", [1, 7, 20, 100.5, 317.3])
def test_steps_that_rounding_leaves_are_not_warned_of(ticks):
    """Steps of whole ticks have their own length however short, others from about 100 ticks on."""
    times = torch.arange(-30, 30, dtype=DOUBLE) * (ticks / TICKS)
    list(path([0]).increments(times))
    list(path([0]).increments(times.flip(0)))
    variance = torch.stack(list(path(range(400), shape=(10,)).increments(times))).square().mean()
    assert float(variance) == pytest.approx(ticks / TICKS, rel=0.02)


# -- no samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [None, grid_of(4)])
def test_a_path_without_samples_has_empty_increments(grid):
    none = path([], grid=grid)
    assert none(0.0, 0.5).shape == (0, 3)
    assert [increment.shape for increment in none.increments(grid_of(4))] == [(0, 3)] * 4
    assert none(0.0, 0.5).dtype == DOUBLE
    assert mls.seeded_normal([], (2,)).shape == (0, 2)


@pytest.mark.parametrize("diffusion", [None, 0.5, lambda t: t, lambda y, t: y])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_an_empty_batch_is_solved_with_noise_as_without(diffusion, shape):
    ladder, times = mls.Ladder([lambda y, t: -y], costs=[1.0]), grid_of(5)
    noise = {} if diffusion is None else {"diffusion": diffusion, "brownian": path(range(shape[0]), shape=None)}
    y0, plan = torch.ones(shape, dtype=DOUBLE), mls.em_plan(ladder, times)
    assert mls.solve(ladder, y0, times, plan, **noise).y.shape == shape
