"""The rule rewards: a right final answer, and a well-formed output."""

from reward.answers import AnswerFormat, extract
from reward.comparison import same
from reward.values import parse
from rollout.types import FinishReason, Sample


def correct(extracted: str | None, gold: str) -> float:
    """1.0 if the final answer has the value of the reference answer, else 0.0; no answer is a wrong one."""
    return float(same(gold, extracted))


def well_formed(sample: Sample, answer_format: AnswerFormat) -> float:
    """1.0 if the output ended by itself and states a final answer with a value in the asked form, else 0.0."""
    if sample.finish_reason is not FinishReason.STOP:
        return 0.0
    return float(parse(extract(sample.text, answer_format)) is not None)
