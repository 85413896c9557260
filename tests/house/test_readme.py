"""The README's examples run as they stand and keep what they claim; it stays short."""

import re

import pytest
import torch
from places import ROOT

import multilevel_sde as mls

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)  # the last needs the reader's own models


def run(block):
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_the_pilot_keeps_its_promise(capsys):
    """On samples that it has not seen: of those that a plan was made from, it may err less."""
    names = run(BLOCKS[0])
    ladder, times, best = names["ladder"], names["times"], names["best"]
    assert names["solution"].stats.cost <= 600.0
    y0 = names["y0"].repeat(8, 1)
    noise = {"diffusion": 0.1, "brownian": mls.BrownianPath(seeds=range(64, 64 + len(y0)))}
    fine = mls.solve(ladder, y0, times, mls.em_plan(ladder, times), **noise).y

    def error(grid, plan):
        return float((mls.solve(ladder, y0, grid, plan, **noise).y - fine).square().mean())

    measured = error(best.times, best.plan)
    assert 0.5 < best.predicted.mse / measured < 2
    coarse = times[torch.linspace(0, 200, 21).round().long()]  # what the budget pays of the accurate drift alone
    says_so = "does not pay" not in capsys.readouterr().out
    assert says_so == (measured < error(coarse, mls.em_plan(ladder, coarse)))


def test_the_digits_are_sampled():
    names = run(BLOCKS[1])
    assert names["images"].shape == (16, 1, 8, 8)
    assert 0.1 < names["images"].std() < 1.5


def test_it_stays_short():
    assert len(README.splitlines()) <= 80
    assert len((ROOT / "docs" / "choosing.md").read_text(encoding="utf-8").splitlines()) <= 70


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!http)[^)#]+)", README))
def test_its_links_lead_somewhere(target):
    assert (ROOT / target).exists()
