"""Waits of several fibers, in a world whose clock is a number and whose answers come when the test says."""

import os
import signal
import threading
import time

import pytest

from cluster.fibers import Hub, RayWorld, Turn
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
    turn, inside, most = Turn(), [], []

    def work(name):
        with turn:
            inside.append(name)
            most.append(len(inside))
            hub.wait([hub.world.answer(object(), 1)])
            inside.remove(name)

    fibers = [hub.spawn(lambda n=n: work(n), n) for n in "abc"]
    assert [fiber.result() for fiber in fibers] == [None] * 3 and most == [1, 1, 1] and hub.world.now() == 3


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
    with pytest.raises(RuntimeError, match="2 waits wait for each other"):
        hub.spawn(lambda: hub.until(lambda: False), "one").result()


def test_closing_ends_a_fiber_in_its_wait_and_its_thread():
    hub, left = Hub(Clockwork()), []

    def work():
        try:
            hub.until(lambda: False)
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
