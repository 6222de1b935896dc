"""Trainer: a sharded model, AdamW, a learning-rate schedule, and one optimizer step over a packed batch.

Every decision that changes the collectives or the weights (skip, clip, stop) is made from values that all ranks share.
"""

import math
from collections import defaultdict
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from learner.config import OptimizerConfig
from learner.objectives import policy_loss
from learner.policy import PolicyModel
from learner.sharding import gather_by_slot
from learner.types import MicroBatch, PackedBatch
from learner.weighting import Clipped, Plain

MAX_SKIPS = 3
"""Non-finite updates in a row before the run stops."""


def learning_rate(config: OptimizerConfig, update: int, total_updates: int) -> float:
    """Rate of update 0, 1, ...: linear warm-up to the full rate, then the schedule, ending at the stage's last update."""
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    done = min(1.0, (update - config.warmup_updates) / max(1, total_updates - 1 - config.warmup_updates))
    share = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.schedule]
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * share)


class Trainer:
    """Steps one model. The schedule advances with every update, also with one that is skipped."""

    def __init__(self, model: PolicyModel, config: OptimizerConfig, total_updates: int):
        self.model = model
        self.update = 0
        self._config = config
        self._total_updates = total_updates
        self._skips_in_a_row = 0
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=0.0, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
        )
        # Made here rather than by the first step, so that a checkpoint has the same entries before it and after it.
        for p in model.parameters():
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            self.optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def step(
        self, packed: PackedBatch, weighting: Plain | Clipped, temperature: float, *, compare_behaviour: bool
    ) -> dict[str, float]:
        """One update over the whole batch of all ranks; returns metrics of the whole batch. A collective.

        Skipped, the same on all ranks: `skipped` counts a non-finite loss or gradient (RuntimeError after three in a row),
        `no_signal` a batch whose coefficients are all zero.
        """
        rate = learning_rate(self._config, self.update, self._total_updates)
        self.update += 1
        report = {"learning_rate": rate, "skipped": 0.0, "no_signal": 0.0}
        if not packed.trained_tokens:
            return report | {"no_signal": 1.0}
        sums, logprobs = self._backward(packed, weighting, temperature)
        norm = self._grad_norm()
        finite = all(map(math.isfinite, (sums["loss"], sums["objective"], norm)))
        if finite and sums["signal"] > 0:
            self._apply(rate, norm)
        self.optimizer.zero_grad(set_to_none=True)
        self._skips_in_a_row = 0 if finite else self._skips_in_a_row + 1
        if self._skips_in_a_row >= MAX_SKIPS:
            raise RuntimeError(f"{MAX_SKIPS} updates in a row had a non-finite loss or gradient (update {self.update})")
        if not finite:
            return report | {"skipped": 1.0}
        report |= {"objective": sums["objective"], "grad_norm": norm, "no_signal": float(sums["signal"] == 0)}
        means = {"entropy": "entropy", "kl": "kl", "clipped": "clip_fraction", "ratio": "ratio_mean"}
        report |= {means[name]: sums[name] / packed.trained_tokens for name in means.keys() & sums.keys()}
        return report | (self._mismatch(packed, logprobs) if compare_behaviour else {})

    def _backward(self, packed: PackedBatch, weighting: Plain | Clipped, temperature: float):
        """Gradients of all micro-batches; sums over the tokens of all ranks, and this rank's log-probabilities."""
        sums, logprobs = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=packed.micro_batches[0].device)), []
        for micro in packed.micro_batches:
            logprob_N, entropy_N = self.model(micro, temperature)
            coefficient_N, parts = weighting(logprob_N.detach(), micro)
            loss = policy_loss(coefficient_N, logprob_N, micro.token_weight_N)
            loss.backward()
            parts |= {"loss": loss.detach(), "entropy": entropy_N.sum(), "signal": coefficient_N.abs().sum()}
            for name, value in parts.items():
                sums[name] += value
            logprobs.append(logprob_N.detach())
        total = torch.stack([sums[name] for name in sorted(sums)])
        dist.all_reduce(total)
        return dict(zip(sorted(sums), total.tolist(), strict=True)), logprobs

    def _grad_norm(self) -> float:
        """Global norm over all parameters and ranks."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads).full_tensor().item()

    def _apply(self, rate: float, norm: float) -> None:
        if norm > self._config.max_grad_norm:
            for p in self.model.parameters():
                p.grad.mul_(self._config.max_grad_norm / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def _mismatch(self, packed: PackedBatch, logprobs: list[Tensor]) -> dict[str, float]:
        """Distribution of |learner - engine| log-probabilities, before the policy moved. Empty for demonstrations."""
        micros = packed.micro_batches
        gaps = [(x - micro.behaviour_logprob_N).abs() for x, micro in zip(logprobs, micros, strict=True)]
        gaps = gather_by_slot(gaps, [micro.slot_N for micro in micros], packed.trained_tokens, micros[0].device)
        gaps = gaps[~gaps.isnan()].sort().values
        if not len(gaps):
            return {}
        at = {f"mismatch_p{p}": gaps[math.ceil(p / 100 * len(gaps)) - 1].item() for p in (50, 90, 99)}
        return at | {"mismatch_max": gaps[-1].item(), "mismatch_mean": gaps.mean().item()}


@torch.no_grad()
def score(model: PolicyModel, micro_batches: tuple[MicroBatch, ...], temperature: float) -> list[Tensor]:
    """(N,) log-probabilities of each micro-batch's trained tokens. A collective."""
    logprobs = [model(micro, temperature)[0] for micro in micro_batches]
    model.reshard()  # The root stays gathered for a backward pass that does not come here.
    return logprobs


def with_reference(model: PolicyModel, packed: PackedBatch, temperature: float) -> PackedBatch:
    """The batch with log-probabilities under a frozen reference."""
    scored = zip(packed.micro_batches, score(model, packed.micro_batches, temperature), strict=True)
    return replace(packed, micro_batches=tuple(replace(micro, reference_logprob_N=x) for micro, x in scored))


def with_recomputed_old(model: PolicyModel, packed: PackedBatch, temperature: float) -> PackedBatch:
    """The batch with the learner's own log-probabilities in the ratio: from the same micro-batches, so it starts at 1."""
    scored = zip(packed.micro_batches, score(model, packed.micro_batches, temperature), strict=True)
    return replace(packed, micro_batches=tuple(replace(micro, old_logprob_N=x) for micro, x in scored))
