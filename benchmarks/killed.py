"""A run whose driver is killed at every k-th step and taken up again, beside one that is left alone: the same to the last bit.

    python benchmarks/killed.py --runs runs/killed

A short quickstart in scheduled mode, for each max_staleness: SIGKILL to the driver when a step that K divides has been booked,
then `cohort resume`, until it finishes. PASS: every version's digest, every sample and every trained ordinal are those of the
undisturbed run.
"""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Annotated

import typer
from chaos import RECIPE, trained

from cluster.records.metrics import read_jsonl
from runs import COHORT, finished, newest_step, summary

SETTINGS = (
    "stages.0.steps=20", "stages.1.steps=10", "stages.1.questions_per_step=8", "stages.1.samples_per_question=8",
    "data.questions.rows=256", "rollout.kv_cache_gb=0.25", "evaluation.questions=50", "checkpoint_every=2",
)  # fmt: skip
LONGEST_S = 600.0
"""Between two kills."""


def killed(run: Path, every: int, *settings: str) -> int:
    """Carry the run to its end; returns how often it was killed."""
    shutil.rmtree(run, ignore_errors=True)
    command, kills, log = ["train", RECIPE, f"output={run}", *settings], 0, run.with_name(run.name + ".log")
    log.unlink(missing_ok=True)
    while True:
        before, began = newest_step(run), time.monotonic()
        with log.open("a") as file:
            driver = subprocess.Popen([COHORT, *map(str, command)], stdout=file, stderr=file)
        while driver.poll() is None and newest_step(run) < (before // every + 1) * every:
            if time.monotonic() - began > LONGEST_S:
                driver.kill()
                raise SystemExit(f"no {every} steps within {LONGEST_S:g} s: {log}")
            time.sleep(0.01)
        if driver.poll() is not None:
            if driver.returncode:
                raise SystemExit(f"the driver ended with {driver.returncode}: {log}")
            return kills
        driver.kill()
        driver.wait(LONGEST_S)
        kills, command = kills + 1, ["resume", run]
        print(f"{run.name}: killed at step {newest_step(run)}", flush=True)


def outputs(run: Path) -> list[str]:
    """What every sample says, by which versions, and what became of it."""
    rows = (row for path in sorted((run / "samples").glob("*.jsonl")) for row in read_jsonl(path))
    keys = ("group", "index", "versions", "output_ids", "reward", "advantage", "fate")
    return [json.dumps([row[key] for key in keys]) for row in rows]


def main(
    runs: Annotated[Path, typer.Option(help="Where the runs are kept.")] = Path("runs/killed"),
    every: Annotated[int, typer.Option(help="Steps between two kills.")] = 3,
    staleness: Annotated[list[int] | None, typer.Option(help="max_staleness of the runs; by default 0 and 1.")] = None,
) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    passed = []
    for bound in staleness or (0, 1):
        settings = (*SETTINGS, f"stages.1.max_staleness={bound}")
        alone, run = runs.resolve() / f"undisturbed-{bound}", runs.resolve() / f"killed-{bound}"
        finished(alone, "quickstart", *settings)
        kills = killed(run, every, *settings)
        same = {
            "digests": summary(run)["versions"] == summary(alone)["versions"],
            "samples": outputs(run) == outputs(alone) != [],
            "trained ordinals": trained(run) == trained(alone),
        }
        print(f"max_staleness {bound}: killed {kills} times; the same: {same}", flush=True)
        passed.append(all(same.values()) and kills > 0)
    print("PASS" if all(passed) else "FAIL")
    raise typer.Exit(not all(passed))


if __name__ == "__main__":
    typer.run(main)
