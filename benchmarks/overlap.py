"""What overlapping is worth: the real loop over engines, judges and a learner that only sleep, at each staleness.

    python benchmarks/overlap.py

With equal times for sampling and training, staleness 1 must take at most 0.55 of staleness 0's time a step; with either side
ten times slower the learner is never given an older output than the bound allows, and no more waves wait than it allows.
"""

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))
from cluster.fibers import HUB
from cluster.records.metrics import read_jsonl
from reward.config import RewardConfig
from reward.judging.judges import gold_check
from rollout.data.datasets import load_data
from rollout.tasks.arithmetic import character_tokenizer
from tests.cluster.test_pipeline import GRPO, FakeRoles, configuration, drive

MOST = 0.55


class Sleeping(FakeRoles):
    """Sampling a step takes `generates` seconds and training it `trains`."""

    def __init__(self, tokenizer, generates: float, trains: float):
        super().__init__(tokenizer)
        self.generates, self.trains = generates, trains

    def generate(self, waves, sampling, name, each, failed):
        self._sleep(self.generates if name.startswith("generate") else 0.0)
        return super().generate(waves, sampling, name, each, failed)

    def learn(self, method, *args):
        self._sleep(self.trains if method == "step" else 0.0)
        return super().learn(method, *args)

    def _sleep(self, seconds: float) -> None:
        HUB.wait((), HUB.world.now() + seconds)


def steps(staleness: int, generates: float, trains: float, count: int) -> list[dict]:
    """The metrics of a run's steps, but for the first ones, which fill the pipeline."""
    stage = GRPO | {"steps": count, "max_staleness": staleness}
    task = {"questions": {"task": "chained-arithmetic", "rows": 40}, "hold_out": 2, "prompt": {"template": "plain"}}
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder) / "run", stages=[stage], data=task, checkpoint_every=1000)
        tokenizer = character_tokenizer()
        data = load_data(config.data, tokenizer, 0, gold_check(RewardConfig()))
        loop = drive(config, data, Sleeping(tokenizer, generates, trains))
        return read_jsonl(loop.dir / "metrics.jsonl")[1 + staleness :]


def main(
    seconds: Annotated[float, typer.Option(help="What sampling and training take, each.")] = 0.5,
    count: Annotated[int, typer.Option(help="Steps of each run.")] = 12,
) -> None:
    logging.disable(logging.CRITICAL)
    began, median, good = time.monotonic(), {}, True
    for staleness in (0, 1, 2):
        rows = steps(staleness, seconds, seconds, count)
        median[staleness] = sorted(row["seconds_step"] for row in rows)[len(rows) // 2]
        busy = ", ".join(f"{role} {sum(r[f'{role}_busy'] for r in rows) / len(rows):.2f}" for role in ("rollout", "learner"))
        print(f"staleness {staleness}: {median[staleness]:.3f} s a step, busy: {busy}", flush=True)
    ratio = median[1] / median[0]
    good &= ratio <= MOST
    print(f"staleness 1 takes {ratio:.2f} of staleness 0 (at most {MOST})")
    for generates, trains in ((seconds / 10, seconds), (seconds, seconds / 10)):
        rows = steps(2, generates, trains, count)
        oldest, waiting = max(row["staleness_max"] for row in rows), max(row["waves_waiting"] for row in rows)
        good &= oldest <= 2 and waiting <= 2
        print(
            f"sampling {generates:g} s, training {trains:g} s: oldest output {oldest:g} steps, at most {waiting:g} waves wait"
        )
    print(f"{time.monotonic() - began:.0f} s: {'PASS' if good else 'FAIL'}")
    raise typer.Exit(not good)


if __name__ == "__main__":
    typer.run(main)
