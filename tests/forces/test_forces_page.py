"""The blocks of docs/forces.md that need no checkpoints run as they stand."""

import re

import pytest
from places import DOCS

pytest.importorskip("ase")

PAGE = (DOCS / "forces.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_examples_run(capsys):
    own = [block for block in BLOCKS if "sevenn" not in block]
    assert len(own) == 2
    names: dict = {}
    for block in own:
        exec(compile(block, "forces.md", "exec"), names)
    assert "s a force" in capsys.readouterr().out
    assert names["atoms"].calc.positions_seen == 101


@pytest.mark.slow
def test_the_example_with_checkpoints_runs(tmp_path, monkeypatch):
    pytest.importorskip("sevenn")
    pytest.importorskip("chgnet")
    block = next(block for block in BLOCKS if "sevenn" in block)
    names: dict = {}
    monkeypatch.chdir(tmp_path)  # it writes a trajectory
    quick = block.replace("timestep=2.0)", "timestep=2.0), steps=32").replace(".run(1000)", ".run(20)")
    exec(compile(quick, "forces.md", "exec"), names)
    assert names["found"].names == ("CHGNet", "SevenNet")
    assert 0.1 < names["found"].force_errors[0] / names["found"].force < 0.6
