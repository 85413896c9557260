"""Attacks on the command line, on sampling and on a pilot: one wrong option or argument among good ones."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import tempfile

import torch
from hypothesis import strategies as st

import multilevel_sde as mls
from fuzz.harness import Target
from fuzz.values import bad_number, either, small_int, some_number, tensor_of
from multilevel_diffusion import CosineSchedule, uniform
from multilevel_diffusion.process.reverse_process import Process
from multilevel_diffusion.sampling.samples import sample
from multilevel_sde.cli import main
from multilevel_sde.testing import grids

_WORDS = ["", "x", "nan", "inf", "-inf", "1e400", "-1", "0", "--", "1.5.2", "None", "\u00e9"]
_LADDERS = ["", "nothing", "/dev/null", ".", "digits/level_1"]

# Options of each command that keep a run short, and what is wrong for others; a value alone is tried for the option.
_GOOD = {
    "rates": ["--samples", "2", "--levels", "2", "3"],
    "sample": ["--ladder", "digits", "--count", "1", "--steps", "2", "--fine", "10", "--method", "em"],
    "measure": ["--ladder", "digits", "--images", "2", "--draws", "1", "--batch", "1", "--data", "digits"],
    "pilot": ["--ladder", "digits", "--steps", "16", "--samples", "2", "--candidates", "8"],
    "plan": ["--ladder", "digits", "--out", "plan.safetensors"],
    "edit": ["--ladder", "digits", "--images", "1", "--steps", "2", "--corrections", "1"],
    "train": ["--data", "digits", "--out", "ladder", "--preset", "digits"],
}
_WRONG = {
    "rates": {"--gamma": [*_WORDS, "21"], "--diffusion": ["nan", "-1", "inf", "x"], "--samples": ["0", "1", "-3", "x"]},
    "sample": {
        "--ladder": _LADDERS,
        "--steps": ["0", "-1", "x", "11", "nan"],
        "--fine": ["0", "-1", "x", "1"],
        "--budget": ["nan", "-1", "0", "x", "inf"],
        "--count": ["0", "-1", "x"],
        "--price": ["x", "", "euros"],
        "--batch": ["-1", "x"],
        "--plan": ["", "nothing", "/dev/null"],
        "--mode": ["x", ""],
        "--seed": ["x", "1.5"],
        "--device": ["nothing", "", "cpu:x"],
    },
    "measure": {
        "--ladder": _LADDERS,
        "--data": ["", "x", "folder:", "digits:x"],
        "--images": ["x", "0"],
    },
    "pilot": {
        "--ladder": _LADDERS,
        "--steps": ["0", "-1", "x", "7"],
        "--samples": ["0", "1", "-1", "x"],
        "--candidates": ["0", "-1", "7", "x"],
    },
    "plan": {
        "--ladder": _LADDERS,
        "--budget": ["nan", "-1", "0", "x", "inf", "1e-9"],
        "--target-mse": ["nan", "-1", "0", "x"],
        "--pilot": ["", "nothing", "/dev/null"],
    },
    "edit": {
        "--ladder": _LADDERS,
        "--images": ["0", "-1", "x"],
        "--area": ["nan", "-1", "0", "2", "x"],
        "--middle": ["nan", "-1", "0", "2", "x"],
        "--steps": ["0", "-1", "x"],
        "--tile": ["0", "-1", "3", "x"],
        "--margin": ["-1", "x"],
    },
    "train": {"--data": ["", "x", "folder:", "folder:nothing"], "--preset": ["x", ""], "--steps": ["0", "-1", "x"]},
    "": {word: [word] for word in _WORDS if word},
}


@st.composite
def _lines(draw):
    command = draw(st.sampled_from(sorted(_WRONG)))
    option = draw(st.sampled_from(sorted(_WRONG[command])))
    return [command, *_GOOD.get(command, []), f"{option}={draw(st.sampled_from(_WRONG[command][option]))}"]


def _command(argv) -> str:
    """Run a command in an empty folder: status 2 and one sentence, or status 0."""
    out, errors = io.StringIO(), io.StringIO()
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        os.chdir(folder)
        try:
            status = main(argv)
        except SystemExit as stopped:
            status = stopped.code
        finally:
            os.chdir(before)
    said = [line for line in errors.getvalue().splitlines() if line.startswith("multilevel-sde")]
    assert status in (0, 2), f"{argv} ended with status {status}"
    assert status == 0 or (len(said) == 1 and ": " in said[0]), f"{argv} did not say why: {errors.getvalue()[-300:]}"
    return "status 2" if status else "accepted"


_SCHEDULE = CosineSchedule()
_PROCESS = Process(_SCHEDULE, 1.0, uniform(_SCHEDULE, 8))
_TOY = mls.Ladder([lambda x, t: 0 * x, lambda x, t: 0.5 * x], costs=[1.0, 4.0])


def _sample(arguments) -> str:
    times = _PROCESS.grid(4)
    whole = {"times": times, "plan": mls.em_plan(_TOY, times), "seeds": range(3), "shape": (1, 2, 2)} | arguments
    images = sample(_TOY, _PROCESS, **whole).images
    assert bool(images.isfinite().all()), "NaN or infinity in images"
    return "accepted"


@functools.cache
def _measured() -> mls.Pilot:
    problem = mls.problems.scaling_law(3.0, levels=3)
    return mls.pilot(problem.ladder, problem.y0(4), problem.times(16), candidates=8)


def _pilot(value) -> str:
    method, arguments = value
    result = getattr(_measured(), method)(**arguments)
    if method == "predict":
        assert math.isfinite(result.mse), "a prediction that is not finite"
    return "accepted"


_plans = st.integers(1, 20).map(lambda steps: mls.em_plan(_TOY, torch.arange(steps + 1)))
_budgets = st.fixed_dictionaries({"budget": some_number})
_asks = st.one_of(
    st.tuples(st.sampled_from(["plan", "plans", "choice", "advise", "schedule"]), _budgets),
    st.tuples(st.just("plan"), st.fixed_dictionaries({"target_mse": bad_number, "budget": either(None, some_number)})),
    st.tuples(st.just("predict"), st.fixed_dictionaries({"what": st.one_of(tensor_of(), _plans)})),
    st.tuples(st.sampled_from(["step_error", "responses"]), st.fixed_dictionaries({"steps": st.integers(-2, 40)})),
)
_samples = st.dictionaries(
    st.sampled_from(["times", "seeds", "shape", "batch", "dtype"]), st.none(), min_size=1, max_size=2
).flatmap(
    lambda chosen: st.fixed_dictionaries(
        {
            name: {
                "times": st.one_of(tensor_of(max_dims=2), grids(max_steps=6), grids(min_steps=4, max_steps=4)),
                "seeds": st.lists(small_int, max_size=3),
                "shape": st.lists(small_int, max_size=3),
                "batch": st.integers(-2, 3),
                "dtype": st.sampled_from([torch.int32, torch.float64, torch.bool]),
            }[name]
            for name in chosen
        }
    )
)

TARGETS = [
    Target("sample", _samples, _sample, 0.1),
    Target("Pilot", _asks, _pilot, 0.3),
    Target("command line", _lines(), _command, 0.01),
]
