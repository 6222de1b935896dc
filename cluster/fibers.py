"""Several waits at once in one driver: fibers, which take turns.

Only one runs at a time, and the turn passes only inside a wait: what a fiber does between two waits is whole for the others, so
the driver's state needs no locks. The main thread does the waiting for all, so that signals are felt; fibers run while it
waits. Every wait says for what, and none is without an end.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import ray

from cluster.fiber import Ended, Fiber, Ref, Wait

R = TypeVar("R")
log = logging.getLogger("cohort")
LATE = "no answer within"
"""How an error says that a deadline passed."""


class World(Protocol):
    """The clock, and the answers of others."""

    def now(self) -> float:
        """Seconds; only differences mean something."""
        ...

    def wait(self, refs: Sequence[Ref], seconds: float) -> Collection[Ref]:
        """Those of the references that are ready: at least one, or none after so many seconds."""
        ...


class RayWorld:
    """Answers of Ray's actors."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, refs: Sequence[Ref], seconds: float) -> Collection[Ref]:
        if refs:
            return ray.wait(list(refs), num_returns=1, timeout=None if seconds == math.inf else seconds)[0]
        time.sleep(seconds)
        return ()


class Stuck(RuntimeError):
    """A wait that nothing ends any more, or that has lasted longer than the work which it waits for may."""


class Hub:
    """All fibers of a process, and its main thread."""

    def __init__(self, world: World):
        self.world = world
        self.mine = threading.local()
        """Of each thread: its fiber."""
        self._fibers: list[Fiber] = []
        self._ready: set[Ref] = set()
        self._told_s = self._most_s = math.inf

    def allow(self, told_s: float, most_s: float) -> None:
        """A wait without a time of its own is told of after so many seconds, and is an error after so many."""
        self._told_s, self._most_s = told_s, most_s

    def spawn(self, work: Callable[[], R], name: str) -> Fiber[R]:
        """Begin work, which runs when the caller waits."""
        fiber = Fiber(work, name, self.until, self.mine)
        self._fibers.append(fiber)
        return fiber

    def together(self, works: Mapping[str, Callable[[], None]]) -> None:
        """Do all of them at once, by name. Raises what the first to be named raises."""
        if len(works) == 1:  # the caller's turn will do
            return next(iter(works.values()))()
        for fiber in [self.spawn(work, name) for name, work in works.items()]:
            fiber.result()

    def wait(
        self,
        refs: Sequence[Ref],
        until: float = math.inf,
        condition: Callable[[], bool] = lambda: False,
        what: str = "an answer",
    ) -> Collection[Ref]:
        """Those of the references that are ready: at least one; or none at a time of the world's clock, or when others have
        made the condition true. Raises Stuck where that can never be, or is not in time."""
        now, timed = self.world.now(), until < math.inf
        here = Wait(refs, until, condition, what, *((math.inf,) * 2 if timed else (now + self._told_s, now + self._most_s)))
        fiber: Fiber | None = getattr(self.mine, "fiber", None)
        if fiber is not None:
            if not self._due(here):
                self._park(fiber, here)
        else:
            self._settle()
            while not self._due(here):
                if not self._take_turns():
                    self._sleep(here)
        found = self._ready.intersection(refs)
        self._ready -= found
        if not found and self.world.now() >= here.over and not condition():
            raise Stuck(f"{LATE} {self._most_s:g} s: {here}; {self._others(here)}")
        return found

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what another fiber makes true."""
        self.wait((), condition=condition, what=what)

    def close(self) -> None:
        """End all fibers where they wait."""
        for fiber in list(self._fibers):
            self.end(fiber)
        self._ready.clear()

    def end(self, fiber: Fiber) -> None:
        """End a fiber where it waits; the main thread may."""
        self._settle()
        fiber.ended = True
        if fiber.wait is not None and not fiber.done:
            fiber.give()
            fiber.settle()
        if fiber in self._fibers:
            self._fibers.remove(fiber)

    def _settle(self) -> None:
        """Where a signal left a fiber in its turn."""
        for fiber in self._fibers:
            fiber.settle()

    def _due(self, wait: Wait) -> bool:
        now = self.world.now()
        return wait.condition() or not self._ready.isdisjoint(wait.refs) or now >= wait.until or now >= wait.over

    def _take_turns(self) -> bool:
        """Every fiber that can go on does, to its next wait, the oldest first; whether there was one."""
        went = False
        for fiber in list(self._fibers):
            # Asked anew for each: one that went on may have taken what another waits for.
            if fiber.wait is None or self._due(fiber.wait):
                fiber.give()
                fiber.settle()
                went = True
        self._fibers = [fiber for fiber in self._fibers if not fiber.done]
        return went

    def _sleep(self, here: Wait) -> None:
        waits = [here, *(fiber.wait for fiber in self._fibers if fiber.wait)]
        refs, until = [ref for wait in waits for ref in wait.refs], min(wait.until for wait in waits)
        if not refs and until == math.inf:
            raise Stuck(f"{len(waits)} waits wait for each other: the run {here}; {self._others(here)}")
        until = min(until, *(min(wait.tell, wait.over) for wait in waits))
        self._ready |= set(self.world.wait(refs, max(0.0, until - self.world.now())))
        now = self.world.now()
        for wait in waits:
            if now >= wait.tell and not self._due(wait):
                log.warning("for %g s somebody %s; %s", self._told_s, wait, self._others(wait))
                wait.tell = math.inf

    def _others(self, but: Wait) -> str:
        """Who else waits for what."""
        waits = [
            f"{fiber.name} {fiber.wait}" for fiber in self._fibers if fiber.wait and fiber.wait is not but and not fiber.done
        ]
        return "; ".join(waits) or "nobody else waits"

    def _park(self, fiber: Fiber, wait: Wait) -> None:
        if fiber.ended:
            raise Ended
        fiber.wait = wait
        fiber.park()
        if fiber.ended:
            raise Ended


HUB = Hub(RayWorld())
"""The driver's."""


class Turn:
    """What one fiber at a time does; or several at once, each for something else, while nobody has all of it."""

    def __init__(self, what: str) -> None:
        self._what, self._taken = what, False
        self._parts: set[Hashable] = set()

    def free(self, *parts: Hashable) -> None:
        """Wait until nobody has it, nor any of these parts."""
        HUB.until(lambda: not self._taken and self._parts.isdisjoint(parts), self._what)

    @contextmanager
    def of(self, part: Hashable) -> Iterator[None]:
        """Have a part of it."""
        self.free(part)
        self._parts.add(part)
        try:
            yield
        finally:
            self._parts.remove(part)

    def __enter__(self) -> None:
        HUB.until(lambda: not self._taken and not self._parts, self._what)
        self._taken = True

    def __exit__(self, *_) -> None:
        self._taken = False
