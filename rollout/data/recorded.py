"""Outputs that a file gives with a judgement, by ordinal: preference pairs, and outputs whose steps have labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.data.ordering import Ordered
from rollout.data.rows import Row, reject
from rollout.types import FinishReason, Question, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A given output in tokens."""

    ids: tuple[int, ...]
    """Ends with the token that ends an output."""
    said: tuple[bool, ...]
    """False for tokens that a program printed: they are not trained."""
    text: str


def given(question: Question, output: Output, *, group_id: str, ordinal: int, index: int = 0) -> Sample:
    """A given output as a Sample: version 0, no log-probabilities."""
    return Sample(
        ordinal=ordinal,
        group_id=group_id,
        index=index,
        attempt=0,
        prompt_ids=question.prompt_ids,
        output_ids=output.ids,
        sampled_mask=output.said,
        logprobs=(),
        text=output.text,
        versions=((0, 0),),
        finish_reason=FinishReason.STOP,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """A question with a better and a worse output."""

    question: Question
    better: Output
    worse: Output


class PreferenceSet(Ordered[Preference]):
    """Preferences by ordinal."""

    def pair(self, ordinal: int, stage: str) -> tuple[Sample, Sample]:
        """(better, worse), one group."""
        row = self.at(ordinal)
        group = {"group_id": f"{stage}/{ordinal}", "ordinal": ordinal}
        return given(row.question, row.better, **group), given(row.question, row.worse, **group, index=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledOutput:
    """An output with the last token of every step and the step's label in [0, 1]."""

    question: Question
    output: Output
    labels: tuple[tuple[int, float], ...]


class LabelledSet(Ordered[LabelledOutput]):
    """Outputs with labelled steps by ordinal."""

    def sample(self, ordinal: int, stage: str) -> Sample:
        row = self.at(ordinal)
        return given(row.question, row.output, group_id=f"{stage}/{ordinal}", ordinal=ordinal)


def read_steps(rows: Sequence[Row], steps: str, labels: str) -> list[tuple[list[str], list[float]]]:
    """The lists in the columns `steps` and `labels`. Raises ValueError, naming the rows, for anything else."""
    out, problems = [], []
    for row in rows:
        texts, values = row.columns.get(steps), row.columns.get(labels)
        if not isinstance(texts, list) or not texts or not all(isinstance(x, str) and x.strip() for x in texts):
            problems.append((row.where, f"column {steps!r} is {texts!r:.60}; expected a list of steps, none blank"))
        elif lines := [text for text in texts if "\n" in text]:
            # Scores are read where a line ends, so a label in the middle of a step would stand elsewhere than its score.
            problems.append((row.where, f"column {steps!r} has {lines[0]!r:.60}; expected steps of one line each"))
        elif not isinstance(values, list) or len(values) != len(texts) or not all(map(_label, values)):
            expected = f"a list of {len(texts)} numbers in 0..1, one a step"
            problems.append((row.where, f"column {labels!r} is {values!r:.60}; expected {expected}"))
        else:
            out.append((texts, [float(x) for x in values]))
    reject(problems, "the labelled steps do not fit")
    return out


def _label(value: object) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value) and 0 <= value <= 1
