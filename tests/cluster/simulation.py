"""A whole run under a simulated clock: the loop, buffer, ledger, sampler, weight transaction and checkpoints are the real ones;
engines, judges and learner are numbers that take time, fail, answer twice and die, as a seed says.

`simulate(seed)` drives one run through its crashes to its end and checks, whatever happened:

    every ordinal is trained exactly once, in order         no output is older than the bound
    no engine serves a mixture of weights                   no version stands for two states of the weights
    every wait ends                                         scheduled, the weights are those of an undisturbed run
"""

import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

from cluster.fibers import HUB
from reward.config import RewardConfig
from reward.judging.judges import gold_check
from rollout.data.datasets import load_data
from rollout.tasks.arithmetic import character_tokenizer
from tests.cluster.simulated import Clockwork, Roles, Violated, World
from tests.cluster.test_pipeline import configuration, drive, trained

STEPS, QUESTIONS, SAMPLES = 4, 2, 2
LIMIT_S = 1e6
"""A run that is not done by then never is."""


class Killed(BaseException):
    """The driver's end without a warning."""


class Faulty(Clockwork):
    """A clockwork that kills the driver at a given second."""

    def __init__(self, dies_at):
        super().__init__()
        self.dies_at = dies_at

    def wait(self, refs, seconds):
        ready = super().wait(refs, seconds)
        if self.now() >= self.dies_at:
            raise Killed
        if self.now() > LIMIT_S:
            raise Violated("a wait does not end")
        return ready


@cache
def _tokenizer():
    return character_tokenizer()


@cache
def _settings(staleness, in_flight, every):
    stage = {
        "algorithm": "grpo", "reward": "rule", "steps": STEPS, "questions_per_step": QUESTIONS, "max_staleness": staleness,
        "samples_per_question": SAMPLES, "in_flight": in_flight, "optimizer": {"learning_rate": 1e-3},
    }  # fmt: skip
    task = {"questions": {"task": "chained-arithmetic", "rows": 20}, "hold_out": 2, "prompt": {"template": "plain"}}
    small = {"evaluation": {"samples_per_question": 1, "questions": 1}, "checkpoint_every": every}
    return configuration("unused", stages=[stage], data=task, cluster={"worker_restarts": 10**6}, **small)


@cache
def _data():
    return load_data(_settings(0, False, 1).data, _tokenizer(), 0, gold_check(RewardConfig()))


@cache
def _undisturbed(staleness):
    return _run(random.Random(0), staleness, False, 1, faults=0.0, crashes=0)


def simulate(seed: int) -> None:
    """One schedule. Raises whatever goes wrong."""
    rng = random.Random(seed)
    staleness = rng.choice([0, 1, 1, 2])
    in_flight = staleness > 0 and rng.random() < 0.5
    weights = _run(rng, staleness, in_flight, rng.choice([1, 2]), faults=rng.choice([0.0, 0.1, 0.3]), crashes=rng.randrange(4))
    if not in_flight and weights != _undisturbed(staleness):
        raise Violated("the weights are not those of an undisturbed run")


def _run(rng, staleness, in_flight, every, *, faults, crashes):
    """The weights that a run ends with."""
    place = Path(tempfile.mkdtemp(prefix="simulated", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    world, before = World(repeats=not in_flight), HUB.world
    config = _settings(staleness, in_flight, every).model_copy(update={"output": place})
    try:
        for life in range(crashes + 1):
            HUB.world = Faulty(rng.uniform(0, 400) if life < crashes else 2 * LIMIT_S)
            try:
                loop = drive(config, _data(), roles := Roles(world, _tokenizer(), rng, faults))
            except Killed:
                continue
            _check(loop.dir, staleness)
            return roles.weights
        raise Violated("the run did not end")
    finally:
        HUB.close()
        HUB.world = before
        shutil.rmtree(place)


def _check(run_dir, staleness):
    expected = [(f"grpo/{n}", i) for n in range(STEPS * QUESTIONS) for i in range(SAMPLES)]
    if sorted(found := trained(run_dir)) != expected:
        raise Violated(f"trained were {found}")
    for step in range(STEPS):
        rows = (run_dir / "samples" / f"step_{step + 1}.jsonl").read_text().splitlines()
        oldest = min(json.loads(row)["versions"][0][0] for row in rows)
        if oldest < max(0, step - staleness):
            raise Violated(f"step {step + 1} trained an output of version {oldest}")
