"""Credit: from the rewards of a whole batch to an advantage for every output token, once per batch.

Pure Python in double precision, no torch: a batch is small, and rewards that are equal but for rounding must give exactly
zero. Every credit is called the same way, `credit(groups, signals)`, and answers in the order of the batch's samples.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import ClassVar, Literal

from pydantic import model_validator

from learner.algorithms.cells import Cell, Objection, PerToken, Plan, Signals
from reward.types import ScoredGroup, ScoredSample
from rollout.rounding import apart
from rollout.types import FinishReason, Sample

Batch = Sequence[ScoredGroup]
Advantages = list[tuple[float, ...] | None]
"""Per sample of the batch: a number for each output token, or None when the sample is out of the loss."""
RewardSource = Literal["none", "rule", "outcome_model", "process_model"]


class Credit(Cell):
    """What all credits share."""

    rewards: ClassVar[frozenset[RewardSource]] = frozenset({"rule", "outcome_model", "process_model"})
    """The sources of reward that the credit makes sense of."""
    smallest_group: ClassVar[int] = 1
    """Outputs that a question needs."""
    compares_pairs: ClassVar[bool] = False
    """Whether its groups are pairs of a better and a worse output."""

    @property
    def uses_rewards(self) -> bool:
        return "none" not in self.rewards

    def __call__(self, batch: Batch, signals: Signals) -> Advantages:
        """The advantages of the batch's samples. By default group by group."""
        return [row for group in batch for row in self.of_group(group.scored)]

    def of_group(self, group: Sequence[ScoredSample]) -> Advantages:
        """The advantages of one group's members, where they depend on nothing else."""
        raise NotImplementedError

    def returns(self, batch: Batch, signals: Signals) -> PerToken:
        """What a critic is to say, for a credit that needs one; 0.0 at tokens that were not sampled."""
        raise NotImplementedError

    def metrics(self, batch: Batch, signals: Signals) -> dict[str, float]:
        """For the log, before the first update."""
        return {}

    def contradictions(self, plan: Plan) -> list[Objection]:
        if plan.group_size >= self.smallest_group:
            return []
        why = "credit relative to the group is 0 in a group of one, so nothing is learned"
        return [(("samples_per_question",), f"found {plan.group_size}; expected {self.smallest_group} or more: {why}")]


class Ones(Credit):
    """Every token of every sample has advantage 1: supervised fine-tuning (eq. 6). A rejected one cannot be trained on."""

    rewards: ClassVar[frozenset[RewardSource]] = frozenset({"none", "rule", "outcome_model", "process_model"})
    cell: Literal["ones"] = "ones"
    formula: ClassVar[str] = "1"

    def of_group(self, group: Sequence[ScoredSample]) -> Advantages:
        return [None if item.sample.rejected else (1.0,) * len(item.sample.output_ids) for item in group]


class Accepted(Credit):
    """Advantage 1 where the reward is above the threshold, else 0: rejection sampling (RFT and Online RFT, eq. 8)."""

    rewards: ClassVar[frozenset[RewardSource]] = frozenset({"rule", "outcome_model"})
    cell: Literal["accepted"] = "accepted"
    formula: ClassVar[str] = "I(o)"
    threshold: float = 0.5
    """Of the sum of the output's rewards. An outcome model's reward is a logit: even odds are 0 there."""
    over: Literal["all", "kept"] = "all"
    """All samples, rejected ones at 0 (eq. 8), or accepted ones only: each question that has any then counts the same."""

    def of_group(self, group: Sequence[ScoredSample]) -> Advantages:
        return [self._advantage(item) if has_score(item) else None for item in group]

    def _advantage(self, item: ScoredSample) -> tuple[float, ...] | None:
        accepted = _reward(item) > self.threshold
        return (float(accepted),) * len(item.sample.output_ids) if accepted or self.over == "all" else None


class Signed(Credit):
    """+1 on the better output of a pair and -1 on the worse one; a pair without a better one is out of the loss."""

    rewards: ClassVar[frozenset[RewardSource]] = frozenset({"rule", "outcome_model"})
    compares_pairs: ClassVar[bool] = True
    cell: Literal["signed"] = "signed"
    formula: ClassVar[str] = "+1 on o+, -1 on o-"

    def of_group(self, group: Sequence[ScoredSample]) -> Advantages:
        """Raises ValueError for a group that is not a pair."""
        if len(group) != 2:
            raise ValueError(f"group {group[0].sample.group_id}: found {len(group)} outputs, expected a pair")
        rewards = [_reward(item) for item in group]
        there = all(has_score(item) and any(item.sample.sampled_mask) for item in group)
        if not there or not apart(rewards, _terms(group)):
            return [None, None]
        best = rewards.index(max(rewards))
        return [(1.0 if i == best else -1.0,) * len(item.sample.output_ids) for i, item in enumerate(group)]


class WithinGroup(Credit):
    """Credit relative to the group: who counts, and who is in the loss."""

    smallest_group: ClassVar[int] = 2
    """A group with fewer outputs that count has no credit."""
    truncated: Literal["keep", "mask", "drop"] = "keep"
    """Outputs that ran out of tokens: keep; mask = leave the loss and stay in the baseline; drop = leave both."""

    def of_group(self, group: Sequence[ScoredSample]) -> Advantages:
        """Raises ValueError for an event outside its output."""
        counted = [i for i, item in enumerate(group) if has_score(item) and not (self.truncated == "drop" and truncated(item))]
        advantages: Advantages = [None] * len(group)
        if len(counted) >= self.smallest_group:
            for i, advantage in zip(counted, self._relative([group[i] for i in counted]), strict=True):
                if self.truncated == "keep" or not truncated(group[i]):
                    advantages[i] = advantage
        return advantages

    def _relative(self, group: list[ScoredSample]) -> Advantages:
        """The advantages of a group's members that count, two or more."""
        raise NotImplementedError


class GroupRelative(WithinGroup):
    """Rewards normalised within the group; A_t is the sum of the normalised events at positions >= t.

    One function for outcome supervision (one event, at the last token) and process supervision (one per step): the mean and the
    standard deviation run over all events of the group. Without the division it is Dr. GRPO's (arXiv 2503.20783).
    """

    cell: Literal["group_relative"] = "group_relative"
    normalize_std: bool = True
    """Divide by the group's standard deviation (the paper), or only subtract the mean (Dr. GRPO)."""
    ddof: Literal[0, 1] = 0
    """Population (0) or sample (1) standard deviation."""

    @model_validator(mode="after")
    def _ddof_is_read(self):
        if self.ddof and not self.normalize_std:
            raise ValueError("ddof: given, but normalize_std is false, so no standard deviation is taken")
        return self

    @property
    def formula(self) -> str:
        return f"sum from t on of {'(r - mean) / std' if self.normalize_std else 'r - mean'}"

    def _relative(self, group: list[ScoredSample]) -> Advantages:
        values = centred([event.value for item in group for event in item.events], _terms(group))
        std = deviation(values, self.ddof) if self.normalize_std and any(values) else 1.0
        rest = iter(values)
        return [_sums_from_here_on(item, [next(rest) / std for _ in item.events]) for item in group]


class LeaveOneOut(WithinGroup):
    """RLOO (arXiv 2402.14740): the reward less the mean reward of the group's other outputs, the same for every token.

    An output's reward is the sum of its events. The KL penalty that the paper puts into the reward is left to the weighting.
    """

    cell: Literal["leave_one_out"] = "leave_one_out"
    formula: ClassVar[str] = "r - mean of the others' r"

    def _relative(self, group: list[ScoredSample]) -> Advantages:
        values = centred([_reward(item) for item in group], _terms(group))
        scale = len(group) / (len(group) - 1)
        return [(scale * value,) * len(item.sample.output_ids) for item, value in zip(group, values, strict=True)]


def has_score(item: ScoredSample) -> bool:
    return item.verdict.status == "score"


def truncated(item: ScoredSample) -> bool:
    return item.sample.finish_reason is FinishReason.LENGTH


def _reward(item: ScoredSample) -> float:
    return math.fsum(event.value for event in item.events)


def name_of(sample: Sample) -> str:
    return f"group {sample.group_id}, index {sample.index}"


def per_token(item: ScoredSample, row: tuple[float, ...] | None, what: str) -> tuple[float, ...]:
    """The row. Raises ValueError unless it has a number for each of the output's tokens."""
    expected = len(item.sample.output_ids)
    if row is None or len(row) != expected:
        found = "no" if row is None else len(row)
        raise ValueError(f"{name_of(item.sample)}: found {found} {what}, expected {expected}, one per token")
    return row


def has_spread(group: Iterable[ScoredSample]) -> bool:
    """Whether the group's rewards differ by more than rounding: without that there is nothing to learn from it."""
    items = list(group)
    return apart([event.value for item in items for event in item.events], _terms(items))


def _terms(items: Iterable[ScoredSample]) -> list[float]:
    return [term for item in items for term in item.terms]


def centred(values: Sequence[float], terms: Iterable[float] = ()) -> list[float]:
    """Values less their mean; exactly 0 where they do not differ by more than rounding (see `apart`)."""
    if not apart(values, terms):
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def deviation(centred_values: Sequence[float], ddof: int = 0) -> float:
    """Standard deviation of values whose mean is 0."""
    return math.hypot(*centred_values) / math.sqrt(len(centred_values) - ddof)


def at_tokens(item: ScoredSample, values: Sequence[float]) -> list[float]:
    """The sum of the values of the events at each token."""
    at = [0.0] * len(item.sample.output_ids)
    if not at:
        return at
    for position, value in zip((event.position for event in item.events), values, strict=True):
        if not 0 <= position < len(at):
            raise ValueError(f"{name_of(item.sample)}: a reward at position {position}, but the output has {len(at)} tokens")
        at[position] += value
    return at


def _sums_from_here_on(item: ScoredSample, values: Sequence[float]) -> tuple[float, ...]:
    """A_t for every token of one output."""
    return tuple(accumulate(reversed(at_tokens(item, values))))[::-1]
