"""Gradients through a solve: the grad mode is the caller's, parameters count, and no graph outlives what wants none."""

import gc

import pytest
import torch
from counted_drifts import DOUBLE, TIMES, draw

import multilevel_sde as mls

STEPS = 100
FINE = torch.linspace(0.0, 1.0, STEPS + 1, dtype=DOUBLE)
SLOPE = -((1 - 0.7 / STEPS) ** (STEPS - 1))  # of (1 - k / N)^N in k, at k = 0.7


def decay(k, y0=None, times=FINE, **options):
    ladder = mls.Ladder([lambda y, t: -k * y], costs=[1.0])
    plan = mls.em_plan(ladder, times.detach(), step=options.get("step", mls.euler_maruyama))
    return mls.solve(ladder, torch.ones(1, dtype=DOUBLE) if y0 is None else y0, times, plan, **options).y


def number(value=0.7, **options):
    return torch.tensor(value, dtype=DOUBLE, **options)


# -- the grad mode ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", [None, True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("samples", [None, 2])
def test_the_grad_mode_is_that_of_the_caller_everywhere(gradients, mode, samples):
    seen = set()

    def drift(x, t):
        seen.add(torch.is_grad_enabled())
        return -x

    def sigma(t):
        seen.add(torch.is_grad_enabled())
        return 0.1

    def step(y, estimate, t, s, noise):
        seen.add(torch.is_grad_enabled())
        return mls.euler_maruyama(y, estimate, t, s, noise)

    ladder = mls.Ladder([lambda x, t: -2 * x, drift], costs=[1.0, 2.0])
    noise = {"diffusion": sigma, "brownian": mls.BrownianPath(range(2))}
    with mode():
        expected = torch.is_grad_enabled()
        plan = draw(table=torch.tensor([1.0, 0.5]), samples=samples)
        mls.solve(ladder, torch.ones(2), TIMES, plan, step=step, gradients=gradients, **noise)
        assert torch.is_grad_enabled() == expected
    assert seen == {expected}


# -- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_of_drifts_get_their_gradient_by_default():
    for gradients in (None, True):
        k = number(requires_grad=True)
        decay(k, gradients=gradients).sum().backward()
        assert float(k.grad) == pytest.approx(SLOPE, rel=1e-12)
    k = number(requires_grad=True)
    assert not decay(k, gradients=False).requires_grad
    with torch.no_grad():
        assert not decay(k).requires_grad


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd, torch.func.jacrev])
@pytest.mark.parametrize("check_finite", [True, False])
def test_parameters_under_transforms(transform, check_finite):
    found = transform(lambda k: decay(k, check_finite=check_finite).sum())(number())
    assert float(found) == pytest.approx(SLOPE, rel=1e-12)
    off = transform(lambda k: decay(k, check_finite=check_finite, gradients=False).sum())(number())
    assert float(off) == 0.0


def test_parameters_under_vjp_and_jvp():
    value, pull = torch.func.vjp(decay, number())
    assert float(pull(torch.ones_like(value))[0]) == pytest.approx(SLOPE, rel=1e-12)
    assert float(torch.func.jvp(decay, (number(),), (number(1.0),))[1]) == pytest.approx(SLOPE, rel=1e-12)
    with torch.autograd.forward_ad.dual_level():
        k = torch.autograd.forward_ad.make_dual(number(), number(1.0))
        assert float(torch.autograd.forward_ad.unpack_dual(decay(k)).tangent) == pytest.approx(SLOPE, rel=1e-12)
        assert torch.autograd.forward_ad.unpack_dual(decay(k, gradients=False)).tangent is None


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd, torch.func.jacrev])
def test_the_parameter_of_the_noise_alone(transform):
    """The state does not depend on it before noise is added to it, which must not happen in its memory."""
    ladder = mls.Ladder([lambda y, t: -y], costs=[1.0])
    path = mls.BrownianPath(range(3))

    def final(sigma):
        noise = {"diffusion": lambda t: sigma, "brownian": path}
        return mls.solve(ladder, torch.ones(3, dtype=DOUBLE), TIMES, mls.em_plan(ladder, TIMES), **noise).y.sum()

    difference = final(number(1.0)) - final(number(0.0))
    assert float(transform(final)(number(0.3))) == pytest.approx(float(difference), rel=1e-9)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd])
def test_remembered_values_under_transforms(transform):
    """A recalled sum begins with a value that has no gradient and goes on with one that has."""

    def final(k):
        ladder = mls.Ladder([lambda y, t: torch.ones_like(y), lambda y, t: k * torch.ones_like(y)], costs=[1.0, 8.0])
        recall = mls.Recall([(1, 0, 0, 0.5), (1, 1, 0, 0.25)])
        plan = mls.Plan(torch.ones(2, 2, dtype=torch.bool), torch.tensor([[1.0, 1.0], [1.0, 0.0]]), recall=recall)
        return mls.solve(ladder, torch.zeros(1, dtype=DOUBLE), [0.0, 0.5, 1.0], plan).y.sum()

    assert float(transform(final)(number(3.0))) == pytest.approx(0.5 * 1.0 + 0.5 * 0.25)


@pytest.mark.parametrize("samples", [None, 4])
def test_a_trained_network_learns_from_every_level_that_ran(samples):
    torch.manual_seed(0)
    nets = [torch.nn.Linear(2, 2, dtype=DOUBLE) for _ in range(2)]
    ladder = mls.Ladder([lambda y, t, net=net: net(y) for net in nets], costs=[1.0, 2.0])
    y0, plan = torch.randn(4, 2, dtype=DOUBLE), draw(table=torch.tensor([1.0, 0.5]), samples=samples)
    parameters = [p for net in nets for p in net.parameters()]

    def loss():
        return mls.solve(ladder, y0, TIMES, plan).y.square().sum()

    found = torch.autograd.grad(loss(), parameters)
    for parameter, slope in zip(parameters, found, strict=True):
        with torch.no_grad():
            parameter.flatten()[0] += 1e-6
            above = loss()
            parameter.flatten()[0] -= 2e-6
            below = loss()
            parameter.flatten()[0] += 1e-6
        assert float(slope.flatten()[0]) == pytest.approx(float(above - below) / 2e-6, rel=1e-5)


# -- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [mls.euler_maruyama, mls.Heun(), mls.Midpoint()], ids=["euler", "heun", "midpoint"])
def test_gradients_of_times_are_those_of_finite_differences(step):
    ladder = mls.Ladder([lambda y, t: torch.sin(3 * t) - y], costs=[1.0])
    grid = torch.tensor([0.0, 0.3, 0.45, 1.0], dtype=DOUBLE, requires_grad=True)
    plan = mls.em_plan(ladder, grid.detach(), step=step)

    def end(times):
        return mls.solve(ladder, torch.ones(2, dtype=DOUBLE), times, plan, step=step).y

    assert torch.autograd.gradcheck(end, (grid,))
    assert torch.allclose(end(grid), end(grid.detach()))
    reverse = torch.autograd.functional.jacobian(end, grid.detach())
    assert torch.allclose(torch.func.jacrev(end)(grid.detach()), reverse)
    assert torch.allclose(torch.func.jacfwd(end)(grid.detach()), reverse)
    assert float(reverse.abs().min()) > 1e-3
    assert not mls.solve(ladder, torch.ones(2, dtype=DOUBLE), grid, plan, step=step, gradients=False).y.requires_grad
    assert not mls.solve(ladder, torch.ones(2), grid, plan, step=step).times.requires_grad


def test_gradients_of_times_that_would_be_wrong_are_refused():
    times = torch.linspace(0.0, 1.0, 5, requires_grad=True)
    ladder = mls.Ladder([lambda y, t: -y], costs=[1.0])
    plan, y0 = mls.em_plan(ladder, times.detach()), torch.ones(2)
    noise = {"diffusion": 0.1, "brownian": mls.BrownianPath(range(2))}
    with pytest.raises(ValueError, match=r'"times" require a gradient, .* got a diffusion; pass times.detach\(\)'):
        mls.solve(ladder, y0, times, plan, **noise)
    with pytest.raises(ValueError, match=r'"times" require a gradient, .* got the step AdamsBashforth\(order=2\)'):
        mls.solve(ladder, y0, times, plan, step=mls.AdamsBashforth(2))
    with pytest.raises(ValueError, match=r'"times" require a gradient, .* got a state of 16 bits'):
        mls.solve(ladder, y0.half(), times, plan)
    with pytest.raises(ValueError, match='"times" require a gradient'):
        torch.func.grad(lambda times: mls.solve(ladder, y0, times, plan, **noise).y.sum())(times.detach())
    with torch.no_grad():
        mls.solve(ladder, y0, times, plan, **noise)
    mls.solve(ladder, y0, times, plan, gradients=False, **noise)


# -- vmap -------------------------------------------------------------------------------------------------------------


def test_vmap_over_states_and_parameters():
    y0, k = torch.ones(5, 3, dtype=DOUBLE), torch.linspace(0.0, 1.0, 5, dtype=DOUBLE)
    exact = (1 - k / STEPS) ** STEPS
    both = torch.vmap(lambda y0, k: decay(k, y0, check_finite=False))(y0, k)
    assert torch.allclose(both, exact[:, None].expand(5, 3))
    assert torch.allclose(torch.vmap(lambda k: decay(k, check_finite=False))(k)[:, 0], exact)
    slopes = torch.vmap(torch.func.grad(lambda k: decay(k, check_finite=False).sum()))(k)
    assert torch.allclose(slopes, -((1 - k / STEPS) ** (STEPS - 1)))


def test_vmap_over_the_noise_or_a_remembered_value_alone():
    """What is added to has no batch, what is added has one, so the sum is not made in its memory."""
    ladder, path = mls.Ladder([lambda y, t: -y], costs=[1.0]), mls.BrownianPath(range(3))

    def noisy(sigma):
        noise = {"diffusion": lambda t: sigma, "brownian": path, "check_finite": False}
        return mls.solve(ladder, torch.ones(3, dtype=DOUBLE), TIMES, mls.em_plan(ladder, TIMES), **noise).y

    sigmas = torch.tensor([0.0, 0.3, 1.0], dtype=DOUBLE)
    assert torch.allclose(torch.vmap(noisy)(sigmas), torch.stack([noisy(sigma) for sigma in sigmas]))

    def remembered(k):
        ladder = mls.Ladder([lambda y, t: torch.ones_like(y), lambda y, t: k * torch.ones_like(y)], costs=[1.0, 8.0])
        recall = mls.Recall([(1, 0, 0, 0.5), (1, 1, 0, 0.25)])
        plan = mls.Plan(torch.ones(2, 2, dtype=torch.bool), torch.tensor([[1.0, 1.0], [1.0, 0.0]]), recall=recall)
        y0 = torch.zeros(1, dtype=DOUBLE)
        return mls.solve(ladder, y0, [0.0, 0.5, 1.0], plan, check_finite=False).y

    assert torch.allclose(torch.vmap(remembered)(sigmas), torch.stack([remembered(k) for k in sigmas]))


def test_vmap_with_what_it_cannot_do_is_one_sentence():
    k = torch.linspace(0.0, 1.0, 5, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r'"check_finite" .* inside torch.vmap; pass check_finite=False'):
        torch.vmap(decay)(k)
    with pytest.raises(ValueError, match=r'"check_finite" .* inside torch.vmap'):
        torch.vmap(lambda y0: decay(number(), y0))(torch.ones(5, 3, dtype=DOUBLE))
    ladder = mls.Ladder([lambda y, t: -y], costs=[1.0])
    with pytest.raises(ValueError, match=r'"times" must be the same for all inside torch.vmap'):
        torch.vmap(lambda grid: mls.solve(ladder, torch.ones(1), grid, mls.em_plan(ladder, TIMES)).y)(TIMES[None])


# -- drifts that differentiate inside ---------------------------------------------------------------------------------


def force(scale, *, detach=True, keep=False):
    """Minus the gradient of an energy; keep: with the graph of the gradient itself, as networks of forces do."""

    def drift(y, t):
        x = (y.detach() if detach else y).requires_grad_()
        energy = (scale * (x * x - 1).square()).sum()
        return -torch.autograd.grad(energy, x, create_graph=keep)[0]

    return drift


def exact_force(scale):
    return lambda y, t: -4 * scale * y * (y * y - 1)


@pytest.mark.parametrize("gradients", [None, False])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("samples", [None, 6])
def test_forces_from_energies(gradients, detach, keep, samples):
    noise = {"diffusion": 0.5, "brownian": mls.BrownianPath(range(6)), "gradients": gradients}
    y0, plan = torch.linspace(-1.5, 1.5, 12, dtype=DOUBLE).reshape(6, 2), draw(
        table=torch.tensor([1.0, 0.5]), samples=samples
    )  # fmt: skip
    ladder = mls.Ladder([force(0.08, detach=detach, keep=keep), force(0.1, detach=detach, keep=keep)], [1.0, 30.0])
    exact = mls.Ladder([exact_force(0.08), exact_force(0.1)], costs=[1.0, 30.0])
    y = mls.solve(ladder, y0, TIMES, plan, **noise).y
    assert torch.allclose(y, mls.solve(exact, y0, TIMES, plan, **noise).y)
    assert not y0.requires_grad
    assert y.requires_grad == (keep and gradients is None)


@pytest.mark.parametrize("rule", [mls.Heun(), mls.AdamsBashforth(3)], ids=["heun", "adams"])
def test_forces_from_energies_in_step_rules(rule):
    ladder, exact = (mls.Ladder([make(0.1)], costs=[1.0]) for make in (force, exact_force))
    y0, plan = torch.linspace(-1.5, 1.5, 4, dtype=DOUBLE), mls.em_plan(ladder, TIMES, step=rule)
    found, expected = (mls.solve(one, y0, TIMES, plan, step=rule).y for one in (ladder, exact))
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("gradients", [None, False])
@pytest.mark.parametrize("rule", [mls.euler_maruyama, mls.AdamsBashforth(2)], ids=["euler", "adams"])
def test_no_graph_outlives_a_step_where_none_is_asked_for(gradients, rule):
    """Alive are the tensors of a few steps, not those of all, whatever the drift does inside."""
    size, alive = 12_345, []
    weight = torch.ones(1, requires_grad=gradients is False)

    def count():
        return sum(type(o) is torch.Tensor and o.shape == (3, size) for o in gc.get_objects())

    def drift(y, t):
        alive.append(count())
        x = y.requires_grad_()
        return torch.autograd.grad((weight * x * x).sum(), x, create_graph=gradients is False)[0]

    ladder, times = mls.Ladder([drift], costs=[1.0]), torch.linspace(0.0, 1.0, 41)
    noise = {"diffusion": lambda t: 0.1 * weight, "brownian": mls.BrownianPath(range(3))} if gradients is False else {}
    plan = mls.em_plan(ladder, times, step=rule)
    solution = mls.solve(ladder, torch.ones(3, size), times, plan, step=rule, gradients=gradients, **noise)
    assert not solution.ys.requires_grad
    assert max(alive[20:]) <= max(alive[:20])


@pytest.mark.parametrize("samples", [None, 2])
@pytest.mark.parametrize("gradients", [None, False])
def test_steps_and_rules_are_given_a_graph_where_one_is_asked_for(samples, gradients):
    weight, seen = torch.ones(1, dtype=DOUBLE, requires_grad=True), set()

    class Watching(mls.StepRule):
        def evaluations(self, times):
            return [1] * (len(times) - 1)

        def start(self, times):
            return lambda y, F, t, s, noise: watching(y, F(y, t), t, s, noise)

    def watching(y, estimate, t, s, noise):
        seen.update((estimate.requires_grad, noise.requires_grad))
        return mls.euler_maruyama(y, estimate, t, s, noise)

    ladder = mls.Ladder([lambda y, t: -weight * y, lambda y, t: -2 * weight * y], costs=[1.0, 8.0])
    noise = {"diffusion": lambda y, t: weight, "brownian": mls.BrownianPath(range(2)), "gradients": gradients}
    plan = draw(table=torch.tensor([1.0, 0.5]), samples=samples)
    for step in (watching, Watching()):
        mls.solve(ladder, torch.ones(2, dtype=DOUBLE), TIMES, plan, step=step, **noise)
    assert seen == {gradients is None}


def test_a_step_with_a_parameter_has_a_graph_where_one_is_asked_for():
    scale = torch.tensor(0.9, dtype=DOUBLE, requires_grad=True)

    class Scaled(mls.StepRule):
        def evaluations(self, times):
            return [1] * (len(times) - 1)

        def start(self, times):
            return lambda y, F, t, s, noise: y + scale * (s - t) * F(y, t)

    for step in (lambda y, estimate, t, s, noise: y + scale * (s - t) * estimate, Scaled()):
        assert decay(number(), step=step).requires_grad
        seen = []
        ladder = mls.Ladder([lambda y, t, seen=seen: (seen.append(y.requires_grad), -y)[1]], costs=[1.0])
        plan = mls.em_plan(ladder, FINE, step=step)
        y = mls.solve(ladder, torch.ones(1, dtype=DOUBLE), FINE, plan, step=step, gradients=False).y
        assert not y.requires_grad
        assert not any(seen)


def test_a_draw_per_sample_names_conditions_where_a_drift_knows_its_batch():
    labels = torch.ones(4, 2)
    ladder = mls.Ladder([lambda y, t: -y, lambda y, t: labels - y], costs=[1.0, 8.0])
    plan = draw(table=torch.tensor([1.0, 0.4]), samples=4)
    with pytest.raises(RuntimeError) as caught:
        mls.solve(ladder, torch.ones(4, 2), TIMES, plan)
    assert (
        "of 4 samples; what belongs to a sample, such as its label, goes into conditions=" in caught.value.__notes__[0]
    )
