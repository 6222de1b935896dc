"""A whole run under a simulated clock: the loop, buffer, ledger, sampler, weight transaction and checkpoints are the real ones;
engines, judges and learner are numbers that take time, fail, answer twice and die, as a seed says.

`simulate(seed)` drives one run through its crashes to its end and checks, whatever happened:

    every ordinal is trained exactly once, in order         no output is older than the bound
    no engine serves a mixture of weights                   no version stands for two states of the weights
    every wait ends                                         scheduled, the weights are those of an undisturbed run
    no worker is ended with what it was asked               every worker that is there serves
"""

import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

from cluster.fibers import HUB
from cluster.records.ledger import ordinal_of, scalings
from cluster.run.request import NAME, scaled
from reward.config import RewardConfig
from reward.judging.judges import gold_check
from rollout.data.datasets import load_data
from rollout.tasks.arithmetic import character_tokenizer
from tests.cluster.elastic import MOST, Violated
from tests.cluster.simulated import Clockwork, Roles, World
from tests.cluster.test_pipeline import configuration, drive, trained

STEPS, QUESTIONS, SAMPLES = 4, 2, 2
LIMIT_S = 1e6
"""A run that is not done by then never is."""


class Killed(BaseException):
    """The driver's end without a warning."""


class Faulty(Clockwork):
    """A clockwork that kills the driver at a given second, and asks for other numbers of workers at some, as `cohort scale`
    does."""

    def __init__(self, dies_at, place, requests):
        """`requests`: (second, numbers by role), of which the life takes those that it comes to."""
        super().__init__()
        self.dies_at, self._place, self._requests = dies_at, place, requests

    def wait(self, refs, seconds):
        ready = super().wait(refs, seconds)
        while self._requests and self._requests[0][0] <= self.now():
            (self._place / NAME).write_text(json.dumps(self._requests.pop(0)[1]))
        if self.now() >= self.dies_at:
            raise Killed
        if self.now() > LIMIT_S:
            raise Violated("a wait does not end")
        return ready


@cache
def _tokenizer():
    return character_tokenizer()


@cache
def _settings(staleness, in_flight, every, refills):
    stage = {
        "algorithm": "grpo", "reward": "rule", "steps": STEPS, "questions_per_step": QUESTIONS, "max_staleness": staleness,
        "samples_per_question": SAMPLES, "in_flight": in_flight, "max_refills": refills, "optimizer": {"learning_rate": 1e-3},
    }  # fmt: skip
    task = {"questions": {"task": "chained-arithmetic", "rows": 20}, "hold_out": 2, "prompt": {"template": "plain"}}
    small = {"reward": {"workers": 2}, "evaluation": {"samples_per_question": 1, "questions": 1}, "checkpoint_every": every}
    return configuration("unused", stages=[stage], data=task, cluster={"worker_restarts": 10**6}, **small)


@cache
def _data():
    return load_data(_settings(0, False, 1, 0).data, _tokenizer(), 0, gold_check(RewardConfig()))


@cache
def _undisturbed(staleness, refills):
    return _run(random.Random(0), _settings(staleness, False, 1, refills), faults=0.0, crashes=0)


def simulate(seed: int) -> None:
    """One schedule. Raises whatever goes wrong."""
    rng = random.Random(seed)
    staleness = rng.choice([0, 1, 1, 2])
    in_flight = staleness > 0 and rng.random() < 0.5
    every, faults, crashes = rng.choice([1, 2]), rng.choice([0.0, 0.1, 0.3]), rng.randrange(4)
    refills = random.Random(f"{seed}/refills").choice([0, 0, 2])
    config = _settings(staleness, in_flight, every, refills)
    weights = _run(rng, config, faults=faults, crashes=crashes, requests=_requests(seed))
    if not in_flight and weights != _undisturbed(staleness, refills):
        raise Violated("the weights are not those of an undisturbed run")


def _requests(seed):
    """In half of the schedules a few; some are refused."""
    rng = random.Random(f"{seed}/requests")
    times = sorted(rng.uniform(0, 50) for _ in range(rng.choice([0, rng.randrange(1, 5)])))
    kinds = [rng.choice(["rollout", "reward", "rollout reward"]).split() for _ in times]
    return [(at, {role: rng.randint(1, MOST + 1) for role in roles}) for at, roles in zip(times, kinds, strict=True)]


def _run(rng, config, *, faults, crashes, requests=()):
    """The weights that a run ends with."""
    stage = config.stages[0]
    place = Path(tempfile.mkdtemp(prefix="simulated", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    world, before, requests = World(repeats=not stage.in_flight), HUB.world, list(requests)
    config = config.model_copy(update={"output": place})
    try:
        for life in range(crashes + 1):
            HUB.world = Faulty(rng.uniform(0, 400) if life < crashes else 2 * LIMIT_S, place, requests)
            config = scaled(config, _numbers(place))
            workers = config.rollout.workers, config.reward.workers
            try:
                loop = drive(config, _data(), roles := Roles(world, _tokenizer(), rng, faults, workers))
            except Killed:
                continue
            _check(loop.dir, stage.max_staleness)
            _check_versions(loop.dir)
            _check_workers(loop.dir, roles, workers)
            return roles.weights
        raise Violated("the run did not end")
    finally:
        HUB.close()
        HUB.world = before
        shutil.rmtree(place)


def _numbers(run_dir):
    """Of workers by role, as the driver has left them for the next life."""
    if not (run_dir / "config.yaml").exists():
        return {}
    lines = (run_dir / "config.yaml").read_text().splitlines()
    parts = {role: lines.index(f"{role}:") for role in ("rollout", "reward")}
    found = {role: next(line for line in lines[at:] if line.startswith("  workers:")) for role, at in parts.items()}
    return {role: int(line.split()[1]) for role, line in found.items()}


def _check_workers(run_dir, roles, began):
    """The ledger says how many there are."""
    if roles.aside:
        raise Violated(f"{roles.aside} are there, and do not serve")
    told = {line["role"]: line["to"] for _, line in scalings(run_dir / "ledger.jsonl")}
    found = {"rollout": len(roles.slots()), "reward": len(roles.reward_slots())}
    if any(told.get(role, began[i]) != found[role] for i, role in enumerate(found) if role in roles.wanted):
        raise Violated(f"there are {found} workers, and the ledger has {told}")


def _check_versions(run_dir):
    """In no record does a version of one life stand for two states of the weights."""
    lines = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines() if line.endswith("}")]
    made = {(x["incarnation"], x["version"], x["digest"]) for x in lines if x["event"] == "published"} | {(0, "0", "0")}
    names = {(life, version): digest for life, version, digest in made}
    if len(names) < len(made):
        raise Violated(f"a version stands for other weights than before: {sorted(made)}")
    for path in (run_dir / "samples").iterdir():
        for row in map(json.loads, path.read_text().splitlines()):
            version = str(row["versions"][-1][0])
            if names[row["lives"][version], version] != row["response"]:
                raise Violated(f"{path.name}: version {version} of life {row['lives']} is not {row['response']}")


def _check(run_dir, staleness):
    expected = [(("grpo", n), i) for n in range(STEPS * QUESTIONS) for i in range(SAMPLES)]
    found = trained(run_dir)
    if sorted((ordinal_of(group), i) for group, i in found) != expected:
        raise Violated(f"trained were {found}")
    for step in range(STEPS):
        rows = (run_dir / "samples" / f"step_{step + 1}.jsonl").read_text().splitlines()
        oldest = min(json.loads(row)["versions"][0][0] for row in rows)
        if oldest < max(0, step - staleness):
            raise Violated(f"step {step + 1} trained an output of version {oldest}")
