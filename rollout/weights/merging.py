"""An adapter that was received becomes whole weights, W + s B A, from the base that the engine was started with.

The base is read from its files anew for every update, so that nothing adds up, and an engine that was just started needs no
more than the adapter. Torch only.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from rollout.weights.transfer import TransferError


def merged(
    base: Iterable[tuple[str, Tensor]], adapter: Mapping[str, Tensor], scale: float, how: tuple[torch.dtype, torch.device]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the base in a dtype, W + scale B A for those that the adapter has sides for; these are computed on the
    device in float32, and rounded once.

    Raises TransferError, after the last, for an adapter of other tensors.
    """
    (dtype, device), left = how, set(adapter)
    for name, tensor in base:
        sides = [f"{name.removesuffix('.weight')}.lora_{side}.weight" for side in "AB"]
        if left.issuperset(sides):
            left -= set(sides)
            whole, a_RI, b_OR = (x.to(device, torch.float32) for x in (tensor, *(adapter[side] for side in sides)))
            tensor = torch.addmm(whole, b_OR, a_RI, alpha=scale)
        yield name, tensor.to(dtype)
    if left:
        raise TransferError(f"the adapter has {min(left)!r}, and the base on the engine's disk no such weight")
