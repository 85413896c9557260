"""Laws of the regression guard: overlap is noise, what parts and is large has moved, and rows find their own."""

import copy
import importlib
import json

import pytest
from places import BENCHMARKS

ROWS = [
    {"solver": name, "steps": n, "time": 10.0 * n, "time_low": 9.0 * n, "time_high": 12.0 * n, "turns": 5}
    for name in ("ours", "theirs")
    for n in (50, 200)
]
OURS = {"machine": {"cores": 2}, "gamma": 2.5, "rows": ROWS}
ERROR = {"method": "EM", "single": True, "budget": 5, "mse": 1.0, "standard_error": 0.1, "median": 0.7}
FOREIGN = {"benchmarks": [{"fullname": "a.py::test_a[1]", "stats": {"median": 1.0, "q1": 0.9, "q3": 1.2, "min": 0.8}}]}


@pytest.fixture
def compared(tmp_path, monkeypatch, capsys):
    """Run the script on two contents: exit code and what it printed."""
    script = importlib.import_module("benchmarks.compare")

    def run(old, new, *options):
        paths = []
        for name, content in (("old", old), ("new", new)):
            paths.append(tmp_path / f"{name}.json")
            paths[-1].write_text(content if isinstance(content, str) else json.dumps(content))
        try:
            code = script.main([*map(str, paths), *options])
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def changed(place, **values):
    """OURS with other values in one row."""
    content = copy.deepcopy(OURS)
    content["rows"][place] |= values
    return content


def scaled(place, factor):
    """OURS with the time of one row and its quartiles multiplied."""
    return changed(place, **{name: factor * ROWS[place][name] for name in ("time", "time_low", "time_high")})


def test_a_file_is_equal_to_itself(compared):
    for content, count in ((OURS, 4), (FOREIGN, 1), ({"rows": [ERROR]}, 2)):
        assert compared(content, content) == (
            0,
            f"0 worse, 0 better, {count} within noise or threshold; 0 only in the old file, 0 only in the new one\n",
        )


@pytest.mark.parametrize(
    ("factor", "code", "verdict"),
    [(1.4, 1, "worse"), (1.3, 0, ""), (0.7, 0, "better"), (0.8, 0, "")],  # quartiles meet at 4/3 and 3/4
)
def test_times_have_moved_where_their_quartiles_part(compared, factor, code, verdict):
    found, printed = compared(OURS, scaled(3, factor))
    assert found == code
    assert (f"| {verdict} | time, theirs, steps 200 |" in printed) == bool(verdict)
    assert printed.count("\n|") == (2 if verdict else 0)
    assert f"{int(verdict == 'worse')} worse, {int(verdict == 'better')} better, " in printed


def test_what_moved_stands_with_old_new_and_ratio(compared):
    _, printed = compared(OURS, scaled(0, 2.0))
    assert "| worse | time, ours, steps 50 | 500 (450 to 600) | 1000 (900 to 1200) | 2.00 |" in printed


@pytest.mark.parametrize(("threshold", "code"), [("0.99", 1), ("1.01", 0)])
def test_small_changes_do_not_count_however_sure(compared, threshold, code):
    assert compared(OURS, scaled(1, 2.0), "--threshold", threshold)[0] == code


@pytest.mark.parametrize(("mse", "code"), [(1.41, 1), (1.39, 0)])
def test_a_mean_squared_error_is_known_to_twice_its_standard_error(compared, mse, code):
    assert compared({"rows": [ERROR]}, {"rows": [ERROR | {"mse": mse}]})[0] == code


@pytest.mark.parametrize(("median", "code"), [(0.78, 1), (0.76, 0)])
def test_without_a_spread_the_threshold_decides(compared, median, code):
    assert compared({"rows": [ERROR]}, {"rows": [ERROR | {"median": median}]})[0] == code


def test_quartiles_of_pytest_benchmark_are_read(compared):
    def with_stats(**stats):
        content = copy.deepcopy(FOREIGN)
        content["benchmarks"][0]["stats"] |= stats
        return content

    assert compared(FOREIGN, with_stats(median=1.4, q1=1.25, q3=1.5))[0] == 1
    assert compared(FOREIGN, with_stats(median=1.4, q1=1.15, q3=1.5))[0] == 0
    assert "better" in compared(FOREIGN, with_stats(median=0.5, q1=0.4, q3=0.85))[1]


def test_rows_find_their_own_in_any_order_and_the_rest_is_counted(compared):
    new = {"rows": [*reversed(ROWS[1:]), ROWS[0] | {"steps": 1000}]}
    code, printed = compared(OURS, new)
    assert code == 0
    assert "3 within noise or threshold; 1 only in the old file, 1 only in the new one" in printed


def test_results_under_names_are_told_apart(compared):
    nested = {"first": {"ode": {"time": 1.0, "levels": 2}}, "second": {"ode": {"time": 1.0, "levels": 2}}}
    worse = copy.deepcopy(nested)
    worse["second"]["ode"]["time"] = 2.0
    code, printed = compared(nested, worse)
    assert code == 1
    assert "time, second, ode, levels 2" in printed
    assert "1 worse, 0 better, 1 within" in printed


def test_the_worst_stands_first(compared):
    worse, more = scaled(0, 2.0), scaled(2, 3.0)["rows"][2]
    worse["rows"][2] = more
    printed = compared(OURS, worse)[1]
    assert printed.index("theirs, steps 50") < printed.index("ours, steps 50")


def test_becoming_nan_is_worse(compared):
    assert compared(OURS, changed(0, time=float("nan")))[0] == 1


def test_some_numbers_only(compared):
    old, new = {"rows": [ERROR]}, {"rows": [ERROR | {"median": 9.0}]}
    assert compared(old, new, "--only", "mse")[0] == 0
    assert compared(old, new, "--only", "median")[0] == 1


@pytest.mark.parametrize(
    ("old", "new", "options", "sentence"),
    [
        (OURS, "{", (), "cannot be read as JSON"),
        (OURS, {"rows": []}, (), "has no results"),
        (OURS, {"rows": [ROWS[0], ROWS[0]]}, (), "has two results named time, ours, steps 50"),
        (OURS, FOREIGN, (), "have no result in common"),
        (OURS, OURS, ("--only", "mse"), "have no result in common"),
        (OURS, OURS, ("--threshold", "-1"), '"--threshold" must be at least 0'),
        (OURS, OURS, ("--threshold", "nan"), '"--threshold" must be at least 0'),
    ],
)
def test_what_cannot_be_compared_is_refused(compared, old, new, options, sentence):
    code, printed = compared(old, new, *options)
    assert code == 2
    assert sentence in printed.replace("\n", " ")


def test_every_committed_result_can_be_read(compared):
    for path in sorted(BENCHMARKS.glob("*/results/*.json")):
        text = path.read_text()
        assert compared(text, text)[0] == 0, path.name
