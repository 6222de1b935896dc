"""Where a stage's groups come from: given with the questions, sampled once before the first step, or sampled at every step.

Every source hands out scored groups for ordinals. Which one a stage has follows from its row's data source (`source_of`).
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cluster.config.run_config import RunConfig
from cluster.config.stages import StageConfig
from cluster.fleet.sampler import leases
from cluster.records.samples import by_reason
from cluster.records.state import State
from cluster.run import offline
from cluster.run.collector import Collector
from cluster.run.progress import OFFLINE, Progress
from learner.algorithms.credit import has_spread
from learner.algorithms.table import DataSource
from reward.types import RewardEvent, ScoredGroup, ScoredSample, Verdict, as_given, samples_of
from rollout.data.datasets import Data, DemonstrationSet
from rollout.data.ordering import Ordered
from rollout.data.recorded import LabelledSet, PreferenceSet
from rollout.data.selection import Selector, Uniform
from rollout.types import Group, Question, Sample

Sampled = Callable[[Sequence[Group]], None]
Job = Callable[[Sampled], list[ScoredGroup]]
"""The scored groups of a step; it tells its argument of the sampled ones as soon as nothing of it is left to be sampled."""


class Source:
    """What the buffer asks for groups."""

    def job(self, ordinals: Sequence[int]) -> Job:
        """To get the groups of these ordinals."""
        raise NotImplementedError

    def again(self, groups: Sequence[Group]) -> Job:
        """To get them where an earlier life of the run has sampled them."""
        raise NotImplementedError

    def trained(self, groups: Sequence[ScoredGroup]) -> None:
        """The groups are trained."""


@dataclass(frozen=True, kw_only=True)
class PolicySamples(Source):
    """Outputs of the serving policy for questions in the fixed order, or as a selection chooses them."""

    collector: Collector
    stage: StageConfig
    data: Data
    seed: int
    before: int
    """Steps of the run before the stage."""
    memory: State
    """What a selection has learnt of the questions."""

    def job(self, ordinals: Sequence[int]) -> Job:
        """Chooses the questions at once; their outputs are sampled and judged when it is called."""
        train = self.data.train
        if selector := self._selector:
            rows = selector.rows(ordinals[0] // self.stage.questions_per_step, len(ordinals))
            questions = [train.question(n, row) for n, row in zip(ordinals, rows, strict=True)]
        else:
            questions = [train.question(n) for n in ordinals]
        return lambda sampled: self._groups(questions, sampled)

    def again(self, groups: Sequence[Group]) -> Job:
        def scored(sampled: Sampled) -> list[ScoredGroup]:
            sampled(groups)
            what = f"score step {self._step(groups[0].question.ordinal)}"
            return self.collector.scored(self.collector.score(groups, self.stage.reward_source, what))

        return scored

    def trained(self, groups: Sequence[ScoredGroup]) -> None:
        """A selection takes note of the groups that are trained: what it chooses from then on does not depend on who was
        quick."""
        if selector := self._selector:
            rows = {question.id: row for row, question in enumerate(self.data.train.rows)}
            for group in groups:
                verdicts = [s.verdict for s in group.scored]
                right = [v.components["correct"] for v in verdicts if "correct" in v.components]
                selector.observe(rows[group.question.id], right, [v.reward for v in verdicts if v.reward is not None])

    def _groups(self, questions: Sequence[Question], sampled: Sampled) -> list[ScoredGroup]:
        """A group without spread is replaced by another question's, `max_refills` times at most. What is replaced is booked as
        dropped with the last of its wave: in a checkpoint before that, all of the wave is under way, and is asked for anew."""
        train, ordinals = self.data.train, [question.ordinal for question in questions]
        replaced: list[ScoredSample] = []
        groups = self._ask(questions, "", sampled if not self.stage.max_refills else lambda groups: None)
        for refill in range(1, self.stage.max_refills + 1):
            flat = [i for i, group in enumerate(groups) if not has_spread(group.scored)]
            if not flat:
                break
            replaced += (s for i in flat for s in groups[i].scored)
            draws = [random.Random(f"{self.seed}/{self.stage.name}/{ordinals[i]}/refill {refill}") for i in flat]
            again = [train.question(ordinals[i], rng.randrange(len(train))) for i, rng in zip(flat, draws, strict=True)]
            for i, group in zip(flat, self._ask(again, f".{refill}", lambda groups: None), strict=True):
                groups[i] = group
        for reason, samples in by_reason(replaced, "no spread in the group").items():
            self.collector.book("dropped", samples, reason=reason)
        return groups

    def _ask(self, questions: Sequence[Question], suffix: str, sampled: Sampled) -> list[ScoredGroup]:
        asked = leases(questions, self.stage.name, self.stage.samples_per_question, suffix)
        what = f"step {self._step(questions[0].ordinal)}"
        return self.collector.collect(asked, self.stage.reward_source, what, whole=not suffix, sampled=sampled)

    def _step(self, ordinal: int) -> int:
        return self.before + ordinal // self.stage.questions_per_step + 1

    @property
    def _selector(self) -> Selector | None:
        selection = self.stage.selection
        if isinstance(selection, Uniform):
            return None
        return Selector(selection, len(self.data.train), f"{self.seed}/{self.stage.name}", self.memory)


@dataclass(frozen=True, kw_only=True)
class Given(Source):
    """Demonstrations, preferences or labelled steps, read from the run's data; nobody judges them."""

    collector: Collector
    stage: str
    rows: DemonstrationSet | PreferenceSet | LabelledSet

    def job(self, ordinals: Sequence[int]) -> Job:
        return lambda sampled: self._groups(ordinals)

    def _groups(self, ordinals: Sequence[int]) -> list[ScoredGroup]:
        questions = [replace(self.rows.at(n).question, ordinal=n) for n in ordinals]
        return _booked(self.collector, [ScoredGroup(question=q, scored=self._scored(q.ordinal)) for q in questions])

    def _scored(self, ordinal: int) -> tuple[ScoredSample, ...]:
        match self.rows:
            case DemonstrationSet() as rows:
                return (as_given(rows.sample(ordinal, self.stage)),)
            case PreferenceSet() as rows:
                ranked = zip(rows.pair(ordinal, self.stage), (1.0, 0.0), strict=True)
                return tuple(_ranked(sample, value) for sample, value in ranked)
            case LabelledSet() as rows:
                return (as_given(rows.sample(ordinal, self.stage)),)


@dataclass(frozen=True, kw_only=True)
class InitialSamples(Source):
    """Outputs of the policy that the stage starts from, made once and judged; pairs of them where pairs are trained.

    They are kept in the run directory: a resumed stage trains on the same, whatever has been published meanwhile.
    """

    collector: Collector
    stage: StageConfig
    data: Data
    seed: int
    path: Path
    begun: bool
    """Whether the stage has made them before."""

    def job(self, ordinals: Sequence[int]) -> Job:
        return lambda sampled: _booked(self.collector, [self._renamed(self._made.at(n), n) for n in ordinals])

    def _renamed(self, group: ScoredGroup, ordinal: int) -> ScoredGroup:
        """A group as that of the stage's ordinal: epochs take the same outputs again."""
        name = f"{self.stage.name}/{ordinal}"
        samples = [replace(s.sample, ordinal=ordinal, group_id=name, index=i) for i, s in enumerate(group.scored)]
        scored = tuple(replace(s, sample=sample) for s, sample in zip(group.scored, samples, strict=True))
        return ScoredGroup(question=replace(group.question, ordinal=ordinal), scored=scored)

    @cached_property
    def _made(self) -> Ordered[ScoredGroup]:
        if self.begun and not self.path.exists():
            raise ValueError(f"{self.path} is missing; expected the outputs that stage {self.stage.name} made when it began")
        if not self.path.exists():
            offline.make(self.collector, self.stage, self.data.train, self.seed, self.path)
        made = list(offline.groups(self.path))
        if not made:
            raise ValueError(f"stage {self.stage.name}: no question has both a better and a worse output, so there is no pair")
        return Ordered(made, self.seed)


def _booked(collector: Collector, groups: list[ScoredGroup]) -> list[ScoredGroup]:
    """Groups that need no sampling any more, with their way through the ledger."""
    batch = samples_of(groups)
    for event in ("leased", "generated"):
        collector.book(event, (s.sample for s in batch))
    return collector.scored(groups)


def _ranked(sample: Sample, reward: float) -> ScoredSample:
    """An output with its rank in a given pair: 1 for the better one, 0 for the other."""
    verdict = Verdict(status="score", reward=reward, components={}, extracted=None, reason="", reward_version=None)
    return ScoredSample(
        sample=sample, events=(RewardEvent(position=len(sample.output_ids) - 1, value=reward),), verdict=verdict
    )


def source_of(config: RunConfig, data: Data, collector: Collector, progress: Progress, policy: str) -> Source:
    """The source that the row and the `from_file` of the stage under way ask for. `policy` identifies the serving weights."""
    stage, memory = progress.stage, progress.memory
    if stage.given:
        return Given(collector=collector, stage=stage.name, rows=getattr(data, stage.given))
    if stage.resolved().data_source is DataSource.POLICY_SAMPLES:
        before = progress.step - progress.done
        return PolicySamples(collector=collector, stage=stage, data=data, seed=config.seed, before=before, memory=memory)
    begun = "file" in memory
    file = memory.setdefault("file", f"{stage.name}-{_origin(stage, config, policy)}.jsonl")
    path = config.output.resolve() / OFFLINE / file
    return InitialSamples(collector=collector, stage=stage, data=data, seed=config.seed, path=path, begun=begun)


def _origin(stage: StageConfig, config: RunConfig, policy: str) -> str:
    """What decides the outputs, as a digest: the policy, and how it is asked and judged."""
    settings = [part.model_dump(mode="json") for part in (stage, config.reward, config.rollout)]
    return hashlib.sha256(json.dumps([policy, settings]).encode()).hexdigest()[:12]
