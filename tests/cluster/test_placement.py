"""Where roles run, as far as it can be told without a cluster."""

import asyncio
from types import SimpleNamespace

import pytest

from cluster.fleet import placement, spawner
from cluster.fleet.actors import LearnerActor, RewardActor, RolloutActor


@pytest.mark.parametrize("actor", [RolloutActor, RewardActor, LearnerActor])
def test_every_actor_sweeps_its_node_before_it_is_started_there(monkeypatch, actor):
    swept = []
    monkeypatch.setattr(placement, "sweep", lambda: swept.append("node") or [])
    monkeypatch.setattr(placement, "whereabouts", lambda: {"node_id": "this node"})
    found = actor.locate(object.__new__(actor))
    if actor is RolloutActor:
        found = asyncio.run(found)
    assert swept == ["node"] and (found[0] if actor is LearnerActor else found) == {"node_id": "this node"}


def test_an_actor_without_a_gpu_sees_none_and_an_engine_sees_its_learners(monkeypatch):
    """Ray hides no GPU from an actor that asks for none: a reward model would be put onto the learner's."""
    wanted = [
        placement.Bundle(role=role, slot=0, cpus=1, gpus=gpus, place=0)
        for role, gpus in (("rollout", 0.0), ("learner", 1.0), ("reward", 0.0))
    ]
    asked = {}

    def remote(cls):
        def options(**how):
            asked[cls] = how["runtime_env"]["env_vars"]
            return SimpleNamespace(remote=lambda *arguments: None)

        return SimpleNamespace(options=options)

    monkeypatch.setattr(spawner, "place", lambda *_: (None, wanted))
    monkeypatch.setattr(spawner, "ray", SimpleNamespace(remote=remote))
    made = spawner.Spawner(None, None, "run")
    made.spawn("rollout", 0, "engine", environment=placement.shared_devices({0: "5"}, 0, 1))()
    made.spawn("learner", 0, "learner")()
    made.spawn("reward", 0, "judge")()
    assert asked["judge"]["CUDA_VISIBLE_DEVICES"] == "" and "CUDA_VISIBLE_DEVICES" not in asked["learner"]
    assert asked["engine"]["CUDA_VISIBLE_DEVICES"] == "5"


@pytest.mark.parametrize(
    ("count", "cpus", "share"),
    [(3, [2], 0.6), (4, [2, 2], 0.9), (5, [2, 2], 0.6), (2, [16], 1.0), (3, [64, 1], 1.0), (4, [1, 0, 1], 0.45), (1, [], 0.0)],
)
def test_a_share_of_a_core_is_one_of_which_enough_fit_on_the_nodes(count, cpus, share):
    """Five shares of 4 x 0.9 / 5 would not: two on each node of two cores."""
    assert placement.share_of_core(count, cpus) == share
