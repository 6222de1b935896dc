"""Stops and a hang, on a short quickstart: how long each takes.

    python benchmarks/stops.py --runs runs/stops

SIGTERM in every phase must end the command with 4 within 20 s, and what it leaves must be taken up again; an engine that gets
SIGSTOP must be replaced by one that serves the run's weights within 30 s.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import psutil
import typer
from chaos import RECIPE, VICTIMS, title

from cluster.stopping import STOPPED
from runs import COHORT, steps

SETTINGS = ("stages.0.steps=60", "stages.1.steps=12", "stages.1.max_staleness=1", "rollout.kv_cache_gb=0.25")
SETTINGS += ("checkpoint_every=5", "evaluation.questions=50")
STOP_S, REPLACED_S, LONGEST_S = 20.0, 30.0, 300.0


class Run:
    """A command and what can be seen of its run."""

    def __init__(self, folder: Path, *command: str):
        self.folder, self.log = folder, folder.with_name(folder.name + ".log")
        self.log.unlink(missing_ok=True)
        with self.log.open("w") as log:
            self.process = subprocess.Popen([COHORT, *command], stdout=log, stderr=log, process_group=0)

    def says(self, words: str) -> bool:
        return words in self.log.read_text()

    def steps(self, stage: str) -> int:
        return sum(row["stage"] == stage for row in steps(self.folder))

    def until(self, true: Callable[[], bool], what: str) -> float:
        """Seconds until it is true."""
        began = time.monotonic()
        while not true():
            if time.monotonic() - began > LONGEST_S or self.process.poll() not in (None, 0, STOPPED):
                raise SystemExit(f"{what}: not within {LONGEST_S:g} s\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)
        return time.monotonic() - began


PHASES: dict[str, Callable[[Run], bool]] = {
    "start": lambda run: run.says("starting"),
    "warm start": lambda run: run.steps("sft") >= 10,
    "save": lambda run: any((run.folder / "checkpoints").glob(".step_*.tmp")),
    "evaluation": lambda run: run.says("evaluating"),
    "GRPO": lambda run: run.steps("grpo") >= 2,
}


def stop(folder: Path, phase: str) -> bool:
    """SIGTERM in the phase; whether the command ended in time, and as it should."""
    shutil.rmtree(folder, ignore_errors=True)
    run = Run(folder, "train", str(RECIPE), f"output={folder}", *SETTINGS)
    run.until(lambda: PHASES[phase](run), phase)
    os.killpg(run.process.pid, signal.SIGTERM)  # as `timeout` and Slurm send it
    took = run.until(lambda: run.process.poll() is not None, f"the end after SIGTERM in {phase}")
    print(f"SIGTERM in {phase}: exit {run.process.returncode} after {took:.1f} s", flush=True)
    return run.process.returncode == STOPPED and took <= STOP_S


def hang(folder: Path) -> bool:
    """SIGSTOP to the engine of the run that was stopped in GRPO, taken up again."""
    run = Run(folder, "resume", str(folder))
    before = run.steps("grpo")
    run.until(lambda: run.steps("grpo") > before, "a step of the resumed run")
    engines = [p for p in psutil.Process(run.process.pid).children(recursive=True) if title(p).startswith(VICTIMS["engine"])]
    engines[0].send_signal(signal.SIGSTOP)
    found = run.until(lambda: run.says("is taken out of service"), "the hang is found")
    steps = run.steps("grpo")
    served = found + run.until(lambda: run.says("serves again"), "the hang is mended")
    done = served + run.until(lambda: run.steps("grpo") > steps, "a step after the hang")
    print(
        f"SIGSTOP to the engine: found after {found:.1f} s, replaced after {served:.1f}, the next step done after {done:.1f} s"
    )
    run.until(lambda: run.process.poll() is not None, "the end of the run")
    print(f"the run ends with {run.process.returncode}")
    return served <= REPLACED_S and run.process.returncode == 0


def main(runs: Annotated[Path, typer.Option(help="Where the runs are kept.")] = Path("runs/stops")) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    passed = [stop(runs.resolve() / "run", phase) for phase in PHASES]
    passed.append(hang(runs.resolve() / "run"))
    print("PASS" if all(passed) else "FAIL")
    raise typer.Exit(not all(passed))


if __name__ == "__main__":
    typer.run(main)
