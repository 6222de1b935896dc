"""Credit: from the rewards of a whole batch to an advantage for every output token, once per batch.

Pure Python in double precision, no torch: a batch is small, and rewards that are equal must give exactly zero.
Groups are held together by their explicit id, so samples may come in any order and any member may be missing.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar, Literal

from reward.types import ScoredSample
from rollout.config import Strict
from rollout.types import FinishReason

Advantages = list[tuple[float, ...] | None]
"""Per sample of the batch: the advantage of each output token, or None when the sample is out of the loss."""


class Ones(Strict):
    """Every token of every sample has advantage 1: supervised fine-tuning (eq. 6)."""

    cell: Literal["ones"] = "ones"
    uses_rewards: ClassVar[bool] = False

    def __call__(self, scored: Sequence[ScoredSample]) -> Advantages:
        return [(1.0,) * len(item.sample.output_ids) for item in scored]


class GroupRelative(Strict):
    """Rewards normalised within the group; A_t is the sum of the normalised events at positions >= t.

    One function for outcome supervision (one event, at the last token) and process supervision (one per step): the mean and the
    standard deviation run over all events of the group.
    """

    cell: Literal["group_relative"] = "group_relative"
    uses_rewards: ClassVar[bool] = True
    normalize_std: bool = True
    """Divide by the group's standard deviation (the paper), or only subtract the mean (Dr. GRPO)."""
    ddof: Literal[0, 1] = 0
    """Population (0) or sample (1) standard deviation."""
    truncated: Literal["keep", "mask", "drop"] = "keep"
    """Outputs that ran out of tokens: keep; mask = leave the loss and stay in the baseline; drop = leave both."""

    def __call__(self, scored: Sequence[ScoredSample]) -> Advantages:
        """Raises ValueError for a group issued with one member, and for an event outside its output."""
        groups = defaultdict(list)
        for index, item in enumerate(scored):
            groups[item.sample.group_id].append(index)
        advantages: Advantages = [None] * len(scored)
        for group_id, indices in groups.items():
            if len(indices) == 1:
                raise ValueError(f"group {group_id} has one member; a group-relative advantage needs at least 2")
            counted = [index for index in indices if self._counts(scored[index])]
            if len(counted) < 2:
                continue
            normalise = self._normaliser([event.value for index in counted for event in scored[index].events])
            for index in counted:
                if self.truncated == "keep" or not _truncated(scored[index]):
                    advantages[index] = _sums_from_here_on(scored[index], normalise)
        return advantages

    def _counts(self, item: ScoredSample) -> bool:
        return item.verdict.status == "score" and not (self.truncated == "drop" and _truncated(item))

    def _normaliser(self, values: list[float]):
        """The map from a reward to its normalised value. Equality is compared: a computed spread is not exactly 0."""
        if not values or max(values) == min(values):
            return lambda value: 0.0
        mean = math.fsum(values) / len(values)
        if not self.normalize_std:
            return lambda value: value - mean
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - self.ddof))
        return lambda value: (value - mean) / std


def _truncated(item: ScoredSample) -> bool:
    return item.sample.finish_reason is FinishReason.LENGTH


def _sums_from_here_on(item: ScoredSample, normalise) -> tuple[float, ...]:
    """A_t for every token of one output."""
    at = [0.0] * len(item.sample.output_ids)
    if not at:
        return ()
    for event in item.events:
        if not 0 <= event.position < len(at):
            where = f"group {item.sample.group_id}, index {item.sample.index}"
            raise ValueError(f"{where}: a reward at position {event.position}, but the output has {len(at)} tokens")
        at[event.position] += normalise(event.value)
    return tuple(accumulate(reversed(at)))[::-1]
