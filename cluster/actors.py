"""Where plain workers become Ray actors. Ray's own retries are off: whoever holds a lease or a transaction decides what a
death means. Every answer is awaited through `calls.gather`, which has a deadline.
"""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import ray

from cluster.calls import gather
from cluster.placement import arrived, node_id, share_of_cores, take_threads, whereabouts
from cluster.sync import CommitFailed, FanOut, PrepareFailed, on_this_node
from learner.config import LearnerConfig
from learner.stage import StageSpec
from reward.config import RewardConfig, RewardModelConfig
from rollout.config import RolloutConfig
from rollout.types import Lease, PolicyVersion, Sampling

STREAMING = {"nccl", "ipc"}
Model = Literal["policy", "reward_model"]
Receivers = dict[int, tuple[Any, str]]
"""Slot -> (actor handle, node)."""


class RolloutActor:
    """A RolloutWorker with its engine. Async, so that weights can be staged while it samples."""

    def __init__(self, config: RolloutConfig, model_dir: Path, options: dict[str, Any]):
        from rollout.worker import RolloutWorker

        self.config, self.prefix, self.sync_deadline_s = config, options.pop("prefix"), options.pop("sync_deadline_s")
        self.worker = RolloutWorker(config, model_dir, **options)

    async def locate(self) -> str:
        return arrived()

    async def start(self, index: int, count: int) -> dict[str, Any]:
        """Start the engine on its share of this node's cores (the index-th of `count` engines here)."""
        await self.worker.start(share_of_cores(index, count, self.config.cores_per_worker), self.prefix)
        return {**self.worker.engine.describe(), **whereabouts()}

    async def generate(self, leases: Sequence[Lease], sampling: Sampling, deadline_s: float):
        return await self.worker.generate(leases, sampling, deadline_s)

    async def score(self, sequences) -> list[list[float]]:
        return await self.worker.engine.score(sequences)

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        await self.worker.engine.init_transfer(init_info)

    async def start_weight_update(self) -> None:
        await self.worker.engine.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any], buckets: dict[str, ray.ObjectRef] | None = None) -> str:
        """Stage (shm) or stream (nccl, ipc); returns the digest of the bytes as received.

        Buckets of a sender on another node come as Ray objects by segment; they become this node's segments while the
        engine stages, so that it knows one path only.
        """
        if not buckets:
            return await self.worker.engine.update_weights(update_info)
        async with asyncio.timeout(self.sync_deadline_s):
            arrived = {segment: await ref for segment, ref in buckets.items()}
        with on_this_node(update_info["manifest"], arrived, self.prefix) as manifest:
            return await self.worker.engine.update_weights({"manifest": manifest})

    async def finish_weight_update(self, version: str) -> None:
        await self.worker.engine.finish_weight_update(int(version))

    async def stop(self) -> None:
        await self.worker.engine.shutdown()


class RewardActor:
    """A RewardWorker."""

    def __init__(self, config: RewardConfig, prefix: str, sync_deadline_s: float, log: Path):
        from reward.worker import RewardWorker

        self.config, self.prefix, self.sync_deadline_s = config, prefix, sync_deadline_s
        self.worker = RewardWorker(config, log)

    def locate(self) -> str:
        return arrived()

    def load_model(self, model_dir: Path, kind: str, index: int, count: int) -> dict[str, Any]:
        """Make room for the reward model, on this actor's share of the node's cores (the index-th of `count` here)."""
        take_threads(index, count, (self.config.model or RewardModelConfig()).cores_per_worker)
        self.worker.load_model(model_dir, kind)
        return self.describe()

    def score(self, questions, samples, by: str):
        return self.worker.score(questions, samples, by)

    def describe(self) -> dict[str, Any]:
        return {**self.worker.describe(), **whereabouts()}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.worker.init_transfer(init_info["names"], init_info["dtype_names"], init_info["shapes"])

    def start_weight_update(self) -> None:
        self.worker.start_weight_update()

    def update_weights(self, update_info: dict[str, Any], buckets: dict[str, ray.ObjectRef] | None = None) -> str:
        """Stage and verify; returns the digest of the bytes as received."""
        if not buckets:
            return self.worker.update_weights(update_info["manifest"])
        arrived = {segment: ray.get(ref, timeout=self.sync_deadline_s) for segment, ref in buckets.items()}
        with on_this_node(update_info["manifest"], arrived, self.prefix) as manifest:
            return self.worker.update_weights(manifest)

    def finish_weight_update(self, version: str) -> None:
        self.worker.finish_weight_update(int(version))


class LearnerActor:
    """One rank of the learner group. The weight path is composed here: the LearnerWorker's weights, a sender of
    `rollout.senders`, and a client over the rollout actors' handles."""

    def __init__(self, config: LearnerConfig, model_dir: Path, rank: int, timeout_s: float):
        """`timeout_s`: no collective of the group waits longer."""
        self.config, self.model_dir, self.rank, self.timeout_s = config, model_dir, rank, timeout_s
        self.senders: dict[Model, tuple[Any, Any]] = {}
        """Per model its sender, and the receivers that it was made for."""

    def locate(self) -> tuple[str, str]:
        """This node, and an address that is free here for the group to meet at (rank 0's is used)."""
        with socket.socket() as s:
            s.bind(("", 0))
            return arrived(), f"tcp://{ray.util.get_node_ip_address()}:{s.getsockname()[1]}"

    def start(self, rendezvous: str, index: int, count: int, rollout: RolloutConfig, transport: str) -> dict[str, Any]:
        """Join the group; `index` of `count` ranks are on this node and share its cores."""
        take_threads(index, count, self.config.cores_per_rank)
        from learner.worker import LearnerWorker

        self.rollout, self.transport = rollout, transport
        self.worker = LearnerWorker(
            self.config, self.model_dir, rank=self.rank, world_size=self.config.ranks, rendezvous=rendezvous,
            timeout_seconds=self.timeout_s,
        )  # fmt: skip
        return {**self.worker.describe(), **whereabouts()}

    def begin_stage(self, spec: StageSpec) -> None:
        self.worker.begin_stage(spec)

    def step(self, batch, updates: int, temperature: float):
        return self.worker.step(batch, updates=updates, temperature=temperature)

    def logprobs(self, sequences) -> list[list[float]]:
        return self.worker.logprobs(sequences)

    def scores(self, examples):
        return self.worker.scores(examples)

    def save(self, directory: Path) -> dict[str, int]:
        return self.worker.save(directory)

    def load(self, directory: Path, spec: StageSpec) -> None:
        self.worker.load(directory, spec)
        self.senders.pop("reward_model", None)  # its tensors are new ones

    def export_reward_model(self, directory: Path) -> None:
        self.worker.export_reward_model(directory)

    def publish(self, model: Model, version: PolicyVersion, receivers: Receivers, prefix: str, deadline_s: float):
        """Send a model's weights to its receivers as one transaction; a collective over the ranks.

        Returns (digest, failures by slot, whether those receivers may hold a mixture).
        """
        from rollout.senders import make_trainer

        transport = self.transport if model == "policy" else "shm"
        client = self._client(receivers, deadline_s, transport)
        members = sorted((slot, handle._actor_id.hex()) for slot, (handle, _) in receivers.items())
        sender, before = self.senders.get(model, (None, None))
        failed, mixed = {}, False
        try:
            if members != before:
                if sender is not None:
                    sender.shutdown()
                self.senders.pop(model, None)
                source = self.worker.source(self.rollout.dtype if model == "policy" else "float32", model)
                sender = make_trainer(transport, source=source, client=client, rank=self.rank, prefix=prefix)
                self.senders[model] = sender, members
            sender.client, sender.version = client, version
            sender.send_weights()
        except PrepareFailed as error:
            failed = error.failed
        except CommitFailed as error:
            failed, mixed = error.failed, True
            self.senders[model] = sender, None
        return sender.digest if sender is not None else "", failed, mixed

    def _client(self, receivers: Receivers, deadline_s: float, transport: str) -> FanOut:
        from rollout.transfer import read_bucket

        here, shipped = node_id(), {}

        def invoke(slot: int, method: str, arguments: tuple[Any, ...]):
            handle, node = receivers[slot]
            if method == "update_weights" and transport == "shm" and node != here:
                for bucket in arguments[0]["manifest"]["buckets"]:
                    if bucket["segment"] not in shipped:
                        shipped[bucket["segment"]] = ray.put(read_bucket(bucket["segment"]))
                arguments = (*arguments, shipped)
            return getattr(handle, method).options(name=f"{method} of slot {slot}").remote(*arguments)

        return FanOut(
            list(receivers), invoke, lambda pending: gather(pending, deadline_s),
            tensor_parallel_size=self.rollout.tensor_parallel_size, streaming=transport in STREAMING,
        )  # fmt: skip
