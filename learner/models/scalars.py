"""Scalar models on the learner's side: read on packed rows, grown from the policy's backbone, checked as the policy is."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from learner.models.loading import fill
from learner.models.policy import PolicyModel, check_config, takes_blocks, visible
from learner.models.sharding import copy_shards
from learner.models.supported import agree, sharing_a_row, short_window
from learner.types import MicroBatch
from reward.models.scalar_model import ScalarModel, first_heads, load, member_directories
from reward.models.tokenizer import check_tokenizer


def scalars(model: ScalarModel, micro: MicroBatch, at_N: Tensor) -> Tensor:
    """(K, N) scalars at positions b * T + t of a micro-batch's packed rows."""
    masks = [visible(micro, torch.float32, m.config, blocks=takes_blocks(m.base_model, micro)) for m in model.members]
    return model(micro.input_ids_BT, masks, micro.position_ids_BT, at_N)


def take_backbone(model: ScalarModel, policy: PolicyModel) -> None:
    """Copy the policy's current backbone into every member. Both are sharded over the same mesh."""
    for member in model.members:
        copy_shards(member.base_model, policy.causal_lm.base_model)


@torch.no_grad()
def zero_heads(model: ScalarModel) -> None:
    """Every scalar becomes exactly 0, as a critic starts."""
    for p in (p for head in model.heads for p in head.parameters()):
        p.zero_()


def start_heads(model: ScalarModel, seed: int) -> None:
    """Give the heads of a sharded model what they start with."""
    for parameter, value in first_heads(model, seed):
        fill(parameter, value)


def check_kind(model: ScalarModel, kind: str, members: int) -> None:
    """Raises ValueError unless the stage trains such a reward model."""
    if (model.kind, len(model.members)) != (kind, members):
        found = f"found one for {model.kind} of {len(model.members)} members"
        raise ValueError(f"reward model: {found}, expected one for {kind} of {members}")


def load_given(paths: Sequence[Path], policy_dir: Path) -> ScalarModel:
    """The reward model in these directories, in float32 on the CPU.

    Raises ValueError for one that reads token ids otherwise than the policy does, and for one that cannot be trained packed.
    """
    for folder in (folder for path in paths for folder in member_directories(path)):
        check_tokenizer(folder, policy_dir)
    model = load(paths, torch.float32)
    check_scalar_packing(model)
    return model


@torch.no_grad()
def check_scalar_packing(model: ScalarModel) -> None:
    """Raises ValueError unless outputs that share a row get the scalars that the model itself gives each alone.

    For an unsharded float32 model on the CPU.
    """
    for member in model.members:
        check_config(member.config, ignored=["classifier_dropout"])
    vocabulary = min(member.get_input_embeddings().weight.shape[0] for member in model.members)
    prompt, outputs, micro = sharing_a_row(vocabulary)
    with ExitStack() as windows:
        for member in model.members:
            windows.enter_context(short_window(member))
        packed_KN = scalars(model, micro, micro.index_N)
        alone_KN = torch.cat([_alone(model, prompt, output) for output in outputs], dim=1)
    gap_KN = (packed_KN - alone_KN).abs() / (1 + alone_KN.abs())
    agree(f"{type(model.members[0]).__name__}: scalars", gap_KN.max().item())


def _alone(model: ScalarModel, prompt: tuple[int, ...], output: tuple[int, ...]) -> Tensor:
    ids = torch.tensor([prompt + output])
    return model(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None], torch.arange(len(prompt), ids.shape[1]))
