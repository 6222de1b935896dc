"""The sending end of a weight update, on every learner rank: our `shm` transport, and vLLM's own `nccl` and `ipc`.

A sender moves bytes. Who receives, and when an engine begins and commits an update, the driver decides
(cluster.fleet.weight_update), so that all ranks act on one answer. Every tensor of a sharded source is a collective, so every
rank iterates its source to the end, whatever fails; and the client of the engines raises nothing, it keeps what failed.
"""

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, ClassVar, Protocol, Self, cast

import torch
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine

from rollout.weights.held import sum_of_bits
from rollout.weights.receivers import ShmInitInfo
from rollout.weights.transfer import as_bytes, checked, digest_of, dtype_name, hash_of, release, write_buckets

GRACE_S = 5.0
"""For a rendezvous with engines of which one has failed."""


class Client(Protocol):
    """The engines that receive. A call speaks to all that have not failed, and raises nothing.

    `failed`: why each engine that failed did, by slot. `processes`: of all engines; an nccl group has one more.
    """

    processes: int

    @property
    def failed(self) -> Mapping[int, str]: ...

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...


class Whole:
    """One pass over a weight source that can be finished: the other ranks gather every tensor, whatever becomes of this one."""

    def __init__(self, source: Any) -> None:
        self._source, self._rest = source, iter(source)
        self.seconds = 0.0  # that the source took

    def metadata(self) -> list[Any]:
        return self._source.metadata()

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        began = time.monotonic()
        for found in self._rest:
            self.seconds += time.monotonic() - began
            yield found
            began = time.monotonic()

    def finish(self) -> None:
        for _ in self._rest:
            pass


@dataclass
class ShmTrainerInitInfo(TrainerInitInfo):
    """`prefix` names the run in the segments' names."""

    backend: ClassVar[str] = "shm"
    prefix: str
    bucket_bytes: int = 16 * 2**20


class ShmTrainer(TrainerWeightTransferEngine[ShmTrainerInitInfo]):
    """The sender, on every learner rank; rank 0 writes and tells the engines, the others join the gathers.

    Set `version` before each `send_weights`; `digest` and `sums` then identify what was sent (empty on other ranks).
    """

    init_info_cls = ShmTrainerInitInfo
    client: Client

    def __init__(self, *, client: Client, source: Any, init_info: ShmTrainerInitInfo) -> None:
        super().__init__(client=cast(Any, client), source=source, is_sender=init_info.is_sender)
        self.init_info = init_info
        self.version = 0
        self.digest, self.sums, self.seconds = "", {}, {}

    @classmethod
    def trainer_init(cls, init_info: ShmTrainerInitInfo, *, client: Client, source: Any = None) -> Self:
        if source is None:
            raise ValueError("the shm transport needs a weight source")
        metadata = source.metadata()
        if init_info.is_sender:
            shapes = [list(m.shape) for m in metadata]
            dtypes = [dtype_name(m.dtype) for m in metadata]
            scale = getattr(source, "adapter_scale", None)
            client.init_weight_transfer_engine(asdict(ShmInitInfo([m.name for m in metadata], dtypes, shapes, scale)))
        return cls(client=client, source=source, init_info=init_info)

    def send_weights(self) -> None:
        """Have one version staged by every engine behind the client. Nothing stays in shared memory."""
        whole = Whole(self.source)
        try:
            if self.is_sender:
                self._send(whole)
        finally:
            whole.finish()

    def _send(self, whole: Whole) -> None:
        info, began = self.init_info, time.monotonic()
        manifest = write_buckets(whole, prefix=info.prefix, version=self.version, bucket_bytes=info.bucket_bytes)
        written = time.monotonic()
        try:
            self.client.update_weights({"manifest": manifest.to_dict()})
        finally:
            release(manifest)
        self.digest, self.sums = manifest.digest, {entry.name: entry.sum for entry in manifest.tensors}
        self.seconds = {"gather": whole.seconds, "copy": written - began - whole.seconds, "stage": time.monotonic() - written}


class StreamingTrainer:
    """vLLM's own `nccl` or `ipc` sender with what it lacks: a version, and a digest taken from what streams past.

    It is the source and the client that vLLM's sender sees, and has the surface of ShmTrainer. What that sender says of an
    update's beginning and end goes nowhere: the driver says it.
    """

    def __init__(self, *, client: Client, source: Any) -> None:
        self.client, self._source = client, source
        self._engine: Any = None  # vLLM's sender, once it has met the engines
        self._whole = Whole(())
        self.version = 0
        self.digest, self.sums, self.seconds = "", {}, {}

    def start(self, init_info: TrainerInitInfo) -> Self:
        """Rendezvous with the engines."""
        stands_between = cast(Any, self)
        self._engine = WeightTransferTrainerFactory.trainer_init(init_info, client=stands_between, source=stands_between)
        return self

    def start_or_give_up(self, init_info: TrainerInitInfo) -> Self:
        """The same for nccl, whose own rendezvous waits for an engine that has failed. RuntimeError soon after one did."""
        device, raised = torch.accelerator.current_device_index(), []

        def meet() -> None:
            try:
                torch.accelerator.set_device_index(device)
                self.start(init_info)
            except Exception as error:
                raised.append(error)

        thread, until = threading.Thread(target=meet, daemon=True), None
        thread.start()
        while thread.is_alive():
            thread.join(0.05)
            until = until or (time.monotonic() + GRACE_S if self.client.failed else None)
            if until and time.monotonic() > until:
                raise RuntimeError(f"no rendezvous with the engines: {dict(self.client.failed)}")
        if raised:
            raise raised[0]
        return self

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        if not self._engine.is_sender:
            yield from self._whole
            return
        rows, sums = [], {}
        for name, tensor in checked(self._whole):
            rows.append((name, dtype_name(tensor.dtype), tuple(tensor.shape), hash_of(as_bytes(tensor))))
            sums[name] = sum_of_bits(tensor)
            yield name, tensor
        self.digest, self.sums = digest_of(rows), sums

    def metadata(self) -> list[Any]:
        return self._source.metadata()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.client.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.client.update_weights(update_info)
        if self.client.failed:
            # An NCCL broadcast that a member does not join never ends: nccl's sender calls this on a thread beside it.
            self._engine.shutdown()

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass

    def send_weights(self) -> None:
        """Stream one version into every engine behind the client. An engine that fails is unusable."""
        self._whole, began = Whole(self._source), time.monotonic()
        try:
            self._engine.send_weights()
        except Exception:
            # What vLLM's sender says of a broken-off broadcast is a consequence of what the client knows.
            if not self.client.failed:
                raise
        finally:
            self._whole.finish()
        self.seconds = {"gather": self._whole.seconds, "copy": time.monotonic() - began - self._whole.seconds}

    def shutdown(self) -> None:
        self._engine.shutdown()


def make_trainer(
    transport: str, *, source: Any, client: Client, rank: int, prefix: str, address: str
) -> ShmTrainer | StreamingTrainer:
    """The sender for one learner rank; every rank calls it, and rank 0 meets the engines.

    `source` iterates (name, full tensor) and has `metadata()`. `address` is where engines on other nodes reach this one.
    """
    if transport == "shm":
        info = ShmTrainerInitInfo(rank=rank, prefix=prefix)
        return ShmTrainer.trainer_init(info, client=client, source=source)
    if transport == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

        # The one buffer that tensors pass through must hold the largest of them.
        sizes = [math.prod(m.shape) * m.dtype.itemsize for m in source.metadata()]
        buffer = max(*sizes, min(sum(sizes), DEFAULT_PACKED_BUFFER_SIZE_BYTES))
        info = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=buffer)
        return StreamingTrainer(client=client, source=source).start(info)
    if transport == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        info = NCCLTrainerInitInfo(address, get_open_port(), 1 + client.processes, rank=rank)
        trainer = StreamingTrainer(client=client, source=source)
        return trainer.start_or_give_up(info) if rank == 0 else trainer.start(info)
    raise ValueError(f"unknown weight transport {transport!r}; expected shm, nccl or ipc")


def rank_offsets(tensor_parallel_sizes: Sequence[int]) -> list[int]:
    """The first NCCL rank of each engine; rank 0 is the learner's. [2, 1, 2] -> [1, 3, 4]."""
    return list(accumulate(tensor_parallel_sizes, initial=1))[:-1]


def init_infos(init_info: dict[str, Any], tensor_parallel_sizes: Sequence[int]) -> list[dict[str, Any]]:
    """One init info per engine from the single one that vLLM's trainer sends, which gives every engine the same ranks."""
    if "rank_offset" not in init_info:
        return [dict(init_info) for _ in tensor_parallel_sizes]
    world_size = 1 + sum(tensor_parallel_sizes)
    return [{**init_info, "rank_offset": offset, "world_size": world_size} for offset in rank_offsets(tensor_parallel_sizes)]
