"""Where plain workers become Ray actors. Ray's own retries are off: whoever holds a lease or a transaction decides what a
death means. Every answer is awaited through `calls.gather`, which has a deadline.
"""

import asyncio
import gc
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import ray

from cluster.config.run_config import RunConfig
from cluster.fleet.placement import arrived, share_of_cores, stay_on_this_node, take_threads, whereabouts
from cluster.fleet.publisher import Model, Publisher
from cluster.fleet.receivers import Buckets, Receivers, TransferInfo, fetched, on_this_node
from cluster.fleet.weight_update import Moved
from learner.config import LearnerConfig
from learner.stage import StageSpec
from reward.config import RewardModelConfig
from reward.types import By, LabelledGroup, ScoredGroup
from rollout.config import RolloutConfig
from rollout.leftovers import temporary_folder
from rollout.types import Group, Lease, PolicyVersion, Sampling

if TYPE_CHECKING:
    from learner.types import StepReport


@contextmanager
def importing() -> Iterator[None]:
    """Imports without the garbage collector, which would take a fifth of their time for going through what they make."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class RolloutActor:
    """A RolloutWorker with its engine. Async, so that weights can be staged while it samples."""

    def __init__(self, config: RunConfig, rollout: RolloutConfig, model_dir: Path, prefix: str, max_model_len: int):
        """`rollout`: with the transport that everyone uses. `prefix` names this actor in shared memory."""
        with importing():
            from rollout.worker import RolloutWorker

        self.rollout, self.prefix, self.sync_deadline_s = rollout, prefix, config.cluster.sync_deadline_s
        options = {"prompt": config.data.prompt, "run_seed": config.seed, "max_model_len": max_model_len}
        self.worker = RolloutWorker(rollout, model_dir, **options)

    async def locate(self) -> dict[str, object]:
        return arrived()

    async def start(self, index: int, count: int) -> dict[str, object]:
        """Start the engine on its share of this node's cores (the index-th of `count` engines here)."""
        stay_on_this_node()
        await self.worker.start(share_of_cores(index, count, self.rollout.cores_per_worker), self.prefix)
        return {**self.worker.engine.describe(), **whereabouts()}

    async def generate(
        self, leases: Sequence[Lease], sampling: Sampling, deadline_s: float
    ) -> AsyncIterator[tuple[int, Group]]:
        """Every group with the position of its lease, as soon as it is whole."""
        async for made in self.worker.stream(leases, sampling, deadline_s):
            yield made

    async def abandon(self) -> None:
        await self.worker.abandon()

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return await self.worker.engine.logprobs(sequences)

    async def init_weight_transfer_engine(self, init_info: TransferInfo) -> None:
        await self.worker.engine.init_transfer(init_info)

    async def start_weight_update(self) -> None:
        await self.worker.engine.start_weight_update()

    async def update_weights(self, update_info: TransferInfo, buckets: Buckets) -> str:
        """Stage (shm) or stream (nccl, ipc); returns the digest of the bytes as received.

        Buckets of a sender on another node become this node's segments while the engine stages, so that it knows one path
        only.
        """
        if not buckets:
            return await self.worker.engine.update_weights(update_info)
        arrived = await asyncio.to_thread(fetched, buckets, self.sync_deadline_s)
        with on_this_node(update_info["manifest"], arrived, self.prefix) as manifest:
            return await self.worker.engine.update_weights({"manifest": manifest})

    async def finish_weight_update(self, version: PolicyVersion, sums: dict[str, int]) -> dict[str, float]:
        return await self.worker.engine.finish_weight_update(version, sums)

    async def sleep(self) -> None:
        await self.worker.engine.sleep()

    async def pulse(self) -> None:
        await self.worker.engine.pulse()

    async def stop(self) -> None:
        await self.worker.engine.shutdown()


class RewardActor:
    """A RewardWorker."""

    def __init__(self, config: RunConfig, prefix: str, log: Path):
        """`log`: the file for what a reward function prints."""
        from reward.worker import RewardWorker

        self.config, self.prefix, self.sync_deadline_s = config.reward, prefix, config.cluster.sync_deadline_s
        self.worker = RewardWorker(config.reward, log)

    def locate(self) -> dict[str, object]:
        return arrived()

    def load_model(self, model_dir: Path, kind: Literal["outcome", "process"], index: int, count: int) -> dict[str, object]:
        """Make room for the reward model, on this actor's share of the node's cores (the index-th of `count` here)."""
        take_threads(index, count, (self.config.model or RewardModelConfig()).cores_per_worker)
        self.worker.load_model(model_dir, kind)
        return self.describe()

    def score(self, groups: Sequence[Group], by: By) -> list[ScoredGroup]:
        return self.worker.score(groups, by)

    def describe(self) -> dict[str, object]:
        return {**self.worker.describe(), **whereabouts()}

    def init_weight_transfer_engine(self, init_info: TransferInfo) -> None:
        self.worker.init_transfer(init_info["names"], init_info["dtype_names"], init_info["shapes"])

    def start_weight_update(self) -> None:
        self.worker.start_weight_update()

    def update_weights(self, update_info: TransferInfo, buckets: Buckets) -> str:
        """Stage and verify; returns the digest of the bytes as received."""
        if not buckets:
            return self.worker.update_weights(update_info["manifest"])
        arrived = fetched(buckets, self.sync_deadline_s)
        with on_this_node(update_info["manifest"], arrived, self.prefix) as manifest:
            return self.worker.update_weights(manifest)

    def finish_weight_update(self, version: int, sums: dict[str, int]) -> dict[str, float]:
        began = time.monotonic()
        self.worker.finish_weight_update(version)
        return {"load": time.monotonic() - began}


class LearnerActor:
    """One rank of the learner group. The weight path is composed here: the LearnerWorker's weights, a sender of
    `rollout.weights.senders`, and a client over the rollout actors' handles."""

    def __init__(self, config: LearnerConfig, model_dir: Path, rank: int, timeout_s: float):
        """`timeout_s`: no collective of the group waits longer."""
        self.config, self.model_dir, self.rank, self.timeout_s = config, model_dir, rank, timeout_s

    def locate(self) -> tuple[dict[str, object], str]:
        """Its whereabouts, and its GPU."""
        return arrived(), os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def meeting(self, together: bool) -> str:
        """Where the group can meet. Of ranks `together` on this node: a file that nobody else's processes can reach."""
        if together:
            return f"file://{temporary_folder('learner')}/store"
        address = ray.util.get_node_ip_address()
        with socket.socket() as s:
            s.bind((address, 0))
            return f"tcp://{address}:{s.getsockname()[1]}"

    def start(
        self, rendezvous: str, index: int, count: int, rollout: RolloutConfig, prefix: str, ahead: bool
    ) -> dict[str, object]:
        """Join the group; `index` of `count` ranks are on this node and share its cores.

        `prefix` names the run in shared memory. `ahead`: see `Publisher`.
        """
        take_threads(index, count, self.config.cores_per_rank)
        if rendezvous.startswith("file:"):
            stay_on_this_node()
        with importing():
            from learner.worker import LearnerWorker

        self.rollout = rollout
        self.worker = LearnerWorker(
            self.config,
            self.model_dir,
            rank=self.rank,
            world_size=self.config.ranks,
            rendezvous=rendezvous,
            timeout_seconds=self.timeout_s,
        )
        self.publisher = Publisher(self.worker, rollout, self.rank, prefix, ahead=ahead)
        return {**self.worker.describe(), **whereabouts()}

    def begin_stage(self, spec: StageSpec) -> None:
        self.worker.begin_stage(spec)

    def step(self, batch: Sequence[ScoredGroup] | Sequence[LabelledGroup], updates: int, temperature: float) -> "StepReport":
        report = self.worker.step(batch, updates=updates, temperature=temperature)
        if self.rollout.sleep:
            self.worker.leave_gpu()  # the engines wake up on it
        return report

    def leave_gpu(self) -> None:
        self.worker.leave_gpu()

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.worker.logprobs(sequences)

    def scalars(self, examples: Sequence[LabelledGroup]) -> list[tuple[tuple[float, ...], ...]]:
        return self.worker.scalars(examples)

    def save(self, directory: Path, written: Callable[[Mapping[str, int]], None]) -> None:
        self.worker.save(directory, written)

    def writing(self, wait: bool) -> bool:
        return self.worker.writing(wait)

    def load(self, directory: Path, spec: StageSpec) -> None:
        self.worker.load(directory, spec)
        self.publisher.forget("reward_model")  # its tensors are new ones

    def export_reward_model(self, directory: Path) -> None:
        self.worker.export_reward_model(directory)

    def publish(self, model: Model, version: PolicyVersion, receivers: Receivers) -> Moved:
        """Move a model's weights to receivers that have begun an update. A collective over the ranks."""
        return self.publisher.publish(model, version, receivers)
