"""The code of the pages on expectations and on other libraries runs, and prints what they say."""

import math
import re

import pytest
from places import DOCS
from scipy.integrate import quad


@pytest.mark.parametrize("name", ["expectations", "four_problems", "from_torchsde", "from_diffrax", "from_pymlmc"])
def test_the_code_of_a_page_runs_and_prints_what_it_says(name, capsys):
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n\n(prints|shows)\n\n```text\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("```python") > 0
    names: dict = {}
    for code, how, output in blocks:
        exec(code, names)
        said = capsys.readouterr().out
        if how == "prints":
            assert said == output
        else:  # numbers may round differently elsewhere
            assert re.sub(r"[-\d.e+]+", "#", said).split()[:4] == re.sub(r"[-\d.e+]+", "#", output).split()[:4]


def test_the_molecule_of_the_four_problems_has_the_known_averages():
    """Four standard errors of 0.01, for 400 particles over 35 units of time, and a bias of order (4 h)^2."""
    page = (DOCS / "four_problems.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    moments = [quad(lambda q, n=n: q**n * math.exp(-(q**2) / 2 - q**4 / 4), -9, 9)[0] for n in (0, 2)]
    assert float(names["q"].square().mean()) == pytest.approx(moments[1] / moments[0], abs=0.04)
    assert float(names["p"].square().mean()) == pytest.approx(1.0, abs=0.05)


def test_each_of_the_four_problems_takes_thirty_lines_at_most():
    page = (DOCS / "four_problems.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    assert all(len(block.splitlines()) <= 30 for block in blocks)


@pytest.mark.parametrize("name", ["from_torchsde", "from_diffrax", "from_pymlmc"])
def test_a_port_is_short(name):
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    ours = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    assert len([line for line in ours.splitlines() if line.strip()]) <= 25
