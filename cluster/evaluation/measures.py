"""Accuracy over held-out questions: greedy, sampled, pass@k and maj@k. Pure logic over a generate and a score callable.

An output that has no verdict counts as wrong, and how many there are is said beside: an evaluation never gets better by losing
the hard ones. How many a run bears is bounded where they are judged (`cluster.fleet.sampler.Bound`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from cluster.fleet.sampler import leases
from reward.statistics.at_k import maj_at_k, pass_at_k
from reward.types import ScoredGroup, ScoredSample
from rollout.types import FinishReason, Group, Lease, Question, Sampling

Generate = Callable[[list[Lease], Sampling], list[Group]]
"""A group a lease, in order."""
Score = Callable[[Sequence[Group]], list[ScoredGroup]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a question set says of one policy version. Shares are in 0..1; None where nothing was judged at all."""

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
    """pass@k, unbiased, for k = 1, 2, 4, ... up to `samples`."""
    maj_at: dict[int, float]
    """maj@k, for the same k."""
    well_formed: float | None
    """Share of the sampled outputs that have the asked form."""
    truncated: float | None
    """Share of the sampled outputs that ran out of tokens."""
    response_length: float | None
    """Mean tokens of a sampled output."""
    unjudged: int
    """Outputs, greedy ones included, without a verdict: they count as wrong."""

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
        outputs = self.n * (self.samples + 1)
        lost = [f"{self.unjudged} of {outputs} outputs have no verdict and count as wrong"] if self.unjudged else []
        parts += [f"well-formed {_show(self.well_formed)}", *lost]
        return f"evaluation {self.label}: {', '.join(parts)}"


def evaluate(
    questions: Sequence[Question], *, samples: int, sampling: Sampling, generate: Generate, score: Score, label: str
) -> tuple[Evaluation, list[dict[str, object]], list[ScoredGroup]]:
    """Ask every question once greedily and `samples` times with `sampling`.

    Returns the result, a record per question, and the sampled groups.

    `label` names the groups, and so fixes the seeds: under one label two policies draw the same random numbers.
    """
    greedy_sampling = Sampling(temperature=0.0, max_new_tokens=sampling.max_new_tokens)
    greedy = ask(questions, f"{label}/greedy", 1, greedy_sampling, generate, score)
    sampled = ask(questions, f"{label}/sampled", samples, sampling, generate, score)
    every = [s for group in sampled for s in group.scored]
    unjudged = [s for group in (*greedy, *sampled) for s in group.scored if s.verdict.status != "score"]
    outputs = len(questions) * (samples + 1)
    shares = [_mean([_correct(s) is True for s in group.scored]) for group in sampled] if len(unjudged) < outputs else []
    accuracy, error = _mean(shares), _standard_error(shares)
    pass_at, maj_at = _at_ks(sampled, [2**i for i in range(samples.bit_length())]) if shares else ({}, {})
    result = Evaluation(
        label=label,
        n=len(questions),
        samples=samples,
        greedy_accuracy=_mean([_correct(s) is True for group in greedy for s in group.scored]) if shares else None,
        accuracy=accuracy,
        accuracy_standard_error=error,
        accuracy_interval=None if error is None else (max(0.0, accuracy - 1.96 * error), min(1.0, accuracy + 1.96 * error)),
        pass_at=pass_at,
        maj_at=maj_at,
        well_formed=_mean([s.verdict.components.get("format", 0.0) for s in every]) if shares else None,
        truncated=_mean([s.sample.finish_reason is FinishReason.LENGTH for s in every]),
        response_length=_mean([len(s.sample.output_ids) for s in every]),
        unjudged=len(unjudged),
    )
    return result, list(map(_record, greedy, sampled)), sampled


def ask(
    questions: Sequence[Question], label: str, samples: int, sampling: Sampling, generate: Generate, score: Score
) -> list[ScoredGroup]:
    """The scored outputs of every question, in order."""
    return score(generate(leases(questions, label, samples), sampling))


def _at_ks(groups: list[ScoredGroup], ks: list[int]) -> tuple[dict[int, float], dict[int, float]]:
    marks = [[_correct(s) for s in group.scored] for group in groups]
    answers = [[s.verdict.value for s in group.scored] for group in groups]
    pass_at = {k: _mean([pass_at_k(len(mark), mark.count(True), k) for mark in marks]) for k in ks}
    maj_at = {k: _mean([maj_at_k(a, mark, k, 0).value for a, mark in zip(answers, marks, strict=True)]) for k in ks}
    return pass_at, maj_at


def _record(greedy: ScoredGroup, sampled: ScoredGroup) -> dict[str, object]:
    def outputs(group: ScoredGroup) -> list[dict[str, object]]:
        return [
            {
                "index": s.sample.index,
                "text": s.sample.text,
                "extracted": s.verdict.extracted,
                "status": s.verdict.status,
                "correct": _correct(s),
                "reason": s.verdict.reason,
            }
            for s in group.scored
        ]

    question = greedy.question
    names = {"id": question.id, "ordinal": question.ordinal, "question": question.text, "gold": question.gold}
    return names | {"greedy": outputs(greedy), "sampled": outputs(sampled)}


def _correct(scored: ScoredSample) -> bool | None:
    """None without a verdict."""
    return scored.verdict.components["correct"] == 1.0 if scored.verdict.status == "score" else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _standard_error(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    centre = _mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1) / len(values))


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
