"""What a run's wall-clock time was spent on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from cluster.stopping import Stop

PHASES = ("generate", "score", "train", "sync")
"""The phases of a step; whatever else it takes is `other`."""
BREAKABLE = {"generate", "score", "evaluate"}
"""Phases that a stop breaks off at once: the learner holds what the last step made of it."""


class Clock:
    """Seconds by phase, and which phases a stop may break off."""

    def __init__(self, stop: Stop):
        self.stop = stop
        self.seconds: dict[str, float] = dict.fromkeys((*PHASES, "other", "evaluate", "start"), 0.0)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the block's wall-clock seconds to the phase; time of a phase within it is not counted twice."""
        began, before = time.monotonic(), sum(self.seconds.values())
        with self.stop.breakable() if phase in BREAKABLE else nullcontext():
            yield
        self.add(phase, time.monotonic() - began - (sum(self.seconds.values()) - before))

    def add(self, phase: str, seconds: float) -> None:
        """What was measured otherwise."""
        self.seconds[phase] += seconds

    def restore(self, seconds: dict[str, float]) -> None:
        """Go on from those of an earlier life of the run."""
        self.seconds = dict(seconds)
