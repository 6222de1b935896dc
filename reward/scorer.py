"""Scorers: whole groups of samples in, scored samples out, in the same order.

A failure to judge is never a number: a reference answer that has no value is `unscorable`, an exception is an `error`
with its traceback. An output without an answer is simply wrong: it scores.
"""

import traceback
from collections.abc import Sequence
from typing import Protocol

from reward.answers import extract, parse, reference
from reward.config import RewardConfig
from reward.rules import correct, well_formed
from reward.types import RewardEvent, ScoredSample, Verdict
from rollout.types import Question, Sample


class Scorer(Protocol):
    def score(self, questions: Sequence[Question], samples: Sequence[Sample]) -> list[ScoredSample]: ...


class RuleScorer:
    """Correctness of the final answer and well-formedness, weighted; one event at the last output token."""

    def __init__(self, config: RewardConfig):
        self._config = config

    def score(self, questions: Sequence[Question], samples: Sequence[Sample]) -> list[ScoredSample]:
        """One scored sample per sample, in order. Raises ValueError for a sample whose question is not given."""
        golds = {question.ordinal: question.gold for question in questions}
        lost = [sample for sample in samples if sample.ordinal not in golds]
        if lost:
            raise ValueError(f"sample {lost[0].index} of group {lost[0].group_id}: its question {lost[0].ordinal} is not given")
        return [self._scored(sample, golds[sample.ordinal]) for sample in samples]

    def _scored(self, sample: Sample, gold: str) -> ScoredSample:
        try:
            verdict = self._judge(sample, gold)
        except Exception:
            verdict = _without_score("error", traceback.format_exc())
        if verdict.reward is None:
            return ScoredSample(sample=sample, events=(), verdict=verdict)
        event = RewardEvent(position=len(sample.output_ids) - 1, value=verdict.reward)
        return ScoredSample(sample=sample, events=(event,), verdict=verdict)

    def _judge(self, sample: Sample, gold: str) -> Verdict:
        problem = gold_problem(gold)
        if problem is not None:
            return _without_score("unscorable", problem)
        if not sample.output_ids:
            return _without_score("unscorable", "the output has no tokens, so there is none to reward")
        extracted = extract(sample.text, self._config.answer_format)
        components = {
            "correct": correct(extracted, reference(gold)),
            "format": well_formed(sample, self._config.answer_format),
        }
        reward = self._config.correct * components["correct"] + self._config.format * components["format"]
        return Verdict(status="score", reward=reward, components=components, extracted=extracted, reason="")


def gold_problem(gold: str) -> str | None:
    """Why a reference answer cannot be judged, or None when it can: the check for data as it is loaded."""
    answer = reference(gold)
    return None if parse(answer) is not None else f"{answer!r:.80} is not a number or a formula"


def _without_score(status: str, reason: str) -> Verdict:
    return Verdict(status=status, reward=None, components={}, extracted=None, reason=reason)
