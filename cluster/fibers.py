"""Several waits at once in one driver: fibers, which take turns.

Only one runs at a time, and the turn passes only inside a wait: what a fiber does between two waits is whole for the others, so
the driver's state needs no locks. The main thread does the waiting for all, so that signals are felt; fibers run while it
waits.
"""

import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import ray

R = TypeVar("R")
Ref = Any
"""An answer to come: a reference or a stream of Ray's."""


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


class Ended(BaseException):
    """Raised in a fiber's wait to end it."""


@dataclass(frozen=True, slots=True)
class _Wait:
    refs: Sequence[Ref]
    until: float
    condition: Callable[[], bool]


class Fiber(Generic[R]):
    """Work beside the caller's."""

    def __init__(self, hub: "Hub", work: Callable[[], R], name: str):
        self.done = False
        self._hub, self._work = hub, work
        self._value: list[R] = []
        self._error: BaseException | None = None
        self.wait: _Wait | None = None
        """What it waits for; None before it began."""
        self.ended, self.parked = False, True
        self.go, self.back = threading.Lock(), threading.Lock()
        """Held while it may not run, and while its caller may not."""
        self.go.acquire()
        self.back.acquire()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def result(self) -> R:
        """What the work returns. Raises what it raises."""
        self._hub.until(lambda: self.done)
        if self._error:
            raise self._error
        return self._value[0]

    def _run(self) -> None:
        try:
            self._value.append(self._work())
        except BaseException as error:
            self._error = error
        self.done = self.parked = True
        self.back.release()


class Hub:
    """All fibers of a process, and its main thread."""

    def __init__(self, world: World):
        self.world = world
        self._fibers: list[Fiber] = []
        self._running: Fiber | None = None
        self._ready: set[Ref] = set()

    def spawn(self, work: Callable[[], R], name: str) -> Fiber[R]:
        """Begin work, which runs when the caller waits."""
        fiber = Fiber(self, work, name)
        self._fibers.append(fiber)
        return fiber

    def wait(
        self, refs: Sequence[Ref], until: float = math.inf, condition: Callable[[], bool] = lambda: False
    ) -> Collection[Ref]:
        """Those of the references that are ready: at least one; or none at a time of the world's clock, or when others have
        made the condition true. Raises RuntimeError where that can never be."""
        here = _Wait(refs, until, condition)
        if self._running is not None:
            if not self._due(here):
                self._park(self._running, here)
        else:
            while not self._due(here):
                if not self._take_turns():
                    self._sleep(here)
        found = self._ready.intersection(refs)
        self._ready -= found
        return found

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what another fiber makes true."""
        self.wait((), condition=condition)

    def close(self) -> None:
        """End all fibers where they wait."""
        for fiber in list(self._fibers):
            self.end(fiber)
        self._ready.clear()

    def end(self, fiber: Fiber) -> None:
        """End a fiber where it waits; the main thread may."""
        fiber.ended = True
        if fiber.wait is not None and not fiber.done:
            self._resume(fiber)
        if fiber in self._fibers:
            self._fibers.remove(fiber)

    def _due(self, wait: _Wait) -> bool:
        return wait.condition() or not self._ready.isdisjoint(wait.refs) or self.world.now() >= wait.until

    def _take_turns(self) -> bool:
        """Every fiber that can go on does, to its next wait, the oldest first; whether there was one."""
        went = False
        for fiber in list(self._fibers):
            # Asked anew for each: one that went on may have taken what another waits for.
            if fiber.wait is None or self._due(fiber.wait):
                self._resume(fiber)
                went = True
        self._fibers = [fiber for fiber in self._fibers if not fiber.done]
        return went

    def _sleep(self, here: _Wait) -> None:
        waits = [here, *(fiber.wait for fiber in self._fibers if fiber.wait)]
        refs, until = [ref for wait in waits for ref in wait.refs], min(wait.until for wait in waits)
        if not refs and until == math.inf:
            raise RuntimeError(f"{len(waits)} waits wait for each other")
        self._ready |= set(self.world.wait(refs, max(0.0, until - self.world.now())))

    def _resume(self, fiber: Fiber) -> None:
        """Give the turn to a fiber until it waits or ends. A signal is felt when it does."""
        self._running, felt = fiber, None
        fiber.parked = False
        begin = fiber.go.release if fiber.thread.ident else fiber.thread.start
        begin()
        while True:
            try:
                while not fiber.parked:
                    fiber.back.acquire()
                break
            except KeyboardInterrupt as signal:
                felt = signal
        fiber.back.acquire(blocking=False)  # where a signal came in between
        self._running = None
        if felt:
            raise felt

    def _park(self, fiber: Fiber, wait: _Wait) -> None:
        if fiber.ended:
            raise Ended
        fiber.wait, fiber.parked = wait, True
        fiber.back.release()
        fiber.go.acquire()
        if fiber.ended:
            raise Ended


HUB = Hub(RayWorld())
"""The driver's."""


class Turn:
    """What one fiber at a time does."""

    def __init__(self) -> None:
        self._taken = False

    def free(self) -> None:
        """Wait until nobody has it."""
        HUB.until(lambda: not self._taken)

    def __enter__(self) -> None:
        self.free()
        self._taken = True

    def __exit__(self, *_) -> None:
        self._taken = False
