"""Trainer: a sharded model, AdamW, a learning-rate schedule, and one optimizer step over a packed batch.

It knows no algorithm: the objective says what the loss is. Every decision that changes the collectives or the weights (skip,
clip, stop) is made from values that all ranks share.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from learner.config import OptimizerConfig
from learner.models.sharding import accumulating
from learner.models.weights import trained
from learner.training.objectives import Objective
from learner.types import Kind, PackedBatch

MAX_SKIPS = 3
"""Non-finite updates in a row before the run stops."""
COUNTS = ("skipped", "no_signal")


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

    def __init__(self, model: nn.Module, config: OptimizerConfig, total_updates: int):
        self.model = model
        self.update = 0
        self.skips_in_a_row = 0
        self._config = config
        self._total_updates = total_updates
        parameters = list(trained(model).values())
        self.optimizer = torch.optim.AdamW(
            parameters, lr=0.0, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
        )
        # Made here rather than by the first step, so that a checkpoint has the same entries before it and after it.
        for p in parameters:
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            self.optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def train(self, packed: PackedBatch[Kind], objectives: Sequence[Objective[Kind]]) -> dict[str, float]:
        """An update for each objective, on the same batch. Counts are summed over the updates, rates and norms averaged."""
        reports = [self.step(packed, objective) for objective in objectives]
        metrics = {}
        for name in {name: None for report in reports for name in report}:
            values = [report[name] for report in reports if name in report]
            metrics[name] = math.fsum(values) if name in COUNTS else math.fsum(values) / len(values)
        return metrics | {"learning_rate": reports[-1]["learning_rate"]}

    def step(self, packed: PackedBatch[Kind], objective: Objective[Kind]) -> dict[str, float]:
        """One update over the whole batch of all ranks; returns metrics of the whole batch. A collective.

        Skipped, the same on all ranks: `skipped` counts a non-finite loss or gradient (RuntimeError after three in a row),
        `no_signal` a gradient of exactly zero.
        """
        rate = learning_rate(self._config, self.update, self._total_updates)
        self.update += 1
        report = {"learning_rate": rate, "skipped": 0.0, "no_signal": 0.0}
        if not packed.trained_tokens:
            return report | {"no_signal": 1.0}
        loss, sums, read = self._backward(packed, objective)
        norm = self._grad_norm()
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite and norm > 0:
            self._apply(rate, norm)
        self.optimizer.zero_grad(set_to_none=True)
        self.skips_in_a_row = 0 if finite else self.skips_in_a_row + 1
        if self.skips_in_a_row >= MAX_SKIPS:
            raise RuntimeError(f"{MAX_SKIPS} updates in a row had a non-finite loss or gradient (update {self.update})")
        if not finite:
            return report | {"skipped": 1.0}
        return report | {"grad_norm": norm, "no_signal": float(norm == 0)} | objective.metrics(sums, packed, read)

    def _backward(self, packed: PackedBatch[Kind], objective: Objective[Kind]) -> tuple[float, dict[str, float], list[Tensor]]:
        """Gradients of all micro-batches; loss and sums over all ranks, and what this rank read in each micro-batch."""
        device = packed.micro_batches[0].device
        sums, read = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=device)), []
        with accumulating(self.model, packed.micro_batches) as micro_batches:
            for micro in micro_batches:
                loss, parts, values = objective(self.model, micro)
                loss.backward()
                for name, value in {"loss": loss.detach(), **parts}.items():
                    sums[name] += value
                read.append(values)
        names = sorted(sums)
        total = torch.stack([sums[name] for name in names])
        dist.all_reduce(total)
        whole = dict(zip(names, total.tolist(), strict=True))
        return whole.pop("loss"), whole, read

    def _grads(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _grad_norm(self) -> float:
        """Global norm over all parameters and ranks."""
        return cast(DTensor, torch.nn.utils.get_total_norm(self._grads())).full_tensor().item()

    def _apply(self, rate: float, norm: float) -> None:
        if norm > self._config.max_grad_norm:
            # Exactly to the threshold; torch's own clipping divides by the norm + 1e-6.
            for grad in self._grads():
                grad.mul_(self._config.max_grad_norm / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
