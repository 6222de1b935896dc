"""From a step's groups to what a reward model is trained on: labels or pairs, and the share of history mixed in.

Labels come from the rule, from completions of every step's prefix (Math-Shepherd), or with the outputs.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from cluster.config.stages import StageConfig
from cluster.records.samples import write_rows
from cluster.run.sources import Driver, by_ordinal
from learner.algorithms.table import FileLabels, MonteCarloLabels, RuleLabels
from reward.config import RewardModelConfig
from reward.judging.judges import step_pool, step_row
from reward.labels.examples import from_completions, outcome_labels, pairs, step_labels, with_step_labels
from reward.labels.replay import Replay
from reward.labels.steps import StepFinder
from reward.types import ScoredSample, without_score
from rollout.types import Lease, Question, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = Sequence[ScoredSample]
_GROUP = TypeAdapter(list[ScoredSample])
HISTORY = "history.jsonl"
"""Beside an exported reward model: one group a line."""
WAVE = 2048
"""Completions that are asked for together."""


class Labeller:
    """Labels the groups of the run's reward-model stages; what is fresh in one is history for the next."""

    def __init__(self, driver: Driver, tokenizer: "PreTrainedTokenizerBase"):
        model = driver.config.reward.model or RewardModelConfig()
        self.driver = driver
        self.tokenizer = tokenizer
        self.finder = StepFinder(tokenizer, model.step_boundary)
        self.replay = {
            kind: Replay(model.replay_groups, model.replay_share, driver.config.seed) for kind in ("labelled", "pairs")
        }
        """The history by kind of example: a stage that ranks pairs cannot train on single outputs, nor the other way round. A
        model from another run brings its own."""
        self._read([path / HISTORY for path in model.path if (path / HISTORY).exists()])
        self.trained = 0
        """Labels that the stage has trained on."""

    def examples(self, stage: StageConfig, batch: Batch, questions: Mapping[int, Question], step: int) -> list[ScoredSample]:
        """The labelled outputs or pairs of a step's groups, and after them the history's share.

        An output that should have a score and has none gets no label.
        """
        batch = [item for item in batch if not item.verdict.failed]
        label = {FileLabels: self._as_given, RuleLabels: self._by_rule, MonteCarloLabels: self._by_completions}
        groups: dict[str, list[ScoredSample]] = {}
        for item in label[type(stage.resolved().labels)](stage, batch, questions):
            groups.setdefault(item.sample.group_id, []).append(item)
        replay = self.replay[_kind(stage)]
        replay.add(list(groups.values()))
        return [item for group in replay.mix(list(groups.values()), step) for item in group]

    def held_out(self, stage: StageConfig, scored: Batch, questions: Sequence[Question]) -> list[ScoredSample]:
        """Outputs of held-out questions, labelled as the stage's are (those of a file by the rule), to measure the model on."""
        scored, row = [item for item in scored if not item.verdict.failed], stage.resolved()
        if row.supervision == "outcome":
            return outcome_labels(scored)
        if isinstance(row.labels, MonteCarloLabels):
            return self._by_completions(stage, scored, {q.ordinal: q for q in questions})
        return self._step_labels(scored, {q.ordinal: q for q in questions})

    def finish(self, stage: StageConfig) -> None:
        """The stage is done: what was fresh becomes history."""
        self.replay[_kind(stage)].finish_stage()
        self.trained = 0

    def write(self, directory: Path) -> None:
        """The history, beside a reward model, for a run that trains it on."""
        kept = (
            (kind, _GROUP.dump_python(group, mode="json")) for kind, replay in self.replay.items() for group in replay.groups
        )
        write_rows(directory / HISTORY, ({"kind": kind, "group": group} for kind, group in kept))

    def _read(self, paths: Sequence[Path]) -> None:
        rows = (json.loads(line) for path in paths for line in path.read_text().splitlines())
        for number, row in enumerate(rows):
            # No name of a stage begins so: the group cannot be taken for one of this run's.
            group = _GROUP.validate_json(json.dumps(row["group"]))
            named = [replace(item, sample=replace(item.sample, group_id=f"@{number}")) for item in group]
            self.replay[row["kind"]].add([named])
        for replay in self.replay.values():
            replay.finish_stage()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"replay": {kind: replay.state() for kind, replay in self.replay.items()}, "trained": self.trained}

    def restore(self, state: dict[str, Any]) -> None:
        for kind, replay in self.replay.items():
            replay.restore(state["replay"][kind])
        self.trained = state["trained"]

    def _as_given(self, stage: StageConfig, batch: Batch, questions: Mapping[int, Question]) -> Batch:
        return batch

    def _by_rule(self, stage: StageConfig, batch: Batch, questions: Mapping[int, Question]) -> list[ScoredSample]:
        if stage.pairs:
            rng = random.Random(f"{self.driver.config.seed}/{stage.name}/{min(questions)}/pairs")
            return pairs(batch, per_group=stage.pairs_per_question, rng=rng)
        if stage.resolved().supervision == "outcome":
            component = "observed" if self.driver.config.reward.flip_share else "correct"
            return outcome_labels(batch, component, every_token=stage.resolved().labels.every_token)
        return self._step_labels(batch, questions)

    def _step_labels(self, batch: Batch, questions: Mapping[int, Question]) -> list[ScoredSample]:
        """Labels by the step rule. Raises Unscored when it fails on more outputs than the run bears."""
        config, outputs = self.driver.config.reward, [item.sample for item in batch]
        rows = [step_row(questions[s.ordinal], self.finder.texts(s.output_ids, s.sampled_mask), config) for s in outputs]
        with step_pool(config) as judge:
            outcomes = judge(rows)
        failed = [
            item if o.status == "score" else without_score(item.sample, o.status, o.reason)
            for item, o in zip(batch, outcomes, strict=True)
        ]
        self.driver.bound.check("labels of steps", list(questions.values()), failed)
        return step_labels(batch, self.finder, [outcome.value or [] for outcome in outcomes])

    def _by_completions(self, stage: StageConfig, batch: Batch, questions: Mapping[int, Question]) -> list[ScoredSample]:
        """Every step but the last is as good as the answers that the policy reaches from its end; the last as its own.

        A completion is judged with what it completes, as the answer may stand before it.
        """
        labels = stage.resolved().labels
        orders: list[Lease] = []
        places: list[tuple[int, int]] = []
        prefixes: list[str] = []
        for i, item in enumerate(batch):
            sample = item.sample
            for step, end in enumerate(self.finder.ends(sample.output_ids, sample.sampled_mask)[:-1]):
                ids = sample.output_ids[: _after_tools(sample, end)]
                places.append((i, step))
                prefixes.append(self.tokenizer.decode(ids, skip_special_tokens=True))
                prefix = replace(questions[sample.ordinal], ordinal=len(orders), prompt_ids=sample.prompt_ids + ids)
                group = f"{sample.group_id}/{sample.index}/step-{step}"
                orders.append(Lease(question=prefix, group_id=group, indices=tuple(range(labels.completions)), attempt=0))
        marks: dict[tuple[int, int], list[int | None]] = {}
        size = max(1, WAVE // labels.completions)
        for wave in (orders[start : start + size] for start in range(0, len(orders), size)):
            made = self.driver.ask(wave, "complete", booked=False)
            whole = [replace(s, text=prefixes[s.ordinal] + s.text) for s in made]
            for n, group in by_ordinal(self.driver.judge([order.question for order in wave], whole, "rule")).items():
                marks[places[n]] = [_mark(s) for s in group]
        out = []
        for i, item in enumerate(batch):
            ends = self.finder.ends(item.sample.output_ids, item.sample.sampled_mask)
            per_step = [marks.get((i, step), []) for step in range(len(ends) - 1)] + [[_mark(item)]]
            out.append(with_step_labels(item, ends, from_completions(per_step, labels.soft)))
        return [item for item in out if item is not None]


def _kind(stage: StageConfig) -> str:
    return "pairs" if stage.pairs else "labelled"


def _after_tools(sample: Sample, end: int) -> int:
    """Where the policy goes on behind a step: what the step's program printed stands before that."""
    return next(
        (place for place in range(end + 1, len(sample.output_ids)) if sample.sampled_mask[place]), len(sample.output_ids)
    )


def _mark(scored: ScoredSample) -> int | None:
    """1 or 0 by the rule; None where it could not judge."""
    return int(scored.verdict.components["correct"]) if "correct" in scored.verdict.components else None


def used(examples: Batch, trained: Sequence[float | None], batch: Batch) -> list[bool]:
    """Which outputs of a batch are in a trained example made of it (None is not trained); a pair is named after its group.

    One without a score is in none, though it may say the same as another.
    """
    chosen = (item.sample for item, mark in zip(examples, trained, strict=True) if mark is not None)
    inside = {(sample.group_id.partition("/pair-")[0], sample.output_ids) for sample in chosen}
    return [not x.verdict.failed and (x.sample.group_id, x.sample.output_ids) in inside for x in batch]
