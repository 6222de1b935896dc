"""Waits of several fibers, in a world whose clock is a number and whose answers come when the test says."""

import os
import signal
import sys
import threading
import time

import pytest

from cluster.fibers import Fiber, Hub, RayWorld, Stuck, Turn
from tests.cluster.simulated import Clockwork


@pytest.fixture
def hub():
    hub = Hub(Clockwork())
    yield hub
    hub.close()


def test_waits_pass_side_by_side_and_each_gets_its_own_answer(hub):
    seen = []

    def work(name, after):
        assert hub.wait([hub.world.answer(name, after)]) == {name}
        seen.append((name, hub.world.now()))
        return name

    fibers = [hub.spawn(lambda n=n, s=s: work(n, s), n) for n, s in (("slow", 5), ("quick", 2), ("middle", 3))]
    assert seen == [], "nothing runs before the caller waits"
    assert [fiber.result() for fiber in fibers] == ["slow", "quick", "middle"]
    assert seen == [("quick", 2), ("middle", 3), ("slow", 5)]


def test_a_wait_ends_at_its_time_or_with_its_condition(hub):
    never = hub.world.answer("never", 100)
    assert hub.wait([never], until=4) == set() and hub.world.now() == 4
    done = []
    hub.spawn(lambda: (hub.wait([hub.world.answer("soon", 3)]), done.append(1)), "other")
    assert hub.wait([never], condition=lambda: bool(done)) == set() and hub.world.now() == 7


def test_a_turn_is_one_fibers_at_a_time(hub, monkeypatch):
    monkeypatch.setattr("cluster.fibers.HUB", hub)
    turn, inside, most = Turn("it"), [], []

    def work(name):
        with turn:
            inside.append(name)
            most.append(len(inside))
            hub.wait([hub.world.answer(object(), 1)])
            inside.remove(name)

    fibers = [hub.spawn(lambda n=n: work(n), n) for n in "abc"]
    assert [fiber.result() for fiber in fibers] == [None] * 3 and most == [1, 1, 1] and hub.world.now() == 3


def test_parts_of_a_turn_are_had_at_once_and_all_of_it_alone(hub, monkeypatch):
    monkeypatch.setattr("cluster.fibers.HUB", hub)
    turn, went = Turn("it"), []

    def work(name, seconds, part):
        with turn.of(part) if part else turn:
            went.append((hub.world.now(), name))
            hub.wait([hub.world.answer(object(), seconds)])

    def asks(part, name):
        turn.free(part)
        went.append((hub.world.now(), name))

    hub.together(
        {
            "a": lambda: work("a", 5, 1), "b": lambda: work("b", 3, 2), "c": lambda: work("c", 1, 2),
            "asks 3": lambda: asks(3, "asks 3"), "asks 1": lambda: asks(1, "asks 1"), "all": lambda: work("all", 2, None),
        }
    )  # fmt: skip
    assert went == [(0, "a"), (0, "b"), (0, "asks 3"), (3, "c"), (5, "asks 1"), (5, "all")] and hub.world.now() == 7


@pytest.mark.parametrize("begun", [False, True])
def test_one_fiber_is_ended_where_it_waits_and_the_others_go_on(hub, begun):
    seen = []

    def work(name):
        try:
            hub.wait([hub.world.answer(name, 5)])
            seen.append(name)
        finally:
            seen.append(f"{name} ends")

    ended, other = hub.spawn(lambda: work("ended"), "ended"), hub.spawn(lambda: work("other"), "other")
    hub.wait((), until=1 if begun else -1)
    hub.end(ended)
    assert seen == ["ended ends"][: begun + 0]
    assert other.result() is None and seen[begun:] == ["other", "other ends"]


def test_an_error_is_raised_where_the_result_is_asked_for(hub):
    fiber = hub.spawn(lambda: 1 / 0, "failing")
    hub.wait((), until=1)
    assert fiber.done
    with pytest.raises(ZeroDivisionError):
        fiber.result()


def test_fibers_that_wait_for_each_other_are_an_error(hub):
    with pytest.raises(
        Stuck, match=r"2 waits wait for each other: the run waits for one since .*; one waits for a miracle since"
    ):
        hub.spawn(lambda: hub.until(lambda: False, "a miracle"), "one").result()


def test_a_wait_is_told_of_after_its_time_and_given_up_after_the_longest_with_all_that_others_wait_for(hub, caplog):
    hub.allow(5, 20)
    busy = hub.world.answer("busy", 1000)
    hub.spawn(lambda: hub.wait([busy], until=900, what="rollout: step 3 v2"), "wave 3")
    told = []
    hub.spawn(lambda: (hub.wait((), until=6), told.extend(caplog.messages)), "looking")
    with pytest.raises(Stuck, match=r"no answer within 20 s: waits for the end since .*; wave 3 waits for rollout: step 3 v2"):
        hub.until(lambda: False, "the end")
    assert hub.world.now() == 20
    assert len(told) == 1 == len(caplog.messages) and told[0].startswith("for 5 s somebody waits for the end since ")
    hub.wait([hub.world.answer("long", 300)], until=400)
    assert hub.world.now() == 320, "a wait with a time of its own has that one"


def test_closing_ends_a_fiber_in_its_wait_and_its_thread():
    hub, left = Hub(Clockwork()), []

    def work():
        try:
            hub.until(lambda: False, "nothing")
        finally:
            left.append("cleaned up")

    fiber = hub.spawn(work, "waiting")
    hub.wait((), until=1)
    hub.close()
    fiber.thread.join(5)
    assert left == ["cleaned up"] and not fiber.thread.is_alive()


def test_a_signal_is_felt_while_a_fiber_runs_and_leaves_it_at_its_next_wait(request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    hub, went = Hub(RayWorld()), []

    def work():
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
        time.sleep(0.5)
        went.append("to its wait")
        hub.wait((), until=hub.world.now() + 60)

    fiber = hub.spawn(work, "busy")
    with pytest.raises(KeyboardInterrupt):
        hub.wait((), until=hub.world.now() + 60)
    assert went == ["to its wait"]
    hub.close()
    fiber.thread.join(5)
    assert not fiber.thread.is_alive()


class Broken:
    """Breaks off the main thread with KeyboardInterrupt at the n-th line that it comes to in the hub's code about turns."""

    def __init__(self, at):
        self.left = at

    def __call__(self, frame, event, argument):
        if frame.f_code in CODES and threading.current_thread() is threading.main_thread():
            return self.line

    def line(self, frame, event, argument):
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.line


CODES = {f.__code__ for f in (Fiber.give, Fiber.settle, Hub._take_turns, Hub.wait, Hub._settle)}


def test_wherever_a_signal_comes_fibers_run_one_at_a_time_and_can_be_ended():
    at, broken = 0, True
    while broken:
        at, broken = at + 1, False
        world, running, most, ends = Clockwork(), [], [], []
        hub = Hub(world)

        def work(name, hub=hub, world=world, running=running, most=most, ends=ends):
            try:
                for _ in range(2):
                    running.append(name)
                    most.append(len(running))
                    time.sleep(0.0005)
                    running.remove(name)
                    hub.wait([world.answer(object(), 1)])
            finally:
                ends.append(name)

        fibers = [hub.spawn(lambda n=n, work=work: work(n), n) for n in "ab"]
        sys.settrace(Broken(at))
        try:
            hub.wait((), until=5)
        except KeyboardInterrupt:
            broken = True
        finally:
            sys.settrace(None)
        hub.wait((), until=1.5)
        hub.close()
        assert set(most) == {1}
        assert all(not f.wait or f.done for f in fibers) and sorted(ends) == [f.name for f in fibers if f.wait], at
    assert at > 60
