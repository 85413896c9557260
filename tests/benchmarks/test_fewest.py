"""From how few evaluations on: the least cost from which on no interval lies above a half."""

from benchmarks.quality.bench_fewest import fewest, markdown


def row(cost, low, method="EM, uniform"):
    told = {"estimate": low + 0.02, "low": low, "high": low + 0.04}
    return {"method": method, "budget": cost, "cost": cost, "seconds": cost / 1000, "told": told}


def test_the_least_cost_from_which_on_nobody_can_tell():
    told, not_told = 0.51, 0.49
    assert fewest([row(3, told), row(5, told)]) is None
    assert fewest([row(5, not_told), row(8, told), row(12, 0.5), row(20, not_told)])["cost"] == 12  # not the lucky 5
    assert fewest([row(8, not_told), row(3, not_told), row(5, not_told)])["cost"] == 3


def test_the_table_names_it_with_its_seconds():
    about = {"ladder": "digits", "mode": "ddim", "images": 64}
    lines = markdown(about | {"rows": [row(3, 0.6), row(5, 0.48), row(5, 0.6, "UniPC")]}).splitlines()
    assert "| EM, uniform | 0.620 (0.60 to 0.64) | 0.500 (0.48 to 0.52) | 5, 5 ms |" in lines
    assert "| UniPC |  | 0.620 (0.60 to 0.64) | none |" in lines
