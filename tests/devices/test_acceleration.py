"""Drifts in half precision, compiled, and replayed from a graph: the same values within what rounding allows."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor

import multilevel_sde as mls
from multilevel_diffusion.networks.denoisers import EpsilonDenoiser
from multilevel_diffusion.networks.unet import UNet, UNetConfig
from multilevel_diffusion.process.schedules import CosineSchedule
from multilevel_sde.devices import acceleration

TIME = torch.tensor(0.5, dtype=torch.float64)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def unet(dim: int = 8) -> UNet:
    """A small network whose every layer does something."""
    net = UNet(UNetConfig(base_dim=dim, bottom_depth=1, mid_depth=1, levels=1, image_size=8, channels=1, time_dim=8))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.eval().requires_grad_(False)


def images(count: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


# -- half precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-11)])
def test_half_precision_rounds_and_returns_the_dtype_of_the_state(dtype, rounding):
    """A matrix product of n terms: each operand and the result are rounded by at most `rounding` of themselves."""
    x = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) + 0.5
    weight = torch.rand(64, 64, generator=torch.Generator().manual_seed(1)) + 0.5  # no cancellation
    value = mls.Autocast(lambda x, t: x @ weight, dtype)(x, TIME)
    assert value.dtype == torch.float32
    error = ((value - x @ weight).abs() / (x @ weight)).max()
    assert 0.1 * rounding < error <= 3.1 * rounding


def test_a_network_in_half_precision_is_near_itself():
    net = unet()
    drift = EpsilonDenoiser(net, CosineSchedule())
    low = mls.Autocast(drift)
    # Measured 0.004; a bound of 2^-9 an operation over the dozen operations of a path through the network.
    assert 1e-5 < relative(low(images(), TIME), drift(images(), TIME)) < 12 * 2.0**-9
    assert low(images(), TIME).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_a_ladder_of_mixed_precision_solves():
    net = unet()
    ladder = mls.Ladder([mls.Autocast(net), net], costs=[1.0, 8.0])
    times = torch.linspace(0.0, 1.0, 9)
    plan = mls.draw_plan(torch.tensor([1.0, 0.25]).expand(8, 2), generator=torch.Generator().manual_seed(0))
    exact = mls.solve(mls.Ladder([net, net], costs=[1.0, 8.0]), images(), times, plan).y
    # The correction takes the rounding of its step back; what is left is that of the steps between.
    assert 0 < relative(mls.solve(ladder, images(), times, plan).y, exact) < 0.02


def test_autocast_says_what_is_wrong():
    with pytest.raises(ValueError, match=r'"dtype" is torch\.float32, expected torch\.bfloat16 or'):
        mls.Autocast(torch.sin, torch.float32)
    for wrong in (mls.Autocast, mls.compiled, mls.CudaGraph):
        with pytest.raises(TypeError, match=r'"drift" must be a callable f.*got int'):
            wrong(3)


# -- compiled -----------------------------------------------------------------------------------------------------


class Counter:
    """A backend that counts what it is asked to compile, and runs it as it is."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def test_one_batch_size_is_compiled_once_whatever_the_time():
    torch._dynamo.reset()
    counter, net = Counter(), unet()
    drift = mls.compiled(net, fullgraph=True, backend=counter)
    for part in (0.2, 0.5, 0.9):
        t = torch.tensor(part, dtype=torch.float64)
        assert torch.equal(drift(images(), t), net(images(), t))
    assert counter.graphs == 1
    drift(images(2), TIME)
    assert counter.graphs == 2  # static shapes: another batch size is another program
    drift(images(3), TIME)
    assert counter.graphs == 2


@pytest.mark.skipif("isolate_recompiles" not in inspect.signature(torch.compile).parameters, reason="an older torch")
def test_levels_of_one_class_do_not_share_the_number_of_sizes_that_torch_compiles():
    torch._dynamo.reset()
    counter, nets = Counter(), [unet(width) for width in (4, 8, 12, 16, 20)]
    for net in [mls.compiled(net, fullgraph=True, backend=counter) for net in nets]:
        net(images(2), TIME)
        net(images(3), TIME)
    assert counter.graphs == 10


def test_a_plan_runs_on_compiled_levels_without_compiling_again():
    torch._dynamo.reset()
    counters, nets = [Counter(), Counter()], [unet(4), unet(8)]
    schedule = CosineSchedule()
    denoisers = [EpsilonDenoiser(net, schedule) for net in nets]
    fast = [
        dataclasses.replace(denoiser, net=mls.compiled(denoiser.net, fullgraph=True, backend=counter))
        for denoiser, counter in zip(denoisers, counters, strict=True)
    ]
    times = torch.linspace(1.0, 0.0, 9)
    plan = mls.draw_plan(torch.tensor([1.0, 0.25]).expand(8, 2), generator=torch.Generator().manual_seed(0))
    solved = [mls.solve(mls.Ladder(drifts, costs=[1.0, 8.0]), images(), times, plan).y for drifts in (denoisers, fast)]
    assert torch.equal(*solved)
    assert [counter.graphs for counter in counters] == [1, 1]


@pytest.mark.slow
def test_the_default_compiler_agrees_to_rounding():
    torch._dynamo.reset()
    weight = images().reshape(3, 64)[:, :8]

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x * t) @ weight.mT @ weight

    x, fast = images().reshape(24, 8), mls.compiled(drift)
    for part in (0.2, 0.9):
        t = torch.tensor(part, dtype=torch.float64)
        torch.testing.assert_close(fast(x, t), drift(x, t), rtol=1e-4, atol=1e-5)


# -- graphs -------------------------------------------------------------------------------------------------------


def test_away_from_a_gpu_the_drift_is_called_as_it_is_and_says_so_once():
    net = unet()
    graph = mls.CudaGraph(net)
    with pytest.warns(RuntimeWarning, match='calls its drift without a graph: the state is on "cpu"'):
        value = graph(images(), TIME)
    assert torch.equal(value, net(images(), TIME))
    with warnings.catch_warnings(action="error"):
        graph(images(), TIME)


@pytest.fixture
def recorded(monkeypatch):
    """Recordings on the host: "replaying" one calls the drift on its buffers. Gives the list of what was recorded."""
    shapes = []

    def record(drift, x, t, **conditions):
        shapes.append(tuple(x.shape))
        x, t, value = x.clone(), t.clone(), torch.full_like(x, torch.nan)
        given = {name: condition.clone() for name, condition in conditions.items()}
        return acceleration._Recording((x, t, *given.values()), value, lambda: value.copy_(drift(x, t, **given)))

    monkeypatch.setattr(acceleration, "_GPU", "cpu")
    monkeypatch.setattr(acceleration, "_record", record)
    return shapes


def test_a_recording_is_replayed_on_each_state_and_time(recorded):
    net = unet()
    graph = mls.CudaGraph(net)
    values = []
    for seed, part in enumerate((0.1, 0.5, 0.9)):
        t = torch.tensor(part, dtype=torch.float64)
        values.append((graph(images(seed=seed), t), net(images(seed=seed), t)))
    for value, expected in values:  # also those that a later replay came after
        assert torch.equal(value, expected)
    assert recorded == [(3, 1, 8, 8)]
    assert torch.equal(graph(images(2), TIME), net(images(2), TIME))
    graph(images(3), TIME)
    assert recorded == [(3, 1, 8, 8), (2, 1, 8, 8)]
    graph(images(3), TIME.float())
    assert len(recorded) == 3  # a time of another dtype is another program


def test_a_recording_is_replayed_on_its_conditions(recorded):
    graph = mls.CudaGraph(lambda x, t, shift: x + t * shift)
    for value in (1.0, 2.0, 3.0):
        x, shift = torch.full((2, 3), value), torch.full((2, 3), 10 * value)
        assert torch.equal(graph(x, torch.tensor(0.5), shift=shift), x + 0.5 * shift)
    assert recorded == [(2, 3)]
    graph(x, torch.tensor(0.5), shift=shift[:, :1])
    assert recorded == [(2, 3)] * 2


def test_plans_that_remember_values_may_use_a_graph(recorded):
    net, dear = unet(4), unet(8)
    times = torch.linspace(0.0, 1.0, 9)
    p = torch.tensor([1.0, 0.25]).expand(8, 2)
    plan = mls.remember(
        mls.draw_plan(p, generator=torch.Generator().manual_seed(0)), p, coefficient=lambda level, n, h: 0.5
    )
    solved = [
        mls.solve(mls.Ladder(drifts, costs=[1.0, 8.0]), images(), times, plan).y
        for drifts in ([net, dear], [mls.CudaGraph(net), dear])
    ]
    assert torch.equal(*solved)


def test_a_gradient_goes_around_the_graph(recorded):
    net = unet()
    graph, x = mls.CudaGraph(net), images().requires_grad_()
    with pytest.warns(RuntimeWarning, match="a gradient is wanted"):
        graph(x, TIME).sum().backward()
    assert recorded == []
    assert x.grad is not None
    with torch.no_grad():
        graph(x, TIME)
    assert recorded == [(3, 1, 8, 8)]


def test_the_gradient_of_a_parameter_goes_around_the_graph(recorded):
    net = unet().requires_grad_()
    graph = mls.CudaGraph(net)
    with pytest.warns(RuntimeWarning, match=r"a gradient is wanted; solve inside torch.no_grad\(\) where none is"):
        graph(images(), TIME).sum().backward()
    graph(images(), TIME).sum().backward()
    assert recorded == []
    assert next(net.parameters()).grad is not None
    with torch.no_grad():
        assert torch.equal(graph(images(), TIME), net(images(), TIME))
    assert recorded == [(3, 1, 8, 8)]
    assert graph(images(), TIME).requires_grad


# -- on a GPU -----------------------------------------------------------------------------------------------------


@needs_gpu
def test_on_a_gpu_a_graph_gives_what_the_drift_gives():
    denoiser = EpsilonDenoiser(unet().cuda(), CosineSchedule(), clip=(-1, 1))
    graph = mls.CudaGraph(denoiser)
    with warnings.catch_warnings(action="error"):
        for seed, part in enumerate((0.1, 0.5, 0.9)):
            t = torch.tensor(part, dtype=torch.float64, device="cuda")
            x = images(seed=seed).cuda()
            torch.testing.assert_close(graph(x, t), denoiser(x, t), rtol=1e-5, atol=1e-5)


@needs_gpu
def test_on_a_gpu_a_ladder_with_graphs_and_offloaded_top_solves():
    nets = [unet(4).cuda(), unet(8).cuda()]
    times = torch.linspace(0.0, 1.0, 33)
    plan = mls.draw_plan(torch.tensor([1.0, 0.25]).expand(32, 2), generator=torch.Generator().manual_seed(0))
    expected = mls.solve(mls.Ladder(nets, costs=[1.0, 8.0]), images().cuda(), times, plan).y
    graphs = mls.Ladder([mls.CudaGraph(nets[0]), nets[1]], costs=[1.0, 8.0])
    ladder = mls.Offload(graphs, {1: nets[1]}, device="cuda").ladder(plan)
    torch.testing.assert_close(mls.solve(ladder, images().cuda(), times, plan).y, expected, rtol=1e-4, atol=1e-5)


@needs_gpu
@pytest.mark.parametrize("wrap", [mls.Autocast, partial(mls.Autocast, dtype=torch.float16)])
def test_on_a_gpu_half_precision_is_near(wrap):
    net = unet().cuda()
    assert relative(wrap(net)(images().cuda(), TIME.cuda()), net(images().cuda(), TIME.cuda())) < 12 * 2.0**-9
