"""Levels on other devices, and weights that come and go: the same numbers, and one dear level at a time."""

from __future__ import annotations

import re
import threading

import pytest
import torch
from placed_networks import TIMES, Net, ladder_of, nets, plan_of, solved
from places import DOCS
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import multilevel_sde as mls

WAIT = 20.0  # seconds after which a test that waits for the other thread fails


def files_of(tmp_path, networks: dict[int, nn.Module]) -> dict[int, object]:
    paths = {level: tmp_path / f"{level}.safetensors" for level in networks}
    for level, net in networks.items():
        kept = {name: value for name, value in net.state_dict().items() if not name.startswith("tied.")}
        save_file({name: value.contiguous() for name, value in kept.items()}, paths[level])
    return paths


def held(net: nn.Module) -> int:
    """Numbers that a module's weights hold now."""
    return sum(parameter.numel() for parameter in net.parameters())


# -- on a device of its own ---------------------------------------------------------------------------------------


def test_placed_levels_give_the_same_numbers():
    ladder = ladder_of(nets())
    placed = mls.place(ladder, [None, "cpu", torch.device("cpu")])
    assert torch.equal(solved(placed, plan_of()), solved(ladder, plan_of()))
    assert (placed.costs, placed.unit, placed.drifts[0]) == (ladder.costs, ladder.unit, ladder.drifts[0])


def test_only_the_state_moves_there_and_the_value_back():
    """Devices that are not there: torch's fake tensors know where they are and refuse to mix."""
    with FakeTensorMode():
        weight = torch.empty(4, 4, device="cuda:1")
        x, t = torch.empty(2, 4, device="cuda:0"), torch.empty((), device="cuda:0")
        seen = []

        def drift(x: Tensor, t: Tensor) -> Tensor:
            seen.extend([x.device, t.device])
            return x @ weight + t

        value = mls.OnDevice(drift, "cuda:1")(x, t)
        assert str(value.device) == "cuda:0"
        assert [str(device) for device in seen] == ["cuda:1", "cuda:1"]
        back = mls.OnDevice(lambda x, t: x + t, "cpu")(x, t)
        assert str(back.device) == "cuda:0"
        with pytest.raises(RuntimeError, match="device"):
            drift(x, t)


def test_copies_wait_for_nobody_but_the_host(monkeypatch):
    asked = []
    monkeypatch.setattr(Tensor, "to", lambda self, device, non_blocking: (asked.append(non_blocking), self)[1])
    mls.OnDevice(lambda x, t: x, "cuda")(torch.ones(1), torch.tensor(0.0))
    assert asked == [True, True, False]


def test_placement_says_what_is_wrong():
    with pytest.raises(ValueError, match=r'"devices" has 1 entries for 3 levels'):
        mls.place(ladder_of(nets()), ["cpu"])
    with pytest.raises(TypeError, match='"drift" must be a callable'):
        mls.OnDevice(3, "cpu")  # type: ignore[arg-type]


# -- weights that come and go -------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_files", [False, True])
@pytest.mark.parametrize("samples", [None, 3])
def test_offloaded_levels_give_the_same_numbers(tmp_path, from_files, samples):
    networks = nets()
    expected = [solved(ladder_of(networks), plan_of(seed, samples)) for seed in range(3)]
    files = files_of(tmp_path, {2: networks[2]}) if from_files else None
    offload = mls.Offload(ladder_of(networks), {1: networks[1], 2: networks[2]}, files=files)
    for seed, value in enumerate(expected):
        plan = plan_of(seed, samples)
        assert torch.equal(solved(offload.ladder(plan), plan), value)  # announced
        assert torch.equal(solved(offload.ladder(), plan), value)  # on demand
        assert torch.equal(solved(offload.ladder(plan_of(9)), plan), value)  # another plan than announced


def test_plans_that_recall_and_rules_that_ask_twice_work_too():
    networks, plan = nets(), plan_of()
    table = torch.tensor([1.0, 0.4, 0.2]).expand(len(TIMES) - 1, 3)
    recalling = mls.remember(plan, table, lambda level, n, h: 0.5)
    rows = mls.plan_rows(mls.Heun(), TIMES)
    twice = mls.draw_plan(table[rows], generator=torch.Generator().manual_seed(0))
    expected = [solved(ladder_of(networks), recalling), solved(ladder_of(networks), twice, step=mls.Heun())]
    offload = mls.Offload(ladder_of(networks), {1: networks[1], 2: networks[2]})
    assert torch.equal(solved(offload.ladder(recalling), recalling), expected[0])
    assert torch.equal(solved(offload.ladder(twice), twice, step=mls.Heun()), expected[1])


def test_one_dear_level_is_there_at_a_time_and_never_two_copies(tmp_path):
    networks = nets()
    sizes = [held(net) for net in networks]
    seen = []

    def spy(level: int):
        def drift(x: Tensor, t: Tensor) -> Tensor:
            seen.append((level, [held(net) for net in networks[1:]]))
            return networks[level](x, t)

        return drift

    offload = mls.Offload(
        ladder_of([spy(0), spy(1), spy(2)]),
        {1: networks[1], 2: networks[2]},
        files=files_of(tmp_path, {2: networks[2]}),
    )
    assert [held(net) for net in networks] == [sizes[0], 0, 0]
    solved(offload.ladder(plan_of()), plan_of())
    assert {level for level, _ in seen} == {0, 1, 2}
    for level, now in seen:
        if level:
            assert now == [sizes[k] if k == level else 0 for k in (1, 2)]
        else:
            assert now in ([0, 0], [sizes[1], 0], [0, sizes[2]])
    padded = sum(-(-4 * p.numel() // 256) * 256 for p in networks[2].first.parameters())
    assert offload.slot_bytes >= padded
    offload.ladder().drifts[1](torch.zeros(1, 1, 6, 6), torch.tensor(0.0))
    one = {p.untyped_storage().data_ptr() for p in networks[1].parameters()}
    offload.ladder().drifts[2](torch.zeros(1, 1, 6, 6), torch.tensor(0.0))
    other = {p.untyped_storage().data_ptr() for p in networks[2].parameters()}
    assert len(one) == 1
    assert one == other
    assert networks[2].first.weight.untyped_storage().nbytes() == offload.slot_bytes


def test_weights_in_the_slot_lie_where_matrix_products_like_them():
    networks = nets()
    offload = mls.Offload(ladder_of(networks), {1: networks[1], 2: networks[2]})
    for level in (1, 2):
        offload.ladder().drifts[level](torch.zeros(1, 1, 6, 6), torch.tensor(0.0))
        for value in networks[level].state_dict().values():
            assert (value.data_ptr() - value.untyped_storage().data_ptr()) % 256 == 0


def test_the_slot_is_as_large_as_the_largest_level():
    networks = nets()
    alone = [mls.Offload(ladder_of(nets()), {level: nets()[level]}).slot_bytes for level in (1, 2)]
    both = mls.Offload(ladder_of(networks), {2: networks[2], 1: networks[1]})
    assert both.slot_bytes == max(alone) == alone[1] > alone[0]


def test_a_load_that_fails_says_so_and_can_be_tried_again(tmp_path):
    networks, plan = nets(), plan_of()
    expected = solved(ladder_of(networks), plan)
    path = files_of(tmp_path, {2: networks[2]})[2]
    offload = mls.Offload(ladder_of(networks), {2: networks[2]}, files={2: path})
    path.rename(tmp_path / "away")
    ladder = offload.ladder(plan)
    with pytest.raises(FileNotFoundError):
        solved(ladder, plan)
    (tmp_path / "away").rename(path)
    assert torch.equal(solved(ladder, plan), expected)


def test_an_evicted_module_cannot_be_used_by_mistake():
    networks = nets()
    offload = mls.Offload(ladder_of(networks), {1: networks[1], 2: networks[2]})
    x, t = torch.zeros(1, 1, 6, 6), torch.tensor(0.0)
    for level in (1, 2):
        with pytest.raises(RuntimeError):
            networks[level](x, t)
    offload.ladder().drifts[1](x, t)
    assert offload.resident == 1
    with pytest.raises(RuntimeError):
        networks[2](x, t)


def test_solves_in_several_threads_take_turns():
    networks = nets()
    plans = [plan_of(seed) for seed in range(4)]
    expected = [solved(ladder_of(networks), plan) for plan in plans]
    offload = mls.Offload(ladder_of(networks), {1: networks[1], 2: networks[2]})
    found: dict[int, Tensor] = {}

    def work(place: int) -> None:
        found[place] = solved(offload.ladder(plans[place]), plans[place])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert all(torch.equal(found[place], value) for place, value in enumerate(expected))


def test_gradients_through_an_offloaded_level_are_refused():
    networks, plan = nets(), plan_of()
    offload = mls.Offload(ladder_of(networks), {2: networks[2]})
    with pytest.raises(ValueError, match="level 3 is offloaded and cannot be differentiated"):
        mls.solve(offload.ladder(plan), torch.zeros(1, 1, 6, 6, requires_grad=True), TIMES, plan)


def test_offload_says_what_is_wrong(tmp_path):
    networks = nets()
    ladder = ladder_of(networks)
    with pytest.raises(ValueError, match=r'"modules" must have indices within 0..2 as keys, got \[3\]'):
        mls.Offload(ladder, {3: networks[2]})
    with pytest.raises(ValueError, match='"modules" must have indices'):
        mls.Offload(ladder, {})
    with pytest.raises(TypeError, match=r'"modules\[1\]" must be a torch.nn.Module, got function'):
        mls.Offload(ladder, {1: lambda x, t: x})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r'"modules\[1\]" has no weights'):
        mls.Offload(ladder, {1: nn.Identity()})
    with pytest.raises(ValueError, match=r"require gradients \(first.weight\)"):
        mls.Offload(ladder, {1: Net(2, 0).requires_grad_()})
    with pytest.raises(ValueError, match=r'"modules\[2\]" shares its weight first.weight with "modules\[1\]"'):
        mls.Offload(ladder, {1: networks[1], 2: networks[1]})
    with pytest.raises(ValueError, match=r'"files" has the keys \[0\]'):
        mls.Offload(ladder, {1: networks[1]}, files={0: tmp_path / "a"})
    paths = files_of(tmp_path, {1: networks[1], 2: networks[2]})
    with pytest.raises(ValueError, match=r"holds first.weight of shape \(4, 1, 3, 3\), the module has \(8, 1, 3, 3\)"):
        mls.Offload(ladder, {2: networks[2]}, files={2: paths[1]})
    save_file({"first.weight": torch.zeros(4, 1, 3, 3)}, paths[1])
    with pytest.raises(ValueError, match=r"does not hold the weight first\.bias"):
        mls.Offload(ladder, {1: networks[1]}, files={1: paths[1]})
    with pytest.raises(ValueError, match="the ladder has 3; draw a plan"):
        mls.Offload(ladder, {1: networks[1]}).ladder(mls.em_plan(ladder.top(), TIMES))


def test_the_page_runs(capsys):
    page = (DOCS / "placement.md").read_text(encoding="utf-8")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "placement.md", "exec"), names)
    loads, prefetched, resident = capsys.readouterr().out.split()
    assert (int(loads) - int(prefetched), resident in ("None", "2", "4")) == (1, True)
    assert int(loads) > 4


# -- on a GPU -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("from_files", [False, True])
def test_on_a_gpu_offloaded_levels_give_the_same_numbers(tmp_path, from_files):
    networks, plan = [Net(width, 0) for width in (4, 64, 256)], plan_of()
    files = files_of(tmp_path, {2: networks[2]}) if from_files else None
    y0 = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(7)).cuda()
    for net in networks:
        net.cuda()
    expected = mls.solve(ladder_of(networks), y0, TIMES, plan).y
    for net in networks[1:]:
        net.cpu()
    offload = mls.Offload(ladder_of(networks), {1: networks[1], 2: networks[2]}, device="cuda", files=files)
    ladder = offload.ladder(plan)
    for _ in range(20):  # a missing wait would show now and then
        assert torch.equal(mls.solve(ladder, y0, TIMES, plan).y, expected)
    assert offload.stats.prefetched >= offload.stats.loads - 1
    assert offload.stats.waited >= 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_state_on_a_gpu_visits_a_level_on_the_host():
    networks, plan = nets(), plan_of()
    y0 = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(7))
    expected = mls.solve(ladder_of(networks), y0, TIMES, plan).y
    networks[0].cuda()
    placed = mls.place(ladder_of(networks), [None, "cpu", "cpu"])
    torch.testing.assert_close(mls.solve(placed, y0.cuda(), TIMES, plan).y.cpu(), expected, rtol=1e-3, atol=1e-4)


# -- conditions -------------------------------------------------------------------------------------------------------


class Shifted(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale), requires_grad=False)

    def forward(self, x, t, shift):
        return self.scale * (shift - x)


@pytest.mark.parametrize("samples", [None, 4])
@pytest.mark.parametrize("kind", ["placed", "offloaded", "offloaded ahead", "autocast", "graph", "compiled"])
@pytest.mark.filterwarnings("ignore:CudaGraph")
def test_conditions_pass_through_every_kind_of_drift(kind, samples):
    nets = [Shifted(0.8), Shifted(0.9), Shifted(1.0)]
    ladder = mls.Ladder(nets, costs=[1.0, 4.0, 16.0])
    times, y0 = torch.linspace(0.0, 1.0, 9), torch.linspace(0.1, 1.0, 8).reshape(4, 2)
    plan = mls.draw_plan(
        torch.tensor([1.0, 0.5, 0.3]).expand(8, 3), generator=torch.Generator().manual_seed(0), samples=samples
    )
    for shift in (torch.arange(8.0).reshape(4, 2), torch.ones(4, 2)):  # the second time with others
        options = {"conditions": {"shift": shift}}
        expected = mls.solve(ladder, y0, times, plan, **options).y
        if kind.startswith("offloaded"):
            offload = mls.Offload(ladder, {1: nets[1], 2: nets[2]})
            found = mls.solve(offload.ladder(plan if kind.endswith("ahead") else None), y0, times, plan, **options).y
            nets = [Shifted(0.8), Shifted(0.9), Shifted(1.0)]
            ladder = mls.Ladder(nets, costs=[1.0, 4.0, 16.0])
        else:
            make = {
                "placed": lambda net: mls.OnDevice(net, "cpu"),
                "autocast": mls.Autocast,
                "graph": mls.CudaGraph,
                "compiled": lambda net: mls.compiled(net, backend="eager"),
            }[kind]
            found = mls.solve(mls.Ladder(map(make, nets), costs=[1.0, 4.0, 16.0]), y0, times, plan, **options).y
        torch.testing.assert_close(found, expected, rtol=1e-2 if kind == "autocast" else 1e-6, atol=1e-6)
