"""Laws of memory: a solve holds the states that its step needs, however many steps and whatever it looks at."""

import gc
import importlib
import tracemalloc

import pytest
import torch

import multilevel_sde as mls
from multilevel_sde.noise import counter
from multilevel_sde.solver.finite import is_finite

BATCH, SIZE = 16, 1 << 16  # above what is kept or drawn for several steps at a time, and the scratch of a draw
STATE = 4 * BATCH * SIZE  # bytes


@pytest.fixture(scope="module")
def growth():
    """The benchmark, whose counter of live memory is used."""
    return importlib.import_module("benchmarks.growth.bench_growth")


@pytest.fixture(autouse=True)
def _no_collector():
    """What only the cycle collector frees counts as alive."""
    gc.disable()
    yield
    gc.enable()


def most_states(growth, **arguments):
    """Largest number of pieces of memory of a state's size that are alive at once, beside y0."""
    y0 = torch.ones(BATCH, SIZE)
    with growth.LiveBytes([y0], least=STATE) as count:
        mls.solve(y0=y0, **arguments)
    return count.peak / STATE


def test_the_counter_counts_what_is_alive(growth):
    known = torch.ones(1000)
    with growth.LiveBytes([known], least=400) as count:
        view = known[:500]
        a = view + 1  # 2000 bytes
        b = a * 2  # 4000
        a.add_(1)
        del a
        c = b.view(2, 250)
        small = torch.ones(99)  # below the least
        assert count.now == 2000
        d = torch.cat([b, b])  # 2000 + 4000
        del b, c
        assert count.now == 4000
    assert count.peak == 6000
    assert len(d) + len(small) == 1099


def fresh(t, s):
    """A noise that keeps nothing."""
    return torch.zeros(BATCH, SIZE)


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize(("noisy", "states"), [(False, 3), (True, 4)])
def test_a_step_holds_the_state_its_drift_and_the_next_state_and_noise(growth, steps, noisy, states):
    """y_n, f(y_n), y_{n+1}, and the noise: nothing of an earlier step, and no copy to return the last."""
    _, arguments = growth.Size(BATCH, SIZE, steps, noisy=noisy).solver()
    noise = {"brownian": fresh} if noisy else {}
    assert most_states(growth, **arguments | noise) == states


class Once(mls.StepRule):
    """Euler-Maruyama as a rule."""

    def evaluations(self, times):
        return [1] * (len(times) - 1)

    def start(self, times):
        return lambda y, F, t, s, noise: mls.euler_maruyama(y, F(y, t), t, s, noise)


def test_a_rule_holds_as_much_as_a_step(growth):
    _, arguments = growth.Size(BATCH, SIZE, 4, noisy=True).solver()
    assert most_states(growth, **arguments | {"brownian": fresh}, step=Once()) == 4


def test_the_last_state_is_not_copied_but_y0_is(growth):
    y0, arguments = growth.Size(2, 3, 4).solver()
    alone = mls.solve(y0=y0, **arguments)
    assert alone.ys.data_ptr() == alone.y.data_ptr()
    first = mls.solve(y0=y0, **arguments, save=[0])
    assert torch.equal(first.ys[0], y0)
    assert first.ys.data_ptr() != y0.data_ptr()


@pytest.mark.parametrize("levels", [2, 4])
def test_a_ladder_holds_one_value_more_for_each_level(growth, levels):
    """y_n, K values, the two sums that make the estimate or the estimate and y_{n+1}."""
    _, arguments = growth.Size(BATCH, SIZE, 20, levels).solver()
    assert most_states(growth, **arguments) == levels + 3


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize(("steps", "splits"), [(10, 4), (50, 7), (128, 9)])
def test_a_path_holds_one_state_for_each_split_above(growth, stated, steps, splits):
    """Beside two states of the step the halves that wait, one for each split above, and what is split."""
    _, arguments = growth.Size(BATCH, SIZE, steps, noisy=True).solver()
    noise = {"brownian": mls.BrownianPath(range(BATCH))} if stated else {}
    assert most_states(growth, **arguments | noise) <= 2 + splits + 1


@pytest.mark.parametrize("noisy", [False, True])
def test_all_memory_grows_with_the_steps_by_the_plan_and_the_grid_alone(growth, noisy):
    """With everything counted, small tensors too: some tens of bytes a step, beside 16 KiB for a state."""
    few, many = (growth.live_peak(growth.Size(1, 4096, steps, noisy=noisy)) for steps in (600, 6000))
    assert many - few < 100 * 5400


def test_a_large_path_is_refined_backwards_too():
    """Node by node, as no state of this size is refined at once."""
    path, times = mls.BrownianPath([1], shape=(1 << 18,)), [0.0, 0.1, 0.35, 0.5, 1.2]
    forward, backward = list(path.increments(times)), list(path.increments(times[::-1]))
    for there, back in zip(forward, reversed(backward), strict=True):
        assert torch.allclose(there, -back, atol=1e-6)


SINGLE = 1 << 21  # numbers of one sample: 16 pieces


@pytest.mark.parametrize("kept", [0, SINGLE])
def test_one_large_sample_is_drawn_in_pieces_of_the_same_numbers(growth, kept, monkeypatch):
    """Beside the normals a sixth for the piece at hand; the keys of elements, twice a state, are not all kept."""
    monkeypatch.setattr(counter, "_KEPT", kept)
    keys = counter.hash_seeds([7])
    with growth.LiveBytes() as count:
        drawn = counter.CounterNormals(keys, SINGLE + 3)(5, 0.5)
    assert count.peak / (4 * SINGLE) < (5 if kept else 1.4)
    monkeypatch.setattr(counter, "_BLOCK", SINGLE)
    assert torch.equal(drawn, counter.CounterNormals(keys, SINGLE + 3)(5, 0.5))


def test_small_states_that_are_looked_at_together_are_few(growth):
    """32 states and their drifts, and those that stack them."""
    size = 1024
    few, many = (growth.live_peak(growth.Size(1, size, steps), least=4 * size) for steps in (50, 250))
    assert few == many
    assert many <= (2 * 32 + 32 + 3) * 4 * size


@pytest.mark.parametrize("stated", [False, True])
def test_python_keeps_less_than_ten_bytes_of_a_step_of_noise(stated):
    steps = 20_000
    times = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    path = mls.BrownianPath([1], shape=(1 << 17,), grid=None if stated else times)
    next(path.increments(times[:100]))
    tracemalloc.start()
    try:
        next(path.increments(times))
        assert tracemalloc.get_traced_memory()[1] < 10 * steps
    finally:
        tracemalloc.stop()


def test_a_check_for_nan_makes_no_copy(growth):
    y = torch.ones(BATCH, SIZE)
    with growth.LiveBytes([y], least=STATE // 8) as count:
        assert is_finite(y)
    assert count.peak == 0
