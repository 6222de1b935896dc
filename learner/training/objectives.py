"""Objectives: what a model is trained on. One trainer steps any of them, for policy, critic and reward model alike.

The policy has one. SFT, RFT, DPO, PPO and GRPO share a gradient, E[1/|o| sum_t GC(q, o, t) grad log pi(o_t | q, o_<t)] (eq. 5),
and differ in GC. Their losses depend on the parameters only through log pi of the trained tokens, so with GC = -dL/dlog pi
`policy_loss` has their gradient exactly. Its value means nothing; weightings return the textbook objective for the log.
Scalar models have a value objective (critic) and two of labels (reward models). Where a model has K members, losses are summed
over them, so that each gets the gradient it would get alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from learner.algorithms.weighting import Weighted
from learner.models.logprobs import OutcomeLogprobs
from learner.models.policy import PolicyModel
from learner.models.scalars import scalars
from learner.models.sharding import gather_by_slot
from learner.types import LabelBatch, MicroBatch, OutcomeBatch, PackedBatch, PolicyBatch, ValueBatch
from reward.models.scalar_model import ScalarModel

Micro = TypeVar("Micro", bound=MicroBatch, contravariant=True)
Weighting = Callable[[Tensor, PolicyBatch], Weighted]
Parts = tuple[Tensor, dict[str, Tensor], Tensor]
"""Loss, sums without gradient, and what was read of each trained token, (N,) or (K, N)."""


class Objective(Protocol[Micro]):
    """Losses and sums of the micro-batches of all ranks add up to those of the whole batch: their weights see to that."""

    def __call__(self, model: Any, micro: Micro) -> Parts: ...

    def metrics(self, sums: dict[str, float], packed: PackedBatch[Micro], read: list[Tensor]) -> dict[str, float]:
        """From the sums of the whole batch, and from what this rank read in its micro-batches. A collective."""
        ...


def policy_loss(coefficient_N: Tensor, logprob_N: Tensor, token_weight_N: Tensor) -> Tensor:
    """Scalar whose gradient is that of the algorithm's loss. The coefficient carries no gradient."""
    return -(coefficient_N * logprob_N * token_weight_N).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyObjective:
    """A row's weighting at the temperature that the outputs were sampled at."""

    weighting: Weighting
    temperature: float
    compare_behaviour: bool
    """Report how far the learner's log-probabilities are from the engine's: of use before the policy moves."""
    gaps: list[float] = field(default_factory=list, compare=False)
    """log pi_learner - log pi_engine of every trained token of the batch, where that was reported."""

    def __call__(self, model: PolicyModel, micro: PolicyBatch) -> Parts:
        logprob_N, entropy_N = model(micro, self.temperature)
        coefficient_N, sums = self.weighting(logprob_N.detach(), micro)
        loss = policy_loss(coefficient_N, logprob_N, micro.token_weight_N)
        return loss, sums | {"entropy": entropy_N.sum()}, logprob_N.detach()

    def metrics(self, sums: dict[str, float], packed: PackedBatch[PolicyBatch], read: list[Tensor]) -> dict[str, float]:
        """Means over tokens of what weightings sum plainly; what they weight is a mean already."""
        names = {"entropy": "entropy", "kl": "kl", "clipped": "clip_fraction", "ratio": "ratio_mean"}
        names |= {"behaviour": "behaviour_mean", "behaviour_square": "effective_share", "cut": "cut_share"}
        names |= {"teacher_kl": "teacher_kl"}
        means = {names[name]: x / packed.trained_tokens for name, x in sums.items() if name in names}
        if square := means.get("effective_share"):
            means["effective_share"] = means["behaviour_mean"] ** 2 / square
        weighted = {name: x for name, x in sums.items() if name not in names}
        return means | weighted | (self._mismatch(packed, read) if self.compare_behaviour else {})

    def _mismatch(self, packed: PackedBatch[PolicyBatch], logprobs: list[Tensor]) -> dict[str, float]:
        """Distribution of |learner - engine| log-probabilities. Empty for demonstrations."""
        signed = [x - micro.behaviour_logprob_N for x, micro in zip(logprobs, packed.micro_batches, strict=True)]
        every = gather_by_slot(signed, packed)
        gaps = every[~every.isnan()].abs().sort().values
        if not len(gaps):
            return {}
        self.gaps.extend(every.tolist())
        at = {f"mismatch_p{p}": gaps[math.ceil(p / 100 * len(gaps)) - 1].item() for p in (50, 90, 99)}
        return at | {"mismatch_max": gaps[-1].item(), "mismatch_mean": gaps.mean().item()}


class OutcomeObjective(PolicyObjective):
    """The same for a weighting that tells several tokens of a position apart, and all their log-probabilities in the loss."""

    def __call__(self, model: PolicyModel, micro: OutcomeBatch) -> Parts:
        logprob_NO, logprob_N, entropy_N = model(micro, self.temperature, OutcomeLogprobs(micro.token_NM))
        coefficient_NO, sums = self.weighting(logprob_NO.detach(), micro)
        loss = policy_loss(coefficient_NO, logprob_NO, micro.token_weight_N[:, None])
        return loss, sums | {"entropy": entropy_N.sum()}, logprob_N


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueObjective:
    """PPO's clipped value loss of the return R, 0.5 max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2), weighted by token.

    v is read where the token is predicted: the value of the state before it (Schulman et al., arXiv 1707.06347; clipped as in
    its authors' code, openai/baselines).
    """

    clip: float
    """c, in units of the return."""

    def __call__(self, model: ScalarModel, micro: ValueBatch) -> Parts:
        value_N, old_N, return_N = scalars(model, micro, micro.source_N)[0], micro.old_value_N, micro.return_N
        free_N = (value_N - return_N).square()
        bound_N = (value_N.clamp(old_N - self.clip, old_N + self.clip) - return_N).square()
        loss = (0.5 * free_N.maximum(bound_N) * micro.token_weight_N).sum()
        return loss, {"value_loss": loss.detach(), "clipped": (bound_N > free_N).sum()}, value_N.detach()

    def metrics(self, sums: dict[str, float], packed: PackedBatch[ValueBatch], read: list[Tensor]) -> dict[str, float]:
        return {"value_loss": sums["value_loss"], "value_clip_fraction": sums["clipped"] / packed.trained_tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingObjective:
    """-log sigmoid(r(better) - r(worse)), averaged over the pairs of the whole batch (Bradley and Terry).

    A pair is a group of two trained tokens, each the last of its output and with its label as the target; both stand in one
    micro-batch and their token weights add up to 1 / pairs.
    """

    weight_KS: Tensor
    """How often each member sees each sample of the batch; the same for both of a pair."""

    def __call__(self, model: ScalarModel, micro: LabelBatch) -> Parts:
        scalar_KN = scalars(model, micro, micro.index_N)
        first_P, second_P = micro.group_N.argsort(stable=True).view(len(micro.group_N) // 2, 2).T
        sign_P = (micro.label_N[first_P] - micro.label_N[second_P]).sign()
        margin_KP = sign_P * (scalar_KN[:, first_P] - scalar_KN[:, second_P])
        loss_KP = -logsigmoid(margin_KP)
        weight_P = micro.token_weight_N[first_P] + micro.token_weight_N[second_P]
        loss = (loss_KP * self.weight_KS[:, micro.sample_N[first_P]] * weight_P).sum()
        sums = {"ranking_loss": loss_KP.detach().mean(0).sum(), "right": (margin_KP.mean(0) > 0).sum()}
        return loss, sums, scalar_KN.detach()

    def metrics(self, sums: dict[str, float], packed: PackedBatch[LabelBatch], read: list[Tensor]) -> dict[str, float]:
        """The mean loss of a member, every pair counted once, and the share of pairs that the members' mean ranks right."""
        pairs = packed.trained_tokens / 2
        return {"ranking_loss": sums["ranking_loss"] / pairs, "ranking_accuracy": sums["right"] / pairs}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelObjective:
    """Binary cross-entropy of the scalars as logits against labels in [0, 1], averaged over the labels of the whole batch.

    The trained tokens are the labelled ones, each with its label as the target and 1 / labels as its weight (Math-Shepherd,
    arXiv 2312.08935, eq. 1 and 2, averaged where the paper sums).
    """

    weight_KS: Tensor
    """How often each member sees each sample of the batch."""

    def __call__(self, model: ScalarModel, micro: LabelBatch) -> Parts:
        scalar_KN, label_N = scalars(model, micro, micro.index_N), micro.label_N
        loss_KN = binary_cross_entropy_with_logits(scalar_KN, label_N.expand_as(scalar_KN), reduction="none")
        loss = (loss_KN * self.weight_KS[:, micro.sample_N] * micro.token_weight_N).sum()
        right_N = (scalar_KN.mean(0) > 0) == (label_N > 0.5)
        return loss, {"label_loss": loss_KN.detach().mean(0).sum(), "right": right_N.sum()}, scalar_KN.detach()

    def metrics(self, sums: dict[str, float], packed: PackedBatch[LabelBatch], read: list[Tensor]) -> dict[str, float]:
        """The mean loss of a member, every label counted once, and the share of labels on whose side the members' mean is."""
        labels = packed.trained_tokens
        return {"label_loss": sums["label_loss"] / labels, "label_accuracy": sums["right"] / labels}
