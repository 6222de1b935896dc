"""Weights from Roles to what the engines hold, by production's own calls (see tests/cluster/gpus.py)."""

import time

import pytest

from cluster.config.settings import ClusterConfig
from cluster.fleet import actors, workers
from cluster.fleet.actors import LearnerActor, RewardActor, RolloutActor
from cluster.fleet.calls import RoleFailed
from cluster.fleet.learner_group import LearnerFailed
from cluster.records.catalogue import OF_SYNC
from rollout.weights.receivers import WorkerExtension
from tests.cluster.gpus import TENSORS, WAIT_S, Fleet

pytestmark = pytest.mark.slow


@pytest.fixture
def fleet(monkeypatch):
    """Function: a started fleet of (transport, engines, size, ranks)."""
    return lambda *shape, **more: Fleet(monkeypatch, *shape, **more)


def holds(fleet, slot):
    return all(worker == {name: t.tolist() for name, t in fleet.tensors.items()} for worker in fleet.held(slot))


def change(fleet, step):
    fleet.tensors = {name: tensor + step for name, tensor in TENSORS.items()}


def published(fleet, version, slots=None):
    change(fleet, version)
    return fleet.roles.publish(version, fleet.roles.slots() if slots is None else slots)


SHAPES = [
    (t, e, s, r) for t in ("shm", "nccl") for e, s, r in [(1, 1, 1), (1, 2, 4), (2, 1, 3), (2, 2, 1), (3, 1, 4), (3, 2, 2)]
]
SHAPES += [("ipc", e, s, e * s) for e, s in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]]


@pytest.mark.parametrize(("transport", "engines", "size", "ranks"), SHAPES)
def test_every_worker_of_every_engine_holds_what_the_ranks_sent(fleet, transport, engines, size, ranks):
    fleet = fleet(transport, engines, size, ranks)
    digests = []
    for version in (1, 2, 1):
        digest, failed, mixed = published(fleet, version)
        assert (failed, mixed) == ({}, False)
        assert all(holds(fleet, slot) for slot in range(engines))
        digests.append(digest)
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize("transport", ["shm", "nccl", "ipc"])
def test_an_update_says_where_its_time_went(fleet, transport, monkeypatch):
    fleet, worker = fleet(transport), WorkerExtension.held
    monkeypatch.setattr(WorkerExtension, "held", lambda self: time.sleep(0.2) or worker(self))
    assert fleet.roles.publish(1, [0])[1] == {}
    split = fleet.roles.split
    assert set(split) == {"gather", "copy", "load", "verify"} | ({"stage"} if transport == "shm" else set())
    assert set(split) < set(OF_SYNC) and 0.2 <= split.pop("verify") < 0.2 + WAIT_S and all(s >= 0 for s in split.values())


@pytest.mark.parametrize("transport", ["shm", "nccl"])
def test_members_join_and_leave_between_two_publishes(fleet, transport):
    fleet = fleet(transport, 2, 2, 2)
    published(fleet, 1)
    fleet.roles.replace(1, "as a test")
    assert published(fleet, 2, [1])[1] == {}
    assert holds(fleet, 1) and not holds(fleet, 0)
    assert published(fleet, 3)[1] == {}
    assert holds(fleet, 0) and holds(fleet, 1)


@pytest.mark.parametrize(("transport", "ranks"), [("shm", 4), ("nccl", 4), ("ipc", 2)])
def test_a_dead_engine_is_told_before_the_ranks_gather_and_the_next_update_reaches_its_replacement(fleet, transport, ranks):
    fleet = fleet(transport, 2, 1, ranks)
    published(fleet, 1)
    fleet.roles.rollout[1].dead = True
    digest, failed, mixed = published(fleet, 2)
    assert failed == {1: "start_weight_update: RayError: the actor died"}
    assert mixed == (transport != "shm")
    assert holds(fleet, 0) == (transport != "shm")
    fleet.roles.replace(1, failed[1])
    assert published(fleet, 3)[1] == {}
    assert holds(fleet, 0) and holds(fleet, 1)


@pytest.mark.parametrize("method", ["init_weight_transfer_engine", "update_weights", "finish_weight_update"])
@pytest.mark.parametrize(("transport", "ranks"), [("shm", 3), ("nccl", 3), ("ipc", 2)])
def test_an_engine_that_fails_on_the_way_ends_the_update_on_all_ranks_together(fleet, transport, ranks, method, monkeypatch):
    waits = {"tests.cluster.gpus.WAIT_S": 8, "cluster.fleet.publisher.NCCL_GRACE_S": 1, "rollout.weights.senders.GRACE_S": 1}
    for place, seconds in waits.items():
        monkeypatch.setattr(place, seconds)
    fleet = fleet(transport, 2, 1, ranks)
    if method != "init_weight_transfer_engine":
        published(fleet, 1)
    broken = "update_weights_pickled" if (transport, method) == ("ipc", "update_weights") else method
    fleet.llm(1).workers[0].fail = broken
    _, failed, mixed = published(fleet, 2)
    # Where a group waits for all its members, the others fail with the one.
    alone = transport != "nccl" or method == "finish_weight_update"
    assert set(failed) == ({1} if alone else {0, 1})
    assert f"{method}" in failed[1]
    assert mixed == (transport != "shm" or method == "finish_weight_update")
    assert not fleet.gathers.broken and fleet.gathers.n_waiting == 0
    for slot, why in failed.items():
        fleet.roles.replace(slot, why)
    assert published(fleet, 3)[1] == {}
    assert holds(fleet, 0) and holds(fleet, 1)


@pytest.mark.parametrize("transport", ["shm", "nccl", "ipc"])
def test_a_fresh_group_of_ranks_reaches_the_engines_that_the_old_one_served(fleet, transport):
    fleet = fleet(transport, 2, 1, 2)
    published(fleet, 1)
    ranks, engines = dict(fleet.roles._ranks.actors), dict(fleet.roles.rollout)
    judges = dict(fleet.roles.reward)
    fleet.roles.restart_learner("learner-1: as a test")
    assert all(rank.dead for rank in ranks.values()) and fleet.roles.deaths == 1
    assert (fleet.roles.rollout, fleet.roles.reward, fleet.abandoned) == (engines, judges, 2)
    assert published(fleet, 2)[1:] == ({}, False)
    assert holds(fleet, 0) and holds(fleet, 1)


def test_every_actor_is_watched_from_where_it_is_on_and_with_its_processes_once_it_has_started(fleet, monkeypatch):
    fleet, seen = fleet("shm", 2, 1, 1), []
    monkeypatch.setattr(fleet.roles.watch, "add", lambda name, *found: seen.append((name, *found[1:])), raising=False)
    monkeypatch.setattr(actors, "whereabouts", lambda: {"pid": 1})
    fleet.roles.replace(1, "as a test")
    fleet.roles.replace_reward_actor(0, "as a test")
    fleet.roles.restart_learner("as a test")
    where, started = {"node_id": "node"}, {"pid": 1}
    assert [name for name, *_ in seen] == ["rollout-1"] * 2 + ["reward-0"] * 2 + ["learner-0", "reward-0"] * 2
    assert [info for _, info, *_ in seen] == [where, started] * 2 + [where] * 2 + [started] * 2
    assert [bool(pulse and pulse[0]) for _, _, *pulse in seen] == [False, True] + [False] * 6


def test_where_a_model_judges_a_fresh_group_of_ranks_has_fresh_reward_actors(fleet, monkeypatch):
    def load_model(actor, model_dir, kind, index, count):
        return {"kind": kind}

    fleet = fleet("shm", 1, 1, 1)
    monkeypatch.setattr(workers, "supervision", lambda config: "outcome")
    monkeypatch.setattr(RewardActor, "load_model", load_model)
    before = fleet.roles.reward[0]
    fleet.roles.stale.add(0)
    fleet.roles.restart_learner("learner-0: as a test")
    assert before.dead and fleet.roles.reward[0] is not before and not fleet.roles.reward[0].dead
    assert fleet.roles.info["reward-0"] == {"kind": "outcome"}
    assert (fleet.roles.deaths, fleet.roles.stale) == (1, set())


@pytest.mark.parametrize("failures", [2, 4])
@pytest.mark.parametrize("role", ["rollout", "reward", "learner"])
def test_a_replacement_that_does_not_start_is_replaced_too_while_the_crash_budget_lasts(fleet, monkeypatch, role, failures):
    fleet = fleet("shm", 1, 1, 1)
    fleet.roles.config = fleet.roles.config.model_copy(update={"cluster": ClusterConfig(worker_restarts=4)})
    actor, method = {
        "rollout": (RolloutActor, "locate"), "reward": (RewardActor, "describe"), "learner": (LearnerActor, "start"),
    }[role]  # fmt: skip
    works, left = getattr(actor, method), [f"failure {n}" for n in range(failures)]

    def stumbles(self, *args):
        if left:
            raise RuntimeError(left.pop(0))
        return works(self, *args)

    async def stumbles_later(self, *args):
        return await stumbles(self, *args)

    stumbles.__name__ = stumbles_later.__name__ = method
    monkeypatch.setattr(actor, method, stumbles_later if role == "rollout" else stumbles)
    roles = fleet.roles
    replace = {
        "rollout": lambda: roles.replace(0, "as a test"),
        "reward": lambda: roles.replace_reward_actor(0, "as a test"),
        "learner": lambda: roles.restart_learner("as a test"),
    }[role]
    if failures < 4:
        replace()
        assert fleet.roles.deaths == 1 + failures
        assert published(fleet, 1)[1] == {} and holds(fleet, 0)
    else:
        with pytest.raises(RoleFailed, match="the crash budget of 4 is spent: .*failure 3"):
            replace()


@pytest.mark.parametrize("begun", [False, True])
def test_a_rank_that_dies_in_an_update_fails_the_learner_and_the_next_update_finds_the_engine_ready(fleet, begun, monkeypatch):
    fleet = fleet("shm", 1, 1, 1)
    fleet.roles.config = fleet.roles.config.model_copy(update={"cluster": ClusterConfig(worker_restarts=1)})
    rank = fleet.roles._ranks.actors[0]
    if begun:  # the engine has staged the weights when the rank dies
        publish = rank.made.publisher.publish
        monkeypatch.setattr(rank.made.publisher, "publish", lambda *args: (publish(*args), 1 / 0))
    rank.dead = not begun
    with pytest.raises(LearnerFailed, match="learner-0: RayError: " + ("ZeroDivisionError" if begun else "the actor died")):
        published(fleet, 1)
    fleet.roles.restart_learner("learner-0: as a test")
    assert published(fleet, 1)[1] == {} and holds(fleet, 0)
    with pytest.raises(RoleFailed, match="learner failed and the crash budget of 1 is spent: learner-0: again"):
        fleet.roles.restart_learner("learner-0: again")


def test_a_weight_that_did_not_arrive_is_named(fleet, monkeypatch):
    fleet = fleet("nccl", 1, 1, 2)
    model = fleet.llm(0).workers[0].weight_transfer_engine.model
    loading = model.load_weights
    monkeypatch.setattr(model, "load_weights", lambda pairs: loading([p for p in pairs if p[0] != "norm"]))
    _, failed, _ = published(fleet, 1)
    assert "1 weights are not what was sent, first 'norm'" in failed[0]


def test_engines_that_share_their_gpus_sleep_while_the_learner_trains_and_wake_for_the_weights_before_the_cache(fleet):
    fleet = fleet("auto", 2, 1, 2, sleep=True)
    assert fleet.roles.rollout_config.transport == "ipc"
    for slot in (0, 1):
        fleet.llm(slot).log.clear()
    fleet.roles.rest()
    fleet.roles.rest()
    published(fleet, 1)
    for slot in (0, 1):
        assert holds(fleet, slot)
        found = [x for x in fleet.llm(slot).log if x.startswith(("sleep", "wake", "start", "finish", "resume"))]
        assert found == ["sleep", "wake weights", "start_weight_update", "finish_weight_update", "wake kv_cache", "resume"]


def test_an_engine_that_does_not_sleep_is_ended_and_found_dead_by_the_next_update(fleet):
    fleet = fleet("ipc", 2, 1, 2, sleep=True)
    fleet.llm(0).workers[0].fail = "sleep"
    fleet.roles.rest()
    _, failed, _ = published(fleet, 1)
    assert failed == {0: "start_weight_update: RayError: the actor died"}
