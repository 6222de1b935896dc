"""The sending end of a weight update, on every learner rank: our `shm` transport, and vLLM's own `nccl` and `ipc`.

A client that speaks to several engines rewrites `rank_offset` per engine with `init_infos`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, ClassVar, Self

import torch
from vllm.distributed.weight_transfer import VLLMWeightSyncClient, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine

from rollout.transfer import as_bytes, checked, digest_of, dtype_name, release, sha256_of, write_buckets
from rollout.weights import ShmInitInfo


@dataclass
class ShmTrainerInitInfo(TrainerInitInfo):
    """`prefix` names the run in the segments' names."""

    backend: ClassVar[str] = "shm"
    prefix: str
    bucket_bytes: int = 64 * 2**20


class ShmTrainer(TrainerWeightTransferEngine[ShmTrainerInitInfo]):
    """The sender, on every learner rank; rank 0 writes and drives the engines, the others join the gathers.

    Set `version` before each `send_weights`; `digest` then identifies what was sent (empty on other ranks).
    """

    init_info_cls = ShmTrainerInitInfo

    def __init__(self, *, client: VLLMWeightSyncClient, source: Any, init_info: ShmTrainerInitInfo) -> None:
        super().__init__(client=client, source=source, is_sender=init_info.is_sender)
        self.init_info = init_info
        self.version = 0
        self.digest = ""

    @classmethod
    def trainer_init(cls, init_info: ShmTrainerInitInfo, *, client: VLLMWeightSyncClient, source: Any = None) -> Self:
        if source is None:
            raise ValueError("the shm transport needs a weight source")
        metadata = source.metadata()
        if init_info.is_sender:
            shapes = [list(m.shape) for m in metadata]
            dtypes = [dtype_name(m.dtype) for m in metadata]
            client.init_weight_transfer_engine(asdict(ShmInitInfo([m.name for m in metadata], dtypes, shapes)))
        return cls(client=client, source=source, init_info=init_info)

    def send_weights(self) -> None:
        """Publish, prepare and commit one version on every engine behind the client. Nothing stays in shared memory."""
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        info = self.init_info
        manifest = write_buckets(self.source, prefix=info.prefix, version=self.version, bucket_bytes=info.bucket_bytes)
        try:
            self.client.start_weight_update()
            self.client.update_weights({"manifest": manifest.to_dict()})
            self.client.finish_weight_update(weight_version=str(self.version))
        finally:
            release(manifest)
        self.digest = manifest.digest


class StreamingTrainer:
    """vLLM's own `nccl` or `ipc` sender with what it lacks: a version, and a digest taken from what streams past.

    It is the source and the client that vLLM's sender sees, and has the surface of ShmTrainer.
    """

    def __init__(self, *, client: VLLMWeightSyncClient, source: Any) -> None:
        self.client, self._source = client, source
        self._engine: TrainerWeightTransferEngine | None = None
        self.version = 0
        self.digest = ""

    def start(self, init_info: TrainerInitInfo) -> Self:
        """Rendezvous with the engines; collective over the learner's ranks."""
        self._engine = WeightTransferTrainerFactory.trainer_init(init_info, client=self, source=self)
        return self

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        rows = []
        for name, tensor in checked(self._source):
            rows.append((name, dtype_name(tensor.dtype), tuple(tensor.shape), sha256_of(as_bytes(tensor))))
            yield name, tensor
        self.digest = digest_of(rows)

    def metadata(self) -> list[Any]:
        return self._source.metadata()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.client.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self.client.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.client.update_weights(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.client.finish_weight_update(weight_version=str(self.version))

    def send_weights(self) -> None:
        """Stream one version into every engine behind the client. After a failure the engines are unusable."""
        self._engine.send_weights()

    def shutdown(self) -> None:
        self._engine.shutdown()


def make_trainer(
    transport: str,
    *,
    source: Any,
    client: VLLMWeightSyncClient,
    rank: int,
    prefix: str,
    tensor_parallel_sizes: Sequence[int] = (),
) -> ShmTrainer | StreamingTrainer:
    """The sender for one learner rank; every rank calls it.

    `source` iterates (name, full tensor) and has `metadata()`. nccl needs `tensor_parallel_sizes`, one per engine, for the
    size of its group, and a client that gives each engine its own of `init_infos(...)`.
    """
    if transport == "shm":
        info = ShmTrainerInitInfo(rank=rank, prefix=prefix)
        return ShmTrainer.trainer_init(info, client=client, source=source)
    if transport == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return StreamingTrainer(client=client, source=source).start(IPCTrainerInitInfo(rank=rank, packed=True))
    if transport == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_ip, get_open_port

        if not tensor_parallel_sizes:
            raise ValueError("nccl needs the tensor-parallel size of every engine: its group's size is fixed at the start")
        world_size = 1 + sum(tensor_parallel_sizes)
        info = NCCLTrainerInitInfo(get_ip(), get_open_port(), world_size, rank=rank)
        return StreamingTrainer(client=client, source=source).start(info)
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
