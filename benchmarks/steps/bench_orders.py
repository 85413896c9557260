"""The strong order of every rule for every kind of noise, and how much draws heat a Langevin run.

Orders by regression over step sizes from 1/8 to 1/64 on the problems of `multilevel_sde.rates.noise_problems`; the
reference is the exact solution where one is known, else the same rule with a sixteenth of the step. Heating: the
kinetic temperature of oscillators whose force is a cheap one and a constant correction, by BAOAB, above that of the run
without a correction. `python benchmarks/steps/bench_orders.py` takes three minutes, and writes `results/orders.md` and
`results/heating.md`, which docs/orders.md shows.
"""

from __future__ import annotations

import math

import torch

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, table
from multilevel_sde.files import write_atomically
from multilevel_sde.rates.noise_problems import noise_problems
from multilevel_sde.testing import check_order

COLUMNS = ("additive", "scalar", "diagonal", "commutative", "general")
ITO = {
    "euler_maruyama": mls.euler_maruyama,
    "Heun()": mls.Heun(),
    "Midpoint()": mls.Midpoint(),
    "AdamsBashforth(2)": mls.AdamsBashforth(2),
    "TamedEuler()": mls.TamedEuler(),
    "Milstein()": mls.Milstein(),
    "Milstein(gradient_free=True)": mls.Milstein(gradient_free=True),
    "SRA1()": mls.SRA1(),
}
STRATONOVICH = {
    "Milstein(stratonovich=True)": mls.Milstein(stratonovich=True),
    "EulerHeun()": mls.EulerHeun(),
    "StratonovichHeun()": mls.StratonovichHeun(),
    "StratonovichMidpoint()": mls.StratonovichMidpoint(),
}


def orders(samples: int) -> list[str]:
    """Return the lines of the table of orders."""
    rows = []
    for solves, rules in (("Ito", ITO), ("Stratonovich", STRATONOVICH)):
        problems = noise_problems(stratonovich=solves == "Stratonovich")
        for name, rule in rules.items():
            cells = [f"`{name}`", solves]
            for column in COLUMNS:
                if isinstance(rule, mls.SRA1) and column != "additive":
                    cells.append("–")
                    continue
                steps = (16, 32, 64) if isinstance(rule, mls.SRA1) else (8, 16, 32, 64)  # its next term is large at 8
                found = check_order(rule, problems[column], 1.0, steps=steps, samples=samples, tolerance=math.inf)
                cells.append(f"{found.order:.2f} ± {found.standard_error:.2f}")
            rows.append(cells)
            print(" | ".join(cells), flush=True)
    return table(["rule", "solves", *COLUMNS], rows)


def heating() -> list[str]:
    """Return the lines of the table of temperatures."""
    temperature, friction, stiffness, c, samples, total = 1.0, 1.0, 1.0, 1.0, 512, 100.0
    ladder = mls.Ladder([lambda q, t: -stiffness * q, lambda q, t: c - stiffness * q], [1.0, 8.0])
    rule, y0 = mls.BAOAB(temperature, friction), mls.seeded_normal(range(samples), (2, 1), dtype=torch.float64)
    rows = []
    for h in (0.05, 0.1, 0.2):
        times = torch.linspace(0.0, total, round(total / h) + 1, dtype=torch.float64)
        for every in (4, 16):
            count, p = len(times), 1 / every
            generator = torch.Generator().manual_seed(0)
            hits = torch.zeros(count, 2, dtype=torch.bool)
            hits[:, 0], hits[::every, 1] = True, True
            probabilities = torch.tensor([1.0, p]).expand(count, 2)
            plans = {
                "independent": mls.draw_plan(probabilities, mls.independent, generator=generator, samples=samples),
                "every": mls.Plan(hits, hits * torch.tensor([1.0, float(every)], dtype=torch.float64)),
                "held": mls.hold(mls.Plan(hits, hits.double()), torch.arange(count + 1.0)),
            }
            found = []
            for plan in plans.values():
                given = {"step": rule, "diffusion": 1.0, "brownian": mls.BrownianPath(range(samples)), "save": True}
                momenta = mls.solve(ladder, y0, times, plan, **given).ys[count // 10 :, :, 1, 0]
                found.append(float(momenta.square().mean()) - temperature * (1 - h**2 * stiffness / 4))
            formula = h * c**2 * (1 / p - 1) / (2 * friction)
            rows.append([f"{h:g}", f"1/{every}", f"{formula:.3f}", *(f"{value:+.3f}" for value in found)])
            print(" | ".join(rows[-1]), flush=True)
    return table(["step", "p", "h V / (2 m gamma)", "independent draws", "every 1/p-th step, at once", "held"], rows)


def main() -> None:
    """Measure, print and write the tables."""
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--samples", type=int, default=2048, help="paths for every order [2048]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, lines in (("orders", orders(options.samples)), ("heating", heating())):
        text = "\n".join([*lines, "", f"{machine()['cpu']}, float64, seed 0.", ""])
        write_atomically(options.out / f"{name}.md", text.encode())


if __name__ == "__main__":
    main()
