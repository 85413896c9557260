"""Figure 1 of the paper at its smallest: it goes on where it was, and its tables hold what it measured."""

import json
from importlib import import_module

import pytest
import torch


@pytest.fixture
def figure1(monkeypatch):
    module = import_module("benchmarks.paper.bench_figure1")
    monkeypatch.setattr(module, "CANDIDATES", 3)
    return module


@torch.no_grad()
def test_figure_1_goes_on_to_the_same_numbers(figure1, tmp_path):
    def run():
        figure1.Figure1("digits", "ddim", 8, (1, 4), tmp_path, quick=True).run()
        return json.loads((tmp_path / "figure1_digits_ddim.json").read_bytes())

    whole = run()
    rows = {(row["method"], row["budget"]): row for row in whole["rows"]}
    assert {name for name, _ in rows} >= {"EM, level 1", "EM, level 5", "ML-EM, C / T, best of 15"}
    for kind in ("C / T", "theorem's p", "pilot's p", "learned p"):
        for draw in ("independent", "systematic"):
            row = rows[f"ML-EM, {kind}, {draw}", 5]
            assert row["cost"] < 7
            assert row["mse"] == pytest.approx(sum(row["by_draw"]) / 4)
            assert row["colour"] < row["mse"]
    best = rows["ML-EM, C / T, best of 15", 5]
    assert best["mse"] == pytest.approx(best["judging"][best["choosing"].index(min(best["choosing"]))])
    lost = [row for row in whole["rows"] if "learned" in row["method"] or row["method"] == "EM, level 5"]
    kept = [row for row in whole["rows"] if row not in lost]
    (tmp_path / "figure1_digits_ddim.json").write_text(json.dumps(whole | {"rows": kept}))
    again = {(row["method"], row["budget"]): row for row in run()["rows"]}
    assert {name: row["mse"] for name, row in again.items()} == {name: row["mse"] for name, row in rows.items()}
    text = figure1.markdown(whole)
    assert "| ML-EM, learned p, systematic |" in text
    assert "rank correlation of draws over two sets of images" in text


def test_learning_where_the_optimum_is_known_gains_most_of_it():
    known = import_module("benchmarks.learning.bench_known_optimum")
    start = known.error(known.at_budget(torch.ones(known.STEPS, dtype=torch.float64)))
    best = known.error(known.at_budget(known.TIMES[:-1].square()))
    assert start / best == pytest.approx(1.89, abs=0.01)
    assert known.error(known.best_member()) < 1.01 * best
    assert known.error(known.learned(100, 0.2, 25, 0)) < start - 0.7 * (start - best)
