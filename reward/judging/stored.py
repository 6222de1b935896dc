"""Responses that somebody stored, judged as a run judges its outputs: verdicts, accuracy, pass@k, maj@k and rm@k."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reward.config import RewardConfig
from reward.judging.judges import rule_row
from reward.judging.pool import Judge, Outcome
from reward.statistics.at_k import maj_at_k, pass_at_k, rm_at_k
from reward.types import FAILURES
from rollout.config import SourceConfig
from rollout.data.rows import Row, load_rows, reject
from rollout.data.templates import column, fill, fill_questions, text_of

AT_ONCE = 1024
WITHOUT = (*FAILURES, "missing")
"""Why a response has no verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """One row of the file: a question, its reference answer, and one response or several."""

    where: str
    question: str
    gold: str
    responses: tuple[str | None, ...]
    """None for one that is missing."""
    scores: tuple[float, ...] | None
    """A reward model's, one for each response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What came of one response."""

    correct: bool | None
    """None where it has no verdict."""
    extracted: str | None
    value: str | None
    """The final answer in canonical form."""
    status: Literal["score", "unscorable", "rejected", "killed", "error", "missing"]
    """As a `reward.types.Verdict` has it; `missing`: there is no response."""
    reason: str
    """Why it has no verdict."""


NO_RESPONSE = Judged(correct=None, extracted=None, value=None, status="missing", reason="the response is missing")


def read(path: Path, *, question: str, response: str, gold: str, score: str | None) -> list[StoredRow]:
    """The rows of a .jsonl or .parquet file. `question` and `gold` are columns, or templates over columns such as {answer:g};
    `response` and `score` are columns. Raises ValueError, naming file and line, for rows that cannot be used.
    """
    rows = load_rows(SourceConfig(file=path))
    question, gold = (x if "{" in x else f"{{{x}}}" for x in (question, gold))
    questions, golds = [text_of(asked) for asked in fill_questions(rows, question)], fill(rows, gold, "gold")
    responses = _lists(rows, response, "response", str)
    scores = _lists(rows, score, "score", float) if score is not None else [None] * len(rows)
    counts = [(row.where, len(s), len(r)) for row, r, s in zip(rows, responses, scores, strict=True) if s is not None]
    unequal = [(where, f"{n} scores for {m} responses") for where, n, m in counts if n != m]
    reject(unequal, "expected a score for each response")
    return [
        StoredRow(where=row.where, question=q, gold=g, responses=r, scores=s)
        for row, q, g, r, s in zip(rows, questions, golds, responses, scores, strict=True)
    ]


def judge_stored(
    rows: Sequence[StoredRow], judge: Judge, config: RewardConfig, done: Callable[[int], None]
) -> list[list[Judged]]:
    """The judgements of every row's responses. `done` is told how many responses were judged."""
    flat = [rule_row(x, row.gold, config) for row in rows for x in row.responses if x is not None]
    judged: list[Judged] = []
    for start in range(0, len(flat), AT_ONCE):
        part = flat[start : start + AT_ONCE]
        judged += map(_judged, judge(part))
        done(len(part))
    found = iter(judged)
    return [[NO_RESPONSE if x is None else next(found) for x in row.responses] for row in rows]


def measures(rows: Sequence[StoredRow], judged: Sequence[Sequence[Judged]], ks: Sequence[int] | None = None) -> dict:
    """The figures of a file. Rows with the same question and reference are one question.

    Only responses whose reference has no value are left out. Any other without a verdict counts as wrong, so that no figure
    gets better by losing the hard ones. The 95% interval of the accuracy is over questions (normal approximation); the at-k
    figures are means over the questions with at least k responses; `ks` defaults to 1, 2, 4, ... as far as there are any.
    """
    groups: dict[tuple[str, str], list[tuple[Judged, float | None]]] = {}
    for row, found in zip(rows, judged, strict=True):
        group = groups.setdefault((row.question, row.gold), [])
        group += [(j, s) for j, s in zip(found, row.scores or [None] * len(found), strict=True) if j.status != "unscorable"]
    counts = Counter(j.status for found in judged for j in found)
    marks = [[j.correct is True for j, _ in group] for group in groups.values() if group]
    largest = max(map(len, marks), default=0)
    ks = [k for k in ks or [2**i for i in range(largest.bit_length())] if k <= largest]
    enough = {k: [group for group in groups.values() if len(group) >= k] for k in ks}
    return {
        "rows": len(rows), "questions": len(groups), "responses": counts.total(),
        **{status: counts[status] for status in WITHOUT},
        **accuracy(marks),
        "pass_at_k": {k: _mean([pass_at_k(len(g), sum(j.correct is True for j, _ in g), k) for g in enough[k]]) for k in ks},
        "maj_at_k": {k: _mean([_majority(g, k) for g in enough[k]]) for k in ks},
        "rm_at_k": {
            k: _mean([rm_at_k([s for _, s in g], [j.correct is True for j, _ in g], k) for g in enough[k]])
            for k in ks if all(row.scores is not None for row in rows)
        },
    }  # fmt: skip


def accuracy(marks: Sequence[Sequence[bool]]) -> dict[str, float | list[float] | None]:
    """`accuracy` over all responses and `accuracy_interval` (95%), with the responses of one question taken as one draw."""
    count = sum(map(len, marks))
    if not count:
        return {"accuracy": None, "accuracy_interval": None}
    share = sum(map(sum, marks)) / count
    if len(marks) < 2:
        return {"accuracy": share, "accuracy_interval": None}
    spread = math.fsum((sum(group) - share * len(group)) ** 2 for group in marks)
    error = math.sqrt(spread * len(marks) / (len(marks) - 1)) / count
    if error == 0:
        # No spread was seen, which says less the fewer the questions: Wilson's interval.
        n, z = len(marks), 1.96
        middle, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
        bounds = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
    else:
        bounds = share - 1.96 * error, share + 1.96 * error
    return {"accuracy": share, "accuracy_interval": [max(0.0, bounds[0]), min(1.0, bounds[1])]}


def _lists(rows: Sequence[Row], name: str, role: str, kind: type) -> list[tuple]:
    """A column with one value or a list in each row, as tuples. A number serves as text, but text not as a number."""
    values = [value if isinstance(value, list) else [value] for value in column(rows, name, role)]
    problems = []
    for row, many in zip(rows, values, strict=True):
        if wrong := [x for x in many if not _fits(x, kind)]:
            expected = "text" if kind is str else "a finite number"
            problems.append((row.where, f"{name!r} has {wrong[0]!r:.60}, expected {expected}"))
        elif not many:
            problems.append((row.where, f"{name!r} is an empty list"))
    reject(problems, f"the {role} column {name!r} cannot be used")
    return [tuple(None if x is None else kind(x) for x in many) for many in values]


def _fits(value: object, kind: type) -> bool:
    if kind is str:
        return value is None or isinstance(value, str | int | float) and not isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _judged(outcome: Outcome) -> Judged:
    found = outcome.value
    if outcome.status != "score" or found["problem"]:
        reason, extracted = outcome.reason or f"the reference {found['problem']}", found and found["extracted"]
        status = "unscorable" if outcome.status == "score" else outcome.status
        return Judged(correct=None, extracted=extracted, value=None, status=status, reason=reason)
    return Judged(correct=found["correct"], extracted=found["extracted"], value=found["value"], status="score", reason="")


def _majority(group: Sequence[tuple[Judged, float | None]], k: int) -> float:
    return maj_at_k([j.value for j, _ in group], [j.correct for j, _ in group], k, 0).value


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
