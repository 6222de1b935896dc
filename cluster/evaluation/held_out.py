"""Held-out questions: the policy's accuracy on them, and how well a reward model judges the policy's outputs of them."""

import logging
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from cluster.config.stages import StageConfig
from cluster.evaluation.measures import ask, evaluate
from cluster.records.samples import evaluation_rows, leave
from reward.config import RewardModelConfig
from reward.scorer import combine, probability
from reward.statistics.classification import auroc, balanced_accuracy, expected_calibration_error, pair_accuracy
from reward.types import ScoredSample
from rollout.types import Lease, Question, Sample, Sampling

if TYPE_CHECKING:
    from cluster.run.loop import Loop

log = logging.getLogger("cohort")
LABEL = "held-out"


class HeldOut:
    """The held-out questions of a run. Outputs sampled for one measurement serve the next one of the same version."""

    def __init__(self, loop: "Loop"):
        self.loop = loop
        self.questions = loop.data.evaluation[: loop.config.evaluation.questions]
        self.sampling = Sampling(
            temperature=loop.config.evaluation.temperature, max_new_tokens=loop.config.rollout.max_new_tokens
        )
        self.rows, self.reward_models = evaluation_rows(loop.dir), evaluation_rows(loop.dir, "reward_model.jsonl")
        """The evaluations of the policy and of the reward model so far."""
        self._sampled: tuple[int, list[ScoredSample]] | None = None
        """A version and its judged outputs."""

    def evaluate(self) -> None:
        """Accuracy of the serving version, into evaluations.jsonl and evaluations/."""
        loop, size = self.loop, self.loop.config.evaluation.samples_per_question
        log.info("evaluating %d held-out questions after step %d", len(self.questions), loop.step)
        result, records, sampled = evaluate(
            self.questions, samples=size, label=LABEL, sampling=self.sampling, generate=self._generate, score=self._judge
        )
        self._sampled = loop.serving.version, sampled
        place = {"step": loop.step, "version": loop.serving.version, "stage": loop.config.stages[loop.stage].name}
        self.rows.append(place | result.summary())
        leave(loop.sinks, loop.dir / f"evaluations/step_{loop.step}.jsonl", records)
        leave(loop.sinks, loop.dir / "evaluations.jsonl", self.rows)
        loop.sinks.evaluated(loop.step, self.rows[-1])
        log.info("step %d, v%d: %s", loop.step, loop.serving.version, result.line())

    def assess(self, stage: StageConfig) -> None:
        """Quality of the learner's reward model on outputs of the serving version, into reward_model.jsonl."""
        loop, size = self.loop, self.loop.config.evaluation.samples_per_question
        if self._sampled is None or self._sampled[0] != loop.serving.version:
            groups = ask(self.questions, f"{LABEL}/sampled", size, self.sampling, self._generate, self._judge)
            self._sampled = loop.serving.version, [s for group in groups.values() for s in group]
        examples = loop.labeller.held_out(stage, self._sampled[1], self.questions)
        scores = loop.roles.learn("scores", examples)[0]
        supervision = stage.resolved().supervision
        measures = {"outcome": outcome_quality, "process": process_quality}[supervision](
            examples, scores, loop.config.reward.model or RewardModelConfig()
        )
        version = loop.roles.reward_version
        row = {"step": loop.step, "stage": stage.name, "reward_version": version, "supervision": supervision, **measures}
        # A run that died after this step's checkpoint comes here again.
        self.reward_models = [*(r for r in self.reward_models if r["step"] < loop.step), row]
        leave(loop.sinks, loop.dir / "reward_model.jsonl", self.reward_models)
        shown = ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in measures.items())
        log.info("step %d, reward model %d on held-out outputs: %s", loop.step, version, shown)

    def _generate(self, leases: list[Lease], sampling: Sampling) -> list[Sample]:
        version = self.loop.serving.version
        return self.loop.sampler.sample(leases, sampling, f"evaluate v{version}", version=version)

    def _judge(self, questions: Sequence[Question], samples: Sequence[Sample]) -> list[ScoredSample]:
        return self.loop.sampler.judge(questions, samples, f"evaluate v{self.loop.serving.version}", "rule")


Scores = Sequence[Sequence[Sequence[float]]]
"""Per example, per label, the members' scores."""
Measures = dict[str, float | int | None]


def outcome_quality(examples: Sequence[ScoredSample], scores: Scores, config: RewardModelConfig) -> Measures:
    """Accuracy over all pairs of a right and a wrong output of one question, and AUROC over all outputs."""
    groups: dict[str, dict[int, list[float]]] = {}
    combined = [combine(at_end[0], config) for at_end in scores]
    for item, (score, _) in zip(examples, combined, strict=True):
        groups.setdefault(item.sample.group_id, {0: [], 1: []})[int(item.events[0].value)].append(score)
    pairs = [pair for sides in groups.values() for pair in product(sides[1], sides[0])]
    return {
        "pairs": len(pairs),
        "pair_accuracy": pair_accuracy([a for a, _ in pairs], [b for _, b in pairs]),
        "auroc": auroc([score for score, _ in combined], [int(item.events[0].value) for item in examples]),
        "spread": sum(spread for _, spread in combined) / len(combined) if combined else None,
    }


def process_quality(examples: Sequence[ScoredSample], scores: Scores, config: RewardModelConfig) -> Measures:
    """Accuracy of step labels at probability 0.5, plain and balanced, AUROC, and the calibration error."""
    labels = [int(event.value > 0.5) for item in examples for event in item.events]
    combined = [combine([probability(x) for x in step], config) for steps in scores for step in steps]
    judged = [min(1.0, max(0.0, score)) for score, _ in combined]
    said = [int(p > 0.5) for p in judged]
    return {
        "steps": len(labels),
        "accuracy": sum(a == b for a, b in zip(said, labels, strict=True)) / len(labels) if labels else None,
        "balanced_accuracy": balanced_accuracy(said, labels),
        "auroc": auroc(judged, labels),
        "calibration_error": expected_calibration_error(judged, labels),
        "spread": sum(spread for _, spread in combined) / len(combined) if combined else None,
    }
