"""The configuration of a run: its settings, and the rules that hold between them.

Imports pydantic and yaml only, so that `cohort --help` and `cohort check` start at once. Relative paths in a recipe
resolve against the current directory, not against the recipe's.
"""

import hashlib
import json
from pathlib import Path

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator

from cluster.config.contradictions import contradictions
from cluster.config.recipe import ConfigError, Recipe, dump, item_names
from cluster.config.settings import RunSettings
from cluster.config.stages import StageConfig
from rollout.strict import refusal

IMMUTABLE = (
    *("name", "output", "seed", "model", "data"),
    *(f"stages.*.{key}" for key in ("name", "algorithm", "questions_per_step", "samples_per_question")),
    *(
        f"stages.*.{key}"
        for key in ("reward", "teacher", "labels", "from_file", "selection", "offline_questions", "pairs_per_question")
    ),
    *("stages.*.max_staleness", "stages.*.in_flight", "rollout.tools", "rollout.environment", "rollout.dtype", "learner.lora"),
    *(f"reward.{key}" for key in ("answer_format", "reading", "correct", "format", "flip_share", "function", "weights")),
    *(f"reward.model.{key}" for key in ("path", "members", "step_boundary", "replay_share", "replay_groups")),
)
"""Keys that a resumed run may not change: with another value the trained history would no longer be this run's."""


class RunConfig(RunSettings):
    """A run. `load` reads it from a recipe."""

    @property
    def teachers(self) -> dict[Path, str]:
        """Directories of the stages' teachers, each with the first key that names it."""
        given = [(stage.teacher, f"stages.{i}.teacher") for i, stage in enumerate(self.stages) if stage.teacher is not None]
        return dict(reversed(given))

    @property
    def draft(self) -> Path | None:
        """Directory of the model that guesses tokens ahead."""
        return self.rollout.speculative.model if self.rollout.speculative else None

    @field_validator("output", mode="before")
    @classmethod
    def _default_output(cls, value: object, info: ValidationInfo) -> object:
        # Without a valid name there is no configuration, whatever stands here.
        return f"runs/{info.data.get('name', '')}" if value is None else value

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


def load(path: Path, overrides: list[str] | None = None, text: str | None = None) -> RunConfig:
    """Read a recipe, or its text, and apply `key=value` overrides. Raises ConfigError with every problem found."""
    recipe = Recipe(Path(path), text)
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
