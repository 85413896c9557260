"""`python -m fuzz [--count N] [--seed S] [NAME ...]` in the folder tests: fuzz at length and print what came of it.

A target that breaks a law is left out from then on; its least example is printed at the end, with status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
import traceback
from collections import Counter

import torch
from tqdm import tqdm

from fuzz.harness import run
from fuzz.targets import TARGETS

_ROUND = 1000  # inputs of one target at a time, each with a seed of its own


def main() -> int:
    """Try inputs in rounds until so many of them were bad ones, or until it is interrupted."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="bad inputs [%(default)s]")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="printed; the clock's by default")
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [target for target in TARGETS if not arguments.names or target.name in arguments.names]
    outcomes: dict[str, Counter[str]] = {target.name: Counter() for target in chosen}
    broken: dict[str, Exception] = {}
    print(f"seed {arguments.seed}", flush=True)
    with tqdm(total=arguments.count, unit="bad input") as bar, contextlib.suppress(KeyboardInterrupt):
        for turn in itertools.count():
            for target in [target for target in chosen if target.name not in broken]:
                try:
                    came = run(target, max(1, round(_ROUND * target.share)), arguments.seed + turn)
                except Exception as error:
                    broken[target.name] = error
                    continue
                outcomes[target.name] += came
                bar.update(came.total() - came["accepted"])
            if bar.n >= arguments.count or len(broken) == len(chosen):
                break
    print(_table(outcomes))
    for error in broken.values():
        traceback.print_exception(error)
    print(f"\n{bar.n} bad inputs; " + (f"a law is broken by {', '.join(broken)}" if broken else "all laws held"))
    return 1 if broken else 0


def _table(outcomes: dict[str, Counter[str]]) -> str:
    kinds = sorted({kind for counts in outcomes.values() for kind in counts} - {"accepted"})
    lines = [f"{'target':<18}{'tried':>9}{'good':>9}{'bad':>9}" + "".join(f"{kind:>20}" for kind in kinds)]
    total = sum(outcomes.values(), Counter())
    for name, counts in [*outcomes.items(), ("all", total)]:
        cells = "".join(f"{counts[kind]:>20}" for kind in kinds)
        bad = counts.total() - counts["accepted"]
        lines.append(f"{name:<18}{counts.total():>9}{counts['accepted']:>9}{bad:>9}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
