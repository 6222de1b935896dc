"""Scorers: whole groups of samples in, scored samples out, in the same order.

A failure to judge is never a number: a reference answer that has no value is `unscorable`, an exception is an `error`
with its traceback. An output without an answer is simply wrong: it scores.
"""

import math
import random
import statistics
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reward.answers import extract, reference
from reward.config import RewardConfig, RewardModelConfig
from reward.rules import correct, well_formed
from reward.types import RewardEvent, ScoredSample, Verdict
from reward.values import parse
from rollout.types import Question, Sample

if TYPE_CHECKING:
    from reward.model import ScalarModel
    from reward.steps import StepFinder

NO_TOKENS = "the output has no tokens, so there is none to reward"


class RuleScorer:
    """Correctness of the final answer and well-formedness, weighted; one event at the last output token."""

    def __init__(self, config: RewardConfig):
        self._config = config

    def score(self, questions: Sequence[Question], samples: Sequence[Sample]) -> list[ScoredSample]:
        """One scored sample per sample, in order. Raises ValueError for a sample whose question is not given."""
        return [self._scored(sample, gold) for sample, gold in zip(samples, _golds(questions, samples), strict=True)]

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
        problem = gold_problem(gold) or ("" if sample.output_ids else NO_TOKENS)
        if problem:
            return _without_score("unscorable", problem)
        components, extracted = rule_components(sample, gold, self._config)
        observed = components["correct"]
        if self._config.flip_share:
            observed = components["observed"] = _flipped(observed, sample, self._config.flip_share)
        reward = self._config.correct * observed + self._config.format * components["format"]
        return _score(reward, components, extracted, None)


class ModelScorer:
    """An outcome or process model's scores; an outcome model's is one event at the last token, a process model's one a step.

    The verdict's reward is the outcome score, or the mean over the steps. Its components are the rule's `correct` (the true
    accuracy; absent where the reference answer cannot be judged, so readers must not assume it) and `format`, `model` (the
    reward), and for several members `spread`: their standard deviation, averaged over the steps.
    """

    def __init__(self, config: RewardConfig, model: "ScalarModel", finder: "StepFinder", version: int = 0):
        """`version` goes into every verdict."""
        self._config, self._scoring = config, config.model or RewardModelConfig()
        self._model, self._finder, self._version = model, finder, version

    def score(self, questions: Sequence[Question], samples: Sequence[Sample]) -> list[ScoredSample]:
        """One scored sample per sample, in order. Raises ValueError for a sample whose question is not given."""
        golds = _golds(questions, samples)
        try:
            positions = [self._positions(sample) for sample in samples]
            scalars = self._scalars(samples, positions)
        except Exception:
            failed = _without_score("error", traceback.format_exc(), self._version)
            return [ScoredSample(sample=sample, events=(), verdict=failed) for sample in samples]
        return [self._scored(*row) for row in zip(samples, golds, positions, scalars, strict=True)]

    def _positions(self, sample: Sample) -> tuple[int, ...]:
        if self._model.kind == "process":
            return self._finder.ends(sample.output_ids)
        return (len(sample.output_ids) - 1,) if sample.output_ids else ()

    def _scalars(self, samples: Sequence[Sample], positions: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        # Here, so that a worker which judges by the rule alone never loads torch.
        from reward.model import score

        sequences = [sample.prompt_ids + sample.output_ids for sample in samples]
        places = [[len(s.prompt_ids) + place for place in mine] for s, mine in zip(samples, positions, strict=True)]
        return score(self._model, sequences, places, max_tokens=self._scoring.max_tokens_per_batch)

    def _scored(self, sample: Sample, gold: str, positions: Sequence[int], scalars: list[list[float]]) -> ScoredSample:
        if not positions:
            verdict = _without_score("unscorable", NO_TOKENS, self._version)
            return ScoredSample(sample=sample, events=(), verdict=verdict)
        try:
            components, extracted = rule_components(sample, gold, self._config)
            if gold_problem(gold):
                del components["correct"]
            values, spreads = zip(*(self._combined(step) for step in scalars), strict=True)
        except Exception:
            verdict = _without_score("error", traceback.format_exc(), self._version)
            return ScoredSample(sample=sample, events=(), verdict=verdict)
        components["model"] = math.fsum(values) / len(values)
        if len(scalars[0]) > 1:
            components["spread"] = math.fsum(spreads) / len(spreads)
        events = (RewardEvent(position=p, value=v) for p, v in zip(positions, values, strict=True))
        verdict = _score(components["model"], components, extracted, self._version)
        return ScoredSample(sample=sample, events=tuple(events), verdict=verdict)

    def _combined(self, logits: Sequence[float]) -> tuple[float, float]:
        """One score from the members' logits at one token, and their spread."""
        if not all(map(math.isfinite, logits)):
            raise ValueError(f"the reward model's scores are {logits}, expected finite numbers")
        as_probability = self._model.kind == "process" and self._scoring.process_reward == "probability"
        return combine([probability(x) for x in logits] if as_probability else logits, self._scoring)


def combine(scores: Sequence[float], config: RewardModelConfig) -> tuple[float, float]:
    """An ensemble's scores of one token as one, and their standard deviation (population)."""
    mean, spread = math.fsum(scores) / len(scores), statistics.pstdev(scores)
    lowered = {"mean": mean, "minimum": min(scores), "mean_minus_spread": mean - config.spread_weight * spread}
    return lowered[config.combine], spread


def probability(logit: float) -> float:
    """The logistic function, without overflow."""
    small = math.exp(-abs(logit))
    return (1.0 if logit >= 0 else small) / (1.0 + small)


def rule_components(sample: Sample, gold: str, config: RewardConfig) -> tuple[dict[str, float], str | None]:
    """The rule's `correct` and `format`, and the answer found."""
    extracted = extract(sample.text, config.answer_format)
    right, formed = correct(extracted, reference(gold)), well_formed(sample, config.answer_format)
    return {"correct": right, "format": formed}, extracted


def gold_problem(gold: str) -> str | None:
    """Why a reference answer cannot be judged, or None when it can: the check for data as it is loaded."""
    answer = reference(gold)
    return None if parse(answer) is not None else f"{answer!r:.80} is not a number or a formula"


def _flipped(value: float, sample: Sample, share: float) -> float:
    """1 - value with the given chance, drawn once for each member of a group."""
    # The prompt makes the draw another one under another seed of the run.
    draw = random.Random(f"flip/{sample.group_id}/{sample.index}/{sample.prompt_ids}").random()
    return 1.0 - value if draw < share else value


def _golds(questions: Sequence[Question], samples: Sequence[Sample]) -> list[str]:
    """Each sample's reference answer."""
    golds = {question.ordinal: question.gold for question in questions}
    lost = [sample for sample in samples if sample.ordinal not in golds]
    if lost:
        raise ValueError(f"sample {lost[0].index} of group {lost[0].group_id}: its question {lost[0].ordinal} is not given")
    return [golds[sample.ordinal] for sample in samples]


def _score(reward: float, components: dict[str, float], extracted: str | None, version: int | None) -> Verdict:
    return Verdict(status="score", reward=reward, components=components, extracted=extracted, reason="", reward_version=version)


def _without_score(status: str, reason: str, version: int | None = None) -> Verdict:
    return Verdict(status=status, reward=None, components={}, extracted=None, reason=reason, reward_version=version)
