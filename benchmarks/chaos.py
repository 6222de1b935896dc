"""A run whose processes are killed and stopped at random, and whose driver is too, until it is finished all the same.

    python benchmarks/chaos.py --runs runs/chaos --faults 20

The quickstart with two rollout workers, two reward workers, two learner ranks and max_staleness 1. A victim of a random role
gets SIGKILL or SIGSTOP, the driver SIGKILL or SIGTERM; a driver that is gone is started again with `cohort resume`. PASS: the
ledger has the same trained ordinals as that of an undisturbed run, each once; the weights are the same, bit for bit, or the
accuracy is within --spread of it; no segment or temporary folder is left. Printed are the seconds until a fault is found and
until the next step is done.
"""

import json
import random
import signal
import statistics
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer

from cluster.records.ledger import history
from runs import COHORT, finished, newest_step

RECIPE = Path(__file__).parents[1] / "deploy" / "recipes" / "quickstart.yaml"
SETTINGS = (
    "stages.0.steps=150", "stages.1.steps=40", "stages.1.max_staleness=1", "rollout.workers=2", "rollout.kv_cache_gb=0.25",
    "reward.workers=2", "learner.ranks=2", "cluster.worker_restarts=1000", "checkpoint_every=5",
)  # fmt: skip
VICTIMS = {
    "engine": "VLLM::EngineCor", "rollout actor": "ray::RolloutActor", "reward actor": "ray::RewardActor",
    "learner rank": "ray::LearnerActor",
}  # fmt: skip
"""By role, how the titles of its processes begin."""
FOUND = ("is ended: ", "is taken out of service")
"""What the log says when a fault is found."""
LONGEST_S = 400.0
"""Within which the next step must be done."""


@dataclass
class Chaos:
    """One run, and what was done to it."""

    run: Path
    rng: random.Random
    driver: subprocess.Popen | None = None
    faults: Counter[str] = field(default_factory=Counter)
    found: list[float] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)

    def start(self) -> None:
        """A driver: the first, or one that takes the run up."""
        begun = (self.run / "config.yaml").exists()
        command = ["resume", self.run] if begun else ["train", RECIPE, f"output={self.run}", *SETTINGS]
        with self.log.open("a") as log:
            self.driver = subprocess.Popen([COHORT, *map(str, command)], stdout=log, stderr=log)

    @property
    def log(self) -> Path:
        return self.run.with_name(self.run.name + ".log")

    def disturb(self) -> bool:
        """One fault, and the wait until the run has come further; False when it has finished instead."""
        assert self.driver
        before, said = newest_step(self.run), self.log.read_text()
        role, number, victim = self._victim()
        self.faults[f"{role} {signal.Signals(number).name}"] += 1
        began = time.monotonic()
        victim.send_signal(number)
        print(f"step {before}: {signal.Signals(number).name} to the {role}", flush=True)
        found = began if role == "driver" else None
        while time.monotonic() - began < LONGEST_S:
            time.sleep(0.2)
            if found is None and any(words in self.log.read_text()[len(said) :] for words in FOUND):
                found = time.monotonic()
                self.found.append(found - began)
            code = self.driver.poll()
            if code == 0:
                return False
            if code is not None:
                if role != "driver":
                    raise SystemExit(f"the driver ended with {code}: {self.log.read_text()[-2000:]}")
                self.start()
                role = "resumed"
            if found is not None and newest_step(self.run) > before:
                self.recovered.append(time.monotonic() - began)
                return True
        raise SystemExit(f"no step within {LONGEST_S:g} s after the fault: {self.log.read_text()[-2000:]}")

    def _victim(self) -> tuple[str, int, psutil.Process]:
        assert self.driver
        driver = psutil.Process(self.driver.pid)
        if self.rng.random() < 0.2:
            return "driver", self.rng.choice([signal.SIGKILL, signal.SIGTERM]), driver
        everyone = driver.children(recursive=True)
        role = self.rng.choice([*VICTIMS])
        mine = [p for p in everyone if title(p).startswith(VICTIMS[role])]
        number = self.rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
        return (role, number, self.rng.choice(mine)) if mine else ("driver", signal.SIGKILL, driver)


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def trained(run: Path) -> Counter[tuple[str, int]]:
    """How often each sample was trained."""
    lines = (line for line in history(run / "ledger.jsonl") if line["event"] == "trained")
    return Counter((group, index) for line in lines for group, indices in line["groups"].items() for index in indices)


def left() -> set[str]:
    """Shared memory and temporary folders."""
    return {str(path) for place in ("/dev/shm", "/tmp") for path in Path(place).glob("*cohort*")}


def main(
    runs: Annotated[Path, typer.Option(help="Where the runs are kept.")] = Path("runs/chaos"),
    faults: Annotated[int, typer.Option(help="How many.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the faults.")] = 0,
    spread: Annotated[float, typer.Option(help="Of undisturbed seeds' accuracy.")] = 0.05,
) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    undisturbed = finished(runs / "undisturbed", "quickstart", *SETTINGS)
    before = left()
    chaos = Chaos(run=runs / f"disturbed-{seed}", rng=random.Random(seed))
    chaos.start()
    while newest_step(chaos.run) == 0 and chaos.driver and chaos.driver.poll() is None:
        time.sleep(1)
    while sum(chaos.faults.values()) < faults and chaos.disturb():
        time.sleep(chaos.rng.uniform(0, 10))
    assert chaos.driver
    while chaos.driver.wait(2400):
        chaos.start()
    summary, once = json.loads((chaos.run / "summary.json").read_text()), trained(chaos.run)
    same = once == trained(runs / "undisturbed") and set(once.values()) == {1}
    bits = summary["versions"] == undisturbed["versions"]
    near = abs(summary["accuracy_after"] - undisturbed["accuracy_after"]) <= spread
    remains = sorted(left() - before)
    print(f"faults: {', '.join(f'{n} {what}' for what, n in sorted(chaos.faults.items()))}")
    for what, seconds in (("found", chaos.found), ("next step done", chaos.recovered)):
        if seconds:
            print(f"{what} after {statistics.median(seconds):.1f} s in the median, {max(seconds):.1f} s at worst")
    print(f"trained as undisturbed, each once: {same}; samples lost: {len(trained(runs / 'undisturbed') - once)}")
    print(f"accuracy {summary['accuracy_after']:.3f}, undisturbed {undisturbed['accuracy_after']:.3f}; same weights: {bits}")
    print(f"left behind: {remains or 'nothing'}")
    good = same and (bits or near) and not remains and sum(chaos.faults.values()) >= faults
    print("PASS" if good else "FAIL")
    raise typer.Exit(not good)


if __name__ == "__main__":
    typer.run(main)
