"""Accuracy over held-out questions: greedy, sampled, pass@k and maj@k. Pure logic over a generate and a score callable.

An output that has no verdict counts as wrong, and how many there are is said beside: an evaluation never gets better by losing
the hard ones. How many a run bears is bounded where they are judged (`cluster.fleet.sampler.Bound`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields

from cluster.fleet.sampler import leases
from reward.statistics.figures import Accuracy, Judged, accuracy, maj_at, pass_at, up_to
from reward.types import ScoredGroup, ScoredSample, samples_of
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
    greedy: Accuracy | None
    sampled: Accuracy | None
    """Of all sampled outputs."""
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
        nested = ("greedy", "sampled", "pass_at", "maj_at")
        row = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in nested}
        shares = {
            "greedy_accuracy": self.greedy and self.greedy.share,
            "accuracy": self.sampled and self.sampled.share,
            "accuracy_standard_error": self.sampled and self.sampled.standard_error,
            "accuracy_interval": self.sampled and self.sampled.interval,
        }
        at_k = {f"{name}_{k}": value for name in ("pass_at", "maj_at") for k, value in getattr(self, name).items()}
        return row | shares | at_k

    def line(self) -> str:
        """For the console."""
        parts = [f"{self.n} questions", f"sampled {self.sampled or '-'}", f"greedy {_show(self.greedy and self.greedy.share)}"]
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
    every = samples_of(sampled)
    unjudged = sum(s.verdict.status != "score" for s in samples_of((*greedy, *sampled)))
    outputs = [judged(group) for group in sampled] if unjudged < len(questions) * (samples + 1) else []
    result = Evaluation(
        label=label,
        n=len(questions),
        samples=samples,
        greedy=accuracy([judged(group) for group in greedy]) if outputs else None,
        sampled=accuracy(outputs),
        pass_at=pass_at(outputs, up_to(samples) if outputs else ()),
        maj_at=maj_at(outputs, up_to(samples) if outputs else ()),
        well_formed=_mean([s.verdict.components.get("format", 0.0) for s in every]) if outputs else None,
        truncated=_mean([s.sample.finish_reason is FinishReason.LENGTH for s in every]),
        response_length=_mean([len(s.sample.output_ids) for s in every]),
        unjudged=unjudged,
    )
    return result, [record(a, greedy=a, sampled=b) for a, b in zip(greedy, sampled, strict=True)], sampled


def ask(
    questions: Sequence[Question], label: str, samples: int, sampling: Sampling, generate: Generate, score: Score
) -> list[ScoredGroup]:
    """The scored outputs of every question, in order."""
    return score(generate(leases(questions, label, samples), sampling))


def judged(group: ScoredGroup) -> list[Judged]:
    return [Judged.of(scored) for scored in group.scored]


def record(group: ScoredGroup, **outputs: ScoredGroup) -> dict[str, object]:
    """A row of a file of outputs: the question, and by name the outputs of a group with what came of them."""
    question = group.question
    names: dict[str, object] = {
        "id": question.id,
        "ordinal": question.ordinal,
        "question": question.text,
        "gold": question.gold,
    }
    return names | {name: [_output(scored) for scored in other.scored] for name, other in outputs.items()}


def _output(scored: ScoredSample) -> dict[str, object]:
    sample = scored.sample
    made = {"index": sample.index, "text": sample.text, "tokens": len(sample.output_ids), "finish_reason": sample.finish_reason}
    return made | asdict(Judged.of(scored))


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
