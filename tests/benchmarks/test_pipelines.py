"""The benchmark of pipelines: a quick run goes on where it was stopped, and its tables say what the rows say."""

import json

import pytest

pytest.importorskip("diffusers", reason="the extra `diffusers` is not installed")

from benchmarks.pipelines import bench_pipelines
from benchmarks.pipelines.pipeline_tables import least, markdown, rows_of

pytestmark = pytest.mark.filterwarnings("ignore")


def test_rows_are_kept_and_not_made_again(tmp_path, monkeypatch):
    """Of two rows, one is there; the other's error is that of its images to the target."""
    monkeypatch.setattr(bench_pipelines, "EVALUATIONS", (3, 5))
    bench = bench_pipelines.Bench("digits", False, 2, tmp_path, True)
    name, make = next(iter(bench_pipelines.singles(bench)))
    bench.add(name, make)
    kept = json.loads((tmp_path / "digits_ode.json").read_text())["rows"]
    images, cost, _ = make()
    assert kept[name]["mse"] == pytest.approx(float((images - bench.target).square().mean()))
    assert (cost, kept[name]["cost"]) == (3, 3)
    again = bench_pipelines.Bench("digits", False, 2, tmp_path, True)
    again.add(name, lambda: pytest.fail("made again"))
    assert again.rows == bench.rows


def test_tables_say_what_the_rows_say():
    """The best stock scheduler at a row's error, between two rows on a line in the logarithms."""
    row = {"seconds": 1.0, "median": 0.1}
    result = {
        "samples": 4,
        "rows": {
            "single: A @ 4": row | {"cost": 4, "mse": 1.0},
            "single: A @ 16": row | {"cost": 16, "mse": 0.01},
            "single: B @ 4": row | {"cost": 4, "mse": 2.0},
            "calibrated @ 5": row | {"cost": 4, "mse": 0.1},
        },
    }
    rows = rows_of(result)
    assert least(rows, ["single: A", "single: B"]) == {4: 1.0, 16: 0.01}
    assert "| calibrated @ 5 | 4 | 0.1 | 2.00 |" in "\n".join(markdown("digits_ode", result))
