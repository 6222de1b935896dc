"""The pools that a configuration asks for, and what they are asked.

Only these processes read what a model wrote, or what a file says of an answer: a text of a few hundred characters can be
made to take minutes to compare. Whoever needs to know what such a text says gets it from their outcomes.
"""

import os
import re
import socket
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reward.config import RewardConfig
from reward.judging.pool import Judge, Outcome, Pool, Reach, Row
from reward.judging.user_function import Wants
from rollout.patience import longest
from rollout.types import Question

if TYPE_CHECKING:
    from rollout.data.datasets import GoldCheck

_PLAIN = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?")
"""A reference that has a value as it stands, so that no process need be started to tell."""


def rule_pool(config: RewardConfig) -> Pool:
    """Judges by the rule: rows as `rule_row` makes them, a `Judgement` for each."""
    return Pool("reward.judging.rule:judge", **_limits(config))


def step_pool(config: RewardConfig) -> Pool:
    """Judges of reasoning steps: rows as `step_row` makes them, a list of labels for each."""
    return Pool("reward.labels.step_rules:rule_labels", **_limits(config))


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """The user's reward function: called with questions and outputs, an outcome for each."""

    judge: Judge
    wants: Wants = Wants()

    def __call__(self, asked: Iterable[tuple[Question, str]]) -> list[Outcome]:
        return self.judge(
            [
                {"question": q.text, "output": output, "gold": q.gold, "columns": self.wants.columns(q.columns)}
                for q, output in asked
            ]
        )


def function_pool(config: RewardConfig, log: Path | None = None) -> Pool:
    """Runs the user's reward function, for a `Function`. What it prints goes to `log`.

    Raises ValueError where it cannot be loaded, or lacks a variable that it is to be given.
    """
    if absent := [name for name in config.environment if name not in os.environ]:
        raise ValueError(f"reward.environment: {', '.join(absent)}: not set on {socket.gethostname()}")
    assert config.function is not None, "asked for where there is one"
    reach = Reach(environment=config.environment, network=config.network, log=log)
    return Pool(config.function, adapter="reward.judging.user_function:adapt", reach=reach, **_limits(config))


def function_of(pool: Pool) -> Function:
    """The function that a `function_pool` runs."""
    return Function(judge=pool, wants=Wants(**pool.wants))


def rule_row(output: str, gold: str, config: RewardConfig) -> Row:
    """What the rule's judge is asked."""
    return {"output": output, "gold": gold, **_form(config)}


def step_row(question: Question, steps: Sequence[str], config: RewardConfig) -> Row:
    """What the judge of steps is asked: an output's steps, as texts."""
    return {"question": question.text, "gold": question.gold, "steps": steps, **_form(config)}


def gold_check(config: RewardConfig, judge: Judge | None = None) -> "GoldCheck":
    """What a run demands of its reference answers: why each cannot be judged, or None. A reward function takes any.

    `judge` is a rule pool's; without one, a pool is started when it is needed.
    """

    def problems(golds: Sequence[str]) -> list[str | None]:
        asked = [gold for gold in dict.fromkeys(golds) if config.function is None and not _PLAIN.fullmatch(gold)]
        if not asked:
            return [None] * len(golds)
        with nullcontext(judge) if judge is not None else rule_pool(config) as judges:
            outcomes = judges([rule_row("", gold, config) for gold in asked])
        found = {gold: o.value["problem"] if o.status == "score" else o.reason for gold, o in zip(asked, outcomes, strict=True)}
        return [found.get(gold) for gold in golds]

    return problems


def judging_seconds(config: RewardConfig, outputs: int) -> float:
    """Seconds in which a reward actor has judged so many outputs, by the rule and by a function, whatever is in them."""
    return (1 + (config.function is not None)) * longest(outputs, config.judge_seconds, config.judges)


def _form(config: RewardConfig) -> dict:
    reading = config.reading.model_dump(exclude_defaults=True)
    return {"answer_format": config.answer_format, **({"reading": reading} if reading else {})}


def _limits(config: RewardConfig) -> dict:
    return {"workers": config.judges, "seconds": config.judge_seconds, "memory_gb": config.judge_memory_gb}
