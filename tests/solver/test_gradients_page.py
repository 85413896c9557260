"""The page about gradients says what is so: its code runs, and its table is that of the script."""

import importlib
import re

import pytest
import torch
from places import DOCS

import multilevel_sde as mls

PAGE = (DOCS / "gradients.md").read_text(encoding="utf-8")


def test_the_code_of_the_page_runs():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    assert all(p.grad is not None for p in names["net"].parameters())
    gradients = {}
    for name in ("ladder", "saving"):
        torch.manual_seed(0)
        names["net"].zero_grad()
        y0 = torch.randn(64, 2)
        mls.solve(names[name], y0, names["times"], names["plan"]).y.square().mean().backward()
        gradients[name] = [p.grad.clone() for p in names["net"].parameters()]
    torch.testing.assert_close(gradients["saving"], gradients["ladder"])
    forces = mls.Ladder([names["force"]], costs=[1.0])
    assert mls.solve(forces, torch.ones(2), names["times"], mls.em_plan(forces, names["times"])).status == "completed"


def test_the_table_is_that_of_the_script():
    script = importlib.import_module("benchmarks.growth.bench_gradients")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(script.SIDE, script.WIDTH), torch.nn.Tanh(), torch.nn.Linear(script.WIDTH, script.WIDTH),
        torch.nn.Tanh(), torch.nn.Linear(script.WIDTH, script.SIDE),
    )  # fmt: skip
    row = re.search(r"^\| 10 \| (.*) \|$", PAGE, re.MULTILINE)
    assert row is not None
    stated = [float(cell.split()[0]) for cell in row[1].split(" | ")]
    saving = lambda y, t: script.checkpoint(net, y, use_reentrant=False)  # noqa: E731
    plain = lambda y, t: net(y)  # noqa: E731
    found = [
        script.peak(net, drift, 10, mode)[0]
        for drift, mode in ((plain, "no_grad"), (plain, "off"), (plain, "grad"), (saving, "grad"))
    ]
    assert found == pytest.approx(stated, rel=0.1)
