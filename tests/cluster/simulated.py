"""A world whose clock is a number and whose answers come when they are due."""

import math


class Clockwork:
    """Answers that are ready at given seconds; waiting moves the clock."""

    def __init__(self):
        self._seconds, self._due = 0.0, {}

    def now(self):
        return self._seconds

    def answer(self, ref, after):
        """The reference, ready in so many seconds."""
        self._due[ref] = self._seconds + after
        return ref

    def wait(self, refs, seconds):
        first = min((self._due[ref] for ref in refs), default=math.inf)
        self._seconds = min(max(first, self._seconds), self._seconds + seconds)
        return [ref for ref in refs if self._due[ref] <= self._seconds]
