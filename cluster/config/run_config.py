"""The configuration of a run: the leaves of the three stages composed, and the rules that hold between them.

Imports pydantic and yaml only, so that `cohort --help` and `cohort check` start at once. Relative paths in a recipe
resolve against the current directory, not against the recipe's.
"""

import hashlib
import json
from pathlib import Path

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from cluster.config.contradictions import contradictions
from cluster.config.recipe import ConfigError, Recipe, dump, item_names
from cluster.config.stages import Name, StageConfig
from learner.config import LearnerConfig
from reward.config import RewardConfig
from rollout.config import AbsolutePath, DataConfig, ModelConfig, RolloutConfig, Strict, absolute, refusal

IMMUTABLE = (
    *("name", "output", "seed", "model", "data"),
    *(f"stages.*.{key}" for key in ("name", "algorithm", "questions_per_step", "samples_per_question")),
    *(f"stages.*.{key}" for key in ("reward", "labels", "from_file", "selection", "offline_questions", "pairs_per_question")),
    *("rollout.tools", "rollout.dtype"),
    *(f"reward.{key}" for key in ("answer_format", "reading", "correct", "format", "flip_share", "function", "weights")),
    *(f"reward.model.{key}" for key in ("path", "members", "step_boundary", "replay_share", "replay_groups")),
)
"""Keys that a resumed run may not change: with another value the trained history would no longer be this run's."""


class EvaluationConfig(Strict):
    """Held-out accuracy, measured before the first and after the last step, and in between."""

    every: int = Field(0, ge=0)
    """Steps between evaluations; 0 is only before and after."""
    samples_per_question: int = Field(8, gt=0)
    """Sampled outputs per held-out question, besides the greedy one."""
    temperature: float = Field(1.0, ge=0.0)
    questions: int | None = Field(None, gt=0)
    """Use only the first of the held-out questions."""


class ClusterConfig(Strict):
    """Deadlines, restarts and observability."""

    generate_deadline_s: float = Field(600, gt=0)
    train_deadline_s: float = Field(600, gt=0)
    sync_deadline_s: float = Field(120, gt=0)
    start_deadline_s: float = Field(300, gt=0)
    """For an actor to be ready, its model loaded."""
    stop_grace_s: float | None = Field(None, gt=0)
    """Between SIGTERM and SIGKILL: the run ends in order before. By default 30; in a Ray job RAY_JOB_STOP_WAIT_TIME_S or 3."""
    worker_restarts: int = Field(3, ge=0)
    """How many replaced workers a run survives."""
    metrics_port: int | None = Field(None, gt=0, lt=65536)
    """Ray's Prometheus port, on loopback, when cohort starts the local cluster."""
    dashboard: bool | None = None
    """Start Ray's dashboard with the local cluster; by default yes."""


class RunConfig(Strict):
    """A run. `load` reads it from a recipe."""

    name: Name
    seed: int = Field(0, ge=0, lt=2**63)
    output: AbsolutePath | None = Field(None, validate_default=True)
    """The run directory; by default runs/<name>."""
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint_every: int = Field(20, gt=0)
    """Steps between checkpoints; the last step of a stage always makes one."""
    keep_checkpoints: int = Field(2, ge=2)
    """The newest ones to keep: at least two, so that a damaged one leaves another."""
    stages: tuple[StageConfig, ...]

    @field_validator("output")
    @classmethod
    def _default_output(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return value or (absolute(Path("runs") / info.data["name"]) if "name" in info.data else None)

    @field_validator("stages")
    @classmethod
    def _default_names(cls, value: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        names = item_names([stage.model_dump() for stage in value])
        return tuple(stage.model_copy(update={"name": name}) for stage, name in zip(value, names, strict=True))

    @model_validator(mode="after")
    def _consistent(self):
        if problems := contradictions(self):
            raise refusal(problems)
        return self


def load(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe and apply `key=value` overrides. Raises ConfigError with every problem found."""
    recipe = Recipe(Path(path))
    for text in overrides or []:
        try:
            recipe.override(text, RunConfig)
        except ConfigError as error:
            recipe.problems += error.problems
    recipe.repeat_iterations()
    try:
        # JSON's strict mode: no "2" for 2 and no true for 1, yet text for a path and a list for a tuple.
        config = RunConfig.model_validate_json(json.dumps(recipe.data), strict=True)
    except ValidationError as error:
        raise ConfigError([*recipe.problems, *recipe.explain(error, RunConfig)]) from error
    if recipe.problems:
        raise ConfigError(recipe.problems)
    return config


def resolved_yaml(config: RunConfig) -> str:
    """The whole configuration, defaults included, as a recipe that `load` reads back; its hash in the first line."""
    return f"# hash: {config_hash(config)}\n{dump(config.model_dump(mode='json'))}"


def config_hash(config: RunConfig) -> str:
    """SHA-256 of the resolved configuration."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def diff(old: RunConfig, new: RunConfig) -> list[str]:
    """One line per changed value: `rollout.workers: 1 -> 2`."""
    return [f"{key}: {before} -> {after}" for key, before, after in _changes(old, new)]


def refusals(old: RunConfig, new: RunConfig) -> list[str]:
    """The changes that a resumed run refuses: those at IMMUTABLE keys. A stage added at the end is not one."""
    added = {f"stages.{i}" for i in range(len(old.stages), len(new.stages))}
    return [
        f"{key}: {before} -> {after}: a resumed run cannot change it"
        for key, before, after in _changes(old, new)
        if _immutable(key) and ".".join(key.split(".")[:2]) not in added
    ]


def _immutable(key: str) -> bool:
    parts = key.split(".")
    patterns = [pattern.split(".") for pattern in IMMUTABLE]
    return any(len(p) <= len(parts) and all(a in ("*", b) for a, b in zip(p, parts, strict=False)) for p in patterns)


def _changes(old: RunConfig, new: RunConfig) -> list[tuple[str, str, str]]:
    before, after = ({} for _ in range(2))
    _flatten(old.model_dump(mode="json"), "", before)
    _flatten(new.model_dump(mode="json"), "", after)
    keys = [*before, *(key for key in after if key not in before)]
    both = [(key, before.get(key, "(absent)"), after.get(key, "(absent)")) for key in keys]
    return [change for change in both if change[1] != change[2]]


def _flatten(value: object, prefix: str, out: dict[str, str]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if not items:
        out[prefix] = json.dumps(value, ensure_ascii=False)
        return
    for key, inner in items:
        _flatten(inner, f"{prefix}.{key}" if prefix else str(key), out)
