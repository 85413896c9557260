"""What the loop costs: against a hand-written Euler loop, and against torchsde.

`pytest benchmarks/bench_solve.py --benchmark-only` for statistics of each, `python benchmarks/bench_solve.py` for the
ratios as Markdown. Ratios are of minima of processor time of one thread, of runs that take turns (A B A B), so that a
busy machine slows both sides alike.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools
import time
import warnings

import pytest
import torch
import torchsde

import multilevel_sde as mls

torch.set_num_threads(1)

Y0 = torch.linspace(-1.0, 1.0, 640).reshape(128, 5)
SIGMA = 0.5


def times_of(steps):
    return torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)


def trivial(y, t):
    return -y


def slow(y, t):
    """A drift of 5 ms of processor time."""
    end = time.thread_time() + 0.005
    while time.thread_time() < end:
        pass
    return -y


def hand_written(drift, times, path=None):
    """Euler as one writes it, with the same noise as `solve`."""
    points, increments, y = times.tolist(), None, Y0
    if path is not None:
        increments = path.like(Y0).increments(times)
    with torch.no_grad():
        for n, (t, s) in enumerate(itertools.pairwise(points)):
            following = y + (s - t) * drift(y, times[n])
            y = following if increments is None else following + SIGMA * next(increments)
    return y


def solve(drift, times, path=None, **options):
    ladder = mls.Ladder([drift], costs=[1.0])
    noise = {} if path is None else {"diffusion": SIGMA, "brownian": path}
    return mls.solve(ladder, Y0, times, mls.em_plan(ladder, times), **noise, **options).y


class OrnsteinUhlenbeck:
    """dy = -y dt + sigma dW, as torchsde takes it."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        """The drift."""
        return -y

    def g(self, t, y):
        """The diffusion."""
        return torch.full_like(y, SIGMA)


def torchsde_default(steps):
    with torch.no_grad():
        return torchsde.sdeint(OrnsteinUhlenbeck(), Y0, torch.tensor([0.0, 1.0]), method="euler", dt=1 / steps)


def torchsde_tuned(steps):
    bm = torchsde.BrownianInterval(t0=0.0, t1=1.0, size=Y0.shape, dt=1 / steps)
    with torch.no_grad():
        return torchsde.sdeint(OrnsteinUhlenbeck(), Y0, torch.tensor([0.0, 1.0]), bm=bm, method="euler", dt=1 / steps)


def same_equation(steps, path=None):
    """The same f and g, and a path for every sample of its own seed."""
    times = times_of(steps)
    ladder, diffusion = mls.from_torchsde([OrnsteinUhlenbeck()])
    brownian = mls.BrownianPath(range(len(Y0))) if path is None else path
    return mls.solve(ladder, Y0, times, mls.em_plan(ladder, times), diffusion=diffusion, brownian=brownian).y


def constant_sigma(steps):
    """The same equation as this library writes it: the diffusion is a number."""
    return solve(trivial, times_of(steps), mls.BrownianPath(range(len(Y0))))


RUNS = {
    "hand-written ODE": lambda steps: hand_written(trivial, times_of(steps)),
    "solve ODE": lambda steps: solve(trivial, times_of(steps)),
    "hand-written SDE": lambda steps: hand_written(trivial, times_of(steps), mls.BrownianPath(range(len(Y0)))),
    "solve SDE": constant_sigma,
    "from_torchsde": same_equation,
    "torchsde tuned": torchsde_tuned,
    "torchsde default": torchsde_default,
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("steps", [50, 100, 200, 500])
@pytest.mark.filterwarnings("ignore")
def test_solvers(benchmark, name, steps):
    benchmark.group = f"{steps} Euler steps of 128 x 5"
    rounds = 3 if name == "torchsde default" else 15
    benchmark.pedantic(RUNS[name], args=(steps,), rounds=rounds, warmup_rounds=1)


def interleaved(runs, rounds):
    """Least seconds of each of the runs, taking turns, after one turn to warm up."""
    least = dict.fromkeys(runs, float("inf"))
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            if turn:
                least[name] = min(least[name], time.thread_time() - start)
    return least


def table(head, rows):
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def overhead():
    """Rows of `solve` over the hand-written loop."""
    rows, path = [], mls.BrownianPath(range(len(Y0)))
    for what, drift, steps, rounds in (("trivial drift", trivial, 200, 60), ("5 ms drift", slow, 40, 5)):
        for kind, brownian in (("ODE", None), ("SDE", path)):
            times = times_of(steps)
            runs = {
                "hand": lambda d=drift, t=times, b=brownian: hand_written(d, t, b),
                "solve": lambda d=drift, t=times, b=brownian: solve(d, t, b),
                "unchecked": lambda d=drift, t=times, b=brownian: solve(d, t, b, check_finite=False),
            }
            least = interleaved(runs, rounds)
            micro = [f"{least[name] / steps * 1e6:.1f}" for name in runs]
            goal = "1.5" if drift is trivial else "1.02"
            ratios = [f"{least[name] / least['hand']:.3f}" for name in ("solve", "unchecked")]
            rows.append([f"{kind}, {what}", *micro, *ratios, goal])
    return rows


def against_torchsde():
    """Rows of torchsde over `solve`."""
    rows = []
    for steps in (50, 100, 200, 500):
        names = ["torchsde default", "torchsde tuned", "from_torchsde", "solve SDE"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            least = interleaved({name: lambda name=name, n=steps: RUNS[name](n) for name in names}, rounds=9)
        milli = [f"{least[name] * 1e3:.2f}" for name in names]
        ratios = [f"{least[a] / least[b]:.1f}" for a in names[:2] for b in names[2:]]
        rows.append([str(steps), *milli, *ratios])
    return rows


def main():
    print("Microseconds a step, state 128 x 5, one thread.\n")
    head = ["", "hand-written", "solve", "check_finite=False", "solve/hand", "unchecked/hand", "goal"]
    print(table(head, overhead()))
    print("\nMilliseconds of a solve, Ornstein-Uhlenbeck, state 128 x 5, one thread.\n")
    head = ["steps", "torchsde default", "torchsde tuned", "solve, its f and g", "solve, sigma a number"]
    print(table([*head, "default/same", "default/number", "tuned/same", "tuned/number"], against_torchsde()))


if __name__ == "__main__":
    main()
