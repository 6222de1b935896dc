"""LearnerWorker: one rank of the learner group. It knows nothing of Ray. Every rank makes the same calls in the same order."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from learner.algorithms.cells import Need
from learner.algorithms.table import Algorithm, RewardModelRow
from learner.batch.packing import Output, pack, plain_output
from learner.config import LearnerConfig
from learner.models.loading import read
from learner.models.lora import AdapterReference, adapt, draw
from learner.models.policy import DTYPES, PolicyModel, blank_policy
from learner.models.scalars import check_kind, load_given, start_heads, take_backbone, zero_heads
from learner.models.sharding import Model, copy_shards, gather_by_slot, init_distributed, read_all, shard
from learner.models.supported import check_architecture
from learner.models.weights import ModelWeights
from learner.stage import StageSpec
from learner.training import checkpoint
from learner.training import reward_model_stage as reward_stage
from learner.training.policy_stage import PolicyStage
from learner.training.reward_model_stage import RewardModelStage
from learner.training.trainer import Trainer
from learner.types import MicroBatch, PackedBatch, StepReport
from reward.models import scalar_model as scalar_models
from reward.models.scalar_model import ScalarModel
from reward.types import LabelledGroup, ScoredGroup
from rollout.first_calls import pick_kernels


class Stage(Protocol):
    """What a stage of either kind is."""

    @property
    def models(self) -> Mapping[str, nn.Module]: ...

    @property
    def trainers(self) -> Mapping[str, Trainer]: ...

    def step(self, batch: Any, updates: int, temperature: float) -> StepReport:
        """`updates` steps of every trainer on a batch of the kind that the stage trains on. A collective."""
        ...


class LearnerWorker:
    """Holds the policy from the first stage to the last, and a reward model from the first stage that trains one.

    `begin_stage` makes what belongs to one stage: optimizers, the reference, the critic.
    """

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
        """Joins the group at `rendezvous` (file://path, or tcp://host:port) and loads the model of `model_dir`.

        Raises ValueError for a model that cannot be trained packed. No collective waits longer than the timeout.
        """
        self._config, self._model_dir = config, model_dir
        self._rank, self._world_size = rank, world_size
        if config.cores_per_rank is not None:
            torch.set_num_threads(config.cores_per_rank)
        pick_kernels()
        check_architecture(model_dir)
        model = blank_policy(model_dir, torch.float32, config.logprob_chunk_tokens)
        if config.lora is not None:
            adapt(model, config.lora)
        self._mesh = init_distributed(rank, world_size, rendezvous, timeout_seconds)
        self._device = torch.device(self._mesh.device_type)
        self._compute_dtype = DTYPES[config.compute_dtype]
        self._policy = self._sharded(model)
        read(self._policy.causal_lm, model_dir)
        if config.lora is not None:
            draw(self._policy)
        self._reward_model: ScalarModel | None = None
        self._stage: Stage | None = None
        self._saver = checkpoint.Saver(world_size, timeout_seconds)

    def begin_stage(self, spec: StageSpec) -> None:
        """Fresh optimizers and schedules. A collective.

        As the row needs them, the reference becomes the current policy, and so does the critic's backbone under a head of
        zeros; a teacher is read. A reward model is trained on where there is one, else loaded, else built from the policy's
        backbone. Raises ValueError for a reward model of another kind or number of members than the stage trains.
        """
        self._stage = None
        row = spec.row
        self._stage = self._policy_stage(spec, row) if isinstance(row, Algorithm) else self._reward_model_stage(spec, row)

    def step(self, batch: Sequence[ScoredGroup] | Sequence[LabelledGroup], *, updates: int, temperature: float) -> StepReport:
        """`updates` optimizer steps over the whole batch, which is the same on every rank; so is the report.

        Rates and norms are means over the updates, `skipped` and `no_signal` counts; the mismatch with the engine is that of
        the first update. A stage of a policy takes scored groups, one of a reward model labelled ones.
        """
        return self._begun().step(batch, updates, temperature)

    def logprobs(self, sequences: Sequence[Sequence[int]], temperature: float = 1.0) -> list[list[float]]:
        """Per sequence: the log-probability of every token after the first, given those before it. A collective."""
        packed = self._pack([plain_output(i, tuple(ids[:1]), tuple(ids[1:])) for i, ids in enumerate(sequences)])
        values = read_all(self._policy, packed, lambda model, micro: model(micro, temperature)[0])
        flat = iter(gather_by_slot(values, packed).tolist())
        return [[next(flat) for _ in ids[1:]] for ids in sequences]

    def scalars(self, batch: Sequence[LabelledGroup]) -> list[tuple[tuple[float, ...], ...]]:
        """Per labelled output, per target, the scalars of the reward model's members at its token. A collective."""
        return reward_stage.scalars_at_targets(self._held_reward_model(), self._pack, batch)

    def source(self, dtype: str, model: Literal["policy", "reward_model"] = "policy") -> ModelWeights:
        """The weights as (name, tensor of `dtype`), or a policy's adapter where that is sent; iterating it is a collective.

        The reward model's is good until `load` or the stage that first makes one.
        """
        if model == "reward_model":
            return ModelWeights(self._held_reward_model(), DTYPES[dtype])
        lora = self._config.lora
        return ModelWeights(
            self._policy.causal_lm, DTYPES[dtype], lora.scale if lora is not None and lora.send == "adapter" else None
        )

    def save(self, directory: Path, written: checkpoint.Written = lambda files: None) -> None:
        """Checkpoint all models, optimizers and schedules, which may change when this returns; the files are written behind.
        A collective. Rank 0 calls `written` when all ranks' files are there."""
        stage = self._begun()
        self._saver.save(directory, self._models(stage), stage.trainers, self._reward_model, written)

    def writing(self, wait: bool) -> bool:
        """Whether a save is being written; `wait` until there is none. Raises what one failed of, once."""
        return self._saver.writing(wait)

    def load(self, directory: Path, spec: StageSpec) -> None:
        """Continue a stage from `save`, on any number of ranks, with the reward model that was held. A collective."""
        blank = checkpoint.blank_reward_model(directory)
        self._reward_model = None if blank is None else self._sharded(blank)
        self.begin_stage(spec)
        stage = self._begun()
        checkpoint.load(directory, self._models(stage), stage.trainers)

    def leave_gpu(self) -> None:
        """Give back the GPU memory that torch holds for later use."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def export(self, directory: Path, dtype: str = "float32", *, adapter: bool = False) -> None:
        """Write the policy as a transformers directory with its tokenizer, or its `adapter` as one for peft. A collective;
        rank 0 writes."""
        write = checkpoint.export_adapter if adapter else checkpoint.export
        write(directory, self._policy, self._model_dir, DTYPES[dtype])

    def export_reward_model(self, directory: Path) -> None:
        """Write the reward model as `reward.model.load` and transformers read it. A collective; rank 0 writes."""
        checkpoint.export_reward_model(directory, self._held_reward_model(), self._model_dir)

    def describe(self) -> dict:
        """Facts about this rank's part of the group."""
        parameters = dict(self._policy.causal_lm.named_parameters())
        return {
            "rank": self._rank,
            "world_size": self._world_size,
            "device": str(self._device),
            "compute_dtype": self._config.compute_dtype,
            "parameters": sum(p.numel() for p in parameters.values()),
            "placements": {name: str(cast(DTensor, p).placements) for name, p in parameters.items()},
        }

    def close(self) -> None:
        """Leave the group, when what is being written is written."""
        self._saver.close()
        dist.destroy_process_group()

    def _policy_stage(self, spec: StageSpec, row: Algorithm) -> PolicyStage:
        make = {Need.REFERENCE: self._reference, Need.CRITIC: lambda: self._critic(spec.seed)}
        make |= {Need.TEACHER: partial(self._teacher, spec.teacher)} if spec.teacher else {}
        needed = {str(need): make[need]() for need in make if need in row.needs}
        return PolicyStage(spec, row, self._pack, {"policy": self._policy} | needed)

    def _critic(self, seed: int) -> ScalarModel:
        critic = self._grown("process", members=1, seed=seed)
        zero_heads(critic)
        return critic

    def _reward_model_stage(self, spec: StageSpec, row: RewardModelRow) -> RewardModelStage:
        if self._reward_model is None and spec.reward_model:
            given = load_given(spec.reward_model, self._model_dir)
            check_kind(given, row.supervision, spec.members)
            self._reward_model = self._sharded(given)
        elif self._reward_model is None:
            self._reward_model = self._grown(row.supervision, members=spec.members, seed=spec.seed)
        check_kind(self._reward_model, row.supervision, spec.members)
        return RewardModelStage(spec, row, self._pack, self._reward_model)

    def _grown(self, kind: Literal["outcome", "process"], *, members: int, seed: int) -> ScalarModel:
        """A sharded scalar model on the current policy's backbone, with new heads."""
        how: Any = {"dtype": torch.float32, "device_map": "meta"}
        model = self._sharded(scalar_models.build(self._model_dir, kind, members=members, seed=seed, **how))
        start_heads(model, seed)
        take_backbone(model, self._policy)
        return model

    def _sharded(self, model: Model) -> Model:
        how = {"checkpointing": self._config.activation_checkpointing, "compiled": self._config.compile}
        return shard(model, self._mesh, self._compute_dtype, offload=self._config.offload, **how)

    def _reference(self) -> nn.Module:
        """The current policy, frozen: as a second sharded model in the compute dtype, or a copy of its adapter."""
        if self._config.lora is not None:
            return AdapterReference(self._policy)
        copy_shards(copy := self._frozen(self._model_dir), self._policy)
        return copy

    def _teacher(self, directory: Path) -> nn.Module:
        read((model := self._frozen(directory)).causal_lm, directory)
        return model

    def _frozen(self, path: Path) -> PolicyModel:
        """The model of a directory without its weights, sharded in the compute dtype."""
        return self._sharded(blank_policy(path, self._compute_dtype, self._config.logprob_chunk_tokens).requires_grad_(False))

    def _pack(self, outputs: Sequence[Output], **how) -> PackedBatch[MicroBatch]:
        budget = self._config.max_tokens_per_microbatch
        packed = pack(outputs, max_tokens=budget, of_rank=(self._rank, self._world_size), **how)
        return replace(packed, micro_batches=tuple(micro.to(self._device) for micro in packed.micro_batches))

    def _begun(self) -> Stage:
        if self._stage is None:
            raise RuntimeError("no stage: call begin_stage or load first")
        return self._stage

    def _held_reward_model(self) -> ScalarModel:
        if self._reward_model is None:
            raise RuntimeError("no reward model: none has been trained or loaded")
        return self._reward_model

    def _models(self, stage: Stage) -> dict[str, nn.Module]:
        """Those that a checkpoint holds, which a teacher is not."""
        held = {"policy": self._policy, "reward_model": self._reward_model, **stage.models}
        return {name: model for name, model in held.items() if model is not None and name != Need.TEACHER}
