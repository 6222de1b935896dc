"""A model's weights as a stream, structurally the `WeightSource` of vLLM's trainer engines; imports neither vllm nor ray.

Names and shapes are those of Hugging Face's files (of a reward model, behind `members.k.`), where a layer's experts, which
transformers stacks, have tensors of their own. A tied output head is sent under its own name as well, since
an engine may keep its own copy of it. Left out: `held_names` and `iter_groups`, which only vLLM's point-to-point backend calls.

Of a model with an adapter (see learner.models.lora) the stream is the merged weights, as copies, or the adapter alone.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

ADAPTER = "default"
"""The adapter's name in peft's modules."""
NO_HEAD = ("gemma2",)
"""Models (`model_type`) of which vLLM's class reads its embeddings as the head, and refuses one that is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMeta:
    """One tensor of the stream: its name, the dtype it is sent in and its full shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight under the name that it has in the model without an adapter."""

    name: str
    parameter: nn.Parameter
    layer: Any = None
    """peft's, of a weight that is adapted."""

    def value(self) -> Tensor:
        """As it counts in the forward pass, sharded as the parameter is: W, or W + s B A in a copy. A collective."""
        if self.layer is None:
            return self.parameter.detach()
        a_RI, b_OR = (side[ADAPTER].weight.detach() for side in (self.layer.lora_A, self.layer.lora_B))
        whole = a_RI.full_tensor() if isinstance(a_RI, DTensor) else a_RI
        # A rank has the same rows of B as of W.
        merged = torch.addmm(local(self.parameter), local(b_OR), whole, alpha=self.layer.scaling[ADAPTER])
        return placed_like(self.parameter, merged)


def weights_of(model: nn.Module, *, twice: bool = True) -> Iterator[Weight]:
    """Those of the model without its adapter; `twice`: one that has two names, under both."""
    for name, parameter in model.named_parameters(remove_duplicate=not twice):
        path, adapted, rest = name.partition(".base_layer.")
        if adapted:
            yield Weight(f"{path}.{rest}", parameter, model.get_submodule(path) if rest == "weight" else None)
        elif not name.endswith((f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight")):
            yield Weight(name, parameter)


def adapter_of(model: nn.Module) -> Iterator[Weight]:
    """A and B of every adapted layer, under the names that peft gives them in a file, without its prefix."""
    for name, parameter in model.named_parameters():
        if name.endswith((f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight")):
            yield Weight(name.removesuffix(f".{ADAPTER}.weight") + ".weight", parameter)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class ModelWeights:
    """Iterates (name, full tensor in the wire dtype), each time anew, in the order of `metadata()`.

    A collective: every rank iterates in step, since each sharded tensor is gathered when its turn comes.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, adapter_scale: float | None = None):
        """`adapter_scale`: the stream is the adapter alone, to be merged with this scale."""
        self._model = model
        self._dtype = dtype
        self.adapter_scale = adapter_scale
        self._kept: dict[str, Tensor] | None = None

    def keep(self) -> None:
        """From here on iterate the weights as they are now, whatever becomes of the model's; in host memory, a shard a rank.
        A collective."""
        self._kept = {weight.name: local(weight.value()).to("cpu", self._dtype, copy=True) for weight in self._weights()}

    def metadata(self) -> list[TensorMeta]:
        """What iteration will yield; gathers nothing."""
        stacked = ((w.name, torch.empty(w.parameter.shape, device="meta")) for w in self._weights())
        found = (part for name, tensor in stacked for part in self._as_in_files(name, tensor))
        return [TensorMeta(name=name, dtype=self._dtype, shape=tuple(tensor.shape)) for name, tensor in found]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.whole():
            yield from self._as_in_files(name, tensor)

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """The same under the names of the model's parameters, and in their shapes. What is tied is gathered once."""
        names, made = Counter(weight.parameter for weight in self._weights()), {}
        for weight in self._weights():
            if weight.parameter in made:
                yield weight.name, made[weight.parameter]
                continue
            narrow = weight.value().to(self._dtype) if self._kept is None else self._as_kept(weight, self._kept)
            if isinstance(narrow, DTensor):
                # Where the ranks compute: offloaded weights are gathered faster there, and some transports send from there.
                narrow = cast(DTensor, narrow.to(narrow.device_mesh.device_type)).full_tensor()
            if names[weight.parameter] > 1:
                made[weight.parameter] = narrow
            yield weight.name, narrow

    def _as_in_files(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        if not isinstance(self._model, PreTrainedModel):
            return [(name, tensor)]
        return revert_weight_conversion(self._model, {name: tensor}).items()

    def _weights(self) -> Iterator[Weight]:
        if self.adapter_scale is not None:
            return adapter_of(self._model)
        config = getattr(self._model, "config", None)
        return weights_of(self._model, twice=getattr(config, "model_type", "") not in NO_HEAD)

    def _as_kept(self, weight: Weight, kept: dict[str, Tensor]) -> Tensor:
        return placed_like(weight.parameter, kept[weight.name].to(weight.parameter.device))


def local(tensor: Tensor) -> Tensor:
    """This rank's part, without gradient."""
    value = tensor.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def placed_like(tensor: Tensor, part: Tensor, mesh: DeviceMesh | None = None) -> Tensor:
    """This rank's part as a tensor that is placed as another is, on its mesh or a like one."""
    value = tensor.detach()
    if not isinstance(value, DTensor):
        return part
    how = {"shape": value.shape, "stride": value.stride()}
    return DTensor.from_local(part, mesh or value.device_mesh, value.placements, **how)
