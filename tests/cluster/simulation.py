"""A whole run under a simulated clock: the loop, buffer, ledger, sampler, weight transaction and checkpoints are the real ones;
engines, judges and learner are numbers that take time, fail, answer twice and die, as a seed says.

`simulate(seed)` drives one run, of one or two stages, through its crashes, signals and lost nodes to its end and checks,
whatever happened:

    every ordinal is trained exactly once, in order         no output is older than the bound
    no engine serves a mixture of weights                   no version of a life stands for two states of the weights
    every wait ends                                         scheduled, the weights are those of an undisturbed run
    no worker is ended with what it was asked               every worker that is there serves
    a stop ends in its time                                 a stop that is not broken off loses no step
"""

import json
import random
import shutil
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from cluster.fibers import HUB
from cluster.fleet.learner_group import LearnerFailed
from cluster.records.ledger import ordinal_of, scalings
from cluster.run import scaling
from cluster.run.request import scaled
from cluster.stopping import Stopped
from reward.config import RewardConfig
from reward.judging.judges import gold_check
from rollout.data.datasets import load_data
from rollout.tasks.arithmetic import character_tokenizer
from tests.cluster.elastic import Violated
from tests.cluster.schedule import Killed, Schedule, disturbed, drawn
from tests.cluster.simulated import Roles, World
from tests.cluster.test_pipeline import configuration, drive, trained

QUESTIONS, SAMPLES = 2, 2
ROLES = ("rollout", "reward")


@cache
def _tokenizer():
    return character_tokenizer()


@cache
def _settings(stages, every):
    parts = [
        {
            "algorithm": "grpo", "name": f"grpo-{i}", "reward": "rule", "steps": steps, "questions_per_step": QUESTIONS,
            "samples_per_question": SAMPLES, "max_staleness": staleness, "in_flight": in_flight, "max_refills": refills,
            "optimizer": {"learning_rate": 1e-3},
        }
        for i, (steps, staleness, in_flight, refills) in enumerate(stages)
    ]  # fmt: skip
    task = {"questions": {"task": "chained-arithmetic", "rows": 20}, "hold_out": 2, "prompt": {"template": "plain"}}
    small = {"reward": {"workers": 2}, "evaluation": {"samples_per_question": 1, "questions": 1}, "checkpoint_every": every}
    return configuration("unused", stages=parts, data=task, cluster={"worker_restarts": 10**6}, **small)


@cache
def _data():
    return load_data(_settings(((4, 0, False, 0),), 1).data, _tokenizer(), 0, gold_check(RewardConfig()))


@cache
def _undisturbed(stages):
    return _run(random.Random(0), Schedule(stages=stages, every=1, faults=0.0, ends=(), requests=[]))


def simulate(seed: int) -> None:
    """One schedule. Raises whatever goes wrong."""
    plan = drawn(seed)
    weights = _run(random.Random(seed), plan)
    if plan.repeats and weights != _undisturbed(plan.stages):
        raise Violated("the weights are not those of an undisturbed run")


def _run(rng, plan):
    """The weights that a run ends with."""
    place = Path(tempfile.mkdtemp(prefix="simulated", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    world, before = World(repeats=plan.repeats), HUB.world
    config = _settings(plan.stages, plan.every).model_copy(update={"output": place})
    try:
        with _without_yaml():
            for end in (*plan.ends, ""):
                config = scaled(config, _numbers(place))
                roles = Roles(world, _tokenizer(), rng, plan.faults, workers := (config.rollout.workers, config.reward.workers))
                HUB.world, stop = disturbed(end, rng, plan, roles, place)
                if loop := _lived(config, roles, stop):
                    _check(loop.dir, plan.stages)
                    _check_versions(loop.dir)
                    _check_workers(loop.dir, roles, workers)
                    return roles.weights
        raise Violated("the run did not end")
    finally:
        HUB.close()
        HUB.world = before
        shutil.rmtree(place)


def _lived(config, roles, stop):
    """The loop at the end of the run; None where the driver ends before."""
    try:
        while True:
            try:
                return drive(config, _data(), roles, stop)
            except LearnerFailed as error:
                with stop.breakable():
                    roles.restart_learner(str(error))
    except Killed:
        return None
    except (Stopped, KeyboardInterrupt) as stopped:
        stop.check(str(stopped))
        return None


@contextmanager
def _without_yaml():
    """What takes longest of asking for other numbers of workers."""
    before, scaling.resolved_yaml = (
        scaling.resolved_yaml,
        lambda config: json.dumps({r: getattr(config, r).workers for r in ROLES}),
    )
    try:
        yield
    finally:
        scaling.resolved_yaml = before


def _numbers(run_dir):
    """Of workers by role, as the driver has left them for the next life."""
    path = run_dir / "config.yaml"
    return json.loads(path.read_text()) if path.exists() else {}


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


def _check(run_dir, stages):
    """Of every stage each sample is trained once, and none is too old."""
    found = sorted((ordinal_of(group), i) for group, i in trained(run_dir))
    ordinals = [(f"grpo-{k}", n) for k, (steps, *_) in enumerate(stages) for n in range(steps * QUESTIONS)]
    if found != [(ordinal, i) for ordinal in ordinals for i in range(SAMPLES)]:
        raise Violated(f"trained were {found}")
    before = 0
    for steps, staleness, _, _ in stages:
        for step in range(steps):
            rows = (run_dir / "samples" / f"step_{before + step + 1}.jsonl").read_text().splitlines()
            oldest = min(json.loads(row)["versions"][0][0] for row in rows)
            if oldest < before + max(0, step - staleness):
                raise Violated(f"step {before + step + 1} trained an output of version {oldest}")
        before += steps
