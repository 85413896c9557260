"""The tables of samplers count the fitted network among the best single ones, and say what is left without it."""

from benchmarks.samplers.sampler_tables import ALONE, EM, FITTED, PILOT, markdown, ratios


def row(method, cost, error, single):
    spent = {"budget": cost, "cost": cost, "seconds": cost / 10}
    return {"method": method, "mse": error, "median": error / 2, "single": single, **spent}


def result():
    """At a cost of n EM errs 1 / n, the best unfitted network 1 / n^2, the fitted one 1 / (2 n^2)."""
    rows = []
    for n in (4.0, 8.0, 16.0):
        rows += [row(EM, n, 1 / n, True), row("SA-Solver", n, n**-2, True), row(ALONE, n, 0.5 * n**-2, True)]
    rows += [row(FITTED, 4.0, 8.0**-2, False), row(PILOT, 4.0, 4.0**-2, False)]
    return {"ladder": "some", "mode": "ddim", "images": 4, "rows": rows}


def test_speed_ups_over_the_fitted_network_stand_beside_those_over_unfitted_ones():
    head, _, cells = ratios(result(), FITTED, "cost")
    assert [name.strip() for name in head.split("|")[1:-1]] == [
        "cost",
        *("EM, mean", "EM, median"),
        *("best unfitted, mean", "best unfitted, median"),
        *("best single, mean", "best single, median"),
    ]
    cost, em, _, unfitted, _, best, _ = (cell.strip() for cell in cells.split("|")[1:-1])
    assert (cost, em, unfitted, best) == ("4", "> 4.00", "2.00", "1.41")


def test_the_fitted_network_has_a_row_and_is_left_out_of_the_unfitted():
    text = markdown(result())
    assert f"| {ALONE} | 0.031 / 0.016 / 0.4 |" in text
    without = {**result(), "rows": [one for one in result()["rows"] if one["method"] != ALONE]}
    cells = ratios(without, FITTED, "cost")[2].split("|")
    assert cells[4:6] == cells[6:8]
