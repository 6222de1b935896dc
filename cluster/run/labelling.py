"""From a step's groups to what a reward model is trained on: labels or pairs, and the share of history mixed in.

Labels come from the rule, from completions of every step's prefix (Math-Shepherd), or with the outputs.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config.stages import StageConfig, reward_model_row
from cluster.fleet.sampler import Bound
from cluster.records.samples import write_rows
from cluster.records.state import State
from cluster.run.collector import Collector
from learner.algorithms.labels import FileLabels, MonteCarloLabels, RuleLabels
from reward.config import RewardConfig, RewardModelConfig
from reward.judging.judges import step_pool, step_row
from reward.judging.pool import Outcome
from reward.labels.examples import as_labelled, at_tokens, from_completions, outcome_label, pairs, step_labels
from reward.labels.replay import Replay, dumped, loaded
from reward.labels.steps import StepFinder
from reward.types import Labelled, LabelledGroup, ScoredGroup, ScoredSample, samples_of, without_score
from rollout.data.recorded import LabelledSet
from rollout.types import Group, Lease, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HISTORY = "history.jsonl"
"""Beside an exported reward model: one group a line."""
WAVE = 2048
"""Completions that are asked for together."""


class Labeller:
    """Labels the groups of the run's reward-model stages; what is fresh in one is history for the next."""

    def __init__(
        self,
        config: RewardConfig,
        seed: int,
        tokenizer: "PreTrainedTokenizerBase",
        collector: Collector,
        bound: Bound,
        given: LabelledSet | None,
    ):
        """`given`: outputs whose steps a file labels."""
        model = config.model or RewardModelConfig()
        self._config, self._seed, self._tokenizer = config, seed, tokenizer
        self._collector, self._bound, self._given = collector, bound, given
        self._finder = StepFinder(tokenizer, model.step_boundary)
        self.replay = {kind: Replay(model.replay_groups, model.replay_share, seed) for kind in ("labelled", "pairs")}
        """The history by kind of example: a stage that ranks pairs cannot train on single outputs, nor the other way round. A
        model from another run brings its own."""
        self._read([path / HISTORY for path in model.path if (path / HISTORY).exists()])
        self.trained = 0
        """Labels that the stage has trained on."""

    def examples(self, stage: StageConfig, groups: Sequence[ScoredGroup], step: int) -> list[LabelledGroup]:
        """The labelled outputs or pairs of a step's groups, and after them the history's share.

        An output that should have a score and has none gets no label.
        """
        fresh = [group for group in self._labelled(stage, _with_score(groups)) if group.labelled]
        replay = self.replay[_kind(stage)]
        replay.add(fresh)
        return replay.mix(fresh, step)

    def held_out(self, stage: StageConfig, groups: Sequence[ScoredGroup]) -> list[LabelledGroup]:
        """Outputs of held-out questions, labelled as the stage's are (those of a file by the rule), to measure the model on."""
        scored, row = _with_score(groups), reward_model_row(stage)
        if row.supervision == "outcome":
            return _labelled([map(outcome_label, group.scored) for group in scored])
        return self._by_completions(row.labels, scored) if isinstance(row.labels, MonteCarloLabels) else self._by_steps(scored)

    def count(self, labels: int) -> None:
        """The learner has trained on so many labels."""
        self.trained += labels

    def finish(self, stage: StageConfig) -> None:
        """The stage is done: what was fresh becomes history."""
        self.replay[_kind(stage)].finish_stage()
        self.trained = 0

    def write(self, directory: Path) -> None:
        """The history, beside a reward model, for a run that trains it on."""
        kept = ((kind, group) for kind, replay in self.replay.items() for group in dumped(replay.groups))
        write_rows(directory / HISTORY, ({"kind": kind, "group": group} for kind, group in kept))

    def _read(self, paths: Sequence[Path]) -> None:
        rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        for number, (row, group) in enumerate(zip(rows, loaded([row["group"] for row in rows]), strict=True)):
            # No name of a stage begins so: the group cannot be taken for one of this run's.
            named = [replace(item, sample=replace(item.sample, group_id=f"@{number}")) for item in group.labelled]
            self.replay[row["kind"]].add([LabelledGroup(labelled=tuple(named))])
        for replay in self.replay.values():
            replay.finish_stage()

    def state(self) -> State:
        """For a checkpoint."""
        return {"replay": {kind: replay.state() for kind, replay in self.replay.items()}, "trained": self.trained}

    def restore(self, state: State) -> None:
        for kind, replay in self.replay.items():
            replay.restore(state["replay"][kind])
        self.trained = state["trained"]

    def _labelled(self, stage: StageConfig, groups: Sequence[ScoredGroup]) -> list[LabelledGroup]:
        row = reward_model_row(stage)
        match row.labels:
            case FileLabels():
                return [as_labelled(group) for group in groups] if stage.pairs else self._by_file(groups)
            case MonteCarloLabels() as labels:
                return self._by_completions(labels, groups)
            case RuleLabels() as labels:
                if stage.pairs:
                    return self._pairs(stage, groups)
                if row.supervision == "process":
                    return self._by_steps(groups)
                component, everywhere = "observed" if self._config.flip_share else "correct", labels.every_token
                return _labelled([(outcome_label(s, component, every_token=everywhere) for s in g.scored) for g in groups])

    def _pairs(self, stage: StageConfig, groups: Sequence[ScoredGroup]) -> list[LabelledGroup]:
        first = min((group.question.ordinal for group in groups), default=0)
        rng = random.Random(f"{self._seed}/{stage.name}/{first}/pairs")
        return [as_labelled(pair) for pair in pairs(groups, per_group=stage.pairs_per_question, rng=rng)]

    def _by_file(self, groups: Sequence[ScoredGroup]) -> list[LabelledGroup]:
        if self._given is None:
            raise ValueError("no file with labelled steps was read")
        rows = [self._given.at(group.question.ordinal) for group in groups]
        return _labelled([[at_tokens(s.sample, row.labels) for s in g.scored] for g, row in zip(groups, rows, strict=True)])

    def _by_steps(self, groups: Sequence[ScoredGroup]) -> list[LabelledGroup]:
        """Labels by the step rule. Raises Unscored when it fails on more outputs than the run bears."""
        rows = [step_row(g.question, self._texts(s.sample), self._config) for g in groups for s in g.scored]
        with step_pool(self._config) as judge:
            outcomes = judge(rows)
        said = iter(outcomes)
        checked = [replace(group, scored=tuple(_checked(s, next(said)) for s in group.scored)) for group in groups]
        self._bound.check("labels of steps", checked)
        labels = iter([outcome.value or [] for outcome in outcomes])
        return _labelled([[self._at_steps(s.sample, next(labels)) for s in g.scored] for g in groups])

    def _by_completions(self, labels: MonteCarloLabels, groups: Sequence[ScoredGroup]) -> list[LabelledGroup]:
        """Every step but the last is as good as the answers that the policy reaches from its end; the last as its own.

        A completion is judged with what it completes, as the answer may stand before it.
        """
        orders: list[Lease] = []
        prefixes: list[str] = []
        for group in groups:
            for sample in (s.sample for s in group.scored):
                for step, end in enumerate(self._ends(sample)[:-1]):
                    ids = sample.output_ids[: _after_tools(sample, end)]
                    prefixes.append(str(self._tokenizer.decode(list(ids), skip_special_tokens=True)))
                    prefix = replace(group.question, ordinal=len(orders), prompt_ids=sample.prompt_ids + ids)
                    name, members = f"{sample.group_id}/{sample.index}/step-{step}", tuple(range(labels.completions))
                    orders.append(Lease(question=prefix, group_id=name, indices=members, attempt=0))
        marks: list[list[int | None]] = []
        size = max(1, WAVE // labels.completions)
        for wave in (orders[start : start + size] for start in range(0, len(orders), size)):
            made = self._collector.sample(wave, "complete", booked=False)
            joined = [_whole(group, prefixes[group.question.ordinal]) for group in made]
            scored = self._collector.score(joined, "rule", "score completions", whole=len(orders) <= size)
            marks += [[_mark(s) for s in group.scored] for group in scored]
        found = iter(marks)

        def labelled(item: ScoredSample) -> Labelled | None:
            per_step = [next(found) for _ in self._ends(item.sample)[:-1]] + [[_mark(item)]]
            return self._at_steps(item.sample, from_completions(per_step, labels.soft))

        return _labelled([[labelled(item) for item in group.scored] for group in groups])

    def _at_steps(self, sample: Sample, labels: Sequence[float | None]) -> Labelled | None:
        """The sample with these labels at its steps; None where it has none."""
        return step_labels(sample, self._ends(sample), labels) if labels else None

    def _ends(self, sample: Sample) -> tuple[int, ...]:
        return self._finder.ends(sample.output_ids, sample.sampled_mask)

    def _texts(self, sample: Sample) -> tuple[str, ...]:
        return self._finder.texts(sample.output_ids, sample.sampled_mask)


def _with_score(groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """The groups without outputs that should have a score and have none."""
    return [replace(group, scored=tuple(s for s in group.scored if not s.verdict.failed)) for group in groups]


def _labelled(groups: Iterable[Iterable[Labelled | None]]) -> list[LabelledGroup]:
    """Groups of what has a label."""
    return [LabelledGroup(labelled=tuple(item for item in group if item is not None)) for group in groups]


def _checked(item: ScoredSample, outcome: Outcome) -> ScoredSample:
    """The output, or what became of it where its steps could not be judged."""
    return item if outcome.status == "score" else without_score(item.sample, outcome.status, outcome.reason)


def _whole(group: Group, prefix: str) -> Group:
    """Completions with what they complete."""
    return replace(group, samples=tuple(replace(s, text=prefix + s.text) for s in group.samples))


def _kind(stage: StageConfig) -> str:
    return "pairs" if stage.pairs else "labelled"


def _after_tools(sample: Sample, end: int) -> int:
    """Where the policy goes on behind a step: what the step's program printed stands before that."""
    return next(
        (index for index in range(end + 1, len(sample.output_ids)) if sample.sampled_mask[index]), len(sample.output_ids)
    )


def _mark(scored: ScoredSample) -> int | None:
    """1 or 0 by the rule; None where it could not judge."""
    return int(scored.verdict.components["correct"]) if "correct" in scored.verdict.components else None


def used(examples: Sequence[LabelledGroup], trained: Sequence[float | None], groups: Sequence[ScoredGroup]) -> list[bool]:
    """Which outputs of the groups are in a trained example made of them; `trained` has a number for each output of the
    examples, None where it is not trained. A pair is named after its group.

    One without a score is in none, though it may say the same as another.
    """
    outputs = (item.sample for group in examples for item in group.labelled)
    chosen = (sample for sample, mark in zip(outputs, trained, strict=True) if mark is not None)
    inside = {(sample.group_id.partition("/pair-")[0], sample.output_ids) for sample in chosen}
    return [not s.verdict.failed and (s.sample.group_id, s.sample.output_ids) in inside for s in samples_of(groups)]
