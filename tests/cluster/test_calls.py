"""What the driver says of an actor's error: the cause, in one line."""

import re

import pytest
import ray

from cluster.fibers import HUB
from cluster.fleet import calls
from cluster.fleet.calls import RoleFailed, all_answers, follow, gather
from rollout.engine.engine import EngineError
from tests.cluster.simulated import Clockwork

TRACE = '\x1b[36mray::rollout-0.generate()\x1b[39m (pid=7)\n  File "/x/learner/worker.py", line 88, in step\n    raise it\n'


def raised(error):
    """As `ray.get` raises what a method of an actor raised."""
    return ray.exceptions.RayTaskError("generate", f"{TRACE}{type(error).__name__}: {error}", error).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (raised(EngineError("a wave: RuntimeError: head_dim=16")), "EngineError: a wave: RuntimeError: head_dim=16"),
        (raised(TypeError("\x1b[31mno\nnumber\x1b[0m")), "TypeError: no number (/x/learner/worker.py:88 in step)"),
        (ray.exceptions.WorkerCrashedError(), "WorkerCrashedError: The worker died unexpectedly"),
    ],
)
def test_an_actors_error_is_its_cause_without_rays_wrapping(monkeypatch, error, said):
    def get(ref, timeout):
        raise error

    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: (refs[:1], refs[1:]))
    monkeypatch.setattr(ray, "get", get)
    answers, errors = gather({0: "ref"}, 5)
    assert answers == {} and errors[0].startswith(said)
    assert errors[0] == said or isinstance(error, ray.exceptions.WorkerCrashedError), "Ray adds where to look"
    assert "\n" not in errors[0]


def test_a_long_error_keeps_its_beginning_and_its_end(monkeypatch):
    def get(ref, timeout):
        raise raised(EngineError("begin " + "x" * 5000 + " end"))

    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: (refs, []))
    monkeypatch.setattr(ray, "get", get)
    said = gather({0: "ref"}, 5)[1][0]
    assert said.startswith("EngineError: begin x") and said.endswith("x end") and len(said) < 900


def test_the_log_says_who_did_not_answer_what_since_when(monkeypatch, caplog):
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: ([], refs))
    answers, errors = gather({3: "one", 1: "other"}, 0.5, what="rollout: generate step 4 v2")
    assert answers == {} and errors == dict.fromkeys((1, 3), "no answer within 0.5 s")
    assert re.search(r"rollout: generate step 4 v2 waits since \d\d:\d\d:\d\d, in vain, for 1, 3", caplog.text)


PEER = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1 (x.py:3 in all_gather)"


@pytest.mark.parametrize(
    ("errors", "found", "said"),
    [
        ({0: PEER, 1: "ActorDiedError: killed"}, {}, "learner-1: ActorDiedError: killed"),
        ({0: PEER, 2: "ValueError: one", 1: "ValueError: two"}, {}, "learner-1: ValueError: two"),
        ({0: "no answer within 5 s", 1: PEER}, {}, f"learner-1: {PEER}"),
        ({0: PEER, 1: "ActorDiedError: killed"}, {"learner-1": "process 7 is stopped"}, "learner-1: process 7 is stopped"),
    ],
)
def test_the_rank_that_failed_by_itself_is_named(monkeypatch, errors, found, said):
    monkeypatch.setattr(calls, "gather", lambda *_, **options: ({}, errors))
    with pytest.raises(RoleFailed) as failed:
        all_answers({}, "learner", 5, "step", lambda name: found.get(name, ""))
    assert str(failed.value) == said


class Answers:
    """A stream: what comes of it, each after so many seconds; an error is raised where it is taken."""

    def __init__(self, *comes):
        self.comes = list(comes)
        self._next()

    def __next__(self):
        item = self.comes.pop(0)[1]
        if isinstance(item, StopIteration):
            raise item
        self._next()
        return item

    def _next(self):
        if self.comes:
            HUB.world.answer(self, self.comes[0][0])


@pytest.fixture
def clock(monkeypatch):
    def get(item, timeout):
        if isinstance(item, Exception):
            raise item
        return item

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(HUB, "world", Clockwork())


def test_a_stream_that_fails_is_told_at_once_and_one_that_does_not_answer_at_the_end(clock):
    died, told, came = ray.exceptions.WorkerCrashedError(), [], []
    streams = {0: Answers((1, "a"), (1, died)), 1: Answers((10, "b"), (30, "c"), (0, StopIteration())), 2: Answers((90, "d"))}
    errors = follow(
        streams,
        60.0,
        lambda slot, item: came.append((slot, item, HUB.world.now())),
        lambda slot, why: told.append((slot, why, HUB.world.now())),
        what="a test",
    )
    assert came == [(0, "a", 1), (1, "b", 10), (1, "c", 40)]
    assert told == [(0, calls.in_one_line(died), 2)]
    assert errors == {0: told[0][1], 2: "no answer within 60 s"}


def test_an_answer_that_came_while_the_caller_was_busy_is_not_late(clock):
    def each(slot, item):
        came.append((slot, item))
        HUB.wait([HUB.world.answer(object(), 100)])

    came = []
    streams = {slot: Answers((slot, slot), (0, StopIteration())) for slot in (1, 2)} | {3: Answers((300, 3))}
    assert follow(streams, 50.0, each, what="a test") == {3: "no answer within 50 s"}
    assert came == [(1, 1), (2, 2)]
