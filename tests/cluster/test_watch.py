"""Actors that are stopped, stuck or out of reach, on two real nodes; their engines are processes that sleep."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.fleet.actors import LearnerActor
from cluster.fleet.calls import RoleFailed, ask, gather
from cluster.fleet.learner_group import LearnerGroup
from cluster.fleet.lookout import Lookout
from cluster.fleet.placement import node_id, whereabouts
from cluster.fleet.watch import SILENCE, Watch
from learner.config import LearnerConfig
from rollout.config import RolloutConfig
from rollout.leftovers import sweep
from tests.cluster.clusters import until
from tests.cluster.outside import beyond_loopback, listening

pytestmark = pytest.mark.cluster
HEARTBEAT_S = 1.0
SOON_S = 30.0
"""Long before any deadline, on any machine."""
ENVIRONMENT = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONFAULTHANDLER": "1"}}
WORK = "import sys, time\nwhile True: sys.argv[1] == 'idle' and time.sleep(0.01)"
"""What an engine does: next to nothing, or all that a core can."""


class Actor:
    """Has a process of its own, as an engine; `answers` is whether that answers a pulse."""

    def __init__(self, kind="idle", answers=True):
        self.engine, self.answers = subprocess.Popen([sys.executable, "-c", WORK, kind]), answers

    async def describe(self):
        return {**whereabouts(), "pids": [self.engine.pid]}

    async def pulse(self):
        if not self.answers:
            await asyncio.sleep(600)

    async def work(self, seconds):
        await asyncio.sleep(seconds)
        return "done"


@pytest.fixture(scope="module")
def cluster():
    """This process's node of Ray and another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield from _two_nodes()


def _two_nodes():
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    made.add_node(num_cpus=4)
    try:
        ray.init(address=made.address, namespace="cohort", log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def nodes(cluster):
    """Ids: the driver's and the other one's."""
    return [node_id(), next(n["NodeID"] for n in ray.nodes() if n["NodeID"] != node_id())]


@pytest.fixture
def watch(tmp_path):
    made = Watch(HEARTBEAT_S, tmp_path / "logs" / "stacks.txt")
    yield made
    made.close()
    made.end_all()


@pytest.fixture
def spawn(nodes, watch):
    """Start an actor on a node, watched by a name; what it says of itself."""

    def start(name, where=0, *arguments):
        strategy = NodeAffinitySchedulingStrategy(nodes[where], soft=False)
        actor = ray.remote(Actor).options(scheduling_strategy=strategy, runtime_env=ENVIRONMENT).remote(*arguments)
        answers, errors = gather({0: ask(actor, Actor.describe)()}, 60)
        info = answers[0]
        assert info["node_id"] == nodes[where] and not errors
        watch.add(name, actor, info, ask(actor, Actor.pulse))
        return actor, info

    return start


def gone(pids):
    return not any(process.state != "Z" for process in Lookout().look(pids).values())


@pytest.mark.parametrize("where", [0, 1], ids=["here", "another node"])
@pytest.mark.parametrize("victim", ["pid", "pids"], ids=["actor", "engine"])
def test_whoever_is_stopped_is_ended_with_all_of_its_processes_and_those_who_wait_hear_why(spawn, watch, where, victim):
    actor, info = spawn("rollout-0", where)
    other, _ = spawn("rollout-1", where)
    calls = {0: ask(actor, Actor.work)(600), 1: ask(other, Actor.work)(6)}
    time.sleep(1.5)  # it was seen alive
    pid = info["pid"] if victim == "pid" else info["pids"][0]
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    answers, errors = gather({0: calls[0]}, 60)
    took = time.monotonic() - began
    assert answers == {} and HEARTBEAT_S <= took < SOON_S, (took, errors)
    assert watch.why("rollout-0").startswith(f"process {pid} (") and ") is stopped since " in watch.why("rollout-0")
    until(lambda: gone([info["pid"], *info["pids"]]), 5, "the end of its processes")
    assert gather({1: calls[1]}, 60) == ({1: "done"}, {}) and watch.why("rollout-1") == ""


def test_an_engine_that_neither_answers_nor_computes_is_stuck_and_one_that_computes_is_not(spawn, watch):
    began = time.monotonic()  # it is idle from its start on, and the other one's start takes seconds
    stuck, info = spawn("rollout-0", 0, "idle", False)
    busy, _ = spawn("rollout-1", 0, "busy", False)
    calls, asked = {0: ask(stuck, Actor.work)(600), 1: ask(busy, Actor.work)(2 * SILENCE * HEARTBEAT_S)}, time.monotonic()
    assert gather({0: calls[0]}, 60)[0] == {}
    assert time.monotonic() - began >= SILENCE * HEARTBEAT_S and time.monotonic() - asked < SOON_S
    assert watch.why("rollout-0").startswith("the engine neither answers nor computes since ")
    assert gather({1: calls[1]}, 60) == ({1: "done"}, {}) and watch.why("rollout-1") == ""


def test_what_is_stopped_for_a_moment_only_is_left_alone(spawn, watch):
    actor, info = spawn("rollout-0")
    call = ask(actor, Actor.work)(4)
    for _ in range(3):
        os.kill(info["pids"][0], signal.SIGSTOP)
        time.sleep(0.6 * HEARTBEAT_S)
        os.kill(info["pids"][0], signal.SIGCONT)
        time.sleep(0.6 * HEARTBEAT_S)
    assert gather({0: call}, 60) == ({0: "done"}, {}) and watch.why("rollout-0") == ""


def test_after_a_deadline_the_stacks_of_all_processes_are_kept_and_nothing_runs_on(spawn, watch, tmp_path):
    found = {"rollout-0": spawn("rollout-0", 0, "busy"), "learner-0": spawn("learner-0", 1)}
    stopped = found["learner-0"][1]["pids"][0]
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: Lookout().look([stopped])[stopped].state == "T", 10, "a stop")
    watch.testify("learner-0: ValueError: wrong")
    assert not (tmp_path / "logs").exists(), "its cause is known"
    watch.testify("learner-0: no answer within 600 s")
    text = (tmp_path / "logs" / "stacks.txt").read_text()
    assert "learner-0: no answer within 600 s" in text
    for name, (_, info) in found.items():
        heads = [f"-- {name}, process {pid} (" for pid in (info["pid"], *info["pids"])]
        actor, engine = (text.partition(head)[2].partition("\n-- ")[0] for head in heads)
        assert "Fatal Python error: Aborted" in actor and "in main_loop" in actor
        assert engine.endswith("is stopped") if name == "learner-0" else 'File "<string>", line 2 in <module>' in engine
        until(lambda pids=(info["pid"], *info["pids"]): gone(pids), 5, "the end of its processes")
    assert "-- the driver" in text and "test_watch.py" in text


def test_a_node_that_does_not_answer_takes_its_actors_along(spawn, watch, nodes, cluster):
    actor, info = spawn("rollout-0", 1)
    call = ask(actor, Actor.work)(600)
    until(lambda: watch._nodes[nodes[1]].silent_s, 30, "an answer of the node")
    raylet = psutil.Process(cluster.worker_nodes.copy().pop().all_processes["raylet"][0].process.pid)
    frozen = [raylet, *raylet.children(recursive=True)]
    began = time.monotonic()
    try:
        for process in frozen:
            process.suspend()
        assert gather({0: call}, 60)[0] == {}
        assert SILENCE * HEARTBEAT_S - 1 <= time.monotonic() - began < SOON_S
        assert watch.why("rollout-0").startswith("its node has not answered for ")
    finally:
        for process in frozen:
            process.resume()
    until(lambda: gone([info["pid"], *info["pids"]]), 20, "the end of its processes")


def test_a_rank_that_is_stopped_ends_the_group_is_named_and_the_other_one_with_it(nodes, watch, tiny_model_dir, tmp_path):
    ranks, config = {}, LearnerConfig(ranks=2)
    for rank in range(2):
        made = ray.remote(LearnerActor).options(runtime_env=ENVIRONMENT, num_cpus=1)
        ranks[rank] = made.remote(config, tiny_model_dir, rank, 600.0)
    address = gather({0: ask(ranks[0], LearnerActor.meeting)(True)}, 60)[0][0]
    calls = {
        rank: ask(actor, LearnerActor.start)(address, rank, 2, RolloutConfig(), "t", False) for rank, actor in ranks.items()
    }
    infos, errors = gather(calls, 120)
    assert not errors and all("Shard" in placement for placement in infos[1]["placements"].values())
    for rank, info in infos.items():
        watch.add(f"learner-{rank}", ranks[rank], info)
    group = LearnerGroup(ranks, 600.0, watch.why)
    assert len(group.logprobs([[1, 5, 6, 7]])[0]) == 3
    processes = [psutil.Process(info["pid"]) for info in infos.values()]
    assert [len(beyond_loopback([process])) for process in processes] == [1, 1], "Ray's own, in a cluster that has an address"
    assert all(len(listening([process])) > 1 for process in processes), "gloo"
    folder = Path(address.removeprefix("file://")).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    time.sleep(HEARTBEAT_S)
    os.kill(infos[1]["pid"], signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(RoleFailed, match=f"^learner-1: process {infos[1]['pid']} .* is stopped since"):
        group.logprobs([[1, 5, 6, 7]])
    assert time.monotonic() - began < SOON_S
    watch.end_all()
    until(lambda: gone(info["pid"] for info in infos.values()), 5, "the end of both ranks")
    assert folder.name in sweep()
