"""LearnerWorker: one rank of the learner group. It knows nothing of Ray. Every rank makes the same calls in the same order."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from learner import checkpoint
from learner.algorithms import Algorithm, Need
from learner.config import LearnerConfig, OptimizerConfig
from learner.credit import Advantages, Ones
from learner.packing import pack
from learner.policy import DTYPES, PolicyModel, check_packing, load_policy, sequence
from learner.sharding import gather_by_slot, init_distributed, shard
from learner.trainer import Trainer, score, with_recomputed_old, with_reference
from learner.types import PackedBatch, StepReport
from learner.weights import PolicyWeights
from reward.types import ScoredSample


class LearnerWorker:
    """Holds the policy from the first stage to the last; `begin_stage` makes a stage's optimizer and reference."""

    def __init__(
        self,
        config: LearnerConfig,
        model_dir: Path,
        *,
        rank: int = 0,
        world_size: int = 1,
        rendezvous: str,
        timeout_seconds: float = 600.0,
    ):
        """Joins the group at `rendezvous` (tcp://host:port) and loads the model of `model_dir`.

        Raises ValueError for a model that cannot be trained packed. No collective waits longer than the timeout.
        """
        self._config, self._model_dir = config, model_dir
        self._rank, self._world_size = rank, world_size
        if config.cores_per_rank is not None:
            torch.set_num_threads(config.cores_per_rank)
        model = load_policy(model_dir, torch.float32, config.logprob_chunk_tokens)
        check_packing(model)
        self._mesh = init_distributed(rank, world_size, rendezvous, timeout_seconds)
        self._device = torch.device(self._mesh.device_type)
        self._compute_dtype = DTYPES[config.compute_dtype]
        self._policy = shard(model, self._mesh, self._compute_dtype)
        self._reference: PolicyModel | None = None
        self._algorithm: Algorithm | None = None
        self._trainer: Trainer | None = None

    def begin_stage(self, algorithm: Algorithm, optimizer: OptimizerConfig, total_updates: int) -> None:
        """A fresh optimizer and schedule; the reference, where the algorithm needs one, becomes the current policy."""
        self._algorithm = algorithm
        self._trainer = Trainer(self._policy, optimizer, total_updates)
        self._reference = self._frozen_copy() if Need.REFERENCE in algorithm.needs else None

    def step(self, batch: Sequence[ScoredSample], *, updates: int, temperature: float) -> StepReport:
        """`updates` optimizer steps over the whole batch, which is the same on every rank; so is the report.

        Rates and norms are means over the updates, `skipped` and `no_signal` counts; the mismatch with the engine is that of
        the first update. Credit, packing, reference and old log-probabilities are computed once.
        """
        algorithm, trainer = self._stage()
        advantages = algorithm.credit(batch)
        packed = self._pack(batch, advantages)
        if Need.REFERENCE in algorithm.needs:
            packed = with_reference(self._reference, packed, temperature)
        if Need.OLD_LOGPROBS in algorithm.needs:
            packed = with_recomputed_old(self._policy, packed, temperature)
        reports = [
            trainer.step(packed, algorithm.weighting, temperature, compare_behaviour=update == 0) for update in range(updates)
        ]
        metrics = _over_updates(reports) | {"trained_tokens": packed.trained_tokens, "padding_share": packed.padding_share}
        return StepReport(
            metrics=metrics, advantages=[row[0] if row else None for row in advantages], tokens=packed.trained_tokens
        )

    def logprobs(self, sequences: Sequence[Sequence[int]], temperature: float = 1.0) -> list[list[float]]:
        """Per sequence: the log-probability of every token after the first, given those before it. A collective."""
        batch = [sequence(tuple(ids[:1]), tuple(ids[1:]), group=str(i), index=0) for i, ids in enumerate(sequences)]
        packed = self._pack(batch, Ones()(batch))
        values = score(self._policy, packed.micro_batches, temperature)
        slots = [micro.slot_N for micro in packed.micro_batches]
        flat = iter(gather_by_slot(values, slots, packed.trained_tokens, self._device).tolist())
        return [[next(flat) for _ in ids[1:]] for ids in sequences]

    def source(self, dtype: str) -> PolicyWeights:
        """The weights as (name, tensor of `dtype`); iterating it is a collective."""
        return PolicyWeights(self._policy.causal_lm, DTYPES[dtype])

    def save(self, directory: Path) -> None:
        """Checkpoint policy, optimizer, schedule and reference. A collective."""
        _, trainer = self._stage()
        checkpoint.save(directory, trainer, self._reference)

    def load(self, directory: Path, algorithm: Algorithm, optimizer: OptimizerConfig, total_updates: int) -> None:
        """Continue a stage from `save`, on any number of ranks. A collective."""
        self.begin_stage(algorithm, optimizer, total_updates)
        checkpoint.load(directory, self._stage()[1], self._reference)

    def export(self, directory: Path) -> None:
        """Write the policy as a transformers directory with its tokenizer. A collective; rank 0 writes."""
        checkpoint.export(directory, self._policy, self._model_dir)

    def describe(self) -> dict:
        """Facts about this rank's part of the group."""
        parameters = dict(self._policy.causal_lm.named_parameters())
        return {
            "rank": self._rank,
            "world_size": self._world_size,
            "device": str(self._device),
            "compute_dtype": self._config.compute_dtype,
            "parameters": sum(p.numel() for p in parameters.values()),
            "placements": {name: str(p.placements) for name, p in parameters.items()},
        }

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()

    def _stage(self) -> tuple[Algorithm, Trainer]:
        if self._algorithm is None or self._trainer is None:
            raise RuntimeError("no stage: call begin_stage or load first")
        return self._algorithm, self._trainer

    def _pack(self, batch: Sequence[ScoredSample], advantages: Advantages) -> PackedBatch:
        budget = self._config.max_tokens_per_microbatch
        packed = pack(batch, advantages, max_tokens=budget, rank=self._rank, world_size=self._world_size)
        return replace(packed, micro_batches=tuple(micro.to(self._device) for micro in packed.micro_batches))

    def _frozen_copy(self) -> PolicyModel:
        """The current policy as a second sharded model in the compute dtype."""
        copy = load_policy(self._model_dir, self._compute_dtype, self._config.logprob_chunk_tokens).requires_grad_(False)
        copy = shard(copy, self._mesh, self._compute_dtype)
        for mine, theirs in zip(copy.parameters(), self._policy.parameters(), strict=True):
            mine.to_local().copy_(theirs.detach().to_local())
        return copy


def _over_updates(reports: list[dict[str, float]]) -> dict[str, float]:
    """One report of several updates."""
    metrics = {}
    for name in {name: None for report in reports for name in report}:
        values = [report[name] for report in reports if name in report]
        metrics[name] = math.fsum(values) if name in ("skipped", "no_signal") else math.fsum(values) / len(values)
    return metrics | {"learning_rate": reports[-1]["learning_rate"]}
