"""vLLM's workers in this process, around vLLM's own receivers of weights, without its loading of a model."""

import asyncio
import threading
from types import SimpleNamespace

import torch
from torch import nn
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from rollout.weights.receivers import WorkerExtension

TENSORS = {"embed": torch.arange(6.0).reshape(2, 3), "norm": torch.tensor([1.5, -2.0]), "head": torch.ones(4, 3)}
current = threading.local()
"""Of this thread: `gpu`, the one that its calls reach, and `rank`, where it is a learner's."""


class Model(nn.Module):
    """What an engine's worker holds; whole on every tensor-parallel rank."""

    def __init__(self):
        super().__init__()
        for name, tensor in TENSORS.items():
            self.register_parameter(name, nn.Parameter(torch.zeros_like(tensor)))

    def load_weights(self, pairs):
        with torch.no_grad():
            return {name for name, tensor in pairs if getattr(self, name).copy_(tensor) is not None}


class Worker(WorkerExtension):
    """vLLM's worker around vLLM's own receiver; `fail` names a call that ends with an error."""

    def __init__(self, transport, rank, size, gpu):
        self.gpu, self.fail, self._weight_update_active = gpu, "", False
        parallel = SimpleNamespace(world_size=size, rank=rank, data_parallel_index=0)
        config = SimpleNamespace(parallel_config=parallel, model_config=SimpleNamespace(dtype=torch.float32))
        made = WeightTransferEngineFactory._registry[transport]()
        self.weight_transfer_engine = made(WeightTransferConfig(backend=transport), config, torch.device("cpu"), Model())

    def init_weight_transfer_engine(self, info):
        self.weight_transfer_engine.init_transfer_engine(self.weight_transfer_engine.parse_init_info(info))

    def start_weight_update(self):
        assert not self._weight_update_active
        self.weight_transfer_engine.start_weight_update()
        self._weight_update_active = True

    def update_weights(self, info):
        assert self._weight_update_active
        self.weight_transfer_engine.update_weights(info)

    def finish_weight_update(self):
        assert self._weight_update_active
        self.weight_transfer_engine.finish_weight_update()
        self._weight_update_active = False

    def sleep(self, level):
        pass

    def wake_up(self, tags):
        pass

    def call(self, method, *arguments):
        current.gpu = self.gpu
        if method == self.fail:
            raise RuntimeError(f"{method} fails")
        return getattr(self, method)(*arguments)


class LLM:
    """AsyncLLM over such workers, each on a thread; `log` has its calls in order."""

    def __init__(self, workers):
        self.workers, self.log = workers, []

    async def collective_rpc(self, method, args=()):
        self.log.append(method)
        return await asyncio.gather(*(asyncio.to_thread(w.call, method, *args) for w in self.workers))

    async def init_weight_transfer_engine(self, request):
        await self.collective_rpc("init_weight_transfer_engine", (request.init_info,))

    async def start_weight_update(self):
        await self.collective_rpc("start_weight_update")

    async def update_weights(self, request):
        await self.collective_rpc("update_weights", (request.update_info,))

    async def finish_weight_update(self, weight_version):
        await self.collective_rpc("finish_weight_update")

    async def sleep(self, level):
        await self.collective_rpc("sleep", (level,))

    async def wake_up(self, tags):
        self.log.append(f"wake {' '.join(tags)}")

    async def pause_generation(self, mode, clear_cache):
        self.log.append("pause")

    async def reset_prefix_cache(self, reset_running_requests=False):
        return True

    async def resume_generation(self):
        self.log.append("resume")
