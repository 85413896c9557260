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
