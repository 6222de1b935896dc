"""Checkpoints with torch.distributed.checkpoint: each rank writes its shards, and another number of ranks can read them.

Contents, each under its name: the weights of every model held, and of every trainer the AdamW moments and the schedule's
position. `reward_model.json` says how the reward model is built, which no stage's configuration needs to know. Exports are
directories for transformers. Integrity of the files (digests, completeness) is the run manifest's business.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as read
from torch.distributed.checkpoint.state_dict_saver import save as write
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import AutoConfig

from learner.models.policy import PolicyModel
from learner.models.weights import ADAPTER, ModelWeights, local, placed_like, trained, weights_of
from learner.training.description import Reader
from learner.training.trainer import Trainer
from reward.models import scalar_model as scalar_models
from reward.models.scalar_model import ScalarModel, attention_of
from reward.models.tokenizer import copy_tokenizer
from rollout.files import as_umask_says

SHAPE_FILE = "reward_model.json"
Written = Callable[[Mapping[str, int]], None]
"""Told that a checkpoint is written, with {file: its least size in bytes} of all ranks' files."""


class Saver:
    """One rank's part in saves, of which there is one at a time: the files are written while the models go on."""

    def __init__(self, world_size: int, timeout_seconds: float):
        """A collective. The ranks talk about files in a group of its own, beside what training has to say."""
        self._mesh = init_device_mesh("cpu", (world_size,))
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds)))
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self,
        directory: Path,
        models: Mapping[str, nn.Module],
        trainers: Mapping[str, Trainer],
        reward_model: ScalarModel | None,
        written: Written,
    ) -> None:
        """Copy models and trainers into this host's memory, to be written into `directory`. A collective.

        Rank 0 calls `written` when all ranks' files are there.
        """
        self.writing(wait=True)
        state, rank = _copied(_state(models, trainers), self._mesh), dist.get_rank()

        def write_all() -> None:
            shape = {} if reward_model is None or rank else save_shape(directory, reward_model)
            write(state, checkpoint_id=directory, process_group=self._group)
            if rank == 0:
                written(_files(directory) | shape)

        self._pending = self._thread.submit(write_all)

    def writing(self, wait: bool) -> bool:
        """Whether a save is being written; `wait` until there is none. Raises what one failed of, once."""
        if self._pending is None or not wait and not self._pending.done():
            return self._pending is not None
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except CheckpointException as error:  # no Exception, so that an actor would die of it
            rank, (cause, _) = min(error.failures.items())
            raise RuntimeError(f"rank {rank}: {type(cause).__name__}: {cause}") from cause
        return False

    def close(self) -> None:
        """Whatever is being written is written."""
        self._thread.shutdown()


def _state(models: Mapping[str, nn.Module], trainers: Mapping[str, Trainer]) -> dict:
    """Live tensors, sharded ones as they are, under the names of the parameters.

    What is frozen beside trained parameters is as it is on disk: of a policy with an adapter the base is left out.
    """
    kept = {name: trained(model) or dict(model.named_parameters()) for name, model in models.items()}
    state: dict = {name: {key: p.detach() for key, p in parameters.items()} for name, parameters in kept.items()}
    for name, trainer in trainers.items():
        parameters = trained(trainer.model)
        state[f"{name}_trainer"] = {
            "optimizer": {f"{at}/{key}": x for at, p in parameters.items() for key, x in trainer.optimizer.state[p].items()},
            "update": torch.tensor(trainer.update),
            "skips_in_a_row": torch.tensor(trainer.skips_in_a_row),
        }
    return state | {"rng": torch.get_rng_state()}


def _copied(state: dict, mesh: DeviceMesh) -> dict:
    """A copy in this host's memory, sharded over the same ranks."""
    return {
        key: _copied(x, mesh) if isinstance(x, dict) else placed_like(x, local(x).to("cpu", copy=True), mesh)
        for key, x in state.items()
    }


def _files(directory: Path) -> dict[str, int]:
    """What a checkpoint takes: {file: its least size in bytes}. What `write` returns names no files before torch 2.13."""
    stored = Reader(directory).read_metadata().storage_data.values()
    return {".metadata": 1, **dict(sorted((part.relative_path, part.offset + part.length) for part in stored))}


def load(directory: Path, models: Mapping[str, nn.Module], trainers: Mapping[str, Trainer]) -> None:
    """Fill models and trainers made for the same stage in place. A collective."""
    state = _state(models, trainers)
    read(state, storage_reader=Reader(directory))
    for name, trainer in trainers.items():
        trainer.update = int(state[f"{name}_trainer"]["update"])
        trainer.skips_in_a_row = int(state[f"{name}_trainer"]["skips_in_a_row"])
    torch.set_rng_state(state["rng"])


def save_shape(directory: Path, model: ScalarModel) -> dict[str, int]:
    """Write how the reward model is built; returns the same as `Saver.save` tells."""
    configs = [json.loads(member.config.to_json_string(use_diff=False)) for member in model.members]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SHAPE_FILE).write_text(json.dumps({"kind": model.kind, "members": configs}), encoding="utf-8")
    return {SHAPE_FILE: 1}


def blank_reward_model(directory: Path) -> ScalarModel | None:
    """A reward model on the meta device with the shape of the one in a checkpoint; None where it holds none."""
    path = directory / SHAPE_FILE
    if not path.exists():
        return None
    shape = json.loads(path.read_text(encoding="utf-8"))
    configs = [AutoConfig.for_model(config.pop("model_type"), **config) for config in shape["members"]]
    cls = scalar_models.CLASSES[shape["kind"]]
    with torch.device("meta"):
        members = [cls.from_config(c, dtype=torch.float32, attn_implementation=attention_of(c)).eval() for c in configs]
    return ScalarModel(members, shape["kind"])


def export(directory: Path, model: PolicyModel, model_dir: Path, dtype: torch.dtype) -> None:
    """A directory of `dtype` that AutoModelForCausalLM loads, with `model_dir`'s tokenizer. A collective; rank 0 writes."""
    weights = _gathered(model.causal_lm, dtype)
    if dist.get_rank() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        model.causal_lm.save_pretrained(directory, state_dict=weights)
        config = json.loads((directory / "config.json").read_text(encoding="utf-8")) | {"dtype": str(dtype).split(".")[1]}
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        as_umask_says(directory)
        copy_tokenizer(model_dir, directory)
    dist.barrier()


def export_adapter(directory: Path, model: PolicyModel, model_dir: Path, dtype: torch.dtype) -> None:
    """A directory of `dtype` that peft loads onto the model in `model_dir`, with its tokenizer. A collective; rank 0 writes."""
    stream = ModelWeights(model.causal_lm, dtype, adapter_scale=1.0)
    weights = {f"base_model.model.{name}": tensor.cpu().contiguous() for name, tensor in stream}
    if dist.get_rank() == 0:
        config = copy(cast(Any, model.causal_lm).peft_config[ADAPTER])
        config.base_model_name_or_path, config.inference_mode = str(model_dir), True
        config.save_pretrained(directory)
        save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        as_umask_says(directory)
        copy_tokenizer(model_dir, directory)
    dist.barrier()


def export_reward_model(directory: Path, model: ScalarModel, model_dir: Path) -> None:
    """A directory, or one for each member, that transformers loads as a classifier. A collective; rank 0 writes."""
    weights = _gathered(model)
    if dist.get_rank() == 0:
        scalar_models.save(model, directory, model_dir, weights)
    dist.barrier()


def _gathered(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Full weights on rank 0, a tied one under its first name only; nothing elsewhere. A collective."""
    once = {weight.name for weight in weights_of(model, twice=False)} if dist.get_rank() == 0 else ()
    return {name: tensor.cpu() for name, tensor in ModelWeights(model, dtype).whole() if name in once}
