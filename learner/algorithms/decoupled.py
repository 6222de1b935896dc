"""Credit for rewards with several named components, each normalised by itself."""

from typing import ClassVar, Literal

from pydantic import Field

from learner.algorithms.cells import Objection, Plan, Signals
from learner.algorithms.credit import Advantages, Batch, RewardSource, WithinGroup, centred, deviation, name_of
from reward.types import ScoredSample
from rollout.rounding import apart
from rollout.strict import nearest


class DecoupledGroupRelative(WithinGroup):
    """GDPO (arXiv 2601.05242): every component is normalised within the group, and the weighted sum over the whole batch.

    Summed rewards lose differences: with weights 1, right and long (1 + 0) cannot be told from wrong and short (0 + 1). Here
    each component keeps its own scale. The advantage is the same for every token.
    """

    rewards: ClassVar[frozenset[RewardSource]] = frozenset({"rule"})
    cell: Literal["decoupled_group_relative"] = "decoupled_group_relative"
    formula: ClassVar[str] = "sum of w_k (r_k - mean) / std over the components, normalised over the batch"
    weights: dict[str, float] = Field(min_length=1)
    """Weight of each component that counts, by its name in the samples' `components`."""

    def __call__(self, batch: Batch, signals: Signals) -> Advantages:
        """Raises ValueError as the others do, and for an output without one of the components."""
        advantages = super().__call__(batch, signals)
        values = [advantage[0] for advantage in advantages if advantage]
        scale = deviation(centred(values)) if apart(values) else 1.0
        # Each group's mean is 0 already, so that equal rewards stay at exactly 0.
        return [None if a is None else tuple(x / scale for x in a) for a in advantages]

    def contradictions(self, plan: Plan) -> list[Objection]:
        """Components that it would look for in vain among the rule's; those of a user's function are not known."""
        known = ("correct", "format", *(("observed",) if plan.reward.flip_share else ()))
        unknown = [name for name in self.weights if plan.reward.function is None and name not in known]
        expected = f"expected components of the rule: {', '.join(known)}"
        whys = (f"found '{name}'; {expected}{nearest(name, known)}" for name in unknown)
        return super().contradictions(plan) + [(("credit", "weights"), why) for why in whys]

    def _relative(self, group: list[ScoredSample]) -> Advantages:
        totals, terms = [0.0] * len(group), []
        for name, weight in self.weights.items():
            values = [_component(item, name) for item in group]
            parts = centred(values)
            if any(parts):
                factor = weight / deviation(parts)
                totals = [total + factor * part for total, part in zip(totals, parts, strict=True)]
                terms += [factor * value for value in values]
        # Components may cancel each other.
        totals = centred(totals, terms)
        return [(total,) * len(item.sample.output_ids) for item, total in zip(group, totals, strict=True)]


def _component(item: ScoredSample, name: str) -> float:
    parts = item.verdict.components
    if name not in parts:
        raise ValueError(f"{name_of(item.sample)}: found components {', '.join(parts) or 'none'}, expected {name!r} among them")
    return parts[name]
