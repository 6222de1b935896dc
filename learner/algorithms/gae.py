"""PPO's credit: generalised advantage estimation with a critic, and the KL penalty in the reward.

Pure Python in double precision like the other credits; the models have spoken before, once for the whole batch.
"""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from learner.algorithms.cells import Need, PerToken, Signals
from learner.algorithms.credit import Advantages, Batch, Credit, at_tokens, centred, deviation, has_score, per_token, truncated
from reward.types import ScoredSample, samples_of
from rollout.rounding import apart


class GAE(Credit):
    """Generalised advantage estimation with a learned critic, KL in the reward (PPO, eq. 1 and 2; arXiv 1506.02438).

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, with r_t the reward events less
    kl (log pi_old - log pi_ref), the k1 estimator. Actions are sampled tokens: t + 1 is the next one after any tool output, and
    an event on a tool token belongs to the last action before it. After the last action, value and advantage are 0.
    """

    cell: Literal["gae"] = "gae"
    gamma: float = Field(default=1.0, ge=0.0, le=1.0)
    """Discount of a token."""
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    """0: one-step temporal differences; 1: the discounted return less the value."""
    kl: float = Field(default=0.04, ge=0.0)
    """Weight of the KL term in the reward (beta); 0 needs no reference."""
    whiten: bool = True
    """Advantages to mean 0 and standard deviation 1 over the batch's trained tokens; left alone where all are equal but for
    rounding."""
    truncated: Literal["keep", "mask"] = "keep"
    """Outputs that ran out of tokens: keep, as episodes that ended there; mask = leave the loss, the critic's too. There is no
    baseline for them to stay in."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.CRITIC, Need.REFERENCE} if self.kl > 0 else {Need.CRITIC})

    @property
    def formula(self) -> str:
        return f"GAE of r - {self.kl:g} log(pi_old/pi_ref)" if self.kl > 0 else "GAE of r"

    def __call__(self, batch: Batch, signals: Signals) -> Advantages:
        """Raises ValueError for signals that do not fit their outputs, and for an event outside its output."""
        scored, advantages = samples_of(batch), self._advantages(batch, signals)
        return _whitened(scored, advantages, signals.values) if self.whiten else advantages

    def returns(self, batch: Batch, signals: Signals) -> Advantages:
        """Advantage, before whitening, plus value."""
        return [
            row and tuple(a + v if s else 0.0 for a, v, s in zip(row, values or (), item.sample.sampled_mask, strict=True))
            for item, row, values in zip(samples_of(batch), self._advantages(batch, signals), signals.values, strict=True)
        ]

    def metrics(self, batch: Batch, signals: Signals) -> dict[str, float]:
        """Over all trained tokens: the critic's explained variance, and the mean of log pi_old/pi_ref."""
        returns, scored = self.returns(batch, signals), samples_of(batch)

        def trained(rows: PerToken) -> list[float]:
            kept = [(item, row) for item, row, here in zip(scored, rows, returns, strict=True) if here is not None and row]
            return [x for item, row in kept for x, sampled in zip(row, item.sample.sampled_mask, strict=True) if sampled]

        explained = explained_variance(trained(signals.values), trained(returns))
        old, reference = trained(signals.old_logprobs), trained(signals.reference_logprobs)
        kl = {"reward_kl": math.fsum(o - r for o, r in zip(old, reference, strict=True)) / len(old)} if reference else {}
        return kl if explained is None else kl | {"critic_explained_variance": explained}

    def _advantages(self, batch: Batch, signals: Signals) -> Advantages:
        return [
            self._backwards(item, *self._signals(item, i, signals)) if self._counts(item) else None
            for i, item in enumerate(samples_of(batch))
        ]

    def _counts(self, item: ScoredSample) -> bool:
        return has_score(item) and not (self.truncated == "mask" and truncated(item))

    def _signals(self, item: ScoredSample, i: int, signals: Signals) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Values and KL penalties of one output."""
        values = per_token(item, signals.values[i], "values")
        if not self.kl:
            return values, (0.0,) * len(values)
        old = per_token(item, signals.old_logprobs[i], "old log-probabilities")
        reference = per_token(item, signals.reference_logprobs[i], "reference log-probabilities")
        return values, tuple(self.kl * (o - r) for o, r in zip(old, reference, strict=True))

    def _backwards(self, item: ScoredSample, values: tuple[float, ...], penalties: tuple[float, ...]) -> tuple[float, ...]:
        events = at_tokens(item, [event.value for event in item.events])
        out, reward, following, advantage = [0.0] * len(values), 0.0, 0.0, 0.0
        for t in reversed(range(len(values))):
            reward += events[t]
            if item.sample.sampled_mask[t]:
                delta = reward - penalties[t] + self.gamma * following - values[t]
                out[t] = advantage = delta + self.gamma * self.lam * advantage
                reward, following = 0.0, values[t]
        return tuple(out)


def _whitened(scored: list[ScoredSample], advantages: Advantages, values: PerToken) -> Advantages:
    """To mean 0 and standard deviation 1; left alone where they are equal but for the rounding of rewards less values."""
    masks = [item.sample.sampled_mask for item in scored]
    kept = [(row, mask) for row, mask in zip(advantages, masks, strict=True) if row is not None]
    flat = [a for row, mask in kept for a, sampled in zip(row, mask, strict=True) if sampled]
    terms = [x for item, row in zip(scored, values, strict=True) for x in (*item.terms, *(row or ()))]
    if not apart(flat, terms):
        return advantages
    mean = math.fsum(flat) / len(flat)
    std = deviation([a - mean for a in flat])
    return [
        row and tuple((a - mean) / std if sampled else 0.0 for a, sampled in zip(row, mask, strict=True))
        for row, mask in zip(advantages, masks, strict=True)
    ]


def explained_variance(values: Sequence[float], returns: Sequence[float]) -> float | None:
    """1 - var(R - v) / var(R) over all tokens; None where the returns do not vary, which leaves nothing to explain."""
    around = centred(returns)
    if not any(around):
        return None
    left = centred([r - v for r, v in zip(returns, values, strict=True)])
    return 1 - (deviation(left) / deviation(around)) ** 2
