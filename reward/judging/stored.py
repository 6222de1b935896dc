"""Responses that somebody stored, judged as a run judges its outputs: verdicts, accuracy, pass@k, maj@k and rm@k."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward.config import RewardConfig
from reward.judging.judges import rule_row
from reward.judging.pool import Judge, Outcome
from reward.statistics.figures import Judged, figures
from rollout.config import SourceConfig
from rollout.data.rows import Row, load_rows, reject
from rollout.data.templates import column, fill, fill_questions, text_of

AT_ONCE = 1024


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
    """The figures of a file. Rows with the same question and reference are one question."""
    groups: dict[tuple[str, str], tuple[list[Judged], list[float]]] = {}
    for row, found in zip(rows, judged, strict=True):
        outputs, scores = groups.setdefault((row.question, row.gold), ([], []))
        outputs += found
        scores += row.scores or ()
    scored = [scores for _, scores in groups.values()] if all(row.scores is not None for row in rows) else None
    return {"rows": len(rows)} | figures([outputs for outputs, _ in groups.values()], ks, scored)


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
