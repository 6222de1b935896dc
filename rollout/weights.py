"""A weight update in terms of vLLM's weight-transfer API.

Ours is `shm`: a pair (ShmTrainer in the learner, ShmEngine in every vLLM worker) written like vLLM's own `nccl` and `ipc`
pairs, with one difference: it has two phases. `update_weights` only stages and verifies beside the live weights;
`finish_weight_update` loads. So a failed update leaves the old version serving. The streaming pairs load while they receive.
A client that speaks to several engines rewrites `rank_offset` per engine with `init_infos`.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, ClassVar, Self

import torch
from vllm.distributed.weight_transfer import VLLMWeightSyncClient, WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from rollout.staging import Staging
from rollout.transfer import (
    Manifest,
    TransferError,
    as_bytes,
    checked,
    digest_of,
    dtype_name,
    release,
    sha256_of,
    write_buckets,
)


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """The tensors every update must carry, from the source's metadata."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """One published version: `Manifest.to_dict()`."""

    manifest: dict[str, Any]


@dataclass
class ShmTrainerInitInfo(TrainerInitInfo):
    """`prefix` names the run in the segments' names."""

    backend: ClassVar[str] = "shm"
    prefix: str
    bucket_bytes: int = 64 * 2**20


class ShmEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """The receiver, in each vLLM worker process."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.staging = Staging()
        self.verdict = {"digest": "", "error": "no weights were staged"}

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        rows = zip(init_info.names, init_info.dtype_names, init_info.shapes, strict=True)
        self.staging = Staging({name: (dtype, tuple(shape)) for name, dtype, shape in rows})

    def start_weight_update(self) -> None:
        """Drop what an earlier update staged; the live weights are not touched."""
        self.staging.clear()
        self.verdict = {"digest": "", "error": "no weights were staged"}

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Prepare: stage and verify. The verdict is kept instead of raised: one worker's exception would leave the others'
        replies unread in vLLM's executor, and every later call would read the reply to an earlier one."""
        try:
            self.receive_weights(self.parse_update_info(update_info))
            self.verdict = {"digest": self.staging.digest, "error": ""}
        except (ValueError, OSError) as error:
            self.verdict = {"digest": "", "error": f"{type(error).__name__}: {error}"}

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        self.staging.receive(Manifest.from_dict(update_info.manifest))

    def finish_weight_update(self) -> None:
        """Commit: load what is staged. An exception here leaves a mixture: the engine must be replaced."""
        from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        if not self.staging.tensors:
            raise TransferError("nothing is staged: finish_weight_update needs a successful update_weights before it")
        parameters = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)
        with disable_mtp_completeness_check():
            loaded = self.model.load_weights(list(self.staging.tensors.items()))
        finalize_layerwise_reload(self.model, self.model_config)
        self.staging.clear()
        if missing := sorted(parameters - set(loaded)):
            raise TransferError(f"{len(missing)} parameters of the engine's model were not loaded, first {missing[0]!r}")

    def shutdown(self) -> None:
        self.staging.clear()


class WorkerExtension:
    """Methods that vLLM mixes into its worker class, for `AsyncLLM.collective_rpc`."""

    weight_transfer_engine: ShmEngine

    def staged_weights(self) -> dict[str, str]:
        """`digest` of the staged bytes as this worker received them, or the `error` that kept it from staging."""
        return self.weight_transfer_engine.verdict

    def abandon_weight_update(self) -> None:
        """Leave an update before its commit. vLLM's API has no such call, and refuses to start a second update."""
        self._weight_update_active = False
        self.weight_transfer_engine.start_weight_update()

    def process_id(self) -> int:
        return os.getpid()


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
    register()
    if transport == "shm":
        info = ShmTrainerInitInfo(rank=rank, prefix=prefix)
        return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
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


def resolve_transport(transport: str) -> str:
    """`auto` is nccl where torch sees a GPU and shm otherwise."""
    return transport if transport != "auto" else "nccl" if torch.cuda.is_available() else "shm"


def register() -> None:
    """Make `shm` known to vLLM; the `vllm.general_plugins` entry point calls it in every vLLM process. Idempotent."""
    if "shm" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("shm", ShmEngine)
        WeightTransferTrainerFactory.register_engine("shm", ShmTrainer)
