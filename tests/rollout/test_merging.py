"""Whole weights from an adapter and the base on an engine's disk."""

import asyncio
from types import SimpleNamespace

import pytest
import torch
from vllm.config import WeightTransferConfig
from vllm.model_executor import model_loader
from vllm.model_executor.model_loader import reload

from rollout.engine.engine import EngineError
from rollout.weights.held import sum_of_bits
from rollout.weights.merging import merged
from rollout.weights.receivers import ShmEngine, ShmInitInfo, WorkerExtension
from rollout.weights.transfer import TransferError
from rollout.weights.updates import UpdatableEngine

CPU = torch.device("cpu")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BASE = {
    "a.q_proj.weight": drawn(6, 4).bfloat16(),
    "a.q_proj.bias": drawn(6, seed=1).bfloat16(),
    "norm.weight": drawn(4, seed=2),
}
ADAPTER = {"a.q_proj.lora_A.weight": drawn(2, 4, seed=3), "a.q_proj.lora_B.weight": drawn(6, 2, seed=4)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_that_of_the_base_and_the_scaled_product_rounded_once(dtype):
    found = dict(merged(BASE.items(), ADAPTER, 1.5, (dtype, CPU)))
    assert list(found) == list(BASE) and {x.dtype for x in found.values()} == {dtype}
    exact = (
        BASE["a.q_proj.weight"].double()
        + 1.5 * ADAPTER["a.q_proj.lora_B.weight"].double() @ ADAPTER["a.q_proj.lora_A.weight"].double()
    )
    torch.testing.assert_close(
        found["a.q_proj.weight"].double(), exact, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=1e-6
    )
    assert found["a.q_proj.bias"].equal(BASE["a.q_proj.bias"].to(dtype)) and found["norm.weight"].equal(
        BASE["norm.weight"].to(dtype)
    )


def test_an_adapter_of_another_model_is_refused():
    other = ADAPTER | {"a.k_proj.lora_A.weight": torch.ones(2, 4), "a.k_proj.lora_B.weight": torch.ones(6, 2)}
    with pytest.raises(TransferError, match="'a.k_proj.lora_A.weight', and the base on the engine's disk no such weight"):
        dict(merged(BASE.items(), other, 1.0, (torch.float32, CPU)))


class Model:
    """Holds what it was last given to load."""

    def __init__(self):
        self.weights = {}

    def named_parameters(self):
        return list(self.weights.items())

    def named_modules(self):
        return []

    def modules(self):
        return []

    def load_weights(self, pairs):
        self.weights = dict(pairs)
        return set(self.weights)


@pytest.fixture
def receiver(monkeypatch):
    """A receiver on a model whose files hold BASE."""
    for name in ("initialize_layerwise_reload", "finalize_layerwise_reload"):
        monkeypatch.setattr(reload, name, lambda *_: None)
    loader = SimpleNamespace(get_all_weights=lambda config, model: iter(BASE.items()))
    monkeypatch.setattr(model_loader, "get_model_loader", lambda config: loader)
    monkeypatch.setattr("rollout.weights.receivers.replace", lambda config, **changes: config)
    config = SimpleNamespace(parallel_config=None, model_config=SimpleNamespace(dtype=torch.float32), load_config=None)
    return ShmEngine(WeightTransferConfig(backend="shm"), config, CPU, Model())


def told(receiver, scale):
    tensors = ADAPTER if scale else BASE
    names = list(tensors)
    receiver.init_transfer_engine(ShmInitInfo(names, ["float32"] * len(names), [list(tensors[n].shape) for n in names], scale))


def test_every_update_starts_from_the_base_and_says_what_must_be_held_then(receiver):
    told(receiver, 2.0)
    for factor in (1.0, 3.0, 0.0):
        receiver.staging.tensors = {name: factor * x if "lora_B" in name else x for name, x in ADAPTER.items()}
        receiver.finish_weight_update()
        expected = dict(merged(BASE.items(), ADAPTER, 2.0 * factor, (torch.float32, CPU)))
        torch.testing.assert_close(receiver.model.weights, expected)
        sums, _, must = WorkerExtension.held(SimpleNamespace(weight_transfer_engine=receiver))
        assert must == {name: sum_of_bits(x) for name, x in receiver.model.weights.items()}
        assert sums == {name: [value] for name, value in must.items()}
    assert receiver.model.weights["a.q_proj.weight"].equal(BASE["a.q_proj.weight"].float()), (
        "no adapter is the base, to the bit"
    )
    told(receiver, None)
    assert WorkerExtension.held(SimpleNamespace(weight_transfer_engine=receiver))[2] == {}


@pytest.mark.parametrize(("held", "refused"), [(7, False), (6, True)])
def test_an_engine_that_does_not_hold_what_it_merged_is_refused_whatever_was_sent(held, refused):
    async def answers(method):
        return [({"a.q_proj.weight": [held]}, {}, {"a.q_proj.weight": 7})]

    engine = UpdatableEngine(SimpleNamespace(collective_rpc=answers), "shm")
    sent = {name: sum_of_bits(x) for name, x in ADAPTER.items()}
    if refused:
        with pytest.raises(EngineError, match="1 weights are not what was sent, first 'a.q_proj.weight'"):
            asyncio.run(engine._compare(sent))
    else:
        asyncio.run(engine._compare(sent))
