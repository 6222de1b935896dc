"""One stage of a run: a row of the tables, how long, on how much per step, and what must be true of it."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from cluster.config.explain import nearest, sentence
from learner.algorithms.cells import Need, Objection, Plan
from learner.algorithms.table import (
    REWARD_MODELS,
    TABLE,
    Algorithm,
    DataSource,
    RewardModelRow,
    RewardSource,
    resolve,
    resolve_reward_model,
)
from learner.config import OptimizerConfig
from learner.stage import StageSpec
from reward.config import RewardConfig, RewardModelConfig
from rollout.config import DataConfig
from rollout.data.selection import Selection, Uniform
from rollout.strict import AbsolutePath, Strict, refusal

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=64)]
"""A letter, then letters, digits, `-` and `_`: it becomes a folder, part of a group id and of an override."""
NAMED = (
    (Need.CRITIC, "critic_optimizer", "the critic's optimizer"),
    (Need.TEACHER, "teacher", "the directory of a model with the policy's tokenizer"),
)
"""What a row needs and the recipe names: its key, and what stands there."""


class StageConfig(Strict):
    """One stage of a run: a row of the tables, how long, and on how much per step."""

    name: Name = ""
    """By default the algorithm's name; `<algorithm>-<number from 1>` where unnamed stages repeat it."""
    algorithm: str
    """A row of the tables: `cohort describe` prints them."""
    steps: int = Field(gt=0)
    """How often questions are asked and the model is updated."""
    questions_per_step: int = Field(gt=0)
    """Questions, or rows of demonstrations, pairs or labelled steps, of a step."""
    samples_per_question: int = Field(default=1, gt=0)
    """The group size G."""
    updates_per_batch: int = Field(default=1, gt=0)
    """Optimiser updates on each step's outputs (the paper's mu)."""
    max_staleness: int = Field(default=0, ge=0)
    """How many steps older than those that it trains the weights may be by which an output is begun. Above 0 engines, reward
    actors and learner work at the same time."""
    in_flight: bool = False
    """New weights meet outputs on their way, instead of waiting for them: nothing idles, and the run cannot be repeated."""
    selection: Selection = Uniform()
    """Which questions are asked."""
    max_refills: int = Field(default=0, ge=0)
    """How often a group whose rewards are all equal is replaced by another question's (dynamic sampling, DAPO)."""
    offline_questions: int | None = Field(default=None, gt=0)
    """For outputs that are made once: on how many questions; by default as many as the stage's steps take."""
    pairs_per_question: int = Field(default=1, gt=0)
    """Where pairs are built from a group: at most this many."""
    from_file: bool = False
    """Pairs are read from data.preferences, labelled steps from data.labelled_steps, instead of being sampled and judged."""
    reward: RewardSource | None = None
    """Replaces the row's reward."""
    credit: dict[str, Any] = {}
    """Fields of the row's credit cell to replace."""
    weighting: dict[str, Any] = {}
    """Fields of the row's weighting cell to replace."""
    labels: dict[str, Any] = {}
    """For a reward model: fields of its labels cell to replace."""
    objective: dict[str, Any] = {}
    """For a reward model: fields of its objective cell to replace."""
    optimizer: OptimizerConfig
    """Of the model that the stage trains."""
    critic_optimizer: OptimizerConfig | None = None
    """For a row with a critic."""
    value_clip: float = Field(default=0.2, gt=0.0)
    """For a row with a critic: how far from the old value its loss follows it."""
    teacher: AbsolutePath | None = None
    """For a row with a teacher: its Hugging Face directory, with the policy's tokenizer."""

    @field_validator("algorithm")
    @classmethod
    def _known(cls, value: str) -> str:
        rows = [*TABLE, *REWARD_MODELS]
        if value not in rows:
            raise ValueError(f"unknown algorithm '{value}'; expected one of {', '.join(rows)}{nearest(value, rows)}")
        return value

    @model_validator(mode="after")
    def _cells(self):
        try:
            self.resolved()
        except ValidationError as error:
            # A location such as ("credit", "group_relative", "ddof") names the kind of the cell, which no recipe writes.
            row = REWARD_MODELS.get(self.algorithm) or TABLE[self.algorithm]
            locs = [(*e["loc"][:1], *e["loc"][2:]) for e in error.errors()]
            raise refusal([(loc, sentence(e, type(row))) for loc, e in zip(locs, error.errors(), strict=True)]) from error
        return self

    def resolved(self) -> Algorithm | RewardModelRow:
        """The stage's row with its overrides applied."""
        if self.algorithm in TABLE:
            return resolve(self.algorithm, self.credit, self.weighting, reward=self.reward)
        if not self.from_file:
            return resolve_reward_model(self.algorithm, self.labels, self.objective)
        outcome = REWARD_MODELS[self.algorithm].supervision == "outcome"
        source = DataSource.PAIRS if outcome else DataSource.DEMONSTRATIONS
        return resolve_reward_model(self.algorithm, {"cell": "file"}, self.objective, data_source=source)

    @property
    def trains_policy(self) -> bool:
        return isinstance(self.resolved(), Algorithm)

    @property
    def given(self) -> Literal["demonstrations", "preferences", "labelled_steps", ""]:
        """The source of the data that its outputs are read from, if they are not sampled."""
        if self.from_file:
            return "preferences" if self.resolved().data_source is DataSource.PAIRS else "labelled_steps"
        return "demonstrations" if self.resolved().data_source is DataSource.DEMONSTRATIONS else ""

    @property
    def reward_source(self) -> RewardSource:
        """Who judges its outputs; a reward model in training learns from the rule."""
        return self.resolved().reward

    @property
    def pairs(self) -> bool:
        """Whether it trains on pairs of a better and a worse output."""
        return self.resolved().paired

    @property
    def follows_policy(self) -> bool:
        """Whether each step's outputs come from the policy that the last step made."""
        return self.trains_policy and self.resolved().data_source is DataSource.POLICY_SAMPLES

    def spec(self, model: RewardModelConfig | None, seed: int) -> StageSpec:
        """What the learner needs to know of the stage; `model` is the run's reward.model."""
        model = model or RewardModelConfig()
        return StageSpec(
            row=self.resolved(),
            optimizer=self.optimizer,
            total_updates=self.steps * self.updates_per_batch,
            critic_optimizer=self.critic_optimizer,
            value_clip=self.value_clip,
            teacher=self.teacher,
            members=model.count,
            reward_model=model.path,
            seed=seed,
        )


def reward_model_row(stage: StageConfig) -> RewardModelRow:
    """The row of a stage that trains a reward model. Raises TypeError for another stage."""
    row = stage.resolved()
    if not isinstance(row, RewardModelRow):
        raise TypeError(f"stage {stage.name} trains no reward model")
    return row


def contradictions(stage: StageConfig, data: DataConfig, reward: RewardConfig) -> list[Objection]:
    """What a stage asks for that it cannot have."""
    row, out, group = stage.resolved(), [], stage.samples_per_question
    if isinstance(row, Algorithm):
        plan = Plan(
            group_size=2 if row.paired else group,
            updates_per_batch=stage.updates_per_batch,
            on_policy=stage.follows_policy,
            max_staleness=stage.max_staleness,
            reward=reward,
        )
        out += row.contradictions(plan)
    if stage.given and group > 1:
        why = f"found {group}; expected 1: '{stage.algorithm}' trains on {stage.given}"
        out.append((("samples_per_question",), why))
    if not stage.given and stage.pairs and group == 1:
        out.append((("samples_per_question",), "found 1; expected 2 or more: a pair is two outputs of one question"))
    if stage.given and (name := stage.given) and data.model_dump()[name] is None:
        key = "from_file" if stage.from_file else "algorithm"
        out.append(((key,), f"'{stage.algorithm}' trains on {name}; expected data.{name}, found none"))
    if stage.max_refills and not isinstance(stage.selection, Uniform):
        why = f"given with selection {stage.selection.cell}; expected uniform: refills ignore what it learns"
        out.append((("max_refills",), why))
    if stage.max_refills and group == 1:
        why = "given, but samples_per_question is 1: the reward of one output never differs from another's"
        out.append((("max_refills",), why))
    for need, key, expected in NAMED:
        if (needed := need in row.needs) != (getattr(stage, key) is not None):
            why = f"missing; expected {expected}" if needed else f"given, but '{stage.algorithm}' has no {need}"
            out.append(((key,), why))
    return out + _unread(stage)


def _unread(stage: StageConfig) -> list[Objection]:
    """Keys that the stage would not read."""
    policy, samples_policy = stage.trains_policy, stage.resolved().data_source is DataSource.POLICY_SAMPLES
    read = {
        "max_staleness": stage.follows_policy,
        "in_flight": stage.max_staleness > 0,
        "selection": samples_policy,
        "max_refills": samples_policy and policy,
        "offline_questions": policy and not samples_policy and not stage.given,
        "pairs_per_question": stage.pairs and not stage.given,
        "from_file": not policy or stage.resolved().data_source is DataSource.PAIRS,
        "value_clip": Need.CRITIC in stage.resolved().needs,
        "reward": policy,
        "credit": policy,
        "weighting": policy,
        "labels": not policy and not stage.from_file,
        "objective": not policy,
    }
    # A resolved configuration that is read back gives every key.
    values = {key: value for key, value in stage if value != StageConfig.model_fields[key].default}
    return [
        ((key,), f"given, but '{stage.algorithm}' does not read it") for key, used in read.items() if key in values and not used
    ]
