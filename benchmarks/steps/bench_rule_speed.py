"""The time of a step of each rule against torchsde's own, on the same path, in one run and in turn (A B A B).

Diagonal noise (additive for SRA1), drift and diffusion of one tensor operation each, so that the loop and the rule are
what is timed. The median ratio over rounds. `python benchmarks/steps/bench_rule_speed.py` takes half a minute.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torchsde

import multilevel_sde as mls
from benchmarks.common import machine, parser_of, table
from multilevel_sde.files import write_atomically

STEPS, ROUNDS = 64, 15


class Sde(torch.nn.Module):
    """dy = -y dt + (0.3 + 0.1 sin y) dW, or 0.3 dW."""

    def __init__(self, sde_type: str, noise_type: str = "diagonal"):
        super().__init__()
        self.sde_type, self.noise_type = sde_type, noise_type

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return -y

    def g(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # noqa: D102
        if self.noise_type == "additive":
            return torch.full((1, 1, 1), 0.3).expand(*y.shape, 1)
        return 0.3 + 0.1 * torch.sin(y)


class Known(torchsde.BaseBrownian):
    """Increments, and areas, computed before: the noise is not timed."""

    dtype, device, levy_area_approximation, shape = torch.float32, torch.device("cpu"), "space-time", (0, 0)

    def __init__(self, shape: tuple[int, int], step: float):
        self.shape = self.size = shape
        generator = torch.Generator().manual_seed(0)
        self.W, self.H = torch.randn(2, STEPS, *shape, generator=generator).unbind()
        self.W, self.H, self.step = self.W * step**0.5, self.H * (step / 12) ** 0.5, step

    def __call__(self, ta, tb=None, return_U=False, return_A=False):  # noqa: D102
        n = round(float(ta) / self.step)
        return (self.W[n], self.step * (self.H[n] + self.W[n] / 2)) if return_U else self.W[n]

    def with_area(self, t: float, s: float) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: D102
        n = round(t / self.step)
        return self.W[n], self.H[n]

    def __repr__(self) -> str:
        return "Known"


CASES = {
    "euler": (mls.euler_maruyama, "ito", "diagonal"),
    "milstein": (mls.Milstein(), "ito", "diagonal"),
    "heun": (mls.StratonovichHeun(), "stratonovich", "diagonal"),
    "midpoint": (mls.StratonovichMidpoint(), "stratonovich", "diagonal"),
    "euler_heun": (mls.EulerHeun(), "stratonovich", "diagonal"),
    "srk": (mls.SRA1(), "ito", "additive"),
}


def seconds(run: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Measure, print and write the table."""
    options = parser_of(__file__, __doc__).parse_args()
    torch.set_num_threads(1)
    times = torch.linspace(0.0, 1.0, STEPS + 1)
    rows = []
    with torch.no_grad():
        for shape in ((128, 5), (512, 256)):
            y0 = torch.ones(shape)
            for method, (rule, sense, kind) in CASES.items():
                sde = Sde(sense, kind)
                bm = Known(shape if kind == "diagonal" else (shape[0], 1), 1 / STEPS)
                ladder, diffusion = mls.from_torchsde([sde])
                plan = mls.em_plan(ladder, times, step=rule)

                def ours(rule=rule, ladder=ladder, diffusion=diffusion, plan=plan, bm=bm, y0=y0) -> torch.Tensor:
                    given = {"step": rule, "diffusion": diffusion, "brownian": bm, "check_finite": False}
                    return mls.solve(ladder, y0, times, plan, **given).y

                def theirs(sde=sde, bm=bm, method=method, y0=y0) -> torch.Tensor:
                    return torchsde.sdeint(sde, y0, times[[0, -1]], bm=bm, method=method, dt=1 / STEPS)[-1]

                torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)
                pairs = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
                ratio = statistics.median(a / b for a, b in pairs)
                own, other = (1e6 * statistics.median(column) / STEPS for column in zip(*pairs, strict=True))
                rows.append([str(shape), method, f"{own:.0f}", f"{other:.0f}", f"{ratio:.2f}"])
                print(" | ".join(rows[-1]), flush=True)
    text = table(["state", "torchsde's name", "µs a step", "torchsde, µs", "ratio"], rows)
    lines = [*text, "", f"{machine()['cpu']}, one thread, processor time, float32, the median of {ROUNDS} rounds.", ""]
    write_atomically(options.out / "rule_speed.md", "\n".join(lines).encode())


if __name__ == "__main__":
    main()
