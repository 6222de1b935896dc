"""What weightings of the ratio pi/pi_old share, and what corrects for mu, the policy that sampled, where pi_old is another one.

Engines round otherwise than the learner, and in asynchronous training they sample with older weights. A behaviour weight is
made of pi_old/mu, does not change between a batch's updates, carries no gradient and multiplies the advantage; the KL term
against the reference is left as it is, and a token that weighs 0 keeps its place in the averages.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from learner.algorithms.cells import Cell, Need
from rollout.strict import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from learner.types import PolicyBatch

Weighted = tuple["Tensor", dict[str, "Tensor"]]
"""(N,) coefficients or weights, and sums for the log."""


class Behaviour(Strict):
    """pi_old/mu as a weight: inside [low, high] as it is, outside truncated to the bound, or masked to 0.

    Truncated, it is importance sampling with min(pi_old/mu, C) (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings
    You Off-Policy RL Training"); by token and without bounds AReaL's decoupled objective, pi_old its proximal policy (arXiv
    2505.24298). Masked, it is IcePop by token (arXiv 2510.18855), and by sequence the masked importance sampling of Liu, Li
    et al. (2025, "When Speed Kills Stability").
    """

    cell: Literal["truncated", "masked"]
    """What a ratio outside of the bounds weighs: the bound, or nothing."""
    unit: Literal["token", "sequence"] = "token"
    """The ratio is a token's own, or the product over its output's trained tokens: only that one has no bias before it is
    bounded, and its variance grows with the length (Liu, Li et al.)."""
    low: float = Field(default=0.0, ge=0.0, le=1.0)
    """Lower bound."""
    high: float | None = Field(default=2.0, ge=1.0)
    """null for no upper bound."""

    @property
    def formula(self) -> str:
        ratio = "pi_old/mu" if self.unit == "token" else "prod(pi_old/mu)"
        return f"{self.cell}({ratio}, {self.low:g}, {self.high or math.inf:g})"

    def __call__(self, micro: "PolicyBatch") -> Weighted:
        """(N,) weights, and sums: of them, of their squares, and of the tokens where a bound acts."""
        log_N, low, high = micro.old_logprob_N - micro.behaviour_logprob_N, self.low, self.high or math.inf
        ratio_N = (log_N if self.unit == "token" else total(log_N, micro.sample_N)).exp()
        cut_N = (ratio_N < low) | (ratio_N > high)
        weight_N = ratio_N.clamp(low, high) if self.cell == "truncated" else ratio_N.masked_fill(cut_N, 0.0)
        return weight_N, {"behaviour": weight_N.sum(), "behaviour_square": weight_N.square().sum(), "cut": cut_N.sum()}


class Ratio(Cell):
    """A weighting that reads the ratio pi/pi_old, and whose objective is proportional to the advantage but for a KL term."""

    old: Literal["engine", "learner"] = "engine"
    """pi_old: recorded by the engine while sampling, or recomputed by the learner before the batch's first update."""
    behaviour: Behaviour | None = None
    """With old: learner, the weight of each token's advantage that corrects for what sampled. None: as if pi_old had."""

    @model_validator(mode="after")
    def _behaviour_is_another(self):
        if self.behaviour and self.old == "engine":
            raise ValueError(f"behaviour {self.behaviour.cell}: found old: engine, which is mu itself; expected old: learner")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        old = Need.OLD_LOGPROBS if self.old == "learner" else Need.BEHAVIOUR_LOGPROBS
        return frozenset({old, Need.BEHAVIOUR_LOGPROBS} if self.behaviour else {old})

    @property
    def weighted(self) -> str:
        """The advantage as a formula has it."""
        return f"{self.behaviour.formula} A" if self.behaviour else "A"

    def of_old(self, logprob_N: "Tensor", micro: "PolicyBatch") -> Weighted:
        """The coefficient, and sums, for samples of pi_old."""
        raise NotImplementedError

    def __call__(self, logprob_N: "Tensor", micro: "PolicyBatch") -> Weighted:
        weight_N, sums = self.behaviour(micro) if self.behaviour else (1.0, {})
        coefficient_N, more = self.of_old(logprob_N, replace(micro, advantage_N=weight_N * micro.advantage_N))
        return coefficient_N, sums | more


def total(value_N: "Tensor", unit_N: "Tensor") -> "Tensor":
    """(N,) at each token, the sum over all tokens of its unit (an output, a pair), which lie in the same micro-batch."""
    _, inverse_N = unit_N.unique(return_inverse=True)
    return value_N.new_zeros(len(value_N)).index_add(0, inverse_N, value_N)[inverse_N]
