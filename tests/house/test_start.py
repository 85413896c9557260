"""The examples of docs/start.md run as they stand."""

import re

import pytest
from places import DOCS

import multilevel_sde as mls

PARTS = re.split(r"^## ", (DOCS / "start.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


def run(title):
    """Run the Python blocks below a heading, one after the other, and return their names."""
    part = next(part for part in PARTS if part.startswith(title))
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL):
        exec(compile(block, f"start.md, {title}", "exec"), names)
    return names


def test_own_drifts(capsys):
    """The promise of the pilot holds on samples that it has not seen."""
    names = run("Your own drifts")
    ladder, times, best = (names[name] for name in ("ladder", "times", "best"))
    assert names["solution"].stats.cost <= 600.0
    y0 = names["y0"].repeat(8, 1)
    noise = {"diffusion": 0.1, "brownian": mls.BrownianPath(seeds=range(64, 64 + len(y0)))}
    fine = mls.solve(ladder, y0, times, mls.em_plan(ladder, times), **noise).y
    measured = float((mls.solve(ladder, y0, best.times, best.plan, **noise).y - fine).square().mean())
    assert 0.5 < best.predicted.mse / measured < 2
    printed = capsys.readouterr().out
    assert "expected mean squared error" in printed
    assert "torch.Size([64, 1])" in printed


def test_networks(capsys):
    names = run("Networks of a diffusion model")
    assert names["result"].images.shape == (16, 1, 8, 8)
    assert "[16, 1, 8, 8]" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # the levels have random weights, which the library says, rightly
def test_a_pipeline(capsys):
    pytest.importorskip("diffusers")
    names = run("A pipeline of diffusers")
    assert len(names["images"]) == 1
    assert "20 calls" in capsys.readouterr().out


def test_no_example_is_left_out():
    assert sum(len(re.findall(r"^```python", part, re.MULTILINE)) > 0 for part in PARTS) == 3
