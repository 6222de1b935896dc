"""Held-out questions: the policy's accuracy on them, and how well a reward model judges the policy's outputs of them."""

import logging
from collections.abc import Sequence
from itertools import product

from cluster.config.run_config import RunConfig
from cluster.config.stages import StageConfig, reward_model_row
from cluster.evaluation.measures import ask, evaluate
from cluster.fleet.sampler import Sampler
from cluster.fleet.versions import Serving
from cluster.records.records import Records
from cluster.records.samples import evaluation_rows
from reward.config import RewardModelConfig
from reward.scorer import combine, probability
from reward.statistics.classification import auroc, balanced_accuracy, expected_calibration_error, pair_accuracy
from reward.types import LabelledGroup, ScoredGroup, samples_of
from rollout.types import Group, Lease, Question, Sampling

log = logging.getLogger("cohort")
LABEL = "held-out"


class HeldOut:
    """The held-out questions of a run. Outputs sampled for one measurement serve the next one of the same version."""

    def __init__(self, config: RunConfig, questions: Sequence[Question], sampler: Sampler, serving: Serving, records: Records):
        self._config, self._questions = config, questions[: config.evaluation.questions]
        self._sampler, self._serving, self._records = sampler, serving, records
        self._sampling = Sampling(temperature=config.evaluation.temperature, max_new_tokens=config.rollout.max_new_tokens)
        self.rows, self.reward_models = evaluation_rows(records.dir), evaluation_rows(records.dir, "reward_model.jsonl")
        """The evaluations of the policy and of the reward model so far."""
        self._sampled: tuple[int, list[ScoredGroup]] | None = None
        """A version and its judged outputs."""

    def evaluate(self, step: int, stage: str) -> None:
        """Accuracy of the serving version, into evaluations.jsonl and evaluations/; once a step."""
        if step in {row["step"] for row in self.rows}:
            return
        log.info("evaluating %d held-out questions after step %d", len(self._questions), step)
        size, version = self._config.evaluation.samples_per_question, self._serving.version
        result, records, sampled = evaluate(
            self._questions, samples=size, label=LABEL, sampling=self._sampling, generate=self._generate, score=self._score
        )
        self._sampled = version, sampled
        self.rows.append({"step": step, "version": version, "stage": stage} | result.summary())
        self._records.leave(f"evaluations/step_{step}.jsonl", records)
        self._records.leave("evaluations.jsonl", self.rows)
        self._records.sinks.evaluated(step, self.rows[-1])
        log.info("step %d, v%d: %s", step, version, result.line())

    def sampled(self) -> list[ScoredGroup]:
        """Judged outputs of the serving version."""
        version = self._serving.version
        if self._sampled is None or self._sampled[0] != version:
            size = self._config.evaluation.samples_per_question
            groups = ask(self._questions, f"{LABEL}/sampled", size, self._sampling, self._generate, self._score)
            self._sampled = version, groups
        return self._sampled[1]

    def assess(self, step: int, stage: StageConfig, examples: Sequence[LabelledGroup], scalars: "Scalars") -> None:
        """Quality of the serving reward model, from its scalars of labelled outputs, into reward_model.jsonl."""
        supervision, version = reward_model_row(stage).supervision, self._serving.reward_version
        measures = {"outcome": outcome_quality, "process": process_quality}[supervision](
            examples, scalars, self._config.reward.model or RewardModelConfig()
        )
        measures["unjudged"] = sum(one.verdict.failed for one in samples_of(self.sampled()))
        row = {"step": step, "stage": stage.name, "reward_version": version, "supervision": supervision, **measures}
        # A run that died after this step's checkpoint comes here again.
        self.reward_models = [*(r for r in self.reward_models if r["step"] < step), row]
        self._records.leave("reward_model.jsonl", self.reward_models)
        shown = ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in measures.items())
        log.info("step %d, reward model %d on held-out outputs: %s", step, version, shown)

    def _generate(self, leases: list[Lease], sampling: Sampling) -> list[Group]:
        return self._sampler.sample(leases, sampling, f"evaluate v{self._serving.version}")

    def _score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        return self._sampler.score(groups, f"evaluate v{self._serving.version}", "rule")


Scalars = Sequence[Sequence[Sequence[float]]]
"""Per output of the examples, per target, the members' scalars."""
Measures = dict[str, float | int | None]


def outcome_quality(examples: Sequence[LabelledGroup], scalars: Scalars, config: RewardModelConfig) -> Measures:
    """Accuracy over all pairs of a right and a wrong output of one question, and AUROC over all outputs."""
    combined = [combine(at_end[0], config) for at_end in scalars]
    judged, pairs = iter(combined), []
    for group in examples:
        sides: dict[int, list[float]] = {0: [], 1: []}
        for item in group.labelled:
            sides[int(item.targets[0].value)].append(next(judged)[0])
        pairs += product(sides[1], sides[0])
    labels = [int(item.targets[0].value) for group in examples for item in group.labelled]
    return {
        "pairs": len(pairs),
        "pair_accuracy": pair_accuracy([a for a, _ in pairs], [b for _, b in pairs]),
        "auroc": auroc([score for score, _ in combined], labels),
        "spread": sum(spread for _, spread in combined) / len(combined) if combined else None,
    }


def process_quality(examples: Sequence[LabelledGroup], scalars: Scalars, config: RewardModelConfig) -> Measures:
    """Accuracy of step labels at probability 0.5, plain and balanced, AUROC, and the calibration error."""
    labels = [int(target.value > 0.5) for group in examples for item in group.labelled for target in item.targets]
    combined = [combine([probability(x) for x in step], config) for steps in scalars for step in steps]
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
