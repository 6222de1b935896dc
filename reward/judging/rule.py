"""What the rule says of an output and its reference answer. It reads what models write, so it runs in the pool's processes."""

from collections.abc import Mapping
from typing import Any

from reward.answers.equality import canonical, same, same_with_units
from reward.answers.extract import extract, reference
from reward.answers.values import parse
from reward.config import READING, AnswerFormat, Reading
from reward.types import Judgement


def judge(output: str, gold: str, answer_format: AnswerFormat, reading: Mapping[str, Any] | None = None) -> Judgement:
    """Find the output's final answer and compare it with the reference. No answer is a wrong one.

    `reading` has the fields of a Reading that are not the defaults.
    """
    read = Reading(**reading) if reading else READING
    extracted, answer = extract(output, answer_format, read), reference(gold)
    equal = same_with_units if read.compare_units else same
    return {
        "extracted": extracted,
        "value": canonical(extracted),
        "correct": equal(answer, extracted),
        "parsed": parse(extracted) is not None,
        "reference": answer,
        "problem": _problem(answer),
    }


def _problem(answer: str) -> str | None:
    return None if parse(answer) is not None else f"{answer!r:.80} is not a number, a formula or words in \\text{{}}"
