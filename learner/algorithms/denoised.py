"""Credit for rewards that are known to be wrong at some rate."""

import math
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from learner.algorithms.cells import Objection, Plan
from learner.algorithms.credit import Advantages, GroupRelative, RewardSource, name_of
from reward.types import ScoredSample


class DenoisedGroupRelative(GroupRelative):
    """Group-relative credit for a 0/1 reward that is flipped at known rates (class-conditional noise, Natarajan et al. 2013).

    The group's share of truly right outputs is estimated by moments, (mean - a) / (1 - a - b) clamped to [0, 1] with a, b the
    flip rates, and each reward becomes the probability by Bayes that its output is right. As rewards are 0 or 1, that shrinks
    each group's advantages by one factor, least where outcomes vary most. Bias: the share comes from the same few rewards, and
    a group whose mean is at most a, or at least 1 - b, gets exactly 0, so rare successes on hard questions are not learned.
    """

    rewards: ClassVar[frozenset[RewardSource]] = frozenset({"rule"})
    cell: Literal["denoised_group_relative"] = "denoised_group_relative"
    normalize_std: bool = False
    """Dividing by the standard deviation would undo the shrinking."""
    flip_to_right: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability that a wrong output is rewarded 1."""
    flip_to_wrong: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability that a right output is rewarded 0."""

    @model_validator(mode="after")
    def _rewards_say_something(self):
        if self.flip_to_right + self.flip_to_wrong >= 1:
            raise ValueError("flip_to_right + flip_to_wrong: found 1 or more, expected less: at 1 rewards are pure noise")
        return self

    def _relative(self, group: list[ScoredSample]) -> Advantages:
        """Raises ValueError for rewards other than one event of 0 or 1."""
        rewards = [_binary(item) for item in group]
        a, b = self.flip_to_right, self.flip_to_wrong
        mean = math.fsum(rewards) / len(rewards)
        share = 0.0 if mean <= a else 1.0 if mean >= 1 - b else (mean - a) / (1 - a - b)
        denoised = []
        for item, reward in zip(group, rewards, strict=True):
            right, wrong = (share * (1 - b), (1 - share) * a) if reward else (share * b, (1 - share) * (1 - a))
            denoised.append(replace(item, events=(replace(item.events[0], value=right / (right + wrong)),)))
        return super()._relative(denoised)

    def contradictions(self, plan: Plan) -> list[Objection]:
        binary = plan.reward.correct == 1 and plan.reward.format == 0
        why = "estimates flips of 0/1 rewards; expected reward.correct: 1 and reward.format: 0"
        return super().contradictions(plan) + ([] if binary else [(("credit",), why)])


def _binary(item: ScoredSample) -> float:
    values = [event.value for event in item.events]
    if values not in ([0.0], [1.0]):
        raise ValueError(
            f"{name_of(item.sample)}: found rewards {values}, expected one, of 0 or 1: a rule without a format part"
        )
    return values[0]
