"""Laws of the loop's states: any shape and precision, saved where asked, gradients, and memory."""

import gc
import math

import pytest
import torch
from counted_drifts import DOUBLE, TIMES, draw, ladder_of

import multilevel_sde as mls
from multilevel_sde.solver import estimators, loop

# -- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 0), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE])
def test_states_of_any_shape_and_precision(shape, dtype):
    y0 = torch.linspace(0.1, 1.0, math.prod(shape)).reshape(shape).to(dtype)
    for samples in [None, shape[0]] if shape else [None]:
        noise = {"diffusion": 0.1, "brownian": mls.BrownianPath(range(shape[0]))} if shape else {}
        solution = mls.solve(ladder_of(), y0, TIMES, draw(samples=samples), save=True, **noise)
        assert solution.y.shape == shape
        assert solution.ys.shape == (21, *shape)
        assert solution.y.dtype == solution.ys.dtype == dtype
        assert solution.y.isfinite().all()


def test_low_precision_is_close_to_double():
    y0, plan, noise = (
        torch.linspace(-1.0, 1.0, 8, dtype=DOUBLE),
        draw(),
        {"diffusion": 0.3, "brownian": mls.BrownianPath(range(8))},
    )
    exact = mls.solve(ladder_of(), y0, TIMES, plan, **noise).y
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        y = mls.solve(ladder_of(), y0.to(dtype), TIMES, plan, **noise).y
        assert (y.double() - exact).abs().max() < tolerance


def test_the_initial_state_is_not_changed():
    y0 = torch.ones(3)
    mls.solve(ladder_of(), y0, TIMES, draw(), diffusion=1.0, brownian=mls.BrownianPath(range(3)))
    assert (y0 == 1).all()


def test_saved_states():
    ladder, y0, plan = ladder_of(), torch.ones(2), draw()
    everything = mls.solve(ladder, y0, TIMES, plan, save=True)
    assert torch.equal(everything.times, TIMES)
    assert torch.equal(everything.ys[0], y0)
    assert torch.equal(everything.ys[-1], everything.y)
    chosen = mls.solve(ladder, y0, TIMES, plan, save=[-1, 0, 7, 7])
    assert torch.equal(chosen.ys, everything.ys[[0, 7, 20]])
    assert torch.equal(chosen.times, TIMES[[0, 7, 20]])
    some = mls.solve(ladder, y0, TIMES, plan, save=[3])
    assert torch.equal(some.ys, everything.ys[3:4])
    assert torch.equal(some.y, everything.y)
    last = mls.solve(ladder, y0, TIMES, plan)
    assert torch.equal(last.ys, everything.y[None])
    assert torch.equal(last.times, TIMES[-1:])
    assert last.times.data_ptr() != TIMES[-1:].data_ptr()


def test_times_are_cut_into_blocks_without_a_seam(monkeypatch):
    ladder, plan, y0 = ladder_of(), draw(), torch.ones(3)
    noise = {"diffusion": 0.5, "brownian": mls.BrownianPath(range(3))}
    whole = mls.solve(ladder, y0, TIMES, plan, save=True, **noise).ys
    for module in (estimators, loop):
        monkeypatch.setattr(module, "_BLOCK", 7)
    assert torch.equal(mls.solve(ladder, y0, TIMES, plan, save=True, **noise).ys, whole)
    own = draw(samples=3)
    cut = mls.solve(ladder, y0, TIMES, own, **noise).y
    monkeypatch.undo()
    assert torch.equal(mls.solve(ladder, y0, TIMES, own, **noise).y, cut)


HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("step", [mls.euler_maruyama, mls.Heun(), mls.AdamsBashforth(2)], ids=["euler", "heun", "ab2"])
@pytest.mark.parametrize("noisy", [False, True])
def test_states_of_16_bits_do_not_stand_still(dtype, step, noisy):
    """A thousand steps, each below the resolution of the state: close to float32, not to the start."""
    seen, times = set(), torch.linspace(0.0, 1.0, 1001)

    def drift(y, t):
        seen.add(y.dtype)
        return -y

    ladder, noise = mls.Ladder([drift], costs=[1.0]), {}
    if noisy:
        noise = {"diffusion": 0.3, "brownian": mls.BrownianPath(range(4), grid=times)}
    plan, y0 = mls.em_plan(ladder, times, step=step), torch.linspace(0.5, 2.0, 4)
    exact = mls.solve(ladder, y0, times, plan, step=step, **noise).y
    seen.clear()
    solution = mls.solve(ladder, y0.to(dtype), times, plan, step=step, save=[0, 500, 1000], **noise)
    assert seen == {dtype}
    assert solution.y.dtype == solution.ys.dtype == dtype
    assert torch.equal(solution.ys[0], y0.to(dtype))
    assert torch.equal(solution.ys[-1], solution.y)
    assert (solution.y.float() - exact).abs().max() < 3 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("samples", [None, 64])
def test_weighted_sums_of_16_bits_are_rounded_once(dtype, samples):
    values = {0: torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).to(dtype)}
    values[1] = (values[0] * 1.01).to(dtype)
    exact = -49 * values[0].double() + 50 * values[1].double()
    shape = (1, 2) if samples is None else (1, samples, 2)
    plan = mls.Plan(torch.ones(shape, dtype=torch.bool), torch.tensor([1.0, 50.0]).expand(shape))
    found = mls.Telescoping().start(plan)(0, values)
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    recall = mls.Recall([(1, 0, 0, -49.0), (1, 1, 0, 50.0)])
    plan = mls.Plan(torch.ones(2, 2, dtype=torch.bool), torch.tensor([[1.0, 1.0], [1.0, 0.0]]), recall=recall)
    assert (_recalled(plan, values).double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def _recalled(plan, values):
    """What the second step makes of the first one's values alone."""
    combine = mls.Telescoping().start(plan)
    combine(0, values)
    return combine(1, {0: torch.zeros_like(values[0])})


def test_a_half_state_beyond_its_range_is_not_completed():
    ladder = mls.Ladder([lambda y, t: torch.full_like(y, 6e4)], costs=[1.0])
    times = torch.linspace(0.0, 2.0, 11)
    with pytest.raises(mls.NonFiniteError, match="the state was not finite after step 5"):
        mls.solve(ladder, torch.zeros(2, dtype=torch.float16), times, mls.em_plan(ladder, times))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_kind_of_diffusion_takes_a_half_state(dtype):
    path, g = mls.BrownianPath(range(3)), torch.full((2, 2), 0.5, dtype=dtype)
    ladder, seen = mls.Ladder([lambda y, t: -y], costs=[1.0]), set()
    kinds = [
        0.5,
        torch.tensor(0.5, dtype=dtype),
        lambda t: 0.5,
        lambda y, t: (seen.add(y.dtype), torch.full_like(y, 0.5))[1],
        mls.NoiseTerm(lambda y, t, dW: dW @ g),
    ]
    for kind in kinds:
        noise = {"diffusion": kind, "brownian": path}
        y = mls.solve(ladder, torch.ones(3, 2, dtype=dtype), TIMES, mls.em_plan(ladder, TIMES), **noise).y
        assert y.dtype == dtype
    assert seen == {dtype}


def test_gradients_of_a_half_state_are_close_to_those_of_float32():
    ladder = mls.Ladder([lambda y, t: -y], costs=[1.0])
    y0 = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    mls.solve(ladder, y0, TIMES, mls.em_plan(ladder, TIMES)).y.sum().backward()
    assert y0.grad.dtype == torch.bfloat16
    assert float(y0.grad[0]) == pytest.approx((1 - 1 / 20) ** 20, rel=0.02)


# -- gradients and memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [None, 2])
def test_gradients_are_those_of_finite_differences(samples):
    a = torch.tensor([0.7, -0.4], dtype=DOUBLE, requires_grad=True)
    times = torch.linspace(0.0, 1.0, 6, dtype=DOUBLE)
    plan = draw(mls.independent, samples=samples, table=torch.tensor([1.0, 0.5]), steps=5)

    def end(y0, a):
        ladder = mls.Ladder([lambda x, t: a[0] * x, lambda x, t: a[1] * torch.sin(x) * (1 + t)], costs=[1.0, 2.0])
        noise = {"diffusion": lambda y, t: 0.3 * y * a[0], "brownian": mls.BrownianPath([1, 2])}
        return mls.solve(ladder, y0, times, plan, gradients=True, **noise).y

    y0 = torch.tensor([[0.5, 1.0], [-0.2, 0.1]], dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(end, (y0, a))
    assert torch.autograd.gradcheck(lambda a: end(y0.detach(), a), (a,))


def test_a_graph_is_kept_only_where_it_is_asked_for():
    weight = torch.ones(1, requires_grad=True)
    ladder = mls.Ladder([lambda x, t: weight * x], costs=[1.0])
    plan, y0 = mls.em_plan(ladder, TIMES), torch.ones(2)
    wants = torch.ones(2, requires_grad=True)
    plain = mls.Ladder([lambda x, t: -x], costs=[1.0])
    assert not mls.solve(plain, y0, TIMES, plan).y.requires_grad
    assert mls.solve(ladder, y0, TIMES, plan).y.requires_grad
    assert mls.solve(ladder, wants, TIMES, plan).y.requires_grad
    assert mls.solve(ladder, y0, TIMES, plan, gradients=True).y.requires_grad
    assert not mls.solve(ladder, wants, TIMES, plan, gradients=False).y.requires_grad
    with torch.no_grad():
        assert not mls.solve(ladder, wants, TIMES, plan).y.requires_grad
    assert torch.is_grad_enabled()
    assert weight.grad is None


@pytest.mark.parametrize("steps", [40, 200])
def test_memory_does_not_grow_with_the_steps(steps):
    size, alive = 12_345, []
    ladder = mls.Ladder([lambda x, t: -x, lambda x, t: (alive.append(count()), -2 * x)[1]], costs=[1.0, 2.0])

    def count():
        return sum(type(o) is torch.Tensor and o.shape == (3, size) for o in gc.get_objects())

    noise = {"diffusion": 0.1, "brownian": mls.BrownianPath(range(3))}
    plan = draw(table=torch.tensor([1.0, 0.1]), steps=steps)
    mls.solve(ladder, torch.ones(3, size), torch.linspace(0.0, 1.0, steps + 1), plan, **noise)
    assert len(alive) >= steps // 10
    assert max(alive) < 32  # what Levy's construction and one step need
