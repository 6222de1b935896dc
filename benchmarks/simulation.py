"""Simulated runs (tests/cluster/simulation.py) by the thousand: none may break an invariant, and planted bugs must be found.

    python benchmarks/simulation.py --schedules 10000

A schedule that fails is printed with its seed, which repeats it: `--first SEED --schedules 1`.
"""

import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.cluster.planted import PLANTED
from tests.cluster.simulation import simulate

CHUNK = 100
MOST = 200
"""Schedules in which a planted bug must be found."""


def failures(seeds: range) -> list[str]:
    logging.disable(logging.CRITICAL)
    found = []
    for seed in seeds:
        try:
            simulate(seed)
        except BaseException as error:
            found.append(f"seed {seed}: {type(error).__name__}: {error}")
    return found


def hunt(name: str) -> str:
    """The first schedule that finds the planted bug, and what it says; empty where none does."""
    with next(bug for bug in PLANTED if bug.__name__ == name)():
        for seed in range(MOST):
            if found := failures(range(seed, seed + 1)):
                return found[0]
    return ""


def main(
    schedules: Annotated[int, typer.Option(help="How many.")] = 10_000,
    first: Annotated[int, typer.Option(help="The first one's seed.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    began, done, failed = time.monotonic(), 0, []
    parts = [range(start, min(start + CHUNK, first + schedules)) for start in range(first, first + schedules, CHUNK)]
    with ProcessPoolExecutor(jobs) as pool:
        for part, found in zip(parts, pool.map(failures, parts), strict=True):
            done, failed = done + len(part), failed + found
            for line in found:
                print(line, flush=True)
            if done % 1000 == 0:
                print(f"{done} schedules, {len(failed)} failed, {time.monotonic() - began:.0f} s", flush=True)
        bugs = [bug.__name__ for bug in PLANTED]
        hunted = dict(zip(bugs, pool.map(hunt, bugs), strict=True))
    for name, found in hunted.items():
        print(f"planted {name}: {found[:160] or f'not found in {MOST} schedules'}")
    good = not failed and all(hunted.values())
    print(f"{schedules} schedules in {time.monotonic() - began:.0f} s, {len(failed)} failed: {'PASS' if good else 'FAIL'}")
    raise typer.Exit(not good)


if __name__ == "__main__":
    typer.run(main)
