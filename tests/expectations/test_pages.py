"""The code of the pages on expectations and on other libraries runs, and prints what they say."""

import re

import pytest
from places import DOCS


@pytest.mark.parametrize("name", ["expectations", "from_torchsde", "from_diffrax", "from_pymlmc"])
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


@pytest.mark.parametrize("name", ["from_torchsde", "from_diffrax", "from_pymlmc"])
def test_a_port_is_short(name):
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    ours = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    assert len([line for line in ours.splitlines() if line.strip()]) <= 25
