"""Where a stage's groups come from: given with the questions, sampled once before the first step, or sampled at every step.

Every source hands out scored groups for ordinals. Which one a stage has follows from its row's data source (`source_of`).
"""

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from cluster.config.run_config import RunConfig
from cluster.config.stages import StageConfig
from cluster.fleet.sampler import Bound
from cluster.records.samples import by_reason, write_rows
from learner.algorithms.credit import has_spread
from learner.algorithms.table import DataSource, RewardSource
from reward.labels.examples import pairs
from reward.types import RewardEvent, ScoredSample, Verdict, as_given
from rollout.data.datasets import Data
from rollout.data.ordering import Ordered
from rollout.data.selection import Selector, Uniform
from rollout.types import Lease, Question, Sample

log = logging.getLogger("cohort")

Groups = Iterable[tuple[int, list[ScoredSample]]]
"""(ordinal, scored group)."""
CHUNK = 64
"""Questions that are asked together where a stage's outputs are all made before its first step."""


class Driver(Protocol):
    """What a source needs of the run's loop."""

    config: RunConfig
    data: Data
    dir: Path
    """The run directory."""
    bound: Bound

    @property
    def policy(self) -> str:
        """Identifies the serving weights, the policy's and the reward model's."""

    def ask(self, leases: Sequence[Lease], what: str, *, booked: bool = True) -> list[Sample]:
        """All outputs of the leases, sampled by the serving version."""

    def judge(self, questions: Sequence[Question], samples: Sequence[Sample], reward: RewardSource) -> list[ScoredSample]:
        """Scores in the order of the samples."""

    def record(self, event: str, samples: Iterable[Sample], **fields) -> None:
        """Book an event of these samples."""


def leases(questions: Sequence[Question], stage: str, size: int, suffix: str = "") -> list[Lease]:
    members = tuple(range(size))
    return [Lease(question=q, group_id=f"{stage}/{q.ordinal}{suffix}", indices=members, attempt=0) for q in questions]


def by_ordinal(scored: Iterable[ScoredSample]) -> dict[int, list[ScoredSample]]:
    groups: dict[int, list[ScoredSample]] = {}
    for one in sorted(scored, key=lambda s: s.sample.index):
        groups.setdefault(one.sample.ordinal, []).append(one)
    return groups


@dataclass(kw_only=True)
class PolicySamples:
    """Outputs of the serving policy for questions in the fixed order, or as a selection chooses them."""

    driver: Driver
    stage: StageConfig
    memory: dict[str, Any]
    """What a selection has learnt of the questions."""
    questions: dict[int, Question] = field(default_factory=dict)
    """Of the last call, by ordinal."""

    def groups(self, ordinals: Sequence[int]) -> Groups:
        """Sample and judge; a group without spread is replaced by another question's, `max_refills` times at most."""
        train = self.driver.data.train
        self.questions, rows = {}, self._rows(ordinals)
        groups = self._ask([train.question(n, row) for n, row in zip(ordinals, rows, strict=True)], "")
        if rows[0] is not None:
            self._observe(ordinals, rows, groups)
        for refill in range(1, self.stage.max_refills + 1):
            flat = [n for n in ordinals if not has_spread(groups[n])]
            if not flat:
                break
            for reason, samples in by_reason((s for n in flat for s in groups[n]), "no spread in the group").items():
                self.driver.record("dropped", samples, reason=reason)
            draws = [random.Random(f"{self.driver.config.seed}/{self.stage.name}/{n}/refill {refill}") for n in flat]
            again = [train.question(n, rng.randrange(len(train))) for n, rng in zip(flat, draws, strict=True)]
            groups |= self._ask(again, f".{refill}")
        return groups.items()

    def _ask(self, questions: Sequence[Question], suffix: str) -> dict[int, list[ScoredSample]]:
        self.questions |= {q.ordinal: q for q in questions}
        samples = self.driver.ask(leases(questions, self.stage.name, self.stage.samples_per_question, suffix), "generate")
        scored = self.driver.judge(questions, samples, self.stage.reward_source)
        self.driver.record("scored", (s.sample for s in scored if not s.verdict.failed))
        return by_ordinal(scored)

    def _rows(self, ordinals: Sequence[int]) -> list[int | None]:
        if isinstance(self.stage.selection, Uniform):
            return [None] * len(ordinals)
        return self._selector().rows(ordinals[0] // self.stage.questions_per_step, len(ordinals))

    def _selector(self) -> Selector:
        seed = f"{self.driver.config.seed}/{self.stage.name}"
        return Selector(self.stage.selection, len(self.driver.data.train), seed, self.memory)

    def _observe(self, ordinals: Sequence[int], rows: Sequence[int], groups: dict[int, list[ScoredSample]]) -> None:
        selector = self._selector()
        for n, row in zip(ordinals, rows, strict=True):
            right = [s.verdict.components["correct"] for s in groups[n] if "correct" in s.verdict.components]
            selector.observe(row, right, [s.verdict.reward for s in groups[n] if s.verdict.reward is not None])


@dataclass(kw_only=True)
class Given:
    """Demonstrations, preferences or labelled steps, read from the run's data; nobody judges them."""

    driver: Driver
    stage: StageConfig
    memory: dict[str, Any]
    questions: dict[int, Question] = field(default_factory=dict)
    """Of the last call, by ordinal."""

    def groups(self, ordinals: Sequence[int]) -> Groups:
        rows = getattr(self.driver.data, self.stage.given)
        self.questions = {n: replace(rows.at(n).question, ordinal=n) for n in ordinals}
        return _booked(self.driver, [(n, self._group(n)) for n in ordinals])

    def _group(self, ordinal: int) -> list[ScoredSample]:
        data, name = self.driver.data, self.stage.name
        if self.stage.given == "demonstrations":
            return [as_given(data.demonstrations.sample(ordinal, name))]
        if self.stage.given == "preferences":
            ranked = zip(data.preferences.pair(ordinal, name), (1.0, 0.0), strict=True)
            return [_as_judged(sample, [(len(sample.output_ids) - 1, value)], value) for sample, value in ranked]
        sample, labels = data.labelled_steps.output(ordinal, name)
        return [_as_judged(sample, labels, sum(value for _, value in labels) / len(labels))]


@dataclass(kw_only=True)
class InitialSamples:
    """Outputs of the policy that the stage starts from, made once and judged; pairs of them where pairs are trained.

    They are kept in the run directory: a resumed stage trains on the same, whatever has been published meanwhile.
    """

    driver: Driver
    stage: StageConfig
    memory: dict[str, Any]
    """The name of their file."""
    questions: dict[int, Question] = field(default_factory=dict)
    """Of the last call, by ordinal."""

    def groups(self, ordinals: Sequence[int]) -> Groups:
        out, self.questions = [], {}
        for n in ordinals:
            group = self._made.at(n)
            self.questions[n] = replace(self.driver.data.train.question(group[0].sample.ordinal), ordinal=n)
            renamed = (replace(s.sample, ordinal=n, group_id=f"{self.stage.name}/{n}", index=i) for i, s in enumerate(group))
            out.append((n, [replace(s, sample=sample) for s, sample in zip(group, renamed, strict=True)]))
        return _booked(self.driver, out)

    @cached_property
    def _made(self) -> Ordered[list[ScoredSample]]:
        begun = "file" in self.memory
        path = self.driver.dir / "offline" / self.memory.setdefault("file", f"{self.stage.name}-{self._origin()}.jsonl")
        if begun and not path.exists():
            raise ValueError(f"{path} is missing; expected the outputs that stage {self.stage.name} made when it began")
        if not begun and not path.exists():
            self._make(path)
        with path.open("rb") as file:
            made = [_GROUP.validate_json(line) for line in file]
        if not made:
            raise ValueError(f"stage {self.stage.name}: no question has both a better and a worse output, so there is no pair")
        return Ordered(made, self.driver.config.seed)

    def _origin(self) -> str:
        """What decides the outputs, as a digest: the policy, and how it is asked and judged."""
        config = self.driver.config
        settings = [part.model_dump(mode="json") for part in (self.stage, config.reward, config.rollout)]
        return hashlib.sha256(json.dumps([self.driver.policy, settings]).encode()).hexdigest()[:12]

    def _make(self, path: Path) -> None:
        stage, train = self.stage, self.driver.data.train
        count = stage.offline_questions or min(len(train), stage.steps * stage.questions_per_step)
        made: list[list[ScoredSample]] = []
        for start in range(0, count, CHUNK):
            questions = [train.question(n) for n in range(start, min(start + CHUNK, count))]
            asked = leases(questions, f"{stage.name}/initial", stage.samples_per_question)
            scored = self.driver.judge(questions, self.driver.ask(asked, "generate", booked=False), stage.reward_source)
            for group in by_ordinal(scored).values():
                made += self._pairs(group) if stage.pairs else [group]
            log.info("stage %s: sampled outputs for %d of %d questions", stage.name, start + len(questions), count)
        write_rows(path, (_GROUP.dump_python(group, mode="json") for group in made))

    def _pairs(self, group: list[ScoredSample]) -> list[list[ScoredSample]]:
        rng = random.Random(f"{self.driver.config.seed}/{group[0].sample.group_id}/pairs")
        flat = pairs(group, per_group=self.stage.pairs_per_question, rng=rng)
        return [flat[i : i + 2] for i in range(0, len(flat), 2)]


_GROUP = TypeAdapter(list[ScoredSample])


def _booked(driver: Driver, groups: list[tuple[int, list[ScoredSample]]]) -> Groups:
    """Groups that need no sampling any more, with their way through the ledger."""
    batch = [s for _, group in groups for s in group]
    for event in ("leased", "generated"):
        driver.record(event, (s.sample for s in batch))
    driver.record("scored", (s.sample for s in batch if not s.verdict.failed))
    return groups


def _as_judged(sample: Sample, events: Iterable[tuple[int, float]], reward: float) -> ScoredSample:
    """An output with the judgement that its file gives."""
    verdict = Verdict(status="score", reward=reward, components={}, extracted=None, reason="", reward_version=None)
    return ScoredSample(sample=sample, events=tuple(RewardEvent(position=p, value=v) for p, v in events), verdict=verdict)


Source = PolicySamples | Given | InitialSamples


def source_of(driver: Driver, stage: StageConfig, memory: dict[str, Any]) -> Source:
    """The source that a stage's row and its `from_file` ask for; `memory` is what it keeps from step to step, JSON-able, and is
    part of a checkpoint."""
    if stage.given:
        return Given(driver=driver, stage=stage, memory=memory)
    online = stage.resolved().data_source is DataSource.POLICY_SAMPLES
    return (PolicySamples if online else InitialSamples)(driver=driver, stage=stage, memory=memory)
