"""Where roles run, as far as it can be told without a cluster."""

import asyncio

import pytest

import cluster.placement
from cluster.actors import LearnerActor, RewardActor, RolloutActor


@pytest.mark.parametrize("actor", [RolloutActor, RewardActor, LearnerActor])
def test_every_actor_sweeps_its_node_before_it_is_started_there(monkeypatch, actor):
    swept = []
    monkeypatch.setattr(cluster.placement, "sweep", lambda: swept.append("node") or [])
    monkeypatch.setattr(cluster.placement, "node_id", lambda: "this node")
    found = actor.locate(object.__new__(actor))
    if actor is RolloutActor:
        found = asyncio.run(found)
    assert swept == ["node"] and "this node" in found
