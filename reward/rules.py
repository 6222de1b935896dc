"""The rule rewards: a right final answer, and a well-formed output. `judge` is what runs in the pool's processes."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from reward.answers import AnswerFormat, extract, reference
from reward.comparison import canonical, same
from reward.config import READING, Reading, RewardConfig
from reward.pool import Outcome, Row
from reward.values import parse
from rollout.episode import without_tool_output
from rollout.types import FinishReason, Sample


class Judgement(TypedDict):
    """What the rule says of one output."""

    extracted: str | None
    value: str | None
    """The extracted answer in canonical form, for majority votes."""
    correct: bool
    parsed: bool
    """Whether the extracted answer has a value."""
    problem: str | None
    """Why the reference answer cannot be judged."""


def judge(output: str, gold: str, answer_format: AnswerFormat, reading: Mapping[str, Any] | None = None) -> Judgement:
    """Find the output's final answer and compare it with the reference. No answer is a wrong one.

    `reading` has the fields of a Reading that are not the defaults.
    """
    extracted = extract(output, answer_format, Reading(**reading) if reading else READING)
    return Judgement(
        extracted=extracted,
        value=canonical(extracted),
        correct=same(reference(gold), extracted),
        parsed=parse(extracted) is not None,
        problem=gold_problem(gold),
    )


def judge_row(output: str, gold: str, answer_format: AnswerFormat, reading: Reading) -> Row:
    """What `judge` is asked, as a pool carries it."""
    given = reading.model_dump(exclude_defaults=True)
    return {"output": output, "gold": gold, "answer_format": answer_format, **({"reading": given} if given else {})}


def judge_here(rows: Sequence[Row]) -> list[Outcome]:
    """As a pool of judges does it, in this process, without limits."""
    return [_outcome(row) for row in rows]


def gold_problem(gold: str) -> str | None:
    """Why a reference answer cannot be judged, or None when it can: the check for data as it is loaded."""
    answer = reference(gold)
    return None if parse(answer) is not None else f"{answer!r:.80} is not a number, a formula or words in \\text{{}}"


def gold_check(config: RewardConfig) -> Callable[[str], str | None]:
    """What a run demands of its reference answers: a reward function may make of them what it will."""
    return gold_problem if config.function is None else lambda gold: None


def well_formed(sample: Sample, answer_format: AnswerFormat, reading: Reading = READING) -> float:
    """1.0 if the output ended by itself and states a final answer with a value in the asked form, else 0.0."""
    return formed(sample, parse(extract(without_tool_output(sample.text), answer_format, reading)) is not None)


def formed(sample: Sample, parsed: bool) -> float:
    return float(parsed and sample.finish_reason is FinishReason.STOP)


def _outcome(row: Row) -> Outcome:
    start = time.monotonic()
    try:
        value, status, reason = judge(**row), "score", ""
    except Exception:
        value, status, reason = None, "error", traceback.format_exc()
    return Outcome(status=status, value=value, reason=reason, seconds=time.monotonic() - start)
