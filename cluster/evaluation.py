"""Accuracy over held-out questions: greedy, sampled, pass@k and maj@k. Pure logic over a generate and a score callable.

An output that was not made or could not be judged is counted apart and left out of every average: it is never a wrong answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from cluster.sources import by_ordinal, leases
from reward.at_k import maj_at_k, pass_at_k
from reward.types import ScoredSample
from rollout.types import FinishReason, Lease, Question, Sample, Sampling

Generate = Callable[[list[Lease], Sampling], list[Sample]]
"""Outputs for the leases, in any order."""
Score = Callable[[Sequence[Question], Sequence[Sample]], list[ScoredSample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a question set says of one policy version. Shares are in 0..1; None where nothing could be judged."""

    label: str
    n: int
    """Questions asked."""
    samples: int
    """Sampled outputs per question."""
    greedy_accuracy: float | None
    accuracy: float | None
    """Mean over questions of the share of sampled outputs that are correct."""
    accuracy_standard_error: float | None
    """Over questions: the outputs of one question are not independent."""
    accuracy_interval: tuple[float, float] | None
    """95%, normal approximation."""
    pass_at: dict[int, float]
    """pass@k, unbiased, for k = 1, 2, 4, ... up to `samples`, over the questions with k judged outputs."""
    maj_at: dict[int, float]
    """maj@k, for the same k."""
    well_formed: float | None
    """Share of the judged sampled outputs that have the asked form."""
    truncated: float | None
    """Share of the sampled outputs that ran out of tokens."""
    response_length: float | None
    """Mean tokens of a sampled output."""
    unjudged: int
    """Outputs, greedy ones included, that are missing or without a score: in no average above."""

    def summary(self) -> dict[str, object]:
        """A flat row: `pass_at` becomes pass_at_1, pass_at_2, ..."""
        nested = ("pass_at", "maj_at")
        row = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in nested}
        return row | {f"{name}_{k}": value for name in nested for k, value in getattr(self, name).items()}

    def line(self) -> str:
        """For the console."""
        spread = "" if self.accuracy_standard_error is None else f" ± {1.96 * self.accuracy_standard_error:.3f}"
        parts = [f"{self.n} questions", f"sampled {_show(self.accuracy)}{spread}", f"greedy {_show(self.greedy_accuracy)}"]
        if self.pass_at and (k := max(self.pass_at)) > 1:
            parts += [f"maj@{k} {_show(self.maj_at[k])}", f"pass@{k} {_show(self.pass_at[k])}"]
        parts += [f"well-formed {_show(self.well_formed)}", *([f"{self.unjudged} unjudged"] if self.unjudged else [])]
        return f"evaluation {self.label}: {', '.join(parts)}"


def evaluate(
    questions: Sequence[Question], *, samples: int, sampling: Sampling, generate: Generate, score: Score, label: str
) -> tuple[Evaluation, list[dict[str, object]], list[ScoredSample]]:
    """Ask every question once greedily and `samples` times with `sampling`.

    Returns the result, a record per question, and the sampled outputs.

    `label` names the groups, and so fixes the seeds: under one label two policies draw the same random numbers.
    """
    greedy_sampling = Sampling(temperature=0.0, max_new_tokens=sampling.max_new_tokens)
    greedy = ask(questions, f"{label}/greedy", 1, greedy_sampling, generate, score)
    sampled = ask(questions, f"{label}/sampled", samples, sampling, generate, score)
    judged = {q.ordinal: [s for s in sampled[q.ordinal] if s.verdict.status == "score"] for q in questions}
    judged_greedy = [s for q in questions for s in greedy[q.ordinal] if s.verdict.status == "score"]
    every, every_judged = ([s for group in groups.values() for s in group] for groups in (sampled, judged))
    shares = [_mean([_correct(s) for s in group]) for group in judged.values() if group]
    accuracy, error = _mean(shares), _standard_error(shares)
    ks = [2**i for i in range(samples.bit_length())]
    pass_at, maj_at = _at_ks(list(judged.values()), ks)
    result = Evaluation(
        label=label,
        n=len(questions),
        samples=samples,
        greedy_accuracy=_mean([_correct(s) for s in judged_greedy]),
        accuracy=accuracy,
        accuracy_standard_error=error,
        accuracy_interval=None if error is None else (max(0.0, accuracy - 1.96 * error), min(1.0, accuracy + 1.96 * error)),
        pass_at=pass_at,
        maj_at=maj_at,
        well_formed=_mean([s.verdict.components["format"] for s in every_judged]),
        truncated=_mean([s.sample.finish_reason is FinishReason.LENGTH for s in every]),
        response_length=_mean([len(s.sample.output_ids) for s in every]),
        unjudged=len(questions) * (samples + 1) - len(every_judged) - len(judged_greedy),
    )
    return result, [_record(q, greedy[q.ordinal], sampled[q.ordinal]) for q in questions], every


def ask(
    questions: Sequence[Question], label: str, samples: int, sampling: Sampling, generate: Generate, score: Score
) -> dict[int, list[ScoredSample]]:
    """The scored outputs of every question, by ordinal, in the order of their indices."""
    groups = by_ordinal(score(questions, generate(leases(questions, label, samples), sampling)))
    return {q.ordinal: groups.get(q.ordinal, []) for q in questions}


def _at_ks(groups: list[list[ScoredSample]], ks: list[int]) -> tuple[dict[int, float], dict[int, float]]:
    pass_at, maj_at = {}, {}
    for k in ks:
        enough = [group for group in groups if len(group) >= k]
        if enough:
            marks = [[_correct(s) for s in group] for group in enough]
            pass_at[k] = _mean([pass_at_k(len(mark), sum(mark), k) for mark in marks])
            answers = [[s.verdict.value for s in group] for group in enough]
            maj_at[k] = _mean([maj_at_k(a, mark, k, 0).value for a, mark in zip(answers, marks, strict=True)])
    return pass_at, maj_at


def _record(question: Question, greedy: list[ScoredSample], sampled: list[ScoredSample]) -> dict[str, object]:
    def outputs(group: list[ScoredSample]) -> list[dict[str, object]]:
        return [
            {
                "index": s.sample.index,
                "text": s.sample.text,
                "extracted": s.verdict.extracted,
                "status": s.verdict.status,
                "correct": _correct(s) if s.verdict.status == "score" else None,
                "reason": s.verdict.reason,
            }
            for s in group
        ]

    names = {"id": question.id, "ordinal": question.ordinal, "question": question.text, "gold": question.gold}
    return names | {"greedy": outputs(greedy), "sampled": outputs(sampled)}


def _correct(scored: ScoredSample) -> bool:
    return scored.verdict.components["correct"] == 1.0


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _standard_error(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    centre = _mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1) / len(values))


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
