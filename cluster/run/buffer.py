"""Groups on their way from rollout to learner, and the one place that says which may be sampled.

Step t of a stage trains the groups with ordinals tQ .. tQ + Q - 1, admitted when the t steps before it are done: every group is
sampled by the weights that it trains. Groups are trained in the order of their ordinals and none is discarded for being slow,
so the trained distribution is the issued one.
"""

from collections.abc import Sequence

from reward.types import ScoredSample


class Buffer:
    """Scored groups by ordinal, for one stage."""

    def __init__(self, *, questions_per_step: int, done: int = 0):
        self.questions_per_step, self.done = questions_per_step, done
        """Steps that the learner has finished."""
        self._admitted = done * questions_per_step
        self._groups: dict[int, Sequence[ScoredSample]] = {}

    def admit(self) -> range:
        """Ordinals that may be leased now and were not before."""
        start, self._admitted = self._admitted, (self.done + 1) * self.questions_per_step
        return range(start, self._admitted)

    def put(self, ordinal: int, group: Sequence[ScoredSample]) -> None:
        """A whole group, scored. Raises ValueError when it was never admitted, or came before."""
        if not self.done * self.questions_per_step <= ordinal < self._admitted or ordinal in self._groups:
            raise ValueError(f"group {ordinal} is not awaited (step {self.done}, admitted up to {self._admitted})")
        self._groups[ordinal] = group

    def take(self) -> list[ScoredSample] | None:
        """The next step's samples in the order of their ordinals, or None while a group is missing."""
        ordinals = range(self.done * self.questions_per_step, (self.done + 1) * self.questions_per_step)
        if any(n not in self._groups for n in ordinals):
            return None
        return [scored for n in ordinals for scored in self._groups.pop(n)]

    def finish_step(self) -> None:
        """The learner has stepped: one more step's groups become admissible."""
        self.done += 1
