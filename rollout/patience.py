"""How long to wait for work that may be hostile and comes in numbers: programs that models wrote, judgements of their outputs.

A limit for each piece is not enough: a wave of a few hundred that all reach it outlasts every deadline.
"""

import math

LEAST, SHARE, MOST = 8, 1 / 8, 64
HURRIED, SHORTEST = 0.1, 1.0
STARTING = 2.0
"""Seconds to put a fresh process in the place of a killed one."""


class Patience:
    """The time limit of the pieces of one wave.

    A few may take all of it. From then on each piece has a tenth; and when as many again reached that too, and at least half
    of all that were tried, the rest is not worth trying.
    """

    def __init__(self, seconds: float, pieces: int):
        self.seconds = seconds
        self._few = min(max(LEAST, int(SHARE * pieces)), MOST)
        self.done = self.hung = 0

    def count(self, hung: bool) -> None:
        """A piece was tried; `hung` if it had to be ended."""
        self.done += 1
        self.hung += hung

    @property
    def hurried(self) -> bool:
        return self.hung >= self._few

    @property
    def gone(self) -> bool:
        return self.hung >= max(2 * self._few, self.done / 2)

    @property
    def limit(self) -> float:
        """Seconds for a piece that begins now."""
        return min(self.seconds, max(SHORTEST, HURRIED * self.seconds)) if self.hurried else self.seconds

    def why(self, what: str) -> str:
        """What to say of a piece that did not get all of its time."""
        return f"{self.hung} of {self.done} {what} before it in its wave had to be ended, at {self.seconds:g} s or less"


def longest(pieces: int, seconds: float, at_once: int) -> float:
    """Seconds in which so many pieces are done, whatever they do."""
    return math.ceil(pieces / at_once) * (seconds + STARTING)
