"""The judge tried on the user's own questions before a run: what must be right is right, what must be wrong is wrong.

Every reference answer, stated as an output states it, is right. Wrong are: no output, another question's answer, a list of
candidates, and the right answer inside the reasoning with another one stated. What a judge says twice must be the same.
"""

import difflib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reward.config import AnswerFormat, RewardConfig
from reward.judging.judges import Function, function_of, function_pool, rule_row
from reward.judging.pool import Judge, Outcome
from reward.judging.pool_process import KEPT
from reward.judging.user_function import ONE, Wants
from rollout.types import Question

TRIED = 256
"""Questions that are tried for what must be wrong, evenly spread; the right answers are tried for all."""
SHOWN = 5
TRIAL_SECONDS = 120
"""After these a reward function is tried on no further question."""
PROGRESS_SECONDS = 5
log = logging.getLogger("cohort")


@dataclass(slots=True)
class Report:
    """What a check found. A run can start when there are no problems."""

    facts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def self_test(questions: Sequence[Question], config: RewardConfig, rule: Judge, found: Report) -> None:
    """Try the rule or, where there is one, the reward function, in a pool of its own. `rule` judges by the rule."""
    if config.function is None:
        try_rule(questions, config, rule, found)
        return
    with tempfile.TemporaryDirectory(prefix="cohort-check-") as folder:
        printed = Path(folder) / "printed"
        try:
            with function_pool(config, printed) as pool:
                try_function(questions, config, function_of(pool), rule, found)
        except ValueError as error:
            found.problems.append(f"reward.function: {error}")
        lines = printed.read_text(errors="replace").splitlines() if printed.exists() else []
    if lines:
        more = [f"  and {len(lines) - SHOWN} lines more"] if len(lines) > SHOWN else []
        shown = [f"  {line[:200]}" for line in lines[:SHOWN]] + more
        found.facts.append("\n".join(["reward.function prints (in a run, to RUN/logs):", *shown]))


def try_rule(questions: Sequence[Question], config: RewardConfig, judge: Judge, found: Report) -> None:
    """Report of the rule on these questions."""
    form, silent = config.answer_format, [(question, "") for question in questions]
    read = _judged(judge, silent, config)
    _report(found, silent, read, lambda o: o.status == "score", "the reference answer cannot be read")
    if found.problems:
        return
    golds = _references(questions, read)
    right = [(question, stated(gold, form)) for question, gold in zip(questions, golds, strict=True)]
    outcomes, again = _judged(judge, right, config), _judged(judge, right, config)
    others = _others(golds, [o.value and o.value["value"] for o in outcomes])
    tried = [i for i in range(0, len(questions), max(1, len(questions) // TRIED)) if others[i]]
    wrong = {
        "another question's answer": [(questions[i], stated(others[i], form)) for i in tried],
        "a list of candidates": [(questions[i], stated(f"{golds[i]}, {golds[i]}, {others[i]}", form)) for i in tried],
        "the right answer in the reasoning, another one stated": [
            (questions[i], f"It might be {golds[i]}.\n{stated(others[i], form)}") for i in tried
        ],
    }
    _report(found, right, outcomes, lambda o: _correct(o) is True, "the reference answer itself is not judged right")
    _report(found, silent, read, lambda o: _correct(o) is not True, "no output is not judged wrong")
    for what, rows in wrong.items():
        _report(found, rows, _judged(judge, rows, config), lambda o: _correct(o) is False, f"{what} is not judged wrong")
    same = {id(b): (a.status, a.value) == (b.status, b.value) for a, b in zip(outcomes, again, strict=True)}
    _report(found, right, again, lambda o: same[id(o)], "the judge does not say the same twice")
    if not found.problems:
        count = len(silent) + sum(map(len, wrong.values()))
        found.facts.append(f"the judge: {len(right)} reference answers are right, {count} wrong answers are wrong")


def try_function(questions: Sequence[Question], config: RewardConfig, function: Function, rule: Judge, found: Report) -> None:
    """Report of a reward function, on the reference answers as outputs and on empty ones: a few first, as one that hangs or
    fails does so at once, then as many as `TRIED` and `TRIAL_SECONDS` allow."""
    _check_columns(questions, function.wants, found)
    if found.problems:
        return
    tried = [questions[i] for i in range(0, len(questions), max(1, len(questions) // TRIED))]
    silent = [(question, "") for question in tried]
    golds = _references(tried, _judged(rule, silent, config))
    stating = [(question, stated(gold, config.answer_format)) for question, gold in zip(tried, golds, strict=True)]
    first: list[Outcome] = []
    empty: list[Outcome] = []
    for part in _parts(len(tried), config.judges):
        for rows, kept, whose in ((stating[part], first, ""), (silent[part], empty, " to an empty output")):
            kept += function(rows)
            _report(found, rows, kept[part], lambda o: o.status == "score", f"reward.function gives no score{whose}", config)
            if found.problems:
                return
        again = function(stating[part])
        changed = {id(b) for a, b in zip(first[part], again, strict=True) if a.value != b.value}
        _report(found, stating[part], again, lambda o: id(o) not in changed, "reward.function does not say the same twice")  # noqa: B023
        if found.problems:
            return
    _check_components(config, first, empty, found)
    if found.problems:
        return
    if "correct" not in first[0].value and any(_problem(o) for o in _judged(rule, stating[: len(first)], config)):
        expected = "expected a component `correct` (0 or 1), or reference answers that the rule can judge"
        names = ", ".join(sorted(first[0].value))
        found.problems.append(f"reward.function: evaluation must know what is correct: found {names}; {expected}")


def _parts(count: int, judges: int) -> Iterator[slice]:
    """Slices of `count` rows that grow as long as they are done in seconds; says how far it is."""
    began = told = time.monotonic()
    start, size = 0, judges
    while start < count:
        if start and (now := time.monotonic()) - began > TRIAL_SECONDS:
            return
        if start and now - told > PROGRESS_SECONDS:
            log.info("reward.function: tried on %d of %d questions", start, count)
            told = now
        yield slice(start, min(start + size, count))
        start += size
        rate = start / (time.monotonic() - began + 1e-9)
        size = max(judges, min(4 * size, int(PROGRESS_SECONDS * rate)))


def _check_columns(questions: Sequence[Question], wants: Wants, found: Report) -> None:
    """Every row has the columns that the function cannot do without."""
    for name in wants.required:
        bad = [question for question in questions if wants.column(name, question.columns) is None]
        if bad:
            present = sorted(bad[0].columns)
            near = difflib.get_close_matches(name, [*ONE, *present], n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = f"expected {', '.join(ONE)} or a column: {', '.join(present) or 'there is none'}"
            rows = f"{len(bad)} of {len(questions)} rows, the first {bad[0].id}"
            found.problems.append(f"reward.function: parameter {name!r}: no such column in {rows}; {known}{hint}")


def _check_components(config: RewardConfig, first: Sequence[Outcome], empty: Sequence[Outcome], found: Report) -> None:
    names = {", ".join(sorted(o.value)) for o in (*first, *empty)}
    weighed = ", ".join(sorted(config.weights))
    if len(names) > 1 or weighed and names != {weighed}:
        expected = f"those of reward.weights, {weighed}" if weighed else "the same for every output"
        found.problems.append(f"reward.function returns components {'; or '.join(sorted(names))}; expected {expected}")
        return
    if all(a.value == b.value for a, b in zip(first, empty, strict=True)):
        found.warnings.append("reward.function gives the reference answers what it gives empty outputs")
    found.facts.append(f"reward.function: {', '.join(names)}, tried on {len(first)} questions")


def stated(answer: str, form: AnswerFormat) -> str:
    """The answer as an output states it."""
    return {"hash": "#### {}", "boxed": r"\boxed{{{}}}", "auto": r"\boxed{{{}}}"}.get(form, "The answer is {}.").format(answer)


def _references(questions: Sequence[Question], read: Sequence[Outcome]) -> list[str]:
    """The reference answers without what stands around them; as they are where the rule could not read them."""
    return [o.value["reference"] if o.status == "score" else q.gold for q, o in zip(questions, read, strict=True)]


def _others(golds: Sequence[str], values: Sequence[str | None]) -> list[str]:
    """For each answer the next one with another value; empty where there is none."""
    out, after = [""] * len(golds), ""
    for i in reversed(range(2 * len(golds))):
        here, following = i % len(golds), (i + 1) % len(golds)
        after = golds[following] if values[following] != values[here] else after
        out[here] = after
    return out


def _judged(judge: Judge, rows: Sequence[tuple[Question, str]], config: RewardConfig) -> list[Outcome]:
    return judge([rule_row(text, question.gold, config) for question, text in rows])


def _problem(outcome: Outcome) -> str | None:
    return outcome.reason or outcome.value["problem"]


def _correct(outcome: Outcome) -> bool | None:
    return None if outcome.status != "score" or outcome.value["problem"] else outcome.value["correct"]


def _report(
    found: Report,
    rows: Sequence[tuple[Question, str]],
    outcomes: Sequence[Outcome],
    good: Callable[[Outcome], bool],
    what: str,
    config: RewardConfig | None = None,
) -> None:
    """A problem that names the first rows whose outcome is not good, if there are any: what went wrong in a line each, and
    the first one's traceback once. With `config`, also what setting may be missing."""
    bad = [(question, text, outcome) for (question, text), outcome in zip(rows, outcomes, strict=True) if not good(outcome)]
    if not bad:
        return
    lines = [f"{len(bad)} {'question' if len(bad) == 1 else 'questions'}: {what}"]
    for question, text, outcome in bad[:SHOWN]:
        said = outcome.reason.strip().partition("\n")[0] or f"judged {outcome.value}"
        lines.append(f"  {question.id}, answer {question.gold[-60:]!r}, output {text[:60]!r}: {said}")
    lines += [f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    said, _, traceback = bad[0][2].reason.strip().partition("\n")
    lines += [_hint(said, config)] if config and _hint(said, config) else []
    found.problems.append("\n".join([*lines, *([traceback] if traceback else [])]))


def _hint(said: str, config: RewardConfig) -> str:
    """What a failure may come from that a setting mends."""
    given = {*KEPT, *config.environment}
    if hidden := [name for name in re.findall(r"\b[A-Z][A-Z0-9_]{3,}\b", said) if name in os.environ and name not in given]:
        return f"  a function has no variable that is not asked for: reward.environment: [{', '.join(dict.fromkeys(hidden))}]"
    if not config.network and re.search("not permitted|name resolution|gaierror|ConnectionError|ConnectError", said):
        return "  a function has no network unless it is asked for: reward.network: true"
    return ""
