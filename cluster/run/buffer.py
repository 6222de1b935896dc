"""Groups on their way from rollout to learner, and the one place that says which may be sampled.

Step t of a stage trains the groups with ordinals tQ .. tQ + Q - 1, admitted when the t steps before it are done: every group is
sampled by the weights that it trains. Groups are trained in the order of their ordinals and none is discarded for being slow,
so the trained distribution is the issued one.
"""

from cluster.run.progress import Progress
from reward.types import ScoredGroup


class Buffer:
    """Scored groups by their question's ordinal, for the stage under way."""

    def __init__(self, questions_per_step: int, progress: Progress):
        self._per_step, self._progress = questions_per_step, progress
        self._admitted = progress.done * questions_per_step
        self._groups: dict[int, ScoredGroup] = {}

    def admit(self) -> range:
        """Ordinals that may be leased now and were not before."""
        start, self._admitted = self._admitted, self._due.stop
        return range(start, self._admitted)

    def put(self, group: ScoredGroup) -> None:
        """A whole group. Raises ValueError when it was never admitted, or came before."""
        ordinal = group.question.ordinal
        if not self._due.start <= ordinal < self._admitted or ordinal in self._groups:
            raise ValueError(f"group {ordinal} is not awaited (step {self._progress.done}, admitted up to {self._admitted})")
        self._groups[ordinal] = group

    def take(self) -> list[ScoredGroup] | None:
        """The step's groups in the order of their ordinals, or None while one is missing."""
        if any(n not in self._groups for n in self._due):
            return None
        return [self._groups.pop(n) for n in self._due]

    @property
    def _due(self) -> range:
        """The ordinals of the step under way."""
        start = self._progress.done * self._per_step
        return range(start, start + self._per_step)
