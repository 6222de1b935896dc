"""Training examples for reward models, and pairs. Pure functions.

Outcome: one target at the last token, 1 for a right answer and 0 for a wrong one; or a pair, a group of two, for ranking.
Process: one target at the end of every labelled step, in [0, 1].
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from reward.types import Labelled, LabelledGroup, RewardEvent, ScoredGroup, ScoredSample, Target
from rollout.rounding import apart
from rollout.types import Sample


class Steps(Protocol):
    """How outputs are cut into steps; `reward.labels.steps.StepFinder` is one."""

    def ends(self, output_ids: Sequence[int], sampled_mask: Sequence[bool]) -> tuple[int, ...]: ...
    def texts(self, output_ids: Sequence[int], sampled_mask: Sequence[bool]) -> tuple[str, ...]: ...


def outcome_label(item: ScoredSample, component: str = "correct", *, every_token: bool = False) -> Labelled | None:
    """The output with its correctness (or another component of its verdict) at the last token; None where it was not judged.

    `every_token`: the same label at every token.
    """
    if component not in item.verdict.components or not item.sample.output_ids:
        return None
    value, last = item.verdict.components[component], len(item.sample.output_ids) - 1
    where = range(last + 1) if every_token else [last]
    return at_tokens(item.sample, [(t, value) for t in where])


def as_labelled(group: ScoredGroup) -> LabelledGroup:
    """The group's rewards as labels."""
    return LabelledGroup(
        labelled=tuple(
            Labelled(sample=s.sample, targets=tuple(Target(position=e.position, value=e.value) for e in s.events))
            for s in group.scored
        )
    )


def pairs(groups: Sequence[ScoredGroup], *, per_group: int, rng: random.Random) -> list[ScoredGroup]:
    """At most `per_group` different pairs (better, worse) from each group, by reward; equal rewards make no pair.

    A pair is a new group of two, `<group>/pair-k`: index 0 is the better one, and each has its reward at its last token.
    The order of the input does not matter, that of `rng`'s use does.
    """
    made = []
    judged = [
        (replace(group, scored=usable), usable[0].sample.group_id)
        for group in groups
        if (usable := tuple(s for s in group.scored if s.verdict.status == "score" and s.sample.output_ids))
    ]
    for group, group_id in sorted(judged, key=lambda named: named[1]):
        members = sorted(group.scored, key=lambda item: item.sample.index)
        ranked = [(a, b) for a in members for b in members if better(a, b) and differ(a, b)]
        for k, pair in enumerate(rng.sample(ranked, min(per_group, len(ranked)))):
            scored = tuple(_at_the_end(item, f"{group_id}/pair-{k}", index) for index, item in enumerate(pair))
            made.append(replace(group, scored=scored))
    return made


def step_labels(sample: Sample, ends: Sequence[int], labels: Sequence[float | None]) -> Labelled | None:
    """The sample with labels at the ends of its steps, or None when no step has one. Raises ValueError for labels outside
    [0, 1]."""
    if wrong := [label for label in labels if label is not None and not 0 <= label <= 1]:
        raise ValueError(f"group {sample.group_id}, index {sample.index}: step label {wrong[0]}, expected 0 to 1")
    return at_tokens(sample, [(end, label) for end, label in zip(ends, labels, strict=True) if label is not None])


def at_tokens(sample: Sample, labels: Sequence[tuple[int, float]]) -> Labelled | None:
    """The sample with labels at these tokens, or None where there are none."""
    return Labelled(sample=sample, targets=tuple(Target(position=p, value=float(v)) for p, v in labels)) if labels else None


def from_completions(correct: Sequence[Sequence[int | None]], soft: bool) -> list[float | None]:
    """Step labels from completions of each step's prefix, per step 1, 0 or None (not judged) (Math-Shepherd, eq. 3 and 4).

    Hard: 1 if any completion is right; soft: the share that is. A step without a judged completion has no label.
    """
    judged = [[mark for mark in marks if mark is not None] for marks in correct]
    return [(sum(marks) / len(marks) if soft else float(any(marks))) if marks else None for marks in judged]


def better(a: ScoredSample, b: ScoredSample) -> bool:
    """Whether a's reward is higher by more than rounding."""
    rewards = _reward(a), _reward(b)
    return rewards[0] > rewards[1] and apart(rewards, (*a.terms, *b.terms))


def differ(a: ScoredSample, b: ScoredSample) -> bool:
    """Noisy rewards can rank an output above itself."""
    return a.sample.output_ids != b.sample.output_ids


def _reward(item: ScoredSample) -> float:
    if item.verdict.reward is None:
        raise ValueError(f"group {item.sample.group_id}, index {item.sample.index}: no score, so there is none to compare")
    return item.verdict.reward


def _at_the_end(item: ScoredSample, group_id: str, index: int) -> ScoredSample:
    event = RewardEvent(position=len(item.sample.output_ids) - 1, value=_reward(item))
    return replace(item, sample=replace(item.sample, group_id=group_id, index=index), events=(event,))
