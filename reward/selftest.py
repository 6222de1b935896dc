"""The judge tried on the user's own questions before a run: what must be right is right, what must be wrong is wrong.

Every reference answer, stated as an output states it, is right. Wrong are: no output, another question's answer, a list of
candidates, and the right answer inside the reasoning with another one stated. What a judge says twice must be the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from reward.config import AnswerFormat, RewardConfig
from reward.judges import function_pool, rule_row
from reward.pool import Judge, Outcome
from rollout.types import Question

TRIED = 256
"""Questions that are tried for what must be wrong, evenly spread; the right answers are tried for all."""
SHOWN = 5


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
    try:
        with function_pool(config) as function:
            try_function(questions, config, function, rule, found)
    except ValueError as error:
        found.problems.append(f"reward.function: {error}")


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
    }  # fmt: skip
    _report(found, right, outcomes, lambda o: _correct(o) is True, "the reference answer itself is not judged right")
    _report(found, silent, read, lambda o: _correct(o) is not True, "no output is not judged wrong")
    for what, rows in wrong.items():
        _report(found, rows, _judged(judge, rows, config), lambda o: _correct(o) is False, f"{what} is not judged wrong")
    same = {id(b): (a.status, a.value) == (b.status, b.value) for a, b in zip(outcomes, again, strict=True)}
    _report(found, right, again, lambda o: same[id(o)], "the judge does not say the same twice")
    if not found.problems:
        count = len(silent) + sum(map(len, wrong.values()))
        found.facts.append(f"the judge: {len(right)} reference answers are right, {count} wrong answers are wrong")


def try_function(questions: Sequence[Question], config: RewardConfig, function: Judge, rule: Judge, found: Report) -> None:
    """Report of a reward function, on the reference answers as outputs and on empty ones."""
    tried = [questions[i] for i in range(0, len(questions), max(1, len(questions) // TRIED))]
    silent = [(question, "") for question in tried]
    golds = _references(tried, _judged(rule, silent, config))
    stating = [(question, stated(gold, config.answer_format)) for question, gold in zip(tried, golds, strict=True)]
    first, again, empty = (_scored(function, rows) for rows in (stating, stating, silent))
    _report(found, stating, first, lambda o: o.status == "score", "reward.function gives no score")
    _report(found, silent, empty, lambda o: o.status == "score", "reward.function gives no score to an empty output")
    same = {id(b): a.value == b.value for a, b in zip(first, again, strict=True)}
    _report(found, stating, again, lambda o: same[id(o)], "reward.function does not say the same twice")
    if found.problems:
        return
    names = {", ".join(sorted(o.value)) for o in (*first, *empty)}
    weighed = ", ".join(sorted(config.weights))
    if len(names) > 1 or weighed and names != {weighed}:
        expected = f"those of reward.weights, {weighed}" if weighed else "the same for every output"
        found.problems.append(f"reward.function returns components {'; or '.join(sorted(names))}; expected {expected}")
        return
    if "correct" not in first[0].value and any(_problem(o) for o in _judged(rule, stating, config)):
        expected = "expected a component `correct` (0 or 1), or reference answers that the rule can judge"
        found.problems.append(f"reward.function: evaluation must know what is correct: found {', '.join(names)}; {expected}")
    if all(a.value == b.value for a, b in zip(first, empty, strict=True)):
        found.warnings.append("reward.function gives the reference answers what it gives empty outputs")
    found.facts.append(f"reward.function: {', '.join(names)}, tried on {len(tried)} questions")


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


def _scored(function: Judge, rows: Sequence[tuple[Question, str]]) -> list[Outcome]:
    return function([{"question": question.text, "output": text, "gold": question.gold} for question, text in rows])


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
) -> None:
    """A problem that names the first rows whose outcome is not good, if there are any."""
    bad = [(question, text, outcome) for (question, text), outcome in zip(rows, outcomes, strict=True) if not good(outcome)]
    lines = [f"{len(bad)} {'question' if len(bad) == 1 else 'questions'}: {what}"]
    for question, text, outcome in bad[:SHOWN]:
        said = outcome.reason.strip() or f"judged {outcome.value}"
        lines.append(f"  {question.id}, answer {question.gold[-60:]!r}, output {text[:60]!r}: {said}")
    if bad:
        found.problems.append("\n".join([*lines, *([f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else [])]))
