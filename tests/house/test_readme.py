"""The README's examples run as they stand."""

import re

import torch
from places import ROOT

README = ROOT / "README.md"


def test_the_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {}
    for block in blocks[:3]:  # the fourth needs the reader's own models; tests/diffusers_adapter runs its like
        exec(compile(block, str(README), "exec"), names)
    assert names["images"].shape == (16, 1, 8, 8)
    assert names["solution"].stats.cost <= 900.0
    exact = 2 * torch.atan(torch.tan(names["y0"] / 2) / torch.e)
    assert (names["solution"].y - exact).square().mean().sqrt() < 0.15  # noise 0.1, damped
    assert "torch.Size([64, 1])" in capsys.readouterr().out
