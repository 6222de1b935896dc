"""torch.distributed and FSDP2: the learner's process group, and how a model is spread over it.

Gradients are summed over ranks, never averaged: token weights are already normalised over the whole batch.
"""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from learner.policy import PolicyModel


def init_distributed(rank: int, world_size: int, rendezvous: str, timeout_seconds: float) -> DeviceMesh:
    """Join the learner group: NCCL when there are GPUs, gloo otherwise. A collective that outlasts the timeout raises."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )
    return init_device_mesh("cuda" if cuda else "cpu", (world_size,), mesh_dim_names=("shard",))


def shard(model: PolicyModel, mesh: DeviceMesh, compute_dtype: torch.dtype) -> PolicyModel:
    """Shard in place: every decoder layer, then the rest. Parameters keep their dtype; they compute in `compute_dtype`."""
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def decoder_layers(model: PolicyModel) -> list[nn.Module]:
    """The modules that the model's authors say must not be split; of nested ones, the outermost."""
    names = set(model.causal_lm._no_split_modules or ())
    found = {name: module for name, module in model.named_modules() if type(module).__name__ in names}
    return [module for name, module in found.items() if not any(name.startswith(f"{other}.") for other in found)]


def gather_by_slot(values: list[torch.Tensor], slots: list[torch.Tensor], total: int, device: torch.device) -> torch.Tensor:
    """(total,) the trained tokens' values of all ranks, each at its slot. A collective."""
    whole = torch.zeros(total, device=device)
    if values:
        whole[torch.cat(slots)] = torch.cat(values).float()
    dist.all_reduce(whole)
    return whole
