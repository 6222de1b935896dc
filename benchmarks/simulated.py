"""Runs of the real loop, sampler, buffer, ledger and records over engines, judges and a learner that do no work."""

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from cluster.fibers import HUB
from cluster.records.metrics import read_jsonl
from reward.config import RewardConfig
from reward.judging.judges import gold_check
from reward.types import RewardEvent, ScoredGroup, ScoredSample, Verdict
from rollout.data.datasets import load_data
from rollout.tasks.arithmetic import character_tokenizer
from rollout.types import FinishReason, Group, Lease, Sample
from tests.cluster.test_pipeline import GRPO, FakeRoles, configuration, drive

GROUP = 8
TOKENS = 64
"""Of an output."""
WARM = 2
"""Steps that are not measured."""
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
    return SimpleNamespace(
        metrics={"grad_norm": 1.0}, advantages=[0.0] * count, tokens=count * TOKENS, token_advantages=(), mismatch=()
    )


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

    def generate(self, waves, sampling, name, each, failed) -> dict[int, str]:
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


def run(roles_of: Callable[..., Simulated], questions: int, steps: int) -> tuple[list[dict], list[Mark], float]:
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


def apart(module: str, work: str, *args) -> dict[str, float]:
    """A function of a file of this folder in a process of its own, so that none inherits another's memory."""
    function = getattr(importlib.import_module(module), work)
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
