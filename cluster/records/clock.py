"""What a run's wall-clock time was spent on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from cluster.fibers import HUB
from cluster.stopping import Stop

PHASES = ("generate", "score", "train", "sync")
"""The phases of a step, which may be under way at once; `other` is when none is."""
BREAKABLE = {"generate", "score", "evaluate"}
"""Phases that a stop breaks off at once: the learner holds what the last step made of it."""


@contextmanager
def taking(seconds: dict[str, float], part: str) -> Iterator[None]:
    """The block's seconds are written down under this name."""
    began = HUB.world.now()
    yield
    seconds[part] = HUB.world.now() - began


class Clock:
    """Seconds in which each phase was under way, and which phases a stop may break off."""

    def __init__(self, stop: Stop):
        self.stop = stop
        self._spent: dict[str, float] = dict.fromkeys((*PHASES, "other", "evaluate", "start"), 0.0)
        self._idle = "start"
        self.at = HUB.world.now()
        """Up to when the seconds are counted."""
        self._phases: dict[int, list[str]] = {}
        """By thread, the phases that it is in; the innermost counts."""

    def started(self) -> None:
        """The run begins."""
        self._count()
        self._idle = "other"

    def spent(self) -> dict[str, float]:
        """Seconds by phase, up to now."""
        self._count()
        return dict(self._spent)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """The block is of this phase; time of a phase within it is not counted twice. Without a name it is of none."""
        main, here = threading.current_thread() is threading.main_thread(), threading.get_ident()
        with self.stop.breakable() if main and phase in BREAKABLE else nullcontext():
            self._count()
            self._phases.setdefault(here, []).append(phase)
            try:
                yield
            finally:
                self._count()
                self._phases[here].pop()

    def restore(self, spent: dict[str, float]) -> None:
        """Go on from those of an earlier life of the run."""
        self._spent = {phase: seconds + spent[phase] for phase, seconds in self._spent.items()}

    def _count(self) -> None:
        now = HUB.world.now()
        for phase in {phases[-1] for phases in self._phases.values() if phases and phases[-1]} or {self._idle}:
            self._spent[phase] += now - self.at
        self.at = now
