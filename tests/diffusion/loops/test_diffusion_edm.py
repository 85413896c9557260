"""A multilevel denoiser in foreign samplers: the loops below have the interfaces of k-diffusion, EDM and EDM2."""

import copy
import math
import pickle
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

import multilevel_sde as mls
from multilevel_diffusion.loops.edm import MultilevelDenoiser
from multilevel_diffusion.process.grids import karras
from multilevel_diffusion.process.schedules import EDMSchedule
from multilevel_diffusion.process.steps import DDIM

SIGMAS = karras(EDMSchedule(0.02, 20.0), 24)


class Net(nn.Module):
    """D(x; sigma) of data N(0.5, 0.3^2), wrong by `error` sin(3 x); with the attributes of an EDM network."""

    def __init__(self, error):
        super().__init__()
        self.error = nn.Parameter(torch.tensor(error))
        self.calls = 0
        self.seen = []
        self.img_channels, self.img_resolution, self.label_dim = 2, 1, 3
        self.sigma_min, self.sigma_max, self.sigma_data = 0.02, 20.0, 0.3

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def forward(self, x, sigma, class_labels=None, **extra):
        self.calls += 1
        self.seen.append((sigma, class_labels, extra))
        s = torch.as_tensor(sigma).reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
        return 0.5 + 0.09 / (0.09 + s**2) * (x - 0.5) + self.error * torch.sin(3 * x)


def nets():
    return Net(0.1), Net(0.0)


def make(seed=0, **source):
    low, top = nets()
    source = source or {"budget_fraction": 0.4}
    return MultilevelDenoiser(mls.Ladder([low, top], costs=[1.0, 10.0]), seed=seed, **source), low, top


def start(count=3):
    return 20 * torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# -- stand-ins of the samplers' loops ---------------------------------------------------------------------------------


def k_euler(model, x, sigmas, extra_args=None):
    ones = x.new_ones([x.shape[0]])
    for sigma, following in pairwise(sigmas):
        denoised = model(x, sigma * ones, **(extra_args or {}))
        x = x + (x - denoised) / sigma * (following - sigma)
    return x


def k_heun(model, x, sigmas):
    ones = x.new_ones([x.shape[0]])
    for sigma, following in pairwise(sigmas):
        d = (x - model(x, sigma * ones)) / sigma
        ahead = x + d * (following - sigma)
        if following > 0:
            d = (d + (ahead - model(ahead, following * ones)) / following) / 2
        x = x + d * (following - sigma)
    return x


def edm_sampler(net, latents, class_labels=None, num_steps=24, churn=0.0, guidance=1.0, seed=0):
    """Algorithm 2 of Karras et al. with S_churn, sigma 0-d and labels by position; guidance calls twice, as in EDM2."""

    def denoise(x, t):
        conditional = net(x, t, class_labels).to(torch.float64)
        return conditional if guidance == 1 else torch.lerp(net(x, t).to(torch.float64), conditional, guidance)

    generator = torch.Generator().manual_seed(seed)
    high, low = min(20.0, net.sigma_max), max(0.02, net.sigma_min)
    steps = net.round_sigma(karras(EDMSchedule(low, high), num_steps))
    x_next = latents.to(torch.float64)
    for i, (t_cur, t_next) in enumerate(pairwise(steps)):
        gamma = min(churn / num_steps, math.sqrt(2) - 1)
        t_hat = net.round_sigma(t_cur + gamma * t_cur)
        noise = torch.randn(x_next.shape, generator=generator, dtype=x_next.dtype)
        x_hat = x_next + (t_hat**2 - t_cur**2).sqrt() * noise
        d_cur = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x_next = x_hat + (t_next - t_hat) * d_cur
        if i < num_steps - 1:
            d_prime = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x_hat + (t_next - t_hat) * (0.5 * d_cur + 0.5 * d_prime)
    return x_next


def k_adaptive(model, x, rtol=0.05, high=20.0, low=0.02):
    """Embedded Euler / Heun in log sigma with rejection of steps, as dpm_adaptive does; returns x and rejections."""
    ones, log, h, rejected = x.new_ones([x.shape[0]]), math.log(high), 0.5, 0
    while log > math.log(low) + 1e-9:
        h = min(h, log - math.log(low))
        sigma, following = math.exp(log), math.exp(log - h)
        d = (x - model(x, sigma * ones)) / sigma
        euler = x + d * (following - sigma)
        heun = x + (d + (euler - model(euler, following * ones)) / following) / 2 * (following - sigma)
        error = float((heun - euler).detach().abs().max() / (1 + x.detach().abs().max()) / rtol)
        if error <= 1:
            x, log = heun, log - h
        else:
            rejected += 1
        h *= min(2.0, max(0.3, 0.9 * (error + 1e-9) ** -0.5))
    return x, rejected


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [k_euler, k_heun])
def test_a_certain_draw_is_the_top_level_bit_for_bit(sampler):
    model, low, top = make(probabilities=torch.tensor([1.0, 1.0]))
    assert torch.equal(sampler(model, start(), SIGMAS), sampler(top, start(), SIGMAS))
    assert low.calls == 0


def test_euler_is_multilevel_ddim_in_solve():
    """k-diffusion's Euler with a plan is mls.solve with the same plan: D is the estimate of x_0 at alpha = 1."""
    low, top = nets()
    ladder = mls.Ladder([low, top], costs=[1.0, 10.0])
    plan = mls.draw_plan(torch.tensor([1.0, 0.3]).expand(24, 2), generator=torch.Generator().manual_seed(3))
    y = mls.solve(ladder, start(), SIGMAS, plan, step=DDIM(EDMSchedule(0.02, 20.0)))
    calls = low.calls, top.calls
    ours = k_euler(MultilevelDenoiser(ladder, plan=plan), start(), SIGMAS)
    torch.testing.assert_close(ours, y.y, rtol=1e-9, atol=1e-9)
    assert (low.calls - calls[0], top.calls - calls[1]) == calls == y.stats.calls


def test_one_call_is_unbiased():
    """Mean over 1000 trajectories of one call each: the top level's value within 4 standard errors."""
    model, _, top = make(probabilities=torch.tensor([[1.0, 0.3], [1.0, 0.3]]))
    x = start(1)
    values = []
    for _ in range(1000):
        values.append(model(x.clone(), torch.tensor(5.0)))
        model(x.clone(), torch.tensor(0.02))
    values = torch.stack(values)
    deviation = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - top(x, torch.tensor(5.0))).abs() < 4 * deviation).all()
    assert (deviation > 0).all()


def test_the_budget_is_met_and_counted():
    model, low, top = make(budget_fraction=0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(50):
            k_heun(model, start(), SIGMAS)
            assert model.stats.trajectory.calls == 47
            assert model.stats.trajectories == n + 1
    assert model.stats.total.evaluations == (low.calls, top.calls)
    assert model.stats.total.fraction == pytest.approx(0.4, rel=0.02)


@pytest.mark.parametrize(
    "run",
    [
        lambda model, x: k_euler(model, x, SIGMAS),
        lambda model, x: k_heun(model, x, SIGMAS),
        lambda model, x: edm_sampler(model, x),
        lambda model, x: edm_sampler(model, x, churn=40.0),
        lambda model, x: edm_sampler(model, x, churn=5.0, num_steps=100),
        lambda model, x: edm_sampler(model, x, churn=40.0, guidance=1.5),
    ],
)
def test_trajectories_are_told_apart_and_drawn_from_seeds_of_their_own(run):
    """Equal starts, equal noise: the draws make the difference, the same ones after reset."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, *_ = make(seed=11)
        first, second = run(model, start()), run(model, start())
        assert model.stats.trajectories == 2
        assert model.stats.trajectory.calls * 2 == model.stats.total.calls
        assert not torch.equal(first, second)
        model.reset()
        assert torch.equal(run(model, start()), first)
        assert torch.equal(run(model, start()), second)
        other, *_ = make(seed=12)  # its first trajectory is the second of seed 11
        assert torch.equal(run(other, start()), second)


def test_an_interrupted_trajectory_does_not_shift_the_next():
    model, *_ = make(seed=4)
    k_euler(model, start(), SIGMAS)
    second = k_euler(model, start(), SIGMAS)
    model.reset()
    k_euler(model, start(), SIGMAS[:12])
    assert torch.equal(k_euler(model, start(), SIGMAS), second)


def test_both_calls_of_a_guided_step_share_a_draw():
    model, low, top = make(seed=2, probabilities=torch.tensor([1.0, 0.3]).expand(47, 2))
    edm_sampler(model, start(), guidance=1.5)
    assert model.stats.trajectory.calls == 94
    assert top.calls % 2 == low.calls % 2 == 0
    assert [seen[0] for seen in top.seen[::2]] == [seen[0] for seen in top.seen[1::2]]


def test_arguments_reach_the_levels_and_attributes_come_from_the_top():
    model, low, top = make(probabilities=torch.tensor([1.0, 0.999]))
    low.sigma_max, low.label_dim = 99.0, 99
    labels = torch.eye(3)
    edm_sampler(model, start(), labels, num_steps=4)
    assert all(seen[1] is labels for seen in top.seen + low.seen)
    assert all(seen[0].ndim == 0 for seen in top.seen)
    model.reset()
    k_euler(model, start(), SIGMAS, {"class_labels": labels, "mask": 1})
    assert top.seen[-1][1:] == (labels, {"mask": 1})
    assert (model.img_channels, model.img_resolution, model.label_dim) == (2, 1, 3)
    assert (model.sigma_min, model.sigma_max, model.sigma_data) == (0.02, 20.0, 0.3)
    assert model.round_sigma(3.0) == 3.0
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model.no_such_thing


def test_it_is_a_module_of_all_levels():
    model, low, top = make()
    assert isinstance(model, nn.Module)
    assert [p.dtype for p in model.to(torch.float64).parameters()] == [torch.float64] * 2
    assert low.error.dtype == torch.float64
    model.eval()
    assert {low.training, top.training} == {False}
    model.requires_grad_(False)
    twin = copy.deepcopy(model)
    assert twin.ladder.drifts[1] is not top
    assert torch.equal(k_euler(twin, start(), SIGMAS), k_euler(model, start(), SIGMAS))


def test_plain_functions_are_levels_too():
    ladder = mls.Ladder([lambda x, sigma: 0 * x, lambda x, sigma: x], costs=[1.0, 2.0])
    model = MultilevelDenoiser(ladder, probabilities=[1.0, 1.0])
    assert torch.equal(model(torch.ones(2, 3), 1.0), torch.ones(2, 3))
    assert list(model.parameters()) == []


def test_a_trajectory_longer_than_planned_is_refused():
    plan = mls.draw_plan(torch.tensor([1.0, 0.3]).expand(24, 2), generator=torch.Generator().manual_seed(0))
    model, *_ = make(plan=plan)
    k_euler(model, start(), SIGMAS)
    k_euler(model, start(), SIGMAS)
    with pytest.raises(ValueError, match="24 steps, the sampler made call number 25"):
        k_heun(model, start(), SIGMAS)


def test_a_trajectory_shorter_than_planned_is_warned_of_when_the_next_begins():
    model, *_ = make(probabilities=torch.tensor([1.0, 0.3]).expand(47, 2))
    k_heun(model, start(), SIGMAS)
    k_euler(model, start(), SIGMAS)
    with pytest.warns(UserWarning, match="47 steps, the last trajectory made 24 calls"):
        k_euler(model, start(), SIGMAS)


def test_adaptive_steps_are_warned_of():
    model, *_ = make(budget_fraction=0.2)
    with pytest.warns(UserWarning, match="back and forth"):
        _, rejected = k_adaptive(model, start())
    assert rejected > 1


@pytest.mark.parametrize("at", [1, 5, 9])
@pytest.mark.parametrize("rounding", [1.0, 1 + 1e-7, 1 - 1e-7])
def test_the_first_rejected_step_is_warned_of_and_no_second_time(at, rounding):
    """Every step evaluates at its start and its end; one is rejected and begun again with half the length."""
    model, *_ = make(budget_fraction=0.2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sigma, x = 20.0, start()
        for n in range(12):
            model(x + n, sigma)
            following = 0.7 * sigma
            model(x - n, following)
            assert not caught or n > at
            if n in (at, at + 1):
                sigma = sigma * rounding
                model(x + 0.5, sigma)
                assert len(caught) == 1
                following = 0.85 * sigma
                model(x - 0.5, following)
            sigma = following
    assert len(caught) == 1
    assert "back and forth" in str(caught[0].message)


@pytest.mark.parametrize("churn", [0.0, 5.0, 40.0])
def test_fixed_steps_are_not_warned_of(churn):
    with warnings.catch_warnings(action="error"):
        for steps in (12, 24, 96):
            edm_sampler(make()[0], start(), num_steps=steps, churn=churn)
        k_heun(make()[0], start(), SIGMAS)


def test_churn_that_sets_in_on_the_way_is_not_warned_of():
    """The first raised noise level lies beyond the call before the last, but is none that was asked for."""
    model, *_ = make(budget_fraction=0.2)
    with warnings.catch_warnings(action="error"):
        for n, sigma in enumerate(SIGMAS[:-2].tolist()):
            raised = sigma * (1.4 if n > 8 else 1.0)
            model(start() + n, raised)
            model(start() - n, float(SIGMAS[n + 1]))


def test_a_pickled_denoiser_goes_on_where_it_was():
    model, *_ = make(budget_fraction=0.4)
    k_euler(model, start(), SIGMAS[:13])
    copies = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    expected = k_euler(model, start(), SIGMAS[12:])
    for other in copies:
        assert torch.equal(k_euler(other, start(), SIGMAS[12:]), expected)
        assert other.stats == model.stats
        other.reset()
        assert torch.equal(k_euler(other, start(), SIGMAS), k_euler(make(budget_fraction=0.4)[0], start(), SIGMAS))


@pytest.mark.parametrize("stages", [[0.2, 0.3, 0.8, 8 / 9, 1.0, 1.0]])
def test_rejected_runge_kutta_steps_are_warned_of(stages):
    """Dormand-Prince asks for its last stage twice; its rejected steps begin again further back."""

    def sample(model):
        for begin, length in [(10.0, 5.0), (10.0, 2.0), (10.0, 1.0), (9.0, 1.0)]:
            for stage in stages:
                model(start(), begin - stage * length)

    with pytest.warns(UserWarning, match="back and forth"):
        sample(make()[0])


def test_inversion_runs_upwards_without_complaint():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, *_ = make(probabilities=torch.tensor([1.0, 0.3]).expand(23, 2))
        for _ in range(2):
            k_euler(model, start(), SIGMAS[:-1].flip(0))
        assert model.stats.trajectories == 2


def test_a_batch_has_one_noise_level():
    model, *_ = make()
    with pytest.raises(ValueError, match='"sigma" ranges from 1 to 2'):
        model(start(2), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("make_one", "error", "message"),
    [
        (lambda ladder: MultilevelDenoiser(ladder), ValueError, "exactly one"),
        (lambda ladder: MultilevelDenoiser(ladder.drifts, budget_fraction=0.5), TypeError, '"ladder"'),
        (lambda ladder: MultilevelDenoiser(ladder, plan="all"), TypeError, '"plan"'),
        (lambda ladder: MultilevelDenoiser(ladder.top(), plan=mls.em_plan(ladder, [1.0, 0.0])), ValueError, '"plan"'),
        (lambda ladder: MultilevelDenoiser(ladder, probabilities=torch.ones(3)), ValueError, '"probabilities"'),
        (lambda ladder: MultilevelDenoiser(ladder, budget_fraction=0.01), ValueError, '"budget_fraction"'),
    ],
)
def test_errors_name_the_argument(make_one, error, message):
    with pytest.raises(error, match=message):
        make_one(mls.Ladder(nets(), costs=[1.0, 10.0]))
