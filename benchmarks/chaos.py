"""A run whose processes are killed and stopped at random, and whose driver is too, until it is finished all the same.

    python benchmarks/chaos.py --runs runs/chaos --faults 20 --kinds kill,stop,slow,oom --nodes 1

The quickstart with two rollout workers, two reward workers, two learner ranks and max_staleness 1. The kinds of fault:

    kill   SIGKILL to a process of a random role, or to the driver, which `cohort resume` starts again
    stop   SIGSTOP to a process of a random role; to the driver SIGTERM
    slow   an engine has the tenth part of its time, for a while: nothing is to be found, and the run goes on
    oom    SIGKILL to whichever process of an engine or a learner rank holds most memory, as a node that runs out of it does
    node   all processes of a node at once, and another node joins; with --nodes 2, raylets of this machine

PASS: the ledger has the trained ordinals of an undisturbed run, each once; the weights are the same, bit for bit, or the
accuracy is within --spread; no segment or folder is left. It prints the seconds until faults are found and the next step done.
"""

import json
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer

from cluster.records.ledger import history
from runs import COHORT, finished, newest_step

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.cluster.clusters import raylet, raylets

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
SLOW_S, PART_S = 20.0, 0.05
"""How long an engine is slow, and how long at a time it runs then."""
KINDS = ("kill", "stop", "slow", "oom")
CPUS = 4
"""Of a node, of two: so many that neither holds all."""


def slow(process: psutil.Process) -> None:
    """It runs for a tenth of the time, for a while."""

    def rest() -> None:
        until = time.monotonic() + SLOW_S
        with suppress(psutil.NoSuchProcess):
            while time.monotonic() < until:
                process.suspend()
                time.sleep(9 * PART_S)
                process.resume()
                time.sleep(PART_S)

    threading.Thread(target=rest, daemon=True).start()


@dataclass
class Nodes:
    """A second node of a cluster, with what it is started with."""

    env: Mapping[str, str]
    place: Path
    lost: int = 0

    def __post_init__(self) -> None:
        self._start()

    def lose(self) -> None:
        """End all of its processes at once; another node joins."""
        first = psutil.Process(self.node.pid)
        for process in [first, *first.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.node.wait(10)
        self.lost += 1
        self._start()

    def _start(self) -> None:
        said = self.place / f"raylet-second-{self.lost}.log"
        self.node = raylet(self.env, said, [f"--address={self.env['RAY_ADDRESS']}"], CPUS)


@dataclass
class Chaos:
    """One run, and what was done to it."""

    run: Path
    rng: random.Random
    kinds: tuple[str, ...] = KINDS
    nodes: Nodes | None = None
    driver: subprocess.Popen | None = None
    faults: Counter[str] = field(default_factory=Counter)
    found: list[float] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)

    def start(self) -> None:
        """A driver: the first, or one that takes the run up."""
        begun = (self.run / "config.yaml").exists()
        command = ["resume", self.run] if begun else ["train", RECIPE, f"output={self.run}", *SETTINGS]
        with self.log.open("a") as log:
            env = self.nodes and self.nodes.env
            self.driver = subprocess.Popen([COHORT, *map(str, command)], stdout=log, stderr=log, env=env)

    @property
    def log(self) -> Path:
        return self.run.with_name(self.run.name + ".log")

    def disturb(self) -> bool:
        """One fault, and the wait until the run has come further; False when it has finished instead."""
        assert self.driver
        before, said = newest_step(self.run), self.log.read_text()
        role, what = self._fault(self.rng.choice(self.kinds))
        self.faults[f"{role} {what}"] += 1
        began = time.monotonic()
        print(f"step {before}: {what} of the {role}", flush=True)
        found = began if role == "driver" or what == "slow" else None
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

    def _fault(self, kind: str) -> tuple[str, str]:
        """Do one; returns whose it is, and what."""
        assert self.driver
        driver = psutil.Process(self.driver.pid)
        if kind == "node" and self.nodes:
            self.nodes.lose()
            return "second node", "loss"
        there = {role: self._processes(role, driver) for role in VICTIMS}
        roles = [role for role, processes in there.items() if processes]
        if kind in ("slow", "oom"):
            roles = [role for role in roles if role == "engine" or kind == "oom" and role == "learner rank"]
        if not roles or kind in ("kill", "stop") and self.rng.random() < 0.2:
            number = signal.SIGTERM if kind == "stop" else signal.SIGKILL
            driver.send_signal(number)
            return "driver", number.name
        role = self.rng.choice(roles)
        victim = self.rng.choice(there[role])
        if kind == "oom":
            role, victim = max(((r, p) for r in roles for p in there[r]), key=lambda pair: pair[1].memory_info().rss)
        if kind == "slow":
            slow(victim)
        else:
            victim.send_signal(signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
        return role, kind

    def _processes(self, role: str, driver: psutil.Process) -> list[psutil.Process]:
        """Of the run's actors; those of a cluster of its own are no children of the driver."""
        everyone = psutil.process_iter() if self.nodes else driver.children(recursive=True)
        return [process for process in everyone if title(process).startswith(VICTIMS[role])]


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


def disturbed(chaos: Chaos, faults: int) -> None:
    """The run to its end, with so many faults on its way."""
    chaos.start()
    while newest_step(chaos.run) == 0 and chaos.driver and chaos.driver.poll() is None:
        time.sleep(1)
    while sum(chaos.faults.values()) < faults and chaos.disturb():
        time.sleep(chaos.rng.uniform(0, 10))
    while chaos.driver and chaos.driver.wait(2400):
        chaos.start()


def main(
    runs: Annotated[Path, typer.Option(help="Where the runs are kept.")] = Path("runs/chaos"),
    faults: Annotated[int, typer.Option(help="How many.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the faults.")] = 0,
    spread: Annotated[float, typer.Option(help="Of undisturbed seeds' accuracy.")] = 0.05,
    kinds: Annotated[str, typer.Option(help="Of faults, separated by commas.")] = ",".join(KINDS),
    nodes: Annotated[int, typer.Option(help="1, or 2 for raylets of a cluster of this machine's own.")] = 1,
) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    undisturbed = finished(runs / "undisturbed", "quickstart", *SETTINGS)
    before = left()
    chaos = Chaos(run=runs / f"disturbed-{seed}", rng=random.Random(seed), kinds=tuple(kinds.split(",")))
    with raylets(runs, cpus=CPUS, watched=False) if nodes > 1 else nullcontext() as cluster:
        chaos.nodes = Nodes(cluster[0], runs) if cluster else None
        disturbed(chaos, faults)
        if chaos.nodes:
            chaos.nodes.node.terminate()
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
