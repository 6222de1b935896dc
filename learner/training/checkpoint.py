"""Checkpoints with torch.distributed.checkpoint: each rank writes its shards, and another number of ranks can read them.

Contents, each under its name: the weights of every model held, and of every trainer the AdamW moments and the schedule's
position. `reward_model.json` says how the reward model is built, which no stage's configuration needs to know. Exports are
directories for transformers. Integrity of the files (digests, completeness) is the run manifest's business.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as read
from torch.distributed.checkpoint.state_dict_saver import save as write
from transformers import AutoConfig

from learner.models.policy import PolicyModel
from learner.models.weights import ModelWeights
from learner.training.trainer import Trainer
from reward.models import scalar_model as scalar_models
from reward.models.scalar_model import ScalarModel
from reward.models.tokenizer import copy_tokenizer
from rollout.files import as_umask_says

SHAPE_FILE = "reward_model.json"


def _state(models: Mapping[str, nn.Module], trainers: Mapping[str, Trainer]) -> dict:
    """Live tensors, sharded ones as they are, under the names of the parameters."""
    state: dict = {name: {key: p.detach() for key, p in model.named_parameters()} for name, model in models.items()}
    for name, trainer in trainers.items():
        parameters = dict(trainer.model.named_parameters())
        state[f"{name}_trainer"] = {
            "optimizer": {f"{at}/{key}": x for at, p in parameters.items() for key, x in trainer.optimizer.state[p].items()},
            "update": torch.tensor(trainer.update),
            "skips_in_a_row": torch.tensor(trainer.skips_in_a_row),
        }
    return state | {"rng": torch.get_rng_state()}


def save(directory: Path, models: Mapping[str, nn.Module], trainers: Mapping[str, Trainer]) -> dict[str, int]:
    """Write models and trainers into `directory`. A collective; returns {file: its least size in bytes} of all ranks' files."""
    write(_state(models, trainers), checkpoint_id=directory)
    # What `save` returns names no files before torch 2.13.
    written = FileSystemReader(directory).read_metadata().storage_data.values()
    ends = sorted((part.relative_path, part.offset + part.length) for part in written)
    return {".metadata": 1, **dict(ends)}


def load(directory: Path, models: Mapping[str, nn.Module], trainers: Mapping[str, Trainer]) -> None:
    """Fill models and trainers made for the same stage in place. A collective."""
    state = _state(models, trainers)
    read(state, checkpoint_id=directory)
    for name, trainer in trainers.items():
        trainer.update = int(state[f"{name}_trainer"]["update"])
        trainer.skips_in_a_row = int(state[f"{name}_trainer"]["skips_in_a_row"])
    torch.set_rng_state(state["rng"])


def save_shape(directory: Path, model: ScalarModel) -> dict[str, int]:
    """Write how the reward model is built. Rank 0 does, before the collective `save`; returns the same as that."""
    if dist.get_rank() == 0:
        configs = [json.loads(member.config.to_json_string(use_diff=False)) for member in model.members]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / SHAPE_FILE).write_text(json.dumps({"kind": model.kind, "members": configs}), encoding="utf-8")
    return {SHAPE_FILE: 1}


def blank_reward_model(directory: Path) -> ScalarModel | None:
    """A reward model with the shape, not the weights, of the one in a checkpoint; None where it holds none."""
    path = directory / SHAPE_FILE
    if not path.exists():
        return None
    shape = json.loads(path.read_text(encoding="utf-8"))
    configs = [AutoConfig.for_model(config.pop("model_type"), **config) for config in shape["members"]]
    cls = scalar_models.CLASSES[shape["kind"]]
    members = [cls.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval() for config in configs]
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


def export_reward_model(directory: Path, model: ScalarModel, model_dir: Path) -> None:
    """A directory, or one for each member, that transformers loads as a classifier. A collective; rank 0 writes."""
    weights = _gathered(model)
    if dist.get_rank() == 0:
        scalar_models.save(model, directory, model_dir, weights)
    dist.barrier()


def _gathered(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Full weights on rank 0, a tied one under its first name only; nothing elsewhere. A collective."""
    once = {name for name, _ in model.named_parameters()} if dist.get_rank() == 0 else ()
    return {name: tensor.cpu() for name, tensor in ModelWeights(model, dtype) if name in once}
