"""`python -m fuzz [--count N] [--seed S] [NAME ...]` in the folder tests: fuzz at length and print what came of it."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections import Counter

import torch
from tqdm import tqdm

from fuzz.harness import run
from fuzz.targets import TARGETS

_ROUND = 1000  # inputs of one target at a time, each with a seed of its own


def main() -> None:
    """Try inputs in rounds until so many of them were bad ones, or until it is interrupted."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="bad inputs [%(default)s]")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="printed; the clock's by default")
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [target for target in TARGETS if not arguments.names or target.name in arguments.names]
    outcomes: dict[str, Counter[str]] = {target.name: Counter() for target in chosen}
    print(f"seed {arguments.seed}", flush=True)
    with tqdm(total=arguments.count, unit="bad input") as bar, contextlib.suppress(KeyboardInterrupt):
        for turn in itertools.count():
            for target in chosen:
                came = run(target, max(1, round(_ROUND * target.share)), arguments.seed + turn)
                outcomes[target.name] += came
                bar.update(came.total() - came["accepted"])
            if bar.n >= arguments.count:
                break
    print(_table(outcomes))


def _table(outcomes: dict[str, Counter[str]]) -> str:
    kinds = sorted({kind for counts in outcomes.values() for kind in counts} - {"accepted"})
    lines = [f"{'target':<18}{'tried':>9}{'good':>9}" + "".join(f"{kind:>20}" for kind in kinds)]
    total = sum(outcomes.values(), Counter())
    for name, counts in [*outcomes.items(), ("all", total)]:
        cells = "".join(f"{counts[kind]:>20}" for kind in kinds)
        lines.append(f"{name:<18}{counts.total():>9}{counts['accepted']:>9}{cells}")
    lines.append(f"\n{total.total() - total['accepted']} bad inputs, none broke a law")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
