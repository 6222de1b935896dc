"""A fleet of production's own Roles, actors, senders, engines and vLLM's receivers in one process, without Ray and GPUs.

Replaced are Ray's calls (an actor is an object on a thread), the judges, vLLM's loading of a model, and the calls that reach a
GPU: the NCCL communicator, the handles of GPU memory, streams. A sharded weight source is a barrier for every tensor, as
FSDP's gathers are.
"""

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from vllm.distributed.weight_transfer import ipc_engine, nccl_common, nccl_engine, packed_tensor
from vllm.model_executor.model_loader import reload

from cluster import fibers
from cluster.config.run_config import RunConfig
from cluster.fleet import actors, calls, publisher, receivers, roles, spawner, workers
from cluster.fleet.bundles import bundles
from learner import worker as learner_worker
from reward import worker as reward_worker
from rollout import worker as rollout_worker
from rollout.engine.engine import Engine
from tests.cluster.local_engines import LLM, TENSORS, Worker, current
from tests.cluster.local_ray import FakeRay, Unwatched

WAIT_S = 20
"""Of engines and of NCCL; the ranks wait for each other for longer, as they do in production."""


class Communicator:
    """A member of an NCCL group: nobody goes on before all have come."""

    groups: dict[int, SimpleNamespace] = {}
    lock = threading.Lock()

    def __init__(self, address, port, rank, world_size, device):
        with self.lock:
            new = SimpleNamespace(barrier=threading.Barrier(world_size), ranks=set(), value=None)
            self.group = self.groups.setdefault(port, new)
            assert rank not in self.group.ranks and rank < world_size
            self.group.ranks.add(rank)
        self.rank, self.disabled = rank, False
        self.group.barrier.wait(WAIT_S)

    def broadcast(self, tensor, src, stream=None):
        if self.disabled:
            return
        if self.rank == src:
            self.group.value = tensor.clone()
        self.group.barrier.wait(WAIT_S)
        if self.rank != src:
            tensor.copy_(self.group.value)
        self.group.barrier.wait(WAIT_S)

    def destroy(self):
        self.disabled = True
        self.group.barrier.abort()


class Sharded:
    """A weight source of which every rank must take each tensor in step."""

    def __init__(self, fleet):
        self.fleet = fleet

    def metadata(self):
        return [SimpleNamespace(name=n, dtype=t.dtype, shape=tuple(t.shape)) for n, t in self.fleet.tensors.items()]

    def __iter__(self):
        for name, tensor in self.fleet.tensors.items():
            self.fleet.gathers.wait(3 * WAIT_S)
            yield name, tensor.clone()


class Fleet:
    """`roles` with `engines` engines of `size` tensor-parallel workers and `ranks` learner ranks, started."""

    def __init__(self, monkeypatch, transport, engines=1, size=1, ranks=1, sleep=False):
        self.tensors, self.gathers, self.handles, self.together = dict(TENSORS), threading.Barrier(ranks), [], [None] * ranks
        self.gpus, self.abandoned = {rank: f"GPU-{rank}" for rank in range(ranks)}, 0
        config = RunConfig.model_validate({
            "name": "gpus", "output": "nowhere", "model": {"init": "small-llama"},
            "data": {"questions": {"task": "chained-arithmetic"}, "prompt": {"template": "plain"}},
            "rollout": {"workers": engines, "tensor_parallel_size": size, "transport": transport, "sleep": sleep},
            "learner": {"ranks": ranks}, "cluster": {"sync_deadline_s": WAIT_S},
            "stages": [{"algorithm": "grpo", "reward": "rule", "steps": 1, "questions_per_step": 1, "samples_per_question": 2,
                        "optimizer": {"learning_rate": 1e-6}}],
        })  # fmt: skip
        wanted = bundles(config, cpus=[64], gpus=0 if transport == "shm" else 64)
        self._replace(monkeypatch, ranks, wanted)
        self.roles = roles.Roles(config, None, max_model_len=64, incarnation=0)
        self.roles.start()

    def llm(self, slot) -> LLM:
        return self.roles.rollout[slot].made.worker.engine._llm

    def held(self, slot) -> list[dict[str, list]]:
        """The weights of every worker of an engine."""
        models = [w.weight_transfer_engine.model for w in self.llm(slot).workers]
        return [{name: p.tolist() for name, p in model.named_parameters()} for model in models]

    def _replace(self, monkeypatch, ranks, wanted):
        fleet = self

        class RolloutWorker:
            def __init__(self, config, model_dir, **options):
                self.config = config

            async def start(self, cores, prefix):
                size, slot = self.config.tensor_parallel_size, int(prefix.rpartition("-")[2])
                workers = [Worker(self.config.transport, r, size, f"GPU-{slot * size + r}") for r in range(size)]
                self.engine = Engine(LLM(workers), transport=self.config.transport, stop_token_ids=(2,), prefix="fake")
                self.engine.describe = dict

            async def abandon(self):
                fleet.abandoned += 1

        class LearnerWorker:
            def __init__(self, config, model_dir, *, rank, **_):
                self.rank = rank

            def describe(self):
                current.rank, current.gpu = self.rank, fleet.gpus[self.rank]
                return {}

            def source(self, dtype, model):
                return Sharded(fleet)

            def leave_gpu(self):
                pass

        fakes = {
            rollout_worker: {"RolloutWorker": RolloutWorker}, learner_worker: {"LearnerWorker": LearnerWorker},
            reward_worker: {"RewardWorker": lambda *_: SimpleNamespace(describe=dict)},
            actors: {"ray": FakeRay, "arrived": lambda: {"node_id": "node"}, "whereabouts": dict,
                     "take_threads": lambda *_: None},
            workers: {"ray": FakeRay, "Watch": Unwatched}, calls: {"ray": FakeRay}, fibers: {"ray": FakeRay},
            spawner: {"ray": FakeRay, "place": lambda *_: [(None, wanted)]},
            publisher: {"ray": FakeRay}, receivers: {"ray": FakeRay, "node_id": lambda: "node"},
        }  # fmt: skip
        for module, names in (fakes | without_gpus(fleet, ranks)).items():
            for name, fake in names.items():
                monkeypatch.setattr(module, name, fake)


def packed(iterator, gpu, memory):
    """vLLM's chunks of one buffer, here a tensor each; a handle leads to what this rank wrote on its GPU."""
    for number, (name, tensor) in enumerate(iterator):
        handle = (gpu, name, number)
        memory[handle] = [(name, tensor)]
        sent = {"names": [name], "dtype_names": ["float32"], "shapes": [list(tensor.shape)], "tensor_sizes": [tensor.nbytes]}
        yield SimpleNamespace(**sent, ipc_handle={gpu: handle})


def without_gpus(fleet, ranks) -> dict:
    """By module, the calls that reach a GPU or load a model; `ranks` are threads of this process."""
    memory = {}

    def all_gather(out, mine):
        fleet.together[current.rank] = mine
        fleet.gathers.wait(3 * WAIT_S)
        out[:] = fleet.together
        fleet.gathers.wait(3 * WAIT_S)

    return {
        reload: {"initialize_layerwise_reload": lambda *_: None, "finalize_layerwise_reload": lambda *_: None},
        nccl_common: {"stateless_init_process_group": Communicator},
        nccl_engine: {"open_trainer_endpoint": lambda info: Communicator("", info.master_port, 0, info.world_size, None)},
        packed_tensor: {"_get_streams": lambda *_: (SimpleNamespace(synchronize=lambda: None),) * 2},
        ipc_engine: {"packed_ipc_producer": lambda iterator, gpu_uuid, **_: packed(iterator, gpu_uuid, memory),
                     "packed_ipc_consumer": lambda ipc_handle, **_: memory[ipc_handle[current.gpu]]},
        torch.accelerator: {"current_device_index": lambda: 0, "set_device_index": lambda _: None,
                            "synchronize": lambda: None},
        torch.cuda: {"stream": lambda _: nullcontext(), "ipc_collect": lambda: None, "synchronize": lambda: None,
                     "get_device_properties": lambda _: SimpleNamespace(uuid=current.gpu)},
        torch.distributed: {"is_initialized": lambda: ranks > 1, "get_world_size": lambda: ranks,
                            "all_gather_object": all_gather, "barrier": lambda: fleet.gathers.wait(3 * WAIT_S)},
    }  # fmt: skip
