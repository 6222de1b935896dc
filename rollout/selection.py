"""Which question is asked next: the part of the data source that a run may choose.

Uniform asks every question once an epoch and is the distribution that the methods are written for. The others ask some
questions more often than others, judged by what the policy's outputs earned on them before, so what is then optimised is the
mean reward under a distribution of questions that follows the policy: its optimum is still right answers everywhere, but a
question left out is not trained on, and an accuracy seen while training is not that of the question set.
"""

import math
import random
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rollout.config import Strict


class Uniform(Strict):
    """Every question once an epoch, in an order drawn from the seed."""

    cell: Literal["uniform"] = "uniform"


class ByDifficulty(Strict):
    """Only questions whose share of success, when last asked, lay within bounds; those not asked yet come first.

    Bias: questions that are always or never solved leave the training for good, unless nothing else is left.
    """

    cell: Literal["by_difficulty"] = "by_difficulty"
    least: float = Field(0.1, ge=0.0, le=1.0)
    most: float = Field(0.9, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _in_order(self):
        if self.least > self.most:
            raise ValueError(f"least is {self.least} and most {self.most}; expected least <= most")
        return self

    def weight(self, share: float | None) -> float:
        return 1e6 if share is None else float(self.least <= share <= self.most)


class Prioritised(Strict):
    """Questions are drawn in proportion to the standard deviation of their group's success, sqrt(p (1 - p)), when last asked.

    Bias: the gradient weighs a question by its chance of being drawn; `floor` keeps every question in play.
    """

    cell: Literal["prioritised"] = "prioritised"
    floor: float = Field(0.1, gt=0.0, le=0.5)
    """Least weight of a question; 0.5 is the most that the standard deviation can be."""

    def weight(self, share: float | None) -> float:
        return 0.5 if share is None else max(self.floor, math.sqrt(share * (1 - share)))


Selection = Annotated[Uniform | ByDifficulty | Prioritised, Field(discriminator="cell")]


class Selector:
    """Rows for the steps of one stage; what it has seen is its state."""

    def __init__(self, selection: ByDifficulty | Prioritised, size: int, seed: str, shares: dict[str, float]):
        """`shares` is the caller's and written to: row (as text, for JSON) -> share of right outputs when last asked."""
        self._selection, self._size, self._seed, self._shares = selection, size, seed, shares

    def rows(self, step: int, count: int) -> list[int]:
        """`count` different rows for a step, by weight without replacement; rows of weight 0 only when no other is left.

        The same rows for the same step and state.
        """
        rng = random.Random(f"{self._seed}/step {step}")
        keys = []
        for row in range(self._size):
            weight = self._selection.weight(self._shares.get(str(row)))
            # The largest of u^(1/w) are a weighted draw without replacement (Efraimidis and Spirakis 2006); logarithms, since
            # u^(1/w) underflows for small weights.
            draw = math.log(1 - rng.random())
            keys.append((weight > 0, draw / weight if weight else draw, row))
        return [row for *_, row in sorted(keys, reverse=True)[:count]]

    def observe(self, rows: Sequence[int], shares: Sequence[float]) -> None:
        """The share of right outputs of each row's group."""
        self._shares |= {str(row): share for row, share in zip(rows, shares, strict=True)}
