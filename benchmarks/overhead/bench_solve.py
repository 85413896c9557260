"""Statistics of single solves, for `make bench` and `make bench-compare`; bench_overhead.py compares with peers.

`pytest benchmarks/overhead/bench_solve.py --benchmark-only`
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from benchmarks.overhead.cases import Case, by_hand, ladder_runs, ours
from benchmarks.overhead.peers import torchsde_runs

torch.set_num_threads(1)

KINDS = {
    "ODE": (Case((128, 5), 200), (by_hand, ours)),
    "SDE, stored increments": (Case((128, 5), 200, noisy=True, stored=True), (by_hand, ours, torchsde_runs)),
    "SDE, own noise": (Case((128, 5), 200, noisy=True), (by_hand, ours, torchsde_runs)),
    "ladder of 3": (Case((128, 5), 200, noisy=True, stored=True), (ladder_runs,)),
}
RUNS = {
    (kind, name): run for kind, (case, makers) in KINDS.items() for make in makers for name, run in make(case).items()
}


@pytest.mark.parametrize(("kind", "name"), RUNS)
@pytest.mark.filterwarnings("ignore")
def test_solvers(benchmark, kind, name):
    benchmark.group = f"{kind}, 200 Euler steps of 128 x 5"
    rounds = 3 if name == "torchsde, default" else 15
    benchmark.pedantic(RUNS[kind, name], rounds=rounds, warmup_rounds=1)
