"""From a model's directory to each rank's shards, without the whole model in any rank's memory.

A model is built on the meta device, which holds names, shapes and no values, and is sharded there. Then every rank gets memory
for its own part, and reads no more than that of the files.
"""

import json
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from learner.models.policy import load_causal_lm
from learner.models.weights import local, weights_of


def materialise(model: nn.Module, kept: torch.device, device: torch.device) -> None:
    """Memory for a model on the meta device: parameters with any values where they are kept, buffers on the device that
    computes, with those that transformers gives them."""
    model.to_empty(device=kept)
    marked: Any = (*model.modules(), *model.parameters())
    for each in marked:
        each._is_hf_initialized = isinstance(each, nn.Parameter)  # transformers' own mark of what is not to be drawn
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.initialize_weights()
    for module in model.modules():
        module._buffers |= {name: None if b is None else b.to(device) for name, b in module._buffers.items()}


@torch.no_grad()
def fill(parameter: Tensor, whole: Tensor) -> None:
    """Give a parameter this rank's part of a value."""
    local(parameter).copy_(whole[_mine(parameter)])


@torch.no_grad()
def read(causal_lm: PreTrainedModel, directory: Path) -> None:
    """This rank's part of every weight, in the model's dtype, from the safetensors files of a directory; an adapter stays.

    What the files hold in another form, such as experts one by one, comes from a whole model that transformers loads.
    Raises ValueError for a weight with two names that differs under them.
    """
    saved, buffers = causal_lm.state_dict().keys(), dict(causal_lm.named_buffers())
    places: dict[str, Tensor] = {weight.name: weight.parameter for weight in weights_of(causal_lm)}
    places |= {name: buffers[name] for name in buffers.keys() & saved}
    rules = [rule for rule in get_model_conversion_mapping(causal_lm) if isinstance(rule, WeightRenaming)]
    filled: set[int] = set()
    for file in _files(directory):
        # Read and not mapped, so that what other ranks need is not in this one's memory.
        with safe_open(file, "pt", backend="pread") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                name, _ = rename_source_key(key, rules, [], causal_lm.base_model_prefix, places)
                place = places.get(name, places.get(key))
                if place is None:
                    continue  # transformers leaves it out too, or `load_causal_lm` has refused it
                part, mine = tensors.get_slice(key)[_mine(place)], local(place)
                if id(place) in filled and not torch.equal(mine, part.to(mine)):
                    raise ValueError(f"{file}: {key} is tied by config.json (tie_word_embeddings), and has values of its own")
                mine.copy_(part)
                filled.add(id(place))
    if left := [name for name, place in places.items() if id(place) not in filled]:
        whole = load_causal_lm(directory, dtype=places[left[0]].dtype).state_dict()
        for name in left:
            fill(places[name], whole[name])


def _files(directory: Path) -> list[Path]:
    """As transformers finds them: one file, or those of the index."""
    if (whole := directory / "model.safetensors").is_file():
        return [whole]
    index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
    return [directory / name for name in sorted(set(index["weight_map"].values()))]


def _mine(tensor: Tensor) -> slice | EllipsisType:
    """The rows of a sharded tensor that this rank has; all of one that is not sharded."""
    if not isinstance(tensor, DTensor):
        return ...
    each = -(-len(tensor) // tensor.device_mesh.size())
    start = min(each * tensor.device_mesh.get_local_rank(), len(tensor))
    return slice(start, start + len(tensor.to_local()))
