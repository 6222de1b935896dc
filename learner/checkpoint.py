"""Checkpoints with torch.distributed.checkpoint: each rank writes its shards, and another number of ranks can read them.

Contents: master weights, AdamW moments, the schedule's position, the reference when there is one. `export` writes a directory
for transformers. Integrity of the files (digests, completeness) is the run manifest's business.
"""

import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from learner.policy import PolicyModel
from learner.trainer import Trainer
from learner.weights import PolicyWeights

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "*.model",
)


def _state(trainer: Trainer, reference: PolicyModel | None) -> dict:
    """Live tensors, sharded ones as they are, under the names of the parameters."""
    parameters = dict(trainer.model.named_parameters())
    state = {
        "model": {name: p.detach() for name, p in parameters.items()},
        "optimizer": {f"{name}/{key}": x for name, p in parameters.items() for key, x in trainer.optimizer.state[p].items()},
        "update": torch.tensor(trainer.update),
        "rng": torch.get_rng_state(),
    }
    if reference is not None:
        state["reference"] = {name: p.detach() for name, p in reference.named_parameters()}
    return state


def save(directory: Path, trainer: Trainer, reference: PolicyModel | None) -> None:
    """Write the learner's state into `directory`. A collective."""
    dcp.save(_state(trainer, reference), checkpoint_id=directory)


def load(directory: Path, trainer: Trainer, reference: PolicyModel | None) -> None:
    """Fill a trainer made for the same stage, and its reference, in place. A collective."""
    state = _state(trainer, reference)
    dcp.load(state, checkpoint_id=directory)
    trainer.update = int(state["update"])
    torch.set_rng_state(state["rng"])


def export(directory: Path, model: PolicyModel, model_dir: Path) -> None:
    """A float32 directory that AutoModelForCausalLM loads, with the tokenizer of `model_dir`. A collective; rank 0 writes."""
    weights, once = {}, dict(model.causal_lm.named_parameters())
    for name, tensor in PolicyWeights(model.causal_lm, torch.float32):
        if name in once and dist.get_rank() == 0:
            weights[name] = tensor.cpu()
    if dist.get_rank() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        model.causal_lm.save_pretrained(directory, state_dict=weights)
        for pattern in TOKENIZER_FILES:
            for file in model_dir.glob(pattern):
                shutil.copy2(file, directory / file.name)
    dist.barrier()
