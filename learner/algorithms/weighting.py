"""Weighting: from advantages and current log-probabilities to gradient coefficients GC(q, o, t), in every micro-batch.

A weighting returns the coefficient, which carries no gradient and excludes the token's weight in the average, and sums for the
log: `ratio`, `clipped`, `kl` and those of a behaviour weight are plain sums over tokens, to be divided by their number; all
others add up to means.
Tensors pass through; torch itself is not imported, since parsing a configuration builds these cells.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from learner.algorithms.behaviour import Ratio, Weighted, total
from learner.algorithms.cells import Cell, Need, Objection, Plan

if TYPE_CHECKING:
    from torch import Tensor

    from learner.types import PolicyBatch


Unit = Literal["token", "sequence", "pair"]
"""The tokens whose coefficients depend on each other: alone, an output's, or both outputs' of a pair."""


def output_mean(groups: int, group_size: int, length: int, total_tokens: int) -> float:
    """The paper's token weight: a mean over the output's tokens, over its group's outputs, and over the groups (eq. 3)."""
    return 1.0 / (groups * group_size * length)


class Weighting(Cell):
    """What all weightings share."""

    unit: ClassVar[Unit] = "token"

    @property
    def tokens(self) -> int:
        """How many tokens of each position it tells apart, where it reads more than the sampled one: log-probabilities and
        coefficients are then (N, tokens + 1), with all others as the last."""
        return 0

    def token_weight(self, groups: int, group_size: int, length: int, total_tokens: int) -> float:
        """Weight of one token: `groups`, `group_size` and `total_tokens` count what is in the loss, `length` its output."""
        return output_mean(groups, group_size, length, total_tokens)

    def __call__(self, logprob_N: "Tensor", micro: "PolicyBatch") -> Weighted:
        raise NotImplementedError

    def contradictions(self, plan: Plan) -> list[Objection]:
        """Without the ratio, outputs of an older policy are taken as if they were new; a pi_old that the learner recomputes is
        that of later updates of a batch, and not what sampled."""
        if not plan.on_policy or Need.BEHAVIOUR_LOGPROBS in self.needs:
            return []
        asked = {"updates_per_batch": (plan.updates_per_batch, 1), "max_staleness": (plan.max_staleness, 0)}
        expected = "or a weighting with the ratio pi/pi_old such as {cell: clipped}"
        if Need.OLD_LOGPROBS in self.needs:
            del asked["updates_per_batch"]
            expected = "or old: engine, or a behaviour weight such as {cell: truncated}"
        why = f"'{type(self).model_fields['cell'].default}' takes outputs of an older policy as if they were new"
        return [((key,), f"found {n}; expected {most}, {expected}: {why}") for key, (n, most) in asked.items() if n > most]


class Averaged(Weighting):
    """A weighting that says how tokens are averaged."""

    average: Literal["output", "token", "constant", "sum"] = "output"
    """Mean of each output's tokens (the paper), of all trained tokens (DAPO), sum over `constant_length` (Dr. GRPO), or sum."""
    constant_length: int | None = Field(default=None, gt=0)
    """The constant that an output's sum is divided by; any value is a scale of the learning rate."""

    @model_validator(mode="after")
    def _length_is_read(self):
        if (self.average == "constant") != (self.constant_length is not None):
            found = f"average {self.average} and constant_length {self.constant_length}"
            raise ValueError(f"{found}: constant_length is needed by average: constant, and read by no other")
        return self

    def token_weight(self, groups: int, group_size: int, length: int, total_tokens: int) -> float:
        if self.average == "token":
            return 1.0 / total_tokens
        return 1.0 / (groups * group_size * {"output": length, "constant": self.constant_length, "sum": 1}[self.average])


class Plain(Averaged):
    """The coefficient is the advantage: the objective is 1/|o| sum_t A_t log pi(o_t) (eq. 6-11)."""

    cell: Literal["plain"] = "plain"
    formula: ClassVar[str] = "A"

    def __call__(self, logprob_N: "Tensor", micro: "PolicyBatch") -> Weighted:
        return micro.advantage_N, {"objective": (micro.token_weight_N * micro.advantage_N * logprob_N).sum()}


class Preference(Weighting):
    """DPO (eq. 12, arXiv 2305.18290): log sigmoid(beta (m(o+) - m(o-))), m the output's mean or sum of log pi/pi_ref.

    Every token of a pair has the coefficient beta sigmoid(beta (m(o-) - m(o+))), + on the better output and - on the worse, as
    the advantage's sign says. The paper's eq. 14 is not the derivative of its eq. 12 and is not implemented.
    """

    unit: ClassVar[Unit] = "pair"
    cell: Literal["preference"] = "preference"
    beta: float = Field(default=0.1, gt=0.0)
    """How sharply the loss follows the margin; 0.1 as in the original DPO."""
    average: Literal["output", "sum"] = "output"
    """Log-ratios are averaged over the output (the paper), or summed (the original DPO)."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.REFERENCE})

    @property
    def formula(self) -> str:
        mean = "mean" if self.average == "output" else "sum"
        return f"A {self.beta:g} sigmoid({self.beta:g} (m(o-) - m(o+))), m = {mean} log(pi/pi_ref)"

    def token_weight(self, groups: int, group_size: int, length: int, total_tokens: int) -> float:
        """1 / (pairs |o|), or 1 / pairs for sums."""
        return 1.0 / (groups * (length if self.average == "output" else 1))

    def __call__(self, logprob_N: "Tensor", micro: "PolicyBatch") -> Weighted:
        """The coefficient, and sums: objective, margin (beta (m(o+) - m(o-))), and ranked (the margin is positive)."""
        length_N = total(logprob_N.new_ones(len(logprob_N)), micro.sample_N)
        per_token = length_N.reciprocal() if self.average == "output" else 1.0
        signed_N = micro.advantage_N * (logprob_N - micro.reference_logprob_N) * per_token
        margin_N = self.beta * total(signed_N, micro.group_N)
        coefficient_N = self.beta * (-margin_N).sigmoid() * micro.advantage_N
        log_sigmoid_N = margin_N.clamp(max=0) - (-margin_N.abs()).exp().log1p()
        # Adds up to 1 / pairs over the tokens of a pair, each of which has the pair's margin.
        share_N = 0.5 * micro.token_weight_N * (1.0 if self.average == "output" else length_N.reciprocal())
        means = {"objective": log_sigmoid_N, "margin": margin_N, "ranked": margin_N > 0}
        return coefficient_N, {name: (share_N * value_N).sum() for name, value_N in means.items()}


class Clipped(Ratio, Averaged):
    """The clipped ratio of PPO and GRPO, with GRPO's KL term in the loss.

    The objective per token is min(rho A, clip(rho, 1 - clip, 1 + clip_high) A) - kl D, with rho = pi/pi_old and
    D = pi_ref/pi - log(pi_ref/pi) - 1 (eq. 3, 4); its derivative by log pi is the coefficient (eq. 21 when rho is 1).
    Clipping does not touch the KL term, and the paper's KL term has no ratio on it.
    """

    cell: Literal["clipped"] = "clipped"
    clip: float = Field(default=0.2, gt=0.0)
    """The ratio is clipped to [1 - clip, 1 + clip]."""
    clip_high: float | None = Field(default=None, gt=0.0)
    """Another upper bound, 1 + clip_high (DAPO, arXiv 2503.14476)."""
    kl: float = Field(default=0.04, ge=0.0)
    """Weight of the KL term against the reference (beta); 0 needs no reference."""
    kl_ratio: bool = False
    """The KL term is rho D, its ratio differentiated too (arXiv 2512.02556): over samples of pi_old its gradient is in the mean
    that of KL(pi || pi_ref), however old they are. Without the ratio it is that of KL(pi_ref || pi), and only if rho is 1."""

    @model_validator(mode="after")
    def _ratio_is_read(self):
        if self.kl_ratio and not self.kl:
            raise ValueError("kl_ratio: found true, but kl is 0, so there is no KL term; expected kl above 0")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | ({Need.REFERENCE} if self.kl > 0 else set())

    @property
    def formula(self) -> str:
        surrogate = f"{_where(self.clip, self.clip_high)} (pi/pi_old) {self.weighted}"
        pull = "(pi/pi_old) log(pi_ref/pi)" if self.kl_ratio else "(pi_ref/pi - 1)"
        return f"{surrogate} + {self.kl:g} {pull}" if self.kl > 0 else surrogate

    def of_old(self, logprob_N: "Tensor", micro: "PolicyBatch") -> Weighted:
        """The coefficient, and sums: objective, ratio, clipped and, with kl > 0, kl (D)."""
        ratio_N = (logprob_N - micro.old_logprob_N).exp()
        coefficient_N, objective_N, clipped_N = clipped_gain(ratio_N, micro.advantage_N, self.clip, self.clip_high)
        sums = {"ratio": ratio_N.sum(), "clipped": clipped_N.sum()}
        if self.kl > 0:
            log_ref_over_pi_N = micro.reference_logprob_N - logprob_N
            excess_N = log_ref_over_pi_N.expm1()
            kl_N = excess_N - log_ref_over_pi_N
            coefficient_N = coefficient_N + self.kl * (ratio_N * log_ref_over_pi_N if self.kl_ratio else excess_N)
            objective_N = objective_N - self.kl * (ratio_N * kl_N if self.kl_ratio else kl_N)
            sums["kl"] = kl_N.sum()
        return coefficient_N, {"objective": (micro.token_weight_N * objective_N).sum(), **sums}


class SequenceClipped(Ratio, Weighting):
    """GSPO (arXiv 2507.18071): one ratio for an output, s = exp(mean_t log(pi/pi_old)), clipped as a whole; no KL term.

    The objective is the mean over outputs of min(s A, clip(s) A); the derivative of s by each of its log-probabilities is
    s/|o|. Where a process reward makes A differ between tokens, this is the paper's GSPO-token.
    """

    unit: ClassVar[Unit] = "sequence"
    cell: Literal["sequence_clipped"] = "sequence_clipped"
    clip: float = Field(default=3e-4, gt=0.0)
    """The ratio is at least 1 - clip."""
    clip_high: float = Field(default=4e-4, gt=0.0)
    """And at most 1 + clip_high; both are the paper's values."""

    @property
    def formula(self) -> str:
        return f"{_where(self.clip, self.clip_high)} s {self.weighted}, s = exp(mean log(pi/pi_old))"

    def of_old(self, logprob_N: "Tensor", micro: "PolicyBatch") -> Weighted:
        """The coefficient, and sums: objective, ratio and clipped (each output's, at every token of it)."""
        length_N = total(logprob_N.new_ones(len(logprob_N)), micro.sample_N)
        ratio_N = (total(logprob_N - micro.old_logprob_N, micro.sample_N) / length_N).exp()
        coefficient_N, objective_N, clipped_N = clipped_gain(ratio_N, micro.advantage_N, self.clip, self.clip_high)
        objective = (micro.token_weight_N * objective_N).sum()
        return coefficient_N, {"objective": objective, "ratio": ratio_N.sum(), "clipped": clipped_N.sum()}


class Cispo(Ratio, Averaged):
    """CISPO (MiniMax-M1, arXiv 2506.13585): REINFORCE with a clipped importance weight, so that no token is left out.

    The objective is sg(min(pi/pi_old, 1 + clip_high)) A log pi, sg carrying no gradient; no lower bound and no KL term.
    """

    cell: Literal["cispo"] = "cispo"
    clip_high: float = Field(default=4.0, gt=0.0)
    """The weight is at most 1 + clip_high. The paper prints no value."""
    average: Literal["output", "token", "constant", "sum"] = "token"
    """As in `clipped`; the paper averages over all trained tokens."""

    @property
    def formula(self) -> str:
        return f"min(pi/pi_old, {1 + self.clip_high:g}) {self.weighted}"

    def of_old(self, logprob_N: "Tensor", micro: "PolicyBatch") -> Weighted:
        """The coefficient, and sums: objective, ratio, clipped."""
        ratio_N, most = (logprob_N - micro.old_logprob_N).exp(), 1 + self.clip_high
        coefficient_N = ratio_N.clamp(max=most) * micro.advantage_N
        objective = (micro.token_weight_N * coefficient_N * logprob_N).sum()
        return coefficient_N, {"objective": objective, "ratio": ratio_N.sum(), "clipped": (ratio_N > most).sum()}


def clipped_gain(ratio_N: "Tensor", advantage_N: "Tensor", low: float, high: float | None):
    """Of min(ratio A, clip(ratio) A): the derivative by log ratio, the value, and where the minimum is the constant branch."""
    free_N = ratio_N * advantage_N
    bound_N = ratio_N.clamp(1 - low, 1 + (low if high is None else high)) * advantage_N
    clipped_N = bound_N < free_N
    return free_N.masked_fill(clipped_N, 0.0), free_N.minimum(bound_N), clipped_N


def _where(low: float, high: float | None) -> str:
    return f"[not clipped at {low:g}]" if high is None else f"[not clipped at -{low:g}, +{high:g}]"
