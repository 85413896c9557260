"""The benchmark of pipelines: a quick run goes on where it was stopped, and its tables say what the rows say."""

import itertools
import json
import sys

import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers", reason="the extra `diffusers` is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from benchmarks.pipelines import bench_pipelines, plan_rows, single_rows, train_dit
from benchmarks.pipelines.one_table import Bench, Row
from benchmarks.pipelines.pipeline_tables import least, markdown, publish, rows_of
from multilevel_diffusion.quality import frechet_distance

pytestmark = pytest.mark.filterwarnings("ignore")

DISTANCES = {"frechet", "told_apart", "mib", "seconds", "cost"}


@pytest.fixture
def few(monkeypatch):
    """Two budgets, two numbers of steps."""
    for room in (plan_rows, single_rows):
        monkeypatch.setattr(room, "BUDGETS", (3, 5))
    monkeypatch.setattr(single_rows, "ONE", (8,))


def test_rows_are_kept_and_not_made_again(tmp_path):
    """A row's numbers are those of its images; in a second run nothing is made again, not even the target."""
    bench = Bench("digits_ode", tmp_path, quick=True)
    name, make = next(iter(single_rows.singles(bench)))
    one = make()
    bench.add(name, lambda: Row(one.run, one.cost, one.models, whole=True))
    kept = json.loads((tmp_path / "digits_ode.json").read_text())["rows"][name]
    images = one.run(bench.images)
    assert kept["mse"] == pytest.approx(float((images[: bench.paired] - bench.target).square().mean()))
    assert kept["frechet"] == pytest.approx(frechet_distance(images, bench.reference))  # pixels are the features
    weights = sum(p.nbytes for p in bench.networks.models[-1].parameters()) / 2**20
    assert weights < kept["mib"] < weights + 10
    assert (kept["cost"], 0 <= kept["told_apart"] <= 1, kept["psnr"] > 0) == (3, True, True)
    again = Bench("digits_ode", tmp_path, quick=True)
    again.run = lambda *_: pytest.fail("made again")
    again.add(name, lambda: pytest.fail("made again"))
    assert again.rows == bench.rows
    again.rows[name] = {"earlier": True, "mse": 0.0}
    again.add(name, lambda: Row(lambda count: images[:count], one.cost, one.models, whole=False))
    assert again.rows[name]["mse"] == kept["mse"]
    assert torch.equal(again.target, bench.target)
    assert not torch.equal(again.reference[: again.paired], again.target)


def test_rows_with_other_noise_have_distances_only(tmp_path, few):
    """SDE: single networks have no error, plans have; all have distances, and the tables and figure are made."""
    bench = Bench("digits_sde", tmp_path, quick=True)
    bench_pipelines.measure(bench)
    singles = {key: row for key, row in bench.rows.items() if key.startswith(("single", "multistep"))}
    plans = {key: row for key, row in bench.rows.items() if key.startswith(("default", "calibrated", "T-Stitch"))}
    assert len(singles) >= 9
    assert {"default @ 3", "calibrated @ 5", "T-Stitch @ 3"} <= set(plans)
    assert all(set(row) >= DISTANCES and "mse" not in row for row in singles.values())
    assert all(set(row) >= DISTANCES | {"mse", "psnr"} for row in plans.values())
    assert all(row["cost"] <= row["budget"] + 1e-9 for row in plans.values() if "budget" in row)
    publish(tmp_path)
    assert "### Digits, SDE" in (tmp_path / "pipelines.md").read_text()


def test_transformers_with_caches(tmp_path, few, monkeypatch):
    """A tiny ladder is trained, attached and cached; the caches cost less than the plain run and are taken off."""
    for kind, number in itertools.product("ab", range(3)):
        (tmp_path / "images" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (80 * number, 30, 90)).save(tmp_path / "images" / kind / f"{number}.png")
    monkeypatch.setattr(train_dit, "SIZES", {"small": (32, 1), "middle": (32, 2), "large": (32, 4)})
    monkeypatch.setattr(train_dit, "STEPS", dict.fromkeys(train_dit.STEPS, 1))
    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path / "images"), "--out", str(tmp_path / "dit")])
    train_dit.main()
    monkeypatch.setattr(plan_rows, "BUDGETS", (8,))
    monkeypatch.setattr(plan_rows, "THRESHOLDS", (0.0, 10.0))
    monkeypatch.setattr(plan_rows, "INTERVALS", (3,))
    bench = Bench("dit_flow_ode", tmp_path, quick=True, dit=tmp_path / "dit")
    plain = bench.run(plan_rows._fast(bench), bench.stock()[1], 2)
    for key, make in plan_rows.cached(bench):
        row = make()
        assert 12 / 4 < row.cost() <= 8  # the first of four blocks runs at every call
        assert not torch.equal(row.run(2), plain), key
        assert torch.equal(bench.run(plan_rows._fast(bench), bench.stock()[1], 2), plain)
    assert plan_rows._tried(bench, 12, None)[:2] == pytest.approx((12, bench.error(plain)))
    monkeypatch.setattr(plan_rows, "BUDGETS", (5,))
    key, make = next(iter(plan_rows.plans(Bench("dit_eps_ode", tmp_path, quick=True, dit=tmp_path / "dit"))))
    assert make().run(2).shape == (2, 3, 32, 32)


def test_tables_say_what_the_rows_say():
    """The best stock scheduler at a row's error, between two rows on a line in the logarithms."""
    row = {"seconds": 1.0, "median": 0.1}
    result = {
        "pairs": 4,
        "images": 8,
        "rows": {
            "fine @ 56": row | {"cost": 56, "mse": 0.001, "frechet": 0.2},
            "single: A @ 4": row | {"cost": 4, "mse": 1.0},
            "single: A @ 16": row | {"cost": 16, "mse": 0.01},
            "single: B @ 4": row | {"cost": 4, "mse": 2.0},
            "calibrated @ 5": row | {"cost": 4, "mse": 0.1, "frechet": 0.4},
        },
    }
    rows = rows_of(result)
    assert least(rows, ["single: A", "single: B"]) == {4: 1.0, 16: 0.01}
    text = "\n".join(markdown("digits_ode", result))
    assert "| calibrated @ 5 | 4 | 0.1 | 2.00 |" in text
    assert "Fréchet distance (many steps: 0.2):" in text
    assert "| calibrated |  | 0.4 |" in text
