"""The receiving end of a weight update in terms of vLLM's weight-transfer API.

Ours is `shm`: a pair (ShmTrainer in the learner, ShmEngine in every vLLM worker) written like vLLM's own `nccl` and `ipc`
pairs, with one difference: it has two phases. `update_weights` only stages and verifies beside the live weights;
`finish_weight_update` loads. So a failed update leaves the old version serving. The streaming pairs load while they receive.
This is the receiving side; `rollout.weights.senders` is the other.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from rollout.first_calls import pick_kernels
from rollout.speculation import spread
from rollout.weights.held import held_sums, sum_of_bits
from rollout.weights.merging import merged
from rollout.weights.staging import Staging
from rollout.weights.transfer import Manifest, TransferError

pick_kernels()  # of what we are asked for in a vLLM worker, the import of this module alone comes before its model


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """The tensors every update must carry, from the source's metadata."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    adapter_scale: float | None = None
    """They are an adapter, to be merged with this scale into the base on the engine's disk."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """One published version: `Manifest.to_dict()`."""

    manifest: dict[str, Any]


class ShmEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """The receiver, in each vLLM worker process."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.staging = Staging()
        self.verdict = {"digest": "", "error": "no weights were staged"}
        self.adapter_scale: float | None = None
        self.merged_sums: dict[str, int] = {}
        """Of the bits of what was loaded last, where it was merged here; see rollout.weights.held."""

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        rows = zip(init_info.names, init_info.dtype_names, init_info.shapes, strict=True)
        self.staging = Staging({name: (dtype, tuple(shape)) for name, dtype, shape in rows})
        self.adapter_scale, self.merged_sums = init_info.adapter_scale, {}

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
        for method in (getattr(module, "quant_method", None) for module in self.model.modules()):
            # Else vLLM's CPU build would not pack experts again, as it does when it makes their kernel.
            if self.device.type == "cpu" and hasattr(method, "moe_kernel"):
                cast(Any, method).moe_kernel = None
        initialize_layerwise_reload(self.model)
        with disable_mtp_completeness_check():
            loaded = cast(Any, self.model).load_weights(self._whole())
        finalize_layerwise_reload(self.model, self.model_config)
        self.staging.clear()
        if missing := sorted(parameters - set(loaded)):
            raise TransferError(f"{len(missing)} parameters of the engine's model were not loaded, first {missing[0]!r}")

    def _whole(self) -> Iterable[tuple[str, torch.Tensor]]:
        """All weights of the version that is staged."""
        if self.adapter_scale is None:
            return list(self.staging.tensors.items())
        return self._merged(self.adapter_scale)

    def _merged(self, scale: float) -> Iterator[tuple[str, torch.Tensor]]:
        from vllm.model_executor.model_loader import get_model_loader

        # Read as it is merged: what vLLM reads ahead from a network's file system is in memory since the start.
        how = {"use_tqdm_on_load": False, "safetensors_load_strategy": "lazy"}
        config, self.merged_sums = replace(self.vllm_config.load_config, **how), {}
        base = cast(Any, get_model_loader(config)).get_all_weights(self.model_config, self.model)
        for name, tensor in merged(base, self.staging.tensors, scale, (self.model_config.dtype, self.device)):
            self.merged_sums[name] = sum_of_bits(tensor)
            yield name, tensor

    def shutdown(self) -> None:
        self.staging.clear()


class WorkerExtension:
    """Methods that vLLM mixes into its worker class, for `AsyncLLM.collective_rpc`."""

    device: torch.device
    weight_transfer_engine: ShmEngine
    update_weights: Callable[[dict[str, Any]], None]
    """Of vLLM's worker."""

    def staged_weights(self) -> dict[str, str]:
        """`digest` of the staged bytes as this worker received them, or the `error` that kept it from staging."""
        return self.weight_transfer_engine.verdict

    def abandon_weight_update(self) -> None:
        """Leave an update before its commit. vLLM's API has no such call, and refuses to start a second update."""
        self._weight_update_active = False
        self.weight_transfer_engine.start_weight_update()

    def forget_sender(self) -> None:
        """Leave the sender, also while an update is under way, which vLLM's own call refuses."""
        self.weight_transfer_engine.shutdown()

    def held(self) -> tuple[dict[str, list[int]], dict[str, list[str]], dict[str, int]]:
        """(sums of bits of every parameter's copies, the parts of each stacked module, what the sums must be where this worker
        merged the weights); see rollout.weights.held."""
        engine, sums = self.weight_transfer_engine, {}
        for name, value in held_sums(engine.model, engine.model_config.dtype):
            sums.setdefault(name, []).append(value)
        stacked = {name: list(parts) for name, parts in getattr(engine.model, "packed_modules_mapping", {}).items()}
        return sums, stacked, getattr(engine, "merged_sums", {})  # vLLM's own receivers merge nothing

    def update_weights_pickled(self, update_info: bytes) -> None:
        """Receive what vLLM's messages cannot carry, torch's own types in the handles of GPU memory among it."""
        self.update_weights(pickle.loads(update_info))

    def set_temperatures(self) -> None:
        """Of guessed tokens, before there are any; see rollout.speculation."""
        from vllm.v1.sample import rejection_sampler

        if self.device.type == "cpu":
            rejection_sampler.expand_batch_to_tokens = spread

    def process_id(self) -> int:
        return os.getpid()


def register() -> None:
    """Make `shm` known to vLLM. Idempotent."""
    if "shm" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("shm", ShmEngine)


# Where it is needed: vLLM's workers import this module for their extension before they make the receiver. An entry point
# would need an installed package, which a checkout on PYTHONPATH is not.
register()
