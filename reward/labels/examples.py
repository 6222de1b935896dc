"""Training examples for reward models: scored samples whose events are labels. Pure functions.

Outcome: one event at the last token, 1 for a right answer and 0 for a wrong one; or a pair, a group of two, for ranking.
Process: one event at the end of every labelled step, in [0, 1].
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from reward.types import RewardEvent, ScoredSample
from rollout.rounding import apart


class Steps(Protocol):
    """How outputs are cut into steps; `reward.labels.steps.StepFinder` is one."""

    def ends(self, output_ids: Sequence[int], sampled_mask: Sequence[bool]) -> tuple[int, ...]: ...
    def texts(self, output_ids: Sequence[int], sampled_mask: Sequence[bool]) -> tuple[str, ...]: ...


def outcome_labels(
    scored: Sequence[ScoredSample], component: str = "correct", *, every_token: bool = False
) -> list[ScoredSample]:
    """Each sample whose answer was judged, with its correctness (or another component of its verdict) at the last token.

    `every_token`: the same label at every token.
    """
    made = []
    for item in scored:
        if component in item.verdict.components and item.sample.output_ids:
            value, last = item.verdict.components[component], len(item.sample.output_ids) - 1
            where = range(last + 1) if every_token else [last]
            made.append(replace(item, events=tuple(RewardEvent(position=t, value=value) for t in where)))
    return made


def pairs(scored: Sequence[ScoredSample], *, per_group: int, rng: random.Random) -> list[ScoredSample]:
    """At most `per_group` different pairs (better, worse) from each group, by reward; equal rewards make no pair.

    A pair is a new group of two, `<group>/pair-k`: index 0 is the better one, and each has its reward at its last token.
    The order of the input does not matter, that of `rng`'s use does.
    """
    groups: dict[str, list[ScoredSample]] = defaultdict(list)
    for item in scored:
        if item.verdict.status == "score" and item.sample.output_ids:
            groups[item.sample.group_id].append(item)
    made = []
    for group_id in sorted(groups):
        members = sorted(groups[group_id], key=lambda item: item.sample.index)
        ranked = [(a, b) for a in members for b in members if better(a, b) and differ(a, b)]
        for k, pair in enumerate(rng.sample(ranked, min(per_group, len(ranked)))):
            for index, item in enumerate(pair):
                sample = replace(item.sample, group_id=f"{group_id}/pair-{k}", index=index)
                made.append(_at_the_end(replace(item, sample=sample), item.verdict.reward))
    return made


def step_labels(scored: Sequence[ScoredSample], steps: Steps, labels: Sequence[Sequence[float | None]]) -> list[ScoredSample]:
    """Each sample with its labels at the ends of its steps (none at all: not judged); samples without any are left out."""
    made = []
    for item, mine in zip(scored, labels, strict=True):
        ends = steps.ends(item.sample.output_ids, item.sample.sampled_mask)
        if mine and (labelled := with_step_labels(item, ends, mine)):
            made.append(labelled)
    return made


def with_step_labels(item: ScoredSample, ends: Sequence[int], labels: Sequence[float | None]) -> ScoredSample | None:
    """The sample with its labels as events, or None when no step has one. Raises ValueError for labels outside [0, 1]."""
    if wrong := [label for label in labels if label is not None and not 0 <= label <= 1]:
        raise ValueError(f"group {item.sample.group_id}, index {item.sample.index}: step label {wrong[0]}, expected 0 to 1")
    marked = [(end, label) for end, label in zip(ends, labels, strict=True) if label is not None]
    return replace(item, events=tuple(RewardEvent(position=p, value=float(v)) for p, v in marked)) if marked else None


def from_completions(correct: Sequence[Sequence[int | None]], soft: bool) -> list[float | None]:
    """Step labels from completions of each step's prefix, per step 1, 0 or None (not judged) (Math-Shepherd, eq. 3 and 4).

    Hard: 1 if any completion is right; soft: the share that is. A step without a judged completion has no label.
    """
    judged = [[mark for mark in marks if mark is not None] for marks in correct]
    return [(sum(marks) / len(marks) if soft else float(any(marks))) if marks else None for marks in judged]


def better(a: ScoredSample, b: ScoredSample) -> bool:
    """Whether a's reward is higher by more than rounding."""
    rewards = a.verdict.reward, b.verdict.reward
    return rewards[0] > rewards[1] and apart(rewards, (*a.terms, *b.terms))


def differ(a: ScoredSample, b: ScoredSample) -> bool:
    """Noisy rewards can rank an output above itself."""
    return a.sample.output_ids != b.sample.output_ids


def _at_the_end(item: ScoredSample, value: float) -> ScoredSample:
    return replace(item, events=(RewardEvent(position=len(item.sample.output_ids) - 1, value=value),))
