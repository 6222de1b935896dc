"""What the driver costs: the real loop, sampler, buffer, ledger and records over engines, judges and a learner that do no work.

    python benchmarks/controller.py samples    10 to 100,000 outputs in flight, which come from and go to real Ray actors
    python benchmarks/controller.py workers    1 to 1,024 rollout workers, simulated, each sampling its share in some seconds

`samples`: the driver's CPU time for an output must stay below a millisecond, and its memory for one must not grow with their
number. `workers`: outputs a second must grow as the workers do, on less than one core.
"""

import importlib
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Annotated

import psutil
import ray
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from cluster.fibers import HUB
from cluster.fleet.calls import all_answers, ask, follow, gather, stream
from cluster.records.metrics import read_jsonl
from reward.config import RewardConfig
from reward.judging.judges import gold_check
from reward.types import RewardEvent, ScoredGroup, ScoredSample, Verdict
from rollout.data.datasets import load_data
from rollout.tasks.arithmetic import character_tokenizer
from rollout.types import FinishReason, Group, Lease, Sample
from tests.cluster.test_pipeline import GRPO, FakeRoles, configuration, drive

HERE = Path(__file__).resolve().parent
SAMPLES = (16, 128, 1_024, 8_192, 100_000)
WORKERS = (1, 4, 16, 64, 256, 1_024)
GROUP = 8
TOKENS = 64
"""Of an output."""
WARM = 2
"""Steps that are not measured."""
MOST_MS, LEAST_LINEAR, MOST_CORES = 1.0, 0.9, 1.0
RIGHT = Verdict(status="score", reward=1.0, components={"correct": 1.0}, extracted="7", reason="", reward_version=None)


def answered(lease: Lease, version: int) -> Group:
    """Outputs out of nothing."""
    ids = tuple(range(TOKENS))
    one = Sample(
        ordinal=lease.question.ordinal, group_id=lease.group_id, index=0, attempt=lease.attempt, text="#### 7" + " 7" * TOKENS,
        prompt_ids=lease.question.prompt_ids, output_ids=ids, sampled_mask=(True,) * TOKENS,
        logprobs=tuple(-0.5 - i / TOKENS for i in ids), versions=((version, 0),), finish_reason=FinishReason.STOP,
    )  # fmt: skip
    return Group(question=lease.question, samples=tuple(replace(one, index=index) for index in lease.indices))


def judged(group: Group) -> ScoredGroup:
    events = (RewardEvent(position=TOKENS - 1, value=1.0),)
    return ScoredGroup(
        question=group.question, scored=tuple(ScoredSample(sample=s, events=events, verdict=RIGHT) for s in group.samples)
    )


def trained(groups: list[ScoredGroup]) -> SimpleNamespace:
    count = sum(len(group.scored) for group in groups)
    return SimpleNamespace(metrics={"grad_norm": 1.0}, advantages=[0.0] * count, tokens=count * TOKENS)


class Worker:
    """A rollout, a reward or a learner actor, behind Ray."""

    async def generate(self, leases: list[Lease], version: int) -> AsyncIterator[tuple[int, Group]]:
        for position, lease in enumerate(leases):
            yield position, answered(lease, version)

    async def score(self, groups: list[Group]) -> list[ScoredGroup]:
        return [judged(group) for group in groups]

    async def step(self, groups: list[ScoredGroup]) -> SimpleNamespace:
        return trained(groups)


@dataclass(frozen=True)
class Mark:
    """When a step's batch reached the learner."""

    wall: float
    cpu: float


class Simulated(FakeRoles):
    """`workers` engines, each of which gives its groups one after the other for `seconds`."""

    def __init__(self, tokenizer, workers: int, seconds: float = 0.0):
        super().__init__(tokenizer)
        self.workers, self.seconds, self.marks = workers, seconds, []
        self.held, self.version = dict.fromkeys(range(workers), 0), dict.fromkeys(range(workers), 0)

    def slots(self) -> list[int]:
        return list(range(self.workers))

    def generate(self, waves, sampling, name, each) -> dict[int, str]:
        began = HUB.world.now()
        longest = max(map(len, waves.values()))
        for position in range(longest):
            HUB.wait((), began + self.seconds * (position + 1) / longest)
            for slot, leases in waves.items():
                for lease in leases[position : position + 1]:
                    each(lease, answered(lease, self.version[slot]))
        return {}

    def score(self, parts, by, name):
        return {slot: [judged(group) for group in part] for slot, part in parts.items()}, {}

    def replace(self, slot, why):
        raise RuntimeError(f"worker {slot}: {why}")

    def learn(self, method, *args):
        if method != "step":
            return super().learn(method, *args)
        self.marks.append(Mark(wall=time.monotonic(), cpu=time.process_time()))
        return self.step(args[0])

    def step(self, groups):
        return trained(groups)


class Remote(Simulated):
    """The same, by real Ray actors."""

    def __init__(self, tokenizer, workers: int):
        super().__init__(tokenizer, workers)
        self.actors = [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(workers + 2)]

    def generate(self, waves, sampling, name, each):
        calls = {
            slot: stream(self.actors[slot], Worker.generate, name)(list(leases), self.version[slot])
            for slot, leases in waves.items()
        }
        return follow(calls, 600.0, lambda slot, made: each(waves[slot][made[0]], made[1]), what=name)

    def score(self, parts, by, name):
        calls = {slot: ask(self.actors[-1], Worker.score, name)(list(part)) for slot, part in parts.items()}
        return gather(calls, 600.0, what=name)

    def step(self, groups):
        return all_answers({0: ask(self.actors[-2], Worker.step)(groups)}, "learner", 600.0, "step")[0]


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most bytes that this process holds in the block."""
    most, over, me = [0], threading.Event(), psutil.Process()

    def look() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], me.memory_info().rss)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def run(roles_of, questions: int, steps: int) -> tuple[list[dict], list[Mark], float]:
    """Metrics and marks of a run's measured steps, and the bytes that it took at most."""
    stage = GRPO | {"steps": steps, "max_staleness": 1, "questions_per_step": questions, "samples_per_question": GROUP}
    task = {"questions": {"task": "chained-arithmetic", "rows": 40}, "hold_out": 2, "prompt": {"template": "plain"}}
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder) / "run", stages=[stage], data=task, checkpoint_every=1000)
        tokenizer = character_tokenizer()
        data = load_data(config.data, tokenizer, 0, gold_check(RewardConfig()))
        roles = roles_of(tokenizer)
        before = psutil.Process().memory_info().rss
        with peak_memory() as most:
            loop = drive(config, data, roles)
        return read_jsonl(loop.dir / "metrics.jsonl")[WARM:], roles.marks[WARM:], most[0] - before


def in_flight(samples: int) -> dict[str, float]:
    """Of a run with so many outputs in flight: milliseconds of the driver's CPU, and of the step, and KB for an output."""
    logging.disable(logging.CRITICAL)
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (HERE, HERE.parent)))  # where the actors find their class
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, namespace="cohort")
    try:
        each = max(1, samples // 2 // GROUP)  # two waves are in flight
        steps = WARM + 1 + max(2, min(40, 4_000 // each // GROUP))
        rows, marks, bytes_ = run(lambda tokenizer: Remote(tokenizer, 2), each, steps)
        cpu = median(b.cpu - a.cpu for a, b in zip(marks, marks[1:], strict=False))
        wall = median(row["seconds_step"] for row in rows)
        count = each * GROUP
        return {
            "samples": 2 * count,
            "cpu_ms": 1e3 * cpu / count,
            "step_ms": 1e3 * wall / count,
            "kb": bytes_ / 2 / count / 1024,
        }
    finally:
        ray.shutdown()


def scaled(workers: int, seconds: float) -> dict[str, float]:
    """Of a run with so many workers: outputs a second, and the cores that the driver uses."""
    logging.disable(logging.CRITICAL)
    _, marks, _ = run(lambda tokenizer: Simulated(tokenizer, workers, seconds), 8 * workers, WARM + 4)
    wall, cpu = marks[-1].wall - marks[0].wall, marks[-1].cpu - marks[0].cpu
    return {"workers": workers, "rate": 8 * workers * GROUP * (len(marks) - 1) / wall, "cores": cpu / wall}


def apart(work: str, *args):
    """A function of this file in a process of its own, so that none inherits another's memory."""
    function = getattr(importlib.import_module(Path(__file__).stem), work)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def show(rows: list[dict[str, float]], passed: bool, out: Path | None) -> None:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in row.values()))
    Console().print(table)
    if out:
        out.write_text(json.dumps({"cores": os.cpu_count(), "rows": rows, "passed": passed}, indent=1))
    print("PASS" if passed else "FAIL")
    raise typer.Exit(not passed)


app = typer.Typer(help=__doc__, add_completion=False)
Out = Annotated[Path | None, typer.Option(help="A JSON file for the figures.")]


@app.command()
def samples(out: Out = None) -> None:
    """The driver's time and memory for an output, by how many are in flight."""
    rows = [apart("in_flight", count) for count in SAMPLES]
    grown = rows[-1]["kb"] <= 1.2 * rows[-2]["kb"]
    show(rows, grown and all(row["cpu_ms"] < MOST_MS for row in rows), out)


@app.command()
def workers(
    seconds: Annotated[float, typer.Option(help="For which a worker samples the 64 outputs of its share of a step.")] = 10.0,
    out: Out = None,
) -> None:
    """Outputs a second by the number of workers."""
    rows = [apart("scaled", count, seconds) for count in WORKERS]
    for row in rows:
        row["of linear"] = row["rate"] / rows[0]["rate"] / row["workers"]
    show(rows, all(row["of linear"] >= LEAST_LINEAR and row["cores"] < MOST_CORES for row in rows), out)


if __name__ == "__main__":
    app()
