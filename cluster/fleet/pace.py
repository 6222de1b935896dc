"""How long a call may take, by what those before it took for their work."""

from collections import deque

SLOWER = 20.0
"""Times as slow as the slowest of the newest calls: no longer the work, but a hang."""
LEAST_S = 60.0
"""For the machine to be busy with something else."""
NEWEST = 8
"""Calls; the first of a process, which compiles and fills caches, is soon none of them."""
PUBLISH_DEADLINES = 4
"""Calls of a publish that are awaited one after another, each for `cluster.sync_deadline_s`."""


class Pace:
    """Of one kind of call."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=NEWEST)
        """For a unit of work, of the newest calls."""

    def took(self, seconds: float, work: float) -> None:
        """A call has ended."""
        self._seconds.append(seconds / max(work, 1.0))

    def deadline_s(self, most_s: float, work: float, least_s: float = 0.0) -> float:
        """Of a call with so much work: `most_s` at most, and where none has ended before; `least_s` at least."""
        if not self._seconds:
            return most_s
        return min(most_s, max(least_s, LEAST_S + SLOWER * max(self._seconds) * work))
