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
    names = run("Your own drifts")
    ladder, y0, times, noise = (names[name] for name in ("ladder", "y0", "times", "noise"))
    assert names["solution"].stats.cost <= 600.0
    top = mls.solve(ladder, y0, times, mls.em_plan(ladder, times), diffusion=0.1, brownian=noise).y
    measured = float((names["solution"].y - top).square().mean())
    assert 0.5 < names["best"].predicted.mse / measured < 2
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
