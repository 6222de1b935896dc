"""Scorers: groups of samples in, scored groups out, in the same order.

A failure to judge is never a number: a reference answer that has no value is `unscorable`, an output whose judge had to be
killed is `killed`, an exception is an `error` with its traceback. An output without an answer is simply wrong: it scores.
"""

import math
import random
import statistics
import traceback
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from reward.config import RewardConfig, RewardModelConfig
from reward.judging.judges import Function, rule_row
from reward.judging.pool import Judge, Outcome, Row
from reward.types import Judgement, RewardEvent, ScoredGroup, ScoredSample, Verdict, no_score, without_score
from rollout.tools.episode import without_tool_output
from rollout.types import FinishReason, Group, Question, Sample

if TYPE_CHECKING:
    from reward.labels.steps import StepFinder
    from reward.models.scalar_model import ScalarModel

NO_TOKENS = "the output has no tokens, so there is none to reward"
Asked = Sequence[tuple[Question, Sample]]
"""Outputs to score, each with its question."""


class Scorer:
    """What all scorers share: a rejected output stays in its group and is not judged."""

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Every sample scored, in order."""
        asked = [(group.question, sample) for group in groups for sample in group.samples if not sample.rejected]
        found = iter(self._score(asked))
        return [
            ScoredGroup(
                question=group.question,
                scored=tuple(without_score(s, "rejected", s.rejected) if s.rejected else next(found) for s in group.samples),
            )
            for group in groups
        ]

    def _score(self, asked: Asked) -> list[ScoredSample]:
        raise NotImplementedError


class RuleScorer(Scorer):
    """Correctness of the final answer and well-formedness, weighted; one event at the last output token."""

    def __init__(self, config: RewardConfig, judge: Judge):
        """`judge` is a pool's that runs `reward.judging.rule.judge`."""
        self._config, self._judge = config, judge

    def _score(self, asked: Asked) -> list[ScoredSample]:
        outcomes = self._judge(rule_rows(asked, self._config))
        return [self._scored(sample, outcome) for (_, sample), outcome in zip(asked, outcomes, strict=True)]

    def _scored(self, sample: Sample, outcome: Outcome) -> ScoredSample:
        verdict = replace(self._verdict(sample, outcome), seconds=outcome.seconds)
        if verdict.reward is None:
            return ScoredSample(sample=sample, events=(), verdict=verdict)
        return ScoredSample(sample=sample, events=_at_the_end(sample, verdict.reward), verdict=verdict)

    def _verdict(self, sample: Sample, outcome: Outcome) -> Verdict:
        if outcome.status != "score":
            return no_score(outcome.status, outcome.reason)
        judged: Judgement = outcome.value
        if problem := judged["problem"] or ("" if sample.output_ids else NO_TOKENS):
            return no_score("unscorable", problem)
        components = rule_components(sample, judged)
        observed = components["correct"]
        if self._config.flip_share:
            observed = components["observed"] = _flipped(observed, sample, self._config.flip_share)
        own = (self._config.correct * observed, self._config.format * components["format"])
        summands = own if sample.ended is None else tuple(sample.ended.rewards.values())
        return replace(_score(math.fsum(summands), components, judged, None), summands=summands)


class FunctionScorer(Scorer):
    """A user's reward function: its components, weighted; one event at the last output token.

    The components also have the rule's `format`, and its `correct` where the function returns none of its own.
    """

    def __init__(self, config: RewardConfig, function: Function, judge: Judge):
        """`judge` is the rule's."""
        self._config, self._function, self._judge = config, function, judge

    def _score(self, asked: Asked) -> list[ScoredSample]:
        ruled, samples = self._judge(rule_rows(asked, self._config)), [sample for _, sample in asked]
        verdicts = map(self._verdict, samples, self._function((question, s.text) for question, s in asked), ruled)
        return [
            ScoredSample(sample=s, events=() if v.reward is None else _at_the_end(s, v.reward), verdict=v)
            for s, v in zip(samples, verdicts, strict=True)
        ]

    def _verdict(self, sample: Sample, outcome: Outcome, ruled: Outcome) -> Verdict:
        for judge, found in (("reward.function", outcome), ("the rule", ruled)):
            if found.status != "score":
                at = f"{judge} on group {sample.group_id}, index {sample.index}"
                return replace(no_score(found.status, f"{at}: {found.reason}"), seconds=outcome.seconds)
        if not sample.output_ids:
            return no_score("unscorable", NO_TOKENS)
        own, judged = outcome.value, ruled.value
        weights = self._config.weights or dict.fromkeys(own, 1.0)
        rule = rule_components(sample, judged)
        given = {} if sample.ended is None else sample.ended.rewards
        if judged["problem"] and "correct" not in given:
            del rule["correct"]
        components = rule | own
        if weights.keys() != own.keys() or "correct" not in components:
            found = f"reward.function returned components {', '.join(own)}"
            return no_score("error", f"{found}; expected {', '.join(weights)}, and `correct` from it or from the rule")
        if twice := given.keys() & own.keys():
            return no_score("error", f"reward.function and the environment both give {', '.join(sorted(twice))}")
        summands = (*(weight * own[name] for name, weight in weights.items()), *given.values())
        scored = _score(math.fsum(summands), components, judged, None)
        return replace(scored, summands=summands, seconds=outcome.seconds)


class ModelScorer(Scorer):
    """An outcome or process model's scores; an outcome model's is one event at the last token, a process model's one a step.

    The verdict's reward is the outcome score, or the mean over the steps. Its components are the rule's `correct` (the true
    accuracy; absent where the reference answer cannot be judged, so readers must not assume it) and `format`, `model` (the
    reward), and for several members `spread`: their standard deviation, averaged over the steps.
    """

    def __init__(self, config: RewardConfig, model: "ScalarModel", finder: "StepFinder", version: int, judge: Judge):
        """`version` goes into every verdict; `judge` is the rule's."""
        self._config, self._scoring = config, config.model or RewardModelConfig()
        self._model, self._finder, self._version, self._judge = model, finder, version, judge

    def _score(self, asked: Asked) -> list[ScoredSample]:
        outcomes, samples = self._judge(rule_rows(asked, self._config)), [sample for _, sample in asked]
        try:
            positions = [self._positions(sample) for sample in samples]
            scalars = self._scalars(samples, positions)
        except Exception:
            failed = no_score("error", traceback.format_exc(), self._version)
            return [ScoredSample(sample=sample, events=(), verdict=failed) for sample in samples]
        return [self._scored(*row) for row in zip(samples, outcomes, positions, scalars, strict=True)]

    def _positions(self, sample: Sample) -> tuple[int, ...]:
        if self._model.kind == "process":
            return self._finder.ends(sample.output_ids, sample.sampled_mask)
        return (len(sample.output_ids) - 1,) if sample.output_ids else ()

    def _scalars(self, samples: Sequence[Sample], positions: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        # Here, so that a worker which judges by the rule alone never loads torch.
        from reward.models.scalar_model import read_scalars

        scalars: list[list[list[float]]] = []
        # A group at a time: which others come with it is chance, and two batches differ by rounding.
        for prompt, group in groupby(zip(samples, positions, strict=True), key=lambda asked: asked[0].prompt_ids):
            asked = [(prompt + sample.output_ids, [len(prompt) + position for position in own]) for sample, own in group]
            sequences, wanted = zip(*asked, strict=True)
            scalars += read_scalars(self._model, sequences, wanted, max_tokens=self._scoring.max_tokens_per_batch)
        return scalars

    def _scored(self, sample: Sample, outcome: Outcome, positions: Sequence[int], scalars: list[list[float]]) -> ScoredSample:
        if outcome.status != "score" or not positions:
            failure = (outcome.status, outcome.reason) if outcome.status != "score" else ("unscorable", NO_TOKENS)
            return ScoredSample(sample=sample, events=(), verdict=no_score(*failure, self._version))
        components = rule_components(sample, outcome.value)
        if outcome.value["problem"]:
            del components["correct"]
        try:
            values, spreads = zip(*(self._combined(step) for step in scalars), strict=True)
        except Exception:
            verdict = no_score("error", traceback.format_exc(), self._version)
            return ScoredSample(sample=sample, events=(), verdict=verdict)
        components["model"] = math.fsum(values) / len(values)
        if len(scalars[0]) > 1:
            components["spread"] = math.fsum(spreads) / len(spreads)
        events = (RewardEvent(position=p, value=v) for p, v in zip(positions, values, strict=True))
        verdict = replace(_score(components["model"], components, outcome.value, self._version), seconds=outcome.seconds)
        return ScoredSample(sample=sample, events=tuple(events), verdict=verdict)

    def _combined(self, logits: Sequence[float]) -> tuple[float, float]:
        """One score from the members' logits at one token, and their spread."""
        if not all(map(math.isfinite, logits)):
            raise ValueError(f"the reward model's scalars are {logits}, expected finite numbers")
        as_probability = self._model.kind == "process" and self._scoring.process_reward == "probability"
        return combine([probability(x) for x in logits] if as_probability else logits, self._scoring)


def combine(values: Sequence[float], config: RewardModelConfig) -> tuple[float, float]:
    """An ensemble's values of one token as one, and their standard deviation (population)."""
    mean, spread = math.fsum(values) / len(values), statistics.pstdev(values)
    lowered = {"mean": mean, "minimum": min(values), "mean_minus_spread": mean - config.spread_weight * spread}
    return lowered[config.combine], spread


def probability(logit: float) -> float:
    """The logistic function, without overflow."""
    small = math.exp(-abs(logit))
    return (1.0 if logit >= 0 else small) / (1.0 + small)


def rule_rows(asked: Asked, config: RewardConfig) -> list[Row]:
    """What the rule's judge reads of each sample."""
    return [rule_row(_stated(sample), question.gold, config) for question, sample in asked]


def _stated(sample: Sample) -> str:
    """What the policy itself states, in the end."""
    return without_tool_output(sample.text) if sample.ended is None else sample.ended.answer


def rule_components(sample: Sample, judged: Judgement) -> dict[str, float]:
    """What the rule says; an environment's parts are taken in, and its own `correct` before the rule's."""
    given = {} if sample.ended is None else sample.ended.rewards
    return {"correct": float(judged["correct"]), "format": formed(sample, judged["parsed"]), **given}


def formed(sample: Sample, parsed: bool) -> float:
    """1.0 if the output ended by itself and states a final answer with a value in the asked form (`parsed`), else 0.0."""
    return float(parsed and sample.finish_reason is FinishReason.STOP)


def _flipped(value: float, sample: Sample, share: float) -> float:
    """1 - value with the given chance, drawn once for each member of a group."""
    # The prompt makes the draw another one under another seed of the run.
    draw = random.Random(f"flip/{sample.group_id}/{sample.index}/{sample.prompt_ids}").random()
    return 1.0 - value if draw < share else value


def _at_the_end(sample: Sample, reward: float) -> tuple[RewardEvent, ...]:
    return (RewardEvent(position=len(sample.output_ids) - 1, value=reward),)


def _score(reward: float, components: dict[str, float], judged: Judgement, version: int | None) -> Verdict:
    return Verdict(
        status="score",
        reward=reward,
        components=components,
        extracted=judged["extracted"],
        reason="",
        reward_version=version,
        value=judged["value"],
    )
