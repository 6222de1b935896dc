"""What the watch finds of real processes, whose actors are objects of this process."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from cluster import fibers
from cluster.fleet import watch as module
from cluster.fleet.lookout import Lookout, Process
from cluster.fleet.watch import SILENCE, Watch
from tests.cluster.clusters import until
from tests.cluster.local_ray import FakeRay, Handle

pytestmark = pytest.mark.slow

HEARTBEAT_S = 0.5
WORK = "import sys, time\nprint('works', flush=True)\nwhile True: time.sleep(0.05 if sys.argv[1] == 'idle' else 0)"


class Engine:
    def __init__(self, answers):
        self.answers = answers

    async def pulse(self):
        if not self.answers:
            await asyncio.sleep(60)


@pytest.fixture
def watch(tmp_path, monkeypatch):
    fake = SimpleNamespace(wait=lambda refs, timeout: FakeRay.wait(refs, 1, timeout), kill=FakeRay.kill)
    monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(module, "node_id", lambda: "here")
    monkeypatch.setattr(fibers, "ray", FakeRay)
    made = Watch(HEARTBEAT_S, tmp_path / "logs" / "stacks.txt")
    yield made
    made.close()
    made.end_all()


@pytest.fixture
def spawn(watch):
    """Start processes of an actor: its handle, and the processes."""

    def start(name, *kinds, answers=True):
        command = [sys.executable, "-c", WORK]
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
        log = (watch.stacks.parent.parent / f"{name}.log").open("w")
        made = [subprocess.Popen([*command, kind], stdout=subprocess.PIPE, stderr=log, env=environment) for kind in kinds]
        assert all(process.stdout.readline() for process in made)
        actor = Handle(Engine(answers))
        watch.add(name, actor, {"node_id": "here", "pid": made[0].pid, "pids": [p.pid for p in made[1:]]}, actor.pulse.remote)
        return actor, made

    return start


def ended(processes):
    return all(process.poll() is not None for process in processes)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("fate", [signal.SIGSTOP, signal.SIGKILL])
def test_an_actor_of_which_a_process_is_stopped_or_gone_is_ended_and_no_other(watch, spawn, victim, fate):
    actor, processes = spawn("rollout-0", "idle", "idle")
    other, others = spawn("rollout-1", "idle", "idle")
    time.sleep(HEARTBEAT_S)
    began = time.monotonic()
    os.kill(processes[victim].pid, fate)
    until(lambda: actor.dead, 20 * HEARTBEAT_S, "the end of the actor")
    assert time.monotonic() - began >= HEARTBEAT_S
    how = "stopped" if fate == signal.SIGSTOP else "gone"
    found = watch.why("rollout-0")
    assert found.startswith(f"process {processes[victim].pid} (python") and f") is {how} since" in found
    until(lambda: ended(processes), 10, "the end of its processes")
    assert not other.dead and not watch.why("rollout-1") and not ended(others[:1])


def test_an_engine_that_neither_answers_nor_computes_is_stuck_and_one_that_computes_is_not(watch, spawn):
    stuck, _ = spawn("rollout-0", "idle", "idle", answers=False)
    busy, _ = spawn("rollout-1", "idle", "busy", answers=False)
    began = time.monotonic()
    until(lambda: stuck.dead, 10 * SILENCE * HEARTBEAT_S, "the end of the stuck engine")
    assert time.monotonic() - began >= SILENCE * HEARTBEAT_S
    assert watch.why("rollout-0") == "the engine neither answers nor computes since 4 s"
    assert not busy.dead and not watch.why("rollout-1")


def test_who_takes_the_place_of_an_ill_one_starts_anew(watch, spawn):
    actor, processes = spawn("rollout-0", "idle")
    time.sleep(HEARTBEAT_S)
    os.kill(processes[0].pid, signal.SIGSTOP)
    until(lambda: actor.dead, 20 * HEARTBEAT_S, "the end of the actor")
    spawn("rollout-0", "idle")
    assert watch.why("rollout-0") == ""


def test_after_a_deadline_the_stacks_of_all_processes_are_kept_and_nothing_runs_on(watch, spawn, tmp_path):
    _, (first, busy) = spawn("rollout-0", "idle", "busy")
    _, (other, stopped) = spawn("learner-0", "idle", "idle")
    os.kill(stopped.pid, signal.SIGSTOP)
    until(lambda: Lookout().look([stopped.pid])[stopped.pid].state == "T", 10, "a stop")
    watch.testify("learner-0: ValueError: wrong")
    assert not (tmp_path / "logs").exists(), "its cause is known"
    watch.testify("learner-0: no answer within 600 s")
    text = (tmp_path / "logs" / "stacks.txt").read_text()
    for name, process in (("rollout-0", first), ("rollout-0", busy), ("learner-0", other), ("learner-0", stopped)):
        words = text.partition(f"-- {name}, process {process.pid} (")[2].partition("\n-- ")[0]
        assert ("is stopped" if process is stopped else 'File "<string>", line 3 in <module>') in words
        process.wait(5)
    assert "no answer within 600 s\n-- the driver\n" in text and "test_lookout.py" in text


def test_a_process_that_ends_before_it_is_stopped_fails_nobody(monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    gone = Process(name="python", state="R", seconds=0.0)
    monkeypatch.setattr(Lookout, "look", lambda self, pids: dict.fromkeys(pids, gone))
    said = Lookout().stacks({"rollout-0": [process.pid]})
    assert said.startswith(f"-- rollout-0, process {process.pid} (python): ") and "No such file" in said
