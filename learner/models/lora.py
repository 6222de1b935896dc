"""Low-rank adapters (arXiv 2106.09685) of the policy: y = W x + s B (A x), s = alpha / rank, in peft's layers.

A starts random, the same on every rank, and B at zero. The base is frozen, and nothing is ever merged into it: what needs
W + s B A gets a copy (`learner.models.weights.Weight.value`).
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from learner.config import LoraConfig
from learner.models.loading import fill
from learner.models.policy import PolicyModel
from learner.models.sharding import decoder_layers
from learner.models.weights import ADAPTER, local, trained
from learner.types import MicroBatch


def adapt(policy: PolicyModel, config: LoraConfig) -> None:
    """Freeze a policy on the meta device and put an adapter beside its linear layers, in place.

    Raises ValueError as `targets` does.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    names = targets(policy.causal_lm, config)
    how = PeftConfig(r=config.rank, lora_alpha=config.numerator, target_modules=names, task_type="CAUSAL_LM")
    with torch.device("meta"):
        inject_adapter_in_model(how, policy.causal_lm)
    policy.eval()


def draw(policy: PolicyModel) -> None:
    """An adapter's first values, of a sharded policy: of A from U(-1, 1) / sqrt(inputs), as peft does, and of B zero."""
    generator = torch.Generator().manual_seed(0)
    for name, p in trained(policy).items():
        bound = p.shape[1] ** -0.5 if f".lora_A.{ADAPTER}." in name else 0.0
        fill(p, torch.empty(p.shape).uniform_(-bound, bound, generator=generator))


def targets(causal_lm: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Last parts of the names of the linear layers to adapt. Raises ValueError for one that the decoder does not have."""
    known = sorted({name.rpartition(".")[2] for name, _ in _linear(causal_lm)})
    if not known:
        raise ValueError(f"learner.lora: {type(causal_lm).__name__} has no linear layers (torch.nn.Linear) to adapt")
    if unknown := sorted(set(config.targets) - set(known)):
        found = f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not in {type(causal_lm).__name__}"
        raise ValueError(f"learner.lora.targets: {found}; expected some of {', '.join(known)}")
    return sorted(set(config.targets or known))


def adapter_size(causal_lm: PreTrainedModel, config: LoraConfig) -> int:
    """Parameters of the adapter of a model without one. Raises ValueError as `targets` does."""
    names = targets(causal_lm, config)
    adapted = [m for name, m in _linear(causal_lm) if name.rpartition(".")[2] in names]
    return sum(config.rank * (m.in_features + m.out_features) for m in adapted)


def _linear(causal_lm: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    modules = [pair for layer in decoder_layers(causal_lm) for pair in layer.named_modules()]
    return [(name, module) for name, module in modules if isinstance(module, nn.Linear)]


class AdapterReference(nn.Module):
    """The policy as it is when this is made: its base, and a copy of its adapter, which takes the other's place for a while."""

    def __init__(self, policy: PolicyModel):
        """`policy` is sharded."""
        super().__init__()
        self._policy = [policy]  # in a list it is no part of this module
        self._live = list(trained(policy).values())
        self.kept = nn.ParameterList(nn.Parameter(p.detach().clone(), requires_grad=False) for p in self._live)

    @torch.no_grad()
    def forward(self, micro: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """As `PolicyModel.forward`."""
        self._swap()
        try:
            return self._policy[0](micro, temperature)
        finally:
            self._swap()

    def reshard(self) -> None:
        cast(FSDPModule, self._policy[0]).reshard()

    def _swap(self) -> None:
        self.reshard()
        for live, kept in zip(map(local, self._live), map(local, self.kept), strict=True):
            held = live.clone()
            live.copy_(kept)
            kept.copy_(held)
