"""Weighting: from advantages and current log-probabilities to gradient coefficients GC(q, o, t), in every micro-batch.

A weighting returns the coefficient, which carries no gradient and excludes the averaging weight 1/(G|o|), and sums over its
tokens for the log. Tensors pass through; torch itself is not imported, since parsing a configuration builds these cells.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rollout.config import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from learner.types import MicroBatch


class Need(StrEnum):
    """What a weighting reads besides advantages and current log-probabilities."""

    REFERENCE = "reference"
    """Log-probabilities under a frozen copy of the policy that the stage started from."""
    BEHAVIOUR_LOGPROBS = "behaviour_logprobs"
    """Log-probabilities recorded when the tokens were sampled, so not demonstrations."""
    OLD_LOGPROBS = "old_logprobs"
    """Log-probabilities recomputed by the learner before the batch's first update."""


class Plain(Strict):
    """The coefficient is the advantage: the objective is 1/|o| sum_t A_t log pi(o_t) (eq. 6-11)."""

    cell: Literal["plain"] = "plain"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    @property
    def formula(self) -> str:
        return "A"

    def __call__(self, logprob_N: "Tensor", micro: "MicroBatch") -> tuple["Tensor", dict[str, "Tensor"]]:
        return micro.advantage_N, {"objective": (micro.token_weight_N * micro.advantage_N * logprob_N).sum()}


class Clipped(Strict):
    """The clipped ratio of PPO and GRPO, with GRPO's KL term in the loss.

    The objective per token is min(rho A, clip(rho, 1 - clip, 1 + clip) A) - kl D, with rho = pi/pi_old and
    D = pi_ref/pi - log(pi_ref/pi) - 1 (eq. 3, 4); its derivative by log pi is the coefficient (eq. 21 when rho is 1).
    Clipping does not touch the KL term, and the KL term has no ratio on it.
    """

    cell: Literal["clipped"] = "clipped"
    clip: float = Field(0.2, gt=0.0)
    """The ratio is clipped to [1 - clip, 1 + clip]."""
    kl: float = Field(0.04, ge=0.0)
    """Weight of the KL term against the reference (beta); 0 needs no reference."""
    old: Literal["engine", "learner"] = "engine"
    """The ratio's denominator: recorded by the engine while sampling, or recomputed by the learner before the first update."""

    @property
    def needs(self) -> frozenset[Need]:
        old = Need.OLD_LOGPROBS if self.old == "learner" else Need.BEHAVIOUR_LOGPROBS
        return frozenset({old, Need.REFERENCE} if self.kl > 0 else {old})

    @property
    def formula(self) -> str:
        surrogate = f"[not clipped at {self.clip:g}] (pi/pi_old) A"
        return f"{surrogate} + {self.kl:g} (pi_ref/pi - 1)" if self.kl > 0 else surrogate

    def __call__(self, logprob_N: "Tensor", micro: "MicroBatch") -> tuple["Tensor", dict[str, "Tensor"]]:
        """The coefficient, and sums: objective (weighted by token_weight), ratio, clipped and, with kl > 0, kl (unweighted)."""
        ratio_N = (logprob_N - micro.old_logprob_N).exp()
        free_N = ratio_N * micro.advantage_N
        bound_N = ratio_N.clamp(1 - self.clip, 1 + self.clip) * micro.advantage_N
        clipped_N = bound_N < free_N
        coefficient_N = free_N.masked_fill(clipped_N, 0.0)
        objective_N = free_N.minimum(bound_N)
        sums = {"ratio": ratio_N.sum(), "clipped": clipped_N.sum()}
        if self.kl > 0:
            log_ref_over_pi_N = micro.reference_logprob_N - logprob_N
            excess_N = log_ref_over_pi_N.expm1()
            kl_N = excess_N - log_ref_over_pi_N
            coefficient_N = coefficient_N + self.kl * excess_N
            objective_N = objective_N - self.kl * kl_N
            sums["kl"] = kl_N.sum()
        return coefficient_N, {"objective": (micro.token_weight_N * objective_N).sum(), **sums}
