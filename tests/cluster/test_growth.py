"""Roles that are given one more worker while they serve, by production's own calls (see tests/cluster/gpus.py)."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from cluster.fleet import placement, spawner, workers
from cluster.fleet.bundles import Bundle, PlacementError
from cluster.fleet.calls import RoleFailed
from cluster.run.request import scaled
from tests.cluster.gpus import Fleet
from tests.cluster.test_weight_path import holds, published

pytestmark = pytest.mark.slow


class Groups:
    """Ray's placement groups: what was asked for, and which stand; `room` says whether there is any."""

    def __init__(self, monkeypatch):
        self.asked, self.standing, self.room = [], [], True
        monkeypatch.setattr(placement, "placement_group", self.place)
        monkeypatch.setattr(spawner, "remove_placement_group", self.standing.remove)
        monkeypatch.setattr(spawner, "added", self.added)
        monkeypatch.setattr(spawner, "lacking", lambda bundles: f"{bundles[0].role} lacks it")

    def added(self, config, model_dir, role, slot):
        assert getattr(config, role).workers == slot + 1, "it is counted"
        return Bundle(role=role, slot=slot, cpus=0.5, gpus=2.0, place=0, memory=1e9)

    def place(self, bundles, strategy, name, bundle_label_selector):
        group, answer = SimpleNamespace(ready=lambda: answer), Future()
        if self.room:
            answer.set_result(None)
        self.asked.append((name, bundles))
        self.standing.append(group)
        return group


@pytest.fixture
def groups(monkeypatch):
    return Groups(monkeypatch)


@pytest.fixture
def fleet(monkeypatch, groups):
    return lambda *shape: Fleet(monkeypatch, *shape)


def counting(fleet, **wanted):
    return scaled(fleet.roles.config, wanted)


def add(fleet, slot):
    fleet.roles.add("rollout", slot, counting(fleet, rollout=slot + 1))


@pytest.mark.parametrize(("transport", "size", "ranks"), [("shm", 1, 1), ("nccl", 1, 1), ("nccl", 2, 2)])
def test_an_added_engine_is_asked_for_nothing_until_it_is_brought_up_and_then_has_every_version(
    fleet, groups, transport, size, ranks
):
    fleet = fleet(transport, 2, size, ranks)
    published(fleet, 1)
    add(fleet, 2)
    assert groups.asked == [("gpus-0/rollout-2", [{"CPU": 0.5, "GPU": 2.0}])]
    assert fleet.roles.slots() == [0, 1] and not holds(fleet, 2)
    assert published(fleet, 1, [2])[1:] == ({}, False) and holds(fleet, 2)
    fleet.roles.aside.clear()
    assert fleet.roles.slots() == [0, 1, 2] and published(fleet, 2)[1:] == ({}, False)
    assert all(holds(fleet, slot) for slot in (0, 1, 2))
    fleet.roles.aside.add(("rollout", 2))
    leaves = fleet.roles.rollout[2]
    fleet.roles.dismiss("rollout", 2)
    assert leaves.calls[-1] == "stop" and leaves.dead and groups.standing == [] and not fleet.roles.aside
    assert published(fleet, 3)[1:] == ({}, False) and holds(fleet, 0) and holds(fleet, 1)


def test_an_added_engine_that_dies_is_replaced_in_its_own_place(fleet, groups):
    fleet = fleet("shm", 1)
    add(fleet, 1)
    fleet.roles.aside.clear()
    fleet.roles.rollout[1].dead = True
    _, failed, _ = published(fleet, 1)
    assert failed.keys() == {1}
    fleet.roles.replace(1, failed[1])
    assert published(fleet, 1)[1:] == ({}, False) and holds(fleet, 1)
    assert len(groups.asked) == len(groups.standing) == 1 and fleet.roles.lives["rollout", 1] == 1


def test_the_room_of_a_worker_that_the_run_began_with_stays_its_own(fleet, groups):
    fleet = fleet("shm", 2)
    fleet.roles.remove("rollout", 1)
    assert fleet.roles.slots() == [0] and fleet.roles.nodes.keys() == {0}
    add(fleet, 1)
    assert groups.asked == [] and fleet.roles.rollout.keys() == fleet.roles.nodes.keys() == {0, 1}


def test_without_room_it_is_told_what_was_wanted_and_nothing_is_left(fleet, groups, monkeypatch):
    fleet = fleet("shm", 1)
    groups.room = False
    fleet.roles.config = fleet.roles.config.model_copy(
        update={"cluster": fleet.roles.config.cluster.model_copy(update={"start_deadline_s": 0.2})}
    )
    monkeypatch.setattr(spawner.ray, "available_resources", lambda: {"CPU": 0.1, "memory": 5.0}, raising=False)
    with pytest.raises(
        RoleFailed,
        match=r"no node has room for rollout-1 \({'CPU': 0.5, 'GPU': 2.0}; free now: {'CPU': 0.1}\).*\nrollout lacks it",
    ):
        add(fleet, 1)
    assert fleet.roles.slots() == [0] and len(groups.standing) == 1
    fleet.roles.remove("rollout", 1)
    assert groups.standing == [] and not fleet.roles.aside


def test_an_added_reward_actor_lacks_the_trained_reward_model_once_it_has_started(fleet, groups, monkeypatch):
    fleet, seen = fleet("shm", 1), []
    start = fleet.roles._start_reward
    monkeypatch.setattr(fleet.roles, "_start_reward", lambda slot: (seen.append(set(fleet.roles.stale)), start(slot))[1])
    fleet.roles.add("reward", 1, counting(fleet, reward=2))
    assert seen == [set()] and fleet.roles.stale == {1} and fleet.roles.reward_slots() == [0]
    fleet.roles.remove("reward", 1)
    assert (fleet.roles.stale, fleet.roles.reward_nodes.keys()) == (set(), {0})


def test_this_machine_is_asked_for_room_and_a_cluster_may_grow(fleet, monkeypatch):
    def fitting(config, model_dir):
        raise PlacementError("too small")

    fleet = fleet("shm", 1)
    monkeypatch.setattr(workers, "fitting", fitting)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(PlacementError, match="too small"):
        fleet.roles.check_room(fleet.roles.config)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    fleet.roles.check_room(fleet.roles.config)
