"""One of several works that take turns (cluster/fibers.py): a thread that runs in its turn only."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

R = TypeVar("R")
Ref = Any
"""An answer to come: a reference or a stream of Ray's."""
Until = Callable[[Callable[[], bool], str], None]
"""Waits for what another one makes true; the text says what."""


class Ended(BaseException):
    """Raised in a fiber's wait to end it."""


@dataclass(slots=True)
class Wait:
    """What somebody waits for."""

    refs: Sequence[Ref]
    until: float
    condition: Callable[[], bool]
    what: str
    tell: float
    """When it is to be told of, and when it is given up."""
    over: float
    began: float = field(default_factory=time.time)

    def __str__(self) -> str:
        return f"waits for {self.what} since {time.strftime('%H:%M:%S', time.localtime(self.began))}"


class Fiber(Generic[R]):
    """Work beside the caller's. Its turns are counted, and its locks are but bells: whatever a signal breaks off in the main
    thread can be done again."""

    def __init__(self, work: Callable[[], R], name: str, until: Until, mine: threading.local):
        """`until`: how it waits; in `mine` its thread finds it."""
        self.done = self.ended = False
        self.name = name
        self._work, self._until, self._mine = work, until, mine
        self._value: list[R] = []
        self._error: BaseException | None = None
        self.wait: Wait | None = None
        """What it waits for; None before it began."""
        self._given = self._taken = 0
        """Turns that the main thread gave it, and those that it has ended."""
        self._go, self._back, self._begun = threading.Lock(), threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self.thread = threading.Thread(name=name)  # until it has its own

    def result(self) -> R:
        """What the work returns. Raises what it raises."""
        self._until(lambda: self.done, self.name)
        if self._error:
            raise self._error
        return self._value[0]

    def give(self) -> None:
        """Its turn, of which `settle` awaits the end; the main thread may."""
        self._given = self._taken + 1

    def settle(self) -> None:
        """Wait until it has ended its turn, if it has one. A signal is felt when it has."""
        felt = None
        while self._given > self._taken:
            try:
                if self._begun.locked():
                    _ring(self._go)
                else:  # a second thread ends at once
                    threading.Thread(target=self._run, name=self.name, daemon=True).start()
                self._back.acquire()
            except KeyboardInterrupt as signal:
                felt = signal
        if felt:
            raise felt

    def park(self) -> None:
        """End the turn, and wait for the next."""
        self._taken += 1
        _ring(self._back)
        while self._given == self._taken:
            self._go.acquire()

    def _run(self) -> None:
        if not self._begun.acquire(blocking=False):
            return
        self.thread = threading.current_thread()
        self._mine.fiber = self
        try:
            self._value.append(self._work())
        except BaseException as error:
            self._error = error
        self.done = True
        self._taken += 1
        _ring(self._back)


def _ring(bell: threading.Lock) -> None:
    if bell.locked():
        bell.release()
