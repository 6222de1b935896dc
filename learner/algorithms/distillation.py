"""Distillation: what another model, the teacher, says of the outputs that the policy sampled, as credit or as weighting."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from learner.algorithms.behaviour import Weighted
from learner.algorithms.cells import Need, Objection, Plan, Signals
from learner.algorithms.credit import Advantages, Batch, Credit, has_score, per_token
from learner.algorithms.weighting import Averaged
from reward.types import samples_of

if TYPE_CHECKING:
    from torch import Tensor

    from learner.types import OutcomeBatch


class ReverseKL(Credit):
    """A_t = log p_T(o_t | q, o_<t) - log pi_old(o_t | q, o_<t), p_T being the teacher (on-policy distillation).

    Over outputs of pi_old its mean is -KL(pi_old || p_T) of each token, and E[A_t grad log pi(o_t)] the gradient of that: GKD
    (arXiv 2306.13649) with the reverse KL on the policy's own outputs, or MiniLLM (arXiv 2306.08543) with a discount of 0, by
    which no token answers for later ones (Thinking Machines 2025, "On-Policy Distillation"). Rewards are measured and not read;
    an output without one is left out all the same.
    """

    cell: Literal["reverse_kl"] = "reverse_kl"
    formula: ClassVar[str] = "log(p_T/pi_old)"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.TEACHER})

    def __call__(self, batch: Batch, signals: Signals) -> Advantages:
        """Raises ValueError for signals that do not fit their outputs."""
        return [None if row is None else tuple(row) for row in self._rows(batch, signals)]

    def metrics(self, batch: Batch, signals: Signals) -> dict[str, float]:
        """The mean of log pi_old/p_T over all trained tokens, an estimate of KL(pi_old || p_T)."""
        rows = zip(samples_of(batch), self._rows(batch, signals), strict=True)
        gains = [a for item, row in rows if row for a, here in zip(row, item.sample.sampled_mask, strict=True) if here]
        return {"teacher_kl": -math.fsum(gains) / len(gains)} if gains else {}

    def _rows(self, batch: Batch, signals: Signals) -> Iterator[list[float] | None]:
        said = zip(samples_of(batch), signals.old_logprobs, signals.teacher_logprobs, strict=True)
        for item, old, teacher in said:
            if not has_score(item):
                yield None
                continue
            rows = (per_token(item, teacher, "teacher log-probabilities"), per_token(item, old, "old log-probabilities"))
            masked = zip(*rows, item.sample.sampled_mask, strict=True)
            yield [t - o if sampled else 0.0 for t, o, sampled in masked]


class TopK(Averaged):
    """The reverse KL divergence of each position, from more of its distribution than one sample (GKD, arXiv 2306.13649).

    D = sum_v pi(v) log(pi(v)/p_T(v)) over k + 1 outcomes v of the next token: the k that the policy found likeliest before the
    batch's first update, and all others as one. The objective is -A D, its coefficients A pi(v) log(p_T(v)/pi(v)): what
    `ReverseKL` credits one sample with, averaged exactly. D is at most the divergence of the whole distributions, and equal to
    it where both agree on what is likely among the others. Prefixes are sampled, by whatever policy; the token is not.
    """

    cell: Literal["top_k"] = "top_k"
    k: int = Field(default=16, gt=0, le=1024)
    """Tokens of a position, the likeliest; all others are one more."""

    @property
    def tokens(self) -> int:
        return self.k

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.TEACHER})

    @property
    def formula(self) -> str:
        return f"A pi(v) log(p_T(v)/pi(v)) of the {self.k} likeliest v and the rest"

    def contradictions(self, plan: Plan) -> list[Objection]:
        """None: a divergence holds at prefixes of an older policy too."""
        return []

    def __call__(self, logprob_NO: "Tensor", micro: "OutcomeBatch") -> Weighted:
        """(N, k + 1) coefficients, and sums: objective and teacher_kl (D)."""
        gain_NO = logprob_NO.exp() * (micro.teacher_logprob_NO - logprob_NO)
        gain_N = gain_NO.sum(-1)
        sums = {"objective": (micro.token_weight_N * micro.advantage_N * gain_N).sum(), "teacher_kl": -gain_N.sum()}
        return micro.advantage_N[:, None] * gain_NO, sums
