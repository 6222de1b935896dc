"""torch.distributed and FSDP2: the learner's process group, and how a model is spread over it.

Gradients are summed over ranks, never averaged: token weights are already normalised over the whole batch.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore, Store, TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from learner.models.loading import materialise
from learner.models.weights import local, weights_of
from learner.types import Columns, Micro, MicroBatch, PackedBatch

Model = TypeVar("Model", bound=nn.Module)
aten: Any = torch.ops.aten
KEPT = [
    aten.mm.default, aten.addmm.default, aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default, aten._scaled_dot_product_flash_attention_for_cpu.default,
]  # fmt: skip
"""Operations whose results selective checkpointing keeps, as they take the most time for their size."""


def init_distributed(rank: int, world_size: int, rendezvous: str, timeout_seconds: float) -> DeviceMesh:
    """Join the learner group: NCCL when there are GPUs, gloo otherwise. A collective that outlasts the timeout raises."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank % torch.cuda.device_count())
        # On Hopper torch prefers cuDNN's attention, which builds a plan for every new shape, forward and backward: tens of
        # milliseconds each, and packed rows have all widths.
        torch.backends.cuda.enable_cudnn_sdp(False)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=_store(rank, world_size, rendezvous),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )
    return init_device_mesh("cuda" if cuda else "cpu", (world_size,), mesh_dim_names=("shard",))


def _store(rank: int, world_size: int, rendezvous: str) -> Store:
    """Of file://path, or tcp://host:port, where rank 0 listens at that address only: torch's own listens at all of its node."""
    where = urlsplit(rendezvous)
    if where.scheme == "file":
        return FileStore(where.path, world_size)
    host, port = str(where.hostname), int(where.port or 0)
    listening = socket.create_server((host, port)).detach() if rank == 0 else None
    return TCPStore(host, port, world_size, rank == 0, master_listen_fd=listening)


def shard(
    model: Model, mesh: DeviceMesh, compute_dtype: torch.dtype, *, checkpointing="none", compiled=False, offload=False
) -> Model:
    """Shard in place: every decoder layer, then the rest; what is on the meta device then gets its memory, without values.

    Parameters keep their dtype; they compute in `compute_dtype`. `checkpointing`: LearnerConfig's `activation_checkpointing`.
    `compiled`: its `compile`. `offload`: its own.
    """
    device = torch.device(mesh.device_type)
    how: dict = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)}
    if offload:
        how["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    again = {"selective": {"context_fn": partial(create_selective_checkpoint_contexts, KEPT)}, "full": {}}
    for layer in decoder_layers(model):
        # The layer's own function: the hooks by which its weights are gathered stay outside.
        if checkpointing != "none":
            layer.forward = partial(
                checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False, **again[checkpointing]
            )
        if compiled:  # rows have all lengths
            layer.forward = torch.compile(layer.forward, dynamic=True)
        fully_shard(layer, **how)
    fully_shard(model, **how)
    for module in model.modules() if mesh.size() > 1 else ():  # a rank alone would only divide by 1
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    if next(model.parameters()).is_meta:
        materialise(model, torch.device("cpu") if offload else device, device)
    return model


@contextmanager
def accumulating(model: nn.Module, micro_batches: Sequence[Micro]) -> Iterator[Iterator[Micro]]:
    """The micro-batches of an update, one after the other, of which each is to be passed forward and backward.

    A rank alone, which has no part to save memory for, gathers its weights and reduces its gradients once for all of them,
    unless they are kept elsewhere than where it computes, to save memory.
    """
    fsdp, last = cast(FSDPModule, model), len(micro_batches) - 1

    def each() -> Iterator[Micro]:
        for i, micro in enumerate(micro_batches):
            fsdp.set_requires_gradient_sync(i == last)
            fsdp.set_reshard_after_backward(i == last)
            yield micro

    elsewhere = next(model.parameters()).device.type != micro_batches[0].device.type
    if dist.get_world_size() > 1 or elsewhere:
        yield iter(micro_batches)
        return
    fsdp.set_reshard_after_forward(False)
    try:
        yield each()
    finally:
        fsdp.set_reshard_after_forward(True)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The modules that the models' authors say must not be split; of nested ones, the outermost."""
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    names = {name for each in models for name in each._no_split_modules or ()}
    found = {name: module for name, module in model.named_modules() if type(module).__name__ in names}
    return [module for name, module in found.items() if not any(name.startswith(f"{other}.") for other in found)]


@torch.no_grad()
def copy_shards(mine: nn.Module, theirs: nn.Module) -> None:
    """Give a module the weights and buffers of another that is sharded over the same mesh, merged where it has an adapter.
    A collective.

    Raises ValueError where the names differ.
    """
    of_mine, of_theirs = dict(mine.named_parameters()), {w.name: w for w in weights_of(theirs, twice=False)}
    if of_mine.keys() != of_theirs.keys():
        raise ValueError(f"{type(mine).__name__}: it does not have the parameters of {type(theirs).__name__}")
    for name, weight in of_theirs.items():
        local(of_mine[name]).copy_(local(weight.value()))
    for name, buffer in mine.named_buffers():
        buffer.copy_(theirs.get_buffer(name))


@torch.no_grad()
def read_all(model: Model, packed: PackedBatch, read: Callable[[Model, MicroBatch], Tensor]) -> list[Tensor]:
    """What `read` gives for every micro-batch, without gradient, of a sharded model. A collective."""
    values = [read(model, micro) for micro in packed.micro_batches]
    cast(FSDPModule, model).reshard()  # The root stays gathered for a backward pass that does not come here.
    return values


def gather_by_slot(values: Columns, packed: PackedBatch) -> Tensor:
    """(..., trained tokens) of all ranks from this rank's (..., N) of each micro-batch, each at its slot. A collective."""
    if not packed.micro_batches:
        return torch.zeros(0)
    whole = torch.zeros(*values[0].shape[:-1], packed.trained_tokens, device=packed.micro_batches[0].device)
    whole[..., torch.cat([micro.slot_N for micro in packed.micro_batches])] = torch.cat(list(values), dim=-1).float()
    dist.all_reduce(whole)
    return whole
