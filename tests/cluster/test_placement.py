"""Where roles run, as far as it can be told without a cluster."""

import asyncio
from types import SimpleNamespace

import pytest

from cluster.config.run_config import load
from cluster.fleet import placement, spawner
from cluster.fleet.actors import LearnerActor, RewardActor, RolloutActor
from cluster.fleet.bundles import Bundle, PlacementError
from tests.cluster.test_preflight import QUICKSTART


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
        Bundle(role=role, slot=0, cpus=1, gpus=gpus, place=0)
        for role, gpus in (("rollout", 0.0), ("learner", 1.0), ("reward", 0.0))
    ]
    asked = {}

    def remote(cls):
        def options(**how):
            asked[cls] = how["runtime_env"]["env_vars"]
            return SimpleNamespace(remote=lambda *arguments: None)

        return SimpleNamespace(options=options)

    monkeypatch.setattr(spawner, "place", lambda *_: [(None, wanted)])
    monkeypatch.setattr(spawner, "ray", SimpleNamespace(remote=remote))
    made = spawner.Spawner(None, None, "run")
    made.spawn("rollout", 0, "engine", environment=placement.shared_devices({0: "5"}, 0, 1))()
    made.spawn("learner", 0, "learner")()
    made.spawn("reward", 0, "judge")()
    assert asked["judge"]["CUDA_VISIBLE_DEVICES"] == "" and "CUDA_VISIBLE_DEVICES" not in asked["learner"]
    assert asked["engine"]["CUDA_VISIBLE_DEVICES"] == "5"


class Groups:
    """Ray's placement groups on two nodes of four GPUs; `takes` says which strategies find room."""

    def __init__(self, monkeypatch, free, takes):
        self.free, self.takes, self.standing, self.asked = free, takes, [], []
        one = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0}, "Labels": {"kind": "spot"}}
        alive = [one | {"NodeID": "n0"}, one | {"NodeID": "n1"}]
        monkeypatch.setattr(placement.ray, "nodes", lambda: alive)
        monkeypatch.setattr(placement.ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 8.0})
        monkeypatch.setattr(placement, "available_resources_per_node", lambda: self.free)
        monkeypatch.setattr(placement, "placement_group", self.ask)
        monkeypatch.setattr(placement, "remove_placement_group", self.standing.remove)
        monkeypatch.setattr(placement, "TELL_S", 0.0)

    def ask(self, bundles, strategy, name, bundle_label_selector):
        group = SimpleNamespace(wait=lambda s: self.takes(self))
        self.asked.append((strategy, bundles, bundle_label_selector))
        self.standing.append(group)
        return group


FREE = {"n0": {"CPU": 8.0, "GPU": 4.0}, "n1": {"CPU": 8.0, "GPU": 4.0}}


def test_ranks_are_asked_for_packed_and_engines_spread_with_the_labels_of_their_role(monkeypatch):
    groups = Groups(monkeypatch, FREE, lambda _: True)
    config = load(QUICKSTART, ["learner.ranks=2", "rollout.workers=2", "cluster.placement.rollout.labels={kind: spot}"])
    placed = placement.place(config, None)
    one = {"CPU": 1.0, "GPU": 1.0}
    assert groups.asked == [
        ("PACK", [one] * 2, [{}] * 2),
        ("SPREAD", [one] * 2, [{"kind": "spot"}] * 2),
        ("PACK", [{"CPU": 1.0}], [{}]),
    ]
    assert [[b.role for b in group] for _, group in placed] == [["learner"] * 2, ["rollout"] * 2, ["reward"]]


def test_what_a_run_waits_for_is_told_and_where_roles_find_no_room_apart_they_are_asked_for_together(monkeypatch, caplog):
    def takes(groups):
        if groups.asked[-1][1:] != groups.asked[0][1:] and len(groups.standing) == 1:
            return True
        groups.looks += 1
        groups.free = {"n0": {"CPU": 8.0}, "n1": {"CPU": 8.0, "GPU": 1.0}} if groups.looks < 3 else FREE
        return False

    groups = Groups(monkeypatch, FREE, takes)
    groups.looks = 0
    ((group, bundles_),) = placement.place(load(QUICKSTART, ["learner.ranks=2"]), None)
    assert groups.standing == [group] and len(bundles_) == 4
    assert groups.asked[-1][:2] == ("PACK", [{"CPU": 1.0, "GPU": 1.0}] * 3 + [{"CPU": 1.0}])
    (told,) = caplog.messages
    assert told.startswith("waiting for room: rollout-0 fits on no node.") or told.startswith("waiting for room: learner-")
    assert "  n0: 8 CPU, 0 GPU free; for " in told and ": GPU 1 wanted, 0 left" in told


def test_what_does_not_come_in_time_is_given_up_and_told_with_what_lacks(monkeypatch):
    groups = Groups(monkeypatch, {"n0": {"CPU": 8.0}, "n1": {"CPU": 8.0}}, lambda _: False)
    with pytest.raises(PlacementError, match=r"not placed in 0.01 s: .* fits on no node(.*\n)+.*GPU 1 wanted, 0 left"):
        placement.place(load(QUICKSTART, ["cluster.start_deadline_s=0.01"]), None)
    assert len(groups.asked) == 3 and groups.standing == []


@pytest.mark.parametrize("grows", [None, "gpu"])
def test_what_no_node_can_hold_is_refused_unless_the_cluster_grows(monkeypatch, grows):
    groups = Groups(monkeypatch, FREE, lambda _: True)
    config = load(QUICKSTART, ["learner.ranks=9", *([f"cluster.grows={grows}"] if grows else [])])
    if grows is None:
        with pytest.raises(PlacementError, match="fits on no node"):
            placement.place(config, None)
        assert groups.asked == []
    else:
        placement.place(config, None)
        assert groups.asked[0][:2] == ("PACK", [{"CPU": 1.0, "GPU": 1.0}] * 9)


def test_a_cluster_that_grows_need_not_have_a_gpu_or_a_core_yet(monkeypatch, tiny_model_dir):
    groups = Groups(monkeypatch, {}, lambda _: True)
    monkeypatch.setattr(placement.ray, "nodes", lambda: [{"NodeID": "head", "Alive": True, "Resources": {"CPU": 1.0}}])
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: {"CPU": 1.0})
    placement.place(load(QUICKSTART, ["cluster.grows=gpu"]), tiny_model_dir)
    assert [bundles_ for _, bundles_, _ in groups.asked] == [[{"CPU": 1.0, "GPU": 1.0}]] * 2 + [[{"CPU": 1.0}]]
    groups.asked.clear()
    placement.place(load(QUICKSTART, ["cluster.grows=cpu", "rollout.workers=3"]), tiny_model_dir)
    assert [bundles_ for _, bundles_, _ in groups.asked] == [[{"CPU": 1.0}], [{"CPU": 1.0}] * 3, [{"CPU": 1.0}]]
