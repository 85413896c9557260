"""The table of seconds: rivals' seconds at a plan's error, over the plan's own."""

from benchmarks.samplers.bench_seconds import ALONE, PLAN, markdown


def row(method, budget, seconds, mse, single):
    errors = {"mse": mse, "median": mse / 2, "standard_error": 0.01}
    return {"method": method, "budget": budget, "cost": budget, "seconds": seconds, "single": single, **errors}


def test_a_speed_up_is_the_best_rivals_seconds_over_the_plans():
    rows = [
        row("EM, uniform", 5, 0.010, 0.4, True),
        row("EM, uniform", 20, 0.040, 0.1, True),
        row(ALONE, 5, 0.011, 0.1, True),
        row(PLAN, 5, 0.005, 0.2, False),
        row(PLAN, 8, 0.005, 0.05, False),
    ]
    about = {"ladder": "digits", "mode": "ddim", "unit": "seconds", "prices": [0.001, 0.002], "batch": 16}
    lines = markdown(about | {"rows": rows}).splitlines()
    assert "Levels' seconds in those of the largest: 0.5, 1." in lines
    # Euler-Maruyama reaches 0.2 half way between its runs in logarithms, the fitted network at once.
    assert f"| {PLAN} | 5 | 0.2 (0.1) | 5 | 2.20 (2.20) | 4.00 (4.00) |" in lines
    assert f"| {PLAN} | 8 | 0.05 (0.025) | 5 | > 8.00 (> 8.00) | > 8.00 (> 8.00) |" in lines  # none comes so near
    assert f"- best rival with 5 evaluations: {ALONE}, error 0.1 +- 0.01, 11 ms" in lines
    assert f"- rival with 5 evaluations: {ALONE}, error 0.1 +- 0.01, 11 ms" in lines
