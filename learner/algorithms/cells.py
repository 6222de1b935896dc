"""What credits and weightings have in common: what they need, and how they object to a stage that cannot have them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from reward.config import RewardConfig
from rollout.strict import Strict


class Need(StrEnum):
    """What a cell reads besides rewards, advantages and current log-probabilities."""

    REFERENCE = "reference"
    """Log-probabilities under a frozen copy of the policy that the stage started from."""
    BEHAVIOUR_LOGPROBS = "behaviour_logprobs"
    """Log-probabilities recorded when the tokens were sampled, so not demonstrations."""
    OLD_LOGPROBS = "old_logprobs"
    """Log-probabilities recomputed by the learner before the batch's first update."""
    CRITIC = "critic"
    """A value for every output token, from a second model that is trained beside the policy."""
    TEACHER = "teacher"
    """Log-probabilities under another model, which the recipe names and nothing trains."""


PerToken = Sequence[tuple[float, ...] | None]
"""Per sample of a batch, in order: a number for each output token, or None for a sample that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What models say of a batch before its first update, for a credit that needs it; None for what was not asked or judged."""

    old_logprobs: PerToken
    """log pi_old, of the policy that sampled."""
    reference_logprobs: PerToken
    """log pi_ref."""
    values: PerToken
    """The critic's V(q, o_<t), before the token is chosen."""
    teacher_logprobs: PerToken
    """log p_T, of the teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a stage wants of its row."""

    group_size: int
    """Outputs of a question that are trained together."""
    updates_per_batch: int
    on_policy: bool
    """Each step's outputs are sampled from the policy that the last step made."""
    reward: RewardConfig
    max_staleness: int = 0
    """Or from one that so many steps more made."""


Objection = tuple[tuple[str, ...], str]
"""A key of the stage that cannot be as planned, and why."""


class Cell(Strict):
    """A credit or a weighting. Its field `cell` is its name in a recipe; its other fields are the hyperparameters."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def contradictions(self, plan: Plan) -> list[Objection]:
        """What of the plan it cannot work with."""
        return []
