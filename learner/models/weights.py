"""A model's weights as a stream, structurally the `WeightSource` of vLLM's trainer engines; imports neither vllm nor ray.

Names are Hugging Face's (of a reward model, behind `members.k.`). A tied output head is sent under its own name as well, since
an engine may keep its own copy of it. Left out: `held_names` and `iter_groups`, which only vLLM's point-to-point backend calls.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMeta:
    """One tensor of the stream: its name, the dtype it is sent in and its full shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class ModelWeights:
    """Iterates (name, full tensor in the wire dtype), each time anew, in the order of `metadata()`.

    A collective: every rank iterates in step, since each sharded tensor is gathered when its turn comes.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        self._model = model
        self._dtype = dtype
        self._kept: dict[str, Tensor] | None = None

    def keep(self) -> None:
        """From here on iterate the weights as they are now, whatever becomes of the model's; in host memory, a shard a rank."""
        self._kept = {name: _local(p).to("cpu", self._dtype, copy=True) for name, p in self._parameters()}

    def metadata(self) -> list[TensorMeta]:
        """What iteration will yield; gathers nothing."""
        return [TensorMeta(name=name, dtype=self._dtype, shape=tuple(p.shape)) for name, p in self._parameters()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._parameters():
            narrow = parameter.detach().to(self._dtype) if self._kept is None else _like(parameter, self._kept[name])
            yield name, narrow.full_tensor() if isinstance(narrow, DTensor) else narrow

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._model.named_parameters(remove_duplicate=False)


def _local(parameter: nn.Parameter) -> Tensor:
    """This rank's part."""
    value = parameter.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def _like(parameter: nn.Parameter, local: Tensor) -> Tensor:
    """This rank's part as a tensor that is placed as the parameter is."""
    here, value = local.to(parameter.device), parameter.detach()
    if not isinstance(value, DTensor):
        return here
    return DTensor.from_local(here, value.device_mesh, value.placements, shape=value.shape, stride=value.stride())
