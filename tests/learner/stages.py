"""Stages for the learner's tests, what their workers hold, and slow references of gradients."""

import torch
from torch.distributed.tensor import distribute_tensor

from learner.algorithms.table import Algorithm, RewardModelRow
from learner.config import OptimizerConfig
from learner.models.weights import trained
from learner.stage import StageSpec


def stage(row: Algorithm | RewardModelRow, optimizer: OptimizerConfig, total_updates: int, **more) -> StageSpec:
    return StageSpec(row=row, optimizer=optimizer, total_updates=total_updates, **more)


def weights(worker, model: str = "policy") -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in worker.source("float32", model)}


def gradients(worker, model: str = "policy") -> dict[str, torch.Tensor]:
    """What the stage's first update applied, read from AdamW's first moment, which is then (1 - beta1) x gradient."""
    trainer = worker._stage.trainers[model]
    moments = {name: trainer.optimizer.state[p]["exp_avg"] for name, p in trained(trainer.model).items()}
    return {name.removeprefix("causal_lm."): moment.full_tensor() / 0.1 for name, moment in moments.items()}


@torch.no_grad()
def fill(module: torch.nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Give a sharded module these full values."""
    for name, p in module.named_parameters():
        p.copy_(distribute_tensor(values[name].detach(), p.device_mesh, p.placements))


def assert_close(found: dict, expected: dict, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance`, relative to the largest entry of each tensor."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = tensor.abs().max().item()
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=tolerance, atol=tolerance * scale)


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
