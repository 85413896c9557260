"""Mutants: one small change in the code that decides what a pilot says, and whether the fast tests notice.

    python tests/mutants.py --count 30 --seed 0

A mutant negates a comparison, takes + for -, * for /, min for max, `and` for `or`, or another number. It is made in a
copy of the repository, where the fast tests of the pilot run. The survivors are listed, and the exit status is 1 if
there are any that KNOWN does not explain.
"""

from __future__ import annotations

import argparse
import ast
import copy
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
FILES = {  # file -> functions and methods that are changed
    "multilevel_sde/pilots/pilot_class.py": {
        "plan", "plans", "em_cost", "single_cost", "single", "advise", "_thrifty", "_curves",
    },
    "multilevel_sde/pilots/answers.py": {"words_for", "words_against"},
    "multilevel_sde/pilots/curves.py": {
        "cost_of", "_steps", "_predicted", "within", "estimate", "form", "price", "base_cost",
    },
    "multilevel_sde/pilots/error_model.py": {
        "prediction", "expectation", "step_error", "single_error", "single_mean", "measured_alone", "preferred",
        "_form",
    },
    "multilevel_sde/pilots/isotone.py": {"calibrated", "tails", "_spread"},
    "multilevel_sde/pilots/grids.py": {"refined"},
    "multilevel_sde/pilots/measure_errors.py": {"single_steps", "target_runs", "grids_of_plans", "calibration_budgets"},
    "adapters/multilevel_diffusion/process/reverse_process.py": {"log_snr_grid"},
}  # fmt: skip
TESTS = {  # of every file, the quickest to notice first
    "pilot_class": ["tests/pilots/test_made_up_measurements.py", "tests/pilots/test_pilot_plans.py"],
    "answers": ["tests/pilots/test_made_up_measurements.py"],
    "curves": ["tests/pilots/test_made_up_measurements.py", "tests/pilots/test_pilot_plans.py"],
    "error_model": ["tests/pilots/test_made_up_measurements.py", "tests/pilots/test_pilot_plans.py"],
    "isotone": ["tests/pilots/test_isotone.py"],
    "grids": ["tests/pilots/test_made_up_measurements.py"],
    "measure_errors": [
        "tests/pilots/test_which_runs.py",
        "tests/pilots/test_pilot_multistep.py",
        "tests/pilots/test_tracking.py",
    ],
    "reverse_process": ["tests/diffusion/process/test_reverse_process.py"],
}
KNOWN = {  # "file:line text -> text": why nothing is to notice
    "multilevel_sde/pilots/pilot_class.py:37 16 -> 25": "a longer list of plans takes more time, and is no worse",
    "multilevel_sde/pilots/measure_errors.py:37 0.5 -> 0.75": "a bound by judgement",
    "adapters/multilevel_diffusion/process/reverse_process.py:67 100 -> 151": "more tries that find nothing",
}
SWAPS = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
ROUNDING = (1e-9, 1e-12, 1e-300, 1e-299)  # guards that no test can see


def places(tree: ast.Module, names: set[str]) -> list[ast.AST]:
    """The nodes that can be changed: in these functions, and in the numbers at the top of the file."""
    found = []
    for part in ast.walk(tree):
        top = isinstance(part, ast.Assign) and part in tree.body and isinstance(part.value, ast.Constant | ast.Tuple)
        if top or (isinstance(part, ast.FunctionDef) and part.name in names):
            guards = [node for node in ast.walk(part) if isinstance(node, ast.BinOp) and _guards(node)]
            hidden = {id(inner) for node in guards for inner in ast.walk(node)}
            found += [node for node in ast.walk(part) if _changeable(node) and id(node) not in hidden]
    return found


def _guards(node: ast.BinOp) -> bool:
    return any(isinstance(side, ast.Constant) and side.value in ROUNDING for side in (node.left, node.right))


def _changeable(node: ast.AST) -> bool:
    operator = getattr(node, "op", None) or (node.ops[0] if isinstance(node, ast.Compare) else None)
    number = isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value not in (0, *ROUNDING)
    call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max")
    return type(operator) in SWAPS or number or call


def change(node: ast.AST) -> None:
    """Change a node in place."""
    if isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.Constant):
        node.value = node.value * 3 // 2 + 1 if isinstance(node.value, int) else node.value * 1.5
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        node.func.id = "max" if node.func.id == "min" else "min"
    else:
        node.op = SWAPS[type(node.op)]()  # type: ignore[attr-defined]


def mutants() -> list[tuple[str, str, str]]:
    """(file, what was changed, the whole changed file) of every mutant."""
    found = []
    for file, names in FILES.items():
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        for place, node in enumerate(places(tree, names)):
            changed = copy.deepcopy(tree)
            target = places(changed, names)[place]
            before = ast.unparse(target)
            change(target)
            what = f"{file}:{getattr(node, 'lineno', 0)} {before} -> {ast.unparse(target)}"
            found.append((file, what, ast.unparse(changed)))
    return found


def survives(copied: Path, file: str, text: str) -> bool:
    """Whether the fast tests pass with this text in the place of a file."""
    original = (copied / file).read_text(encoding="utf-8")
    (copied / file).write_text(text, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        *TESTS[Path(file).stem],
    ]
    environment = {"PYTHONPATH": f"{copied}:{copied / 'adapters'}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    try:
        done = subprocess.run(command, cwd=copied, env=environment, capture_output=True, timeout=600)
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        (copied / file).write_text(original, encoding="utf-8")


def main() -> int:
    """Try some mutants and list the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30, help="how many to try; 0 for all [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="which of them [%(default)s]")
    parser.add_argument("names", nargs="*", metavar="NAME", help="files, without folder and ending; default: all")
    options = parser.parse_args()
    every = [one for one in mutants() if not options.names or Path(one[0]).stem in options.names]
    chosen = every if options.count == 0 else random.Random(options.seed).sample(every, min(options.count, len(every)))
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "repository"
        skipped = shutil.ignore_patterns(".git", ".venv", "__pycache__", "_build", "results", "images", "demo-output")
        shutil.copytree(ROOT, copied, ignore=skipped)
        for file, what, text in tqdm(chosen, desc="mutants", unit="mutant"):
            if survives(copied, file, text):
                survivors.append(what)
                tqdm.write(f"survived: {what}")
    unknown = [what for what in survivors if what not in KNOWN]
    print(f"{len(chosen)} of {len(every)} mutants tried, {len(survivors)} survived")
    for what in survivors:
        print(f"  {what}" + (f": {KNOWN[what]}" if what in KNOWN else ""))
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
