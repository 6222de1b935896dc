"""What the driver costs for an output, by how many are in flight.

    python benchmarks/controller.py [--out controller.json]

The real loop, sampler, buffer, ledger and records; outputs come from real Ray actors and go to others, which do no work. PASS:
below a millisecond of the driver's CPU time for an output from 16 to 100,000 of them in flight, and no more memory for one.
"""

import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Annotated

import ray
import typer
from simulated import GROUP, WARM, Simulated, answered, apart, judged, run, show, trained

from cluster.fleet.calls import all_answers, ask, follow, gather, stream
from reward.types import ScoredGroup
from rollout.types import Group, Lease

HERE = Path(__file__).resolve().parent
SAMPLES = (16, 128, 1_024, 8_192, 100_000)
MOST_MS = 1.0


class Worker:
    """A rollout, a reward or a learner actor, behind Ray."""

    async def generate(self, leases: list[Lease], version: int) -> AsyncIterator[tuple[int, Group]]:
        for position, lease in enumerate(leases):
            yield position, answered(lease, version)

    async def score(self, groups: list[Group]) -> list[ScoredGroup]:
        return [judged(group) for group in groups]

    async def step(self, groups: list[ScoredGroup]) -> SimpleNamespace:
        return trained(groups)


class Remote(Simulated):
    """The same, by real Ray actors."""

    def __init__(self, tokenizer, workers: int):
        super().__init__(tokenizer, workers)
        self.actors = [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(workers + 2)]

    def generate(self, waves, sampling, name, each, failed):
        calls = {
            slot: stream(self.actors[slot], Worker.generate, name)(list(leases), self.version[slot])
            for slot, leases in waves.items()
        }
        return follow(calls, 600.0, lambda slot, made: each(waves[slot][made[0]], made[1]), failed, what=name)

    def score(self, parts, by, name):
        calls = {slot: ask(self.actors[-1], Worker.score, name)(list(part)) for slot, part in parts.items()}
        return gather(calls, 600.0, what=name)

    def step(self, groups):
        return all_answers({0: ask(self.actors[-2], Worker.step)(groups)}, "learner", 600.0, "step")[0]


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


def main(out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None) -> None:
    rows = [apart("controller", "in_flight", count) for count in SAMPLES]
    grown = rows[-1]["kb"] <= 1.2 * rows[-2]["kb"]
    show(rows, grown and all(row["cpu_ms"] < MOST_MS for row in rows), out)


if __name__ == "__main__":
    typer.run(main)
