"""What judged outputs say of a policy: accuracy with its interval, pass@k, maj@k and rm@k. Nowhere else are they computed."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from reward.statistics.at_k import maj_at_k, pass_at_k, rm_at_k
from reward.types import FAILURES, ScoredSample

T = TypeVar("T")
Z95 = 1.96
WITHOUT = (*FAILURES, "missing")
"""Why an output has no verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What came of one output."""

    correct: bool | None
    """None where it has no verdict."""
    extracted: str | None
    value: str | None
    """The final answer in canonical form."""
    status: Literal["score", "given", "unscorable", "rejected", "killed", "error", "missing"]
    """As a `reward.types.Verdict` has it; `missing`: there is no output."""
    reason: str
    """Why it has no verdict."""

    @classmethod
    def of(cls, scored: ScoredSample) -> "Judged":
        verdict = scored.verdict
        correct = verdict.components["correct"] == 1.0 if verdict.status == "score" else None
        known = {"extracted": verdict.extracted, "value": verdict.value, "status": verdict.status, "reason": verdict.reason}
        return cls(correct=correct, **known)


Outputs = Sequence[Sequence[Judged]]
"""The judged outputs of each question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """The share of outputs that are right, in 0..1."""

    share: float
    standard_error: float | None
    """With the outputs of one question taken as one draw, since they are not independent; None for a single question."""
    interval: tuple[float, float] | None
    """95%."""

    def __str__(self) -> str:
        if not self.interval:
            return f"{self.share:.3f}"
        if self.standard_error:
            return f"{self.share:.3f} ± {Z95 * self.standard_error:.3f}"
        return f"{self.share:.3f} [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"


def accuracy(groups: Outputs) -> Accuracy | None:
    """Over all outputs, of which one without a verdict counts as wrong; None where there are none.

    The interval is a normal approximation, and Wilson's where no spread was seen, which says less the fewer the questions.
    """
    marks = [[one.correct is True for one in group] for group in groups if group]
    count, n = sum(map(len, marks)), len(marks)
    if not count:
        return None
    share = sum(map(sum, marks)) / count
    if n < 2:
        return Accuracy(share=share, standard_error=None, interval=None)
    spread = math.fsum((sum(mark) - share * len(mark)) ** 2 for mark in marks)
    error = math.sqrt(spread * n / (n - 1)) / count
    middle, half = share, Z95 * error
    if error == 0:
        middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return Accuracy(share=share, standard_error=error, interval=(max(0.0, middle - half), min(1.0, middle + half)))


def up_to(largest: int) -> list[int]:
    """1, 2, 4, ... as far as there are outputs."""
    return [2**i for i in range(largest.bit_length())]


def pass_at(groups: Outputs, ks: Sequence[int]) -> dict[int, float]:
    """pass@k, unbiased: a mean over the questions with at least k outputs."""
    return _at_k(ks, groups, lambda group, k: pass_at_k(len(group), sum(one.correct is True for one in group), k))


def maj_at(groups: Outputs, ks: Sequence[int]) -> dict[int, float]:
    """maj@k, a mean over the questions with at least k outputs."""
    return _at_k(ks, groups, lambda group, k: maj_at_k([x.value for x in group], [x.correct for x in group], k, 0).value)


def rm_at(groups: Outputs, scores: Sequence[Sequence[float]], ks: Sequence[int]) -> dict[int, float]:
    """rm@k by a reward model's scores of the outputs, a mean over the questions with at least k of them."""
    scored = [list(zip(group, own, strict=True)) for group, own in zip(groups, scores, strict=True)]
    return _at_k(ks, scored, lambda group, k: rm_at_k([s for _, s in group], [x.correct is True for x, _ in group], k))


def figures(groups: Outputs, ks: Sequence[int] | None = None, scores: Sequence[Sequence[float]] | None = None) -> dict:
    """All figures and counts, as `cohort score` and `cohort evaluate` print them; `scores` are a reward model's.

    Only outputs whose reference has no value are left out. Any other without a verdict counts as wrong, so that no figure
    gets better by losing the hard ones. `ks` defaults to 1, 2, 4, ...
    """
    counts = Counter(one.status for group in groups for one in group)
    kept = [[index for index, one in enumerate(group) if one.status != "unscorable"] for group in groups]
    scorable = [[group[i] for i in indices] for group, indices in zip(groups, kept, strict=True)]
    largest = max(map(len, scorable), default=0)
    ks = [k for k in ks or up_to(largest) if k <= largest]
    own = [[of[i] for i in indices] for of, indices in zip(scores, kept, strict=True)] if scores is not None else None
    return {
        "questions": len(groups),
        "responses": counts.total(),
        **{status: counts[status] for status in WITHOUT},
        **shown(accuracy(scorable)),
        "pass_at_k": pass_at(scorable, ks),
        "maj_at_k": maj_at(scorable, ks),
        "rm_at_k": {} if own is None else rm_at(scorable, own, ks),
    }


def shown(found: Accuracy | None) -> dict:
    """As two fields of a row."""
    return {"accuracy": found and found.share, "accuracy_interval": found and found.interval}


def _at_k(ks: Sequence[int], groups: Sequence[Sequence[T]], figure: Callable[[Sequence[T], int], float]) -> dict[int, float]:
    """For each k the mean of figure(group, k) over the groups of at least k."""
    values = {k: [figure(group, k) for group in groups if len(group) >= k] for k in ks}
    return {k: math.fsum(value) / len(value) for k, value in values.items()}
