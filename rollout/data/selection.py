"""Which question is asked next: the part of the data source that a run may choose.

Uniform asks every question once an epoch and is the distribution that the methods are written for. The others ask some
questions more often than others, judged by what the policy's outputs earned on them before, so what is then optimised is the
mean reward under a distribution of questions that follows the policy: its optimum is still right answers everywhere, but a
question left out is not trained on, and an accuracy seen while training is not that of the question set.
"""

import math
import random
import statistics
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rollout.rounding import apart
from rollout.strict import Strict


class Uniform(Strict):
    """Every question once an epoch, in an order drawn from the seed."""

    cell: Literal["uniform"] = "uniform"


class ByDifficulty(Strict):
    """Only questions whose share of success, when last asked, lay within bounds; those not asked yet come first.

    Bias: questions that are always or never solved leave the training for good, unless nothing else is left.
    """

    cell: Literal["by_difficulty"] = "by_difficulty"
    least: float = Field(default=0.1, ge=0.0, le=1.0)
    """Smallest share of right outputs."""
    most: float = Field(default=0.9, ge=0.0, le=1.0)
    """Largest share of right outputs."""

    @model_validator(mode="after")
    def _in_order(self):
        if self.least > self.most:
            raise ValueError(f"least is {self.least} and most {self.most}; expected least <= most")
        return self

    def observed(self, right: Sequence[float], rewards: Sequence[float]) -> float | None:
        """The share of right outputs."""
        return statistics.fmean(right) if right else None

    def weight(self, share: float | None, largest: float) -> float:
        return 1e6 if share is None else float(self.least <= share <= self.most)


class Prioritised(Strict):
    """Questions are drawn in proportion to the standard deviation of their group's rewards when last asked.

    The rewards are those that the policy is trained on. A question not asked yet counts as the most varied one so far.
    Bias: the gradient weighs a question by its chance of being drawn; `floor` keeps every question in play.
    """

    cell: Literal["prioritised"] = "prioritised"
    floor: float = Field(default=0.2, gt=0.0, le=1.0)
    """Least weight of a question, as a share of the largest."""

    def observed(self, right: Sequence[float], rewards: Sequence[float]) -> float | None:
        """The standard deviation (population) of the rewards; 0 where only rounding tells them apart."""
        if not rewards:
            return None
        return statistics.pstdev(rewards) if apart(rewards) else 0.0

    def weight(self, deviation: float | None, largest: float) -> float:
        largest = largest or 1.0
        return largest if deviation is None else max(self.floor * largest, deviation)


Selection = Annotated[Uniform | ByDifficulty | Prioritised, Field(discriminator="cell")]


class Selector:
    """Rows for the steps of one stage; what it has seen is its state."""

    def __init__(self, selection: ByDifficulty | Prioritised, size: int, seed: str, seen: dict[str, float]):
        """`seen` is the caller's and written to: row (as text, for JSON) -> what was observed when it was last asked."""
        self._selection, self._size, self._seed, self._seen = selection, size, seed, seen

    def rows(self, step: int, count: int) -> list[int]:
        """`count` different rows for a step, by weight without replacement; rows of weight 0 only when no other is left.

        The same rows for the same step and state.
        """
        rng = random.Random(f"{self._seed}/step {step}")
        keys, largest = [], max(self._seen.values(), default=0.0)
        for row in range(self._size):
            weight = self._selection.weight(self._seen.get(str(row)), largest)
            # The largest of u^(1/w) are a weighted draw without replacement (Efraimidis and Spirakis 2006); logarithms, since
            # u^(1/w) underflows for small weights.
            draw = math.log(1 - rng.random())
            keys.append((weight > 0, draw / weight if weight else draw, row))
        return [row for *_, row in sorted(keys, reverse=True)[:count]]

    def observe(self, row: int, right: Sequence[float], rewards: Sequence[float]) -> None:
        """Take note of a row's group: 1 or 0 for each output whose answer could be judged, and the rewards trained on."""
        if (value := self._selection.observed(right, rewards)) is not None:
            self._seen[str(row)] = value
