"""How fast the learner is on one GPU, parts of `gpu.py`: updates of randomly initialised models in known shapes.

The share of the peak counts the useful operations of forward and backward: 6 for a weight of the layers and a token, 6 for a
weight of the output head and a trained token, 12 x layers x width of the queries for a token and each one that it may see.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from gpu import Line
from gpu_shapes import build, config_of
from torch.distributed.device_mesh import DeviceMesh

from cluster.planning.hardware import GPUS
from cluster.planning.shapes import shape_of
from learner.algorithms.table import TABLE
from learner.batch.packing import Output, columns, pack, plain_output
from learner.config import LearnerConfig, OptimizerConfig
from learner.models.policy import PolicyModel, visible
from learner.models.sharding import init_distributed, shard
from learner.training.objectives import PolicyObjective
from learner.training.trainer import Trainer
from learner.types import PackedBatch, PolicyBatch
from tests.learner.builders import free_address

MICRO_BATCHES, UPDATES = 4, 3
"""Micro-batches of an update, and how many updates are timed."""
STATE_BYTES = 16
"""Of a trained parameter: weight, gradient and AdamW's two moments in float32."""


def speed(shape: str, tokens: Sequence[int] = (1024, 8192)) -> Iterator[Line]:
    """Updates in bfloat16 with float32 masters, of micro-batches of one sequence of so many tokens, 7/8 of it trained."""
    mesh = init_distributed(0, 1, free_address(), 60)
    device = torch.device(mesh.device_type)
    needed = STATE_BYTES * sum(p.numel() for p in build(shape, torch.float32, torch.device("meta")).parameters())
    there = torch.cuda.mem_get_info()[1] if device.type == "cuda" else needed
    if needed > there:
        text = f"does not fit: its states take {needed / 2**30:.0f} GiB, the card has {there / 2**30:.0f}"
        yield Line(name=shape, passed=None, text=text, figures={"states_gib": needed / 2**30})
    else:
        peak = matmul_peak(device)
        trainer = trainer_of(shape, mesh)
        for length in tokens:
            yield measured(shape, trainer, length, peak, device)
    dist.destroy_process_group()


def trainer_of(shape: str, mesh: DeviceMesh, dtype: torch.dtype = torch.bfloat16, *, compiled: bool = False) -> Trainer:
    """Of a randomly initialised model that computes in the dtype, its masters in float32."""
    model = build(shape, torch.float32, torch.device(mesh.device_type))
    policy = shard(PolicyModel(model, LearnerConfig().logprob_chunk_tokens), mesh, dtype, compiled=compiled)
    return Trainer(policy, OptimizerConfig(learning_rate=1e-6), total_updates=1000)


def measured(shape: str, trainer: Trainer, length: int, peak: float, device: torch.device) -> Line:
    """Time, share of the peak and memory of an update, after one that is not timed."""
    name, gpu = f"{shape}, {length} tokens", device.type == "cuda"
    packed = batch_of(config_of(shape).vocab_size, length, device)
    objective = PolicyObjective(weighting=TABLE["sft"].weighting, temperature=1.0, compare_behaviour=False)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        trainer.step(packed, objective)
        reports = []
        seconds = timed(lambda: reports.append(trainer.step(packed, objective)), UPDATES, device)
    except torch.OutOfMemoryError as error:
        trainer.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return Line(name=name, passed=None, text=f"does not fit: {str(error).splitlines()[0]}")
    share = operations(trainer.model, packed) / seconds / peak
    nominal = nominal_peak(torch.cuda.get_device_name()) if gpu else None
    figures = {
        "tokens_per_second": length * len(packed.micro_batches) / seconds, "share_of_peak": share, "peak_tflops": peak / 1e12,
        "share_of_nominal": share * peak / nominal if nominal else None,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
    }  # fmt: skip
    text = (
        f"{figures['tokens_per_second']:.0f} tokens/s, {share:.1%} of the bf16 peak measured here ({peak / 1e12:.3g} TFLOP/s)"
    )
    text += f", {figures['share_of_nominal']:.1%} of the nominal one" if nominal else ""
    text += f"; {figures['memory_gib']:.1f} GiB at most" if gpu else ""
    passed = share < 1 and all(report["skipped"] == report["no_signal"] == 0 for report in reports)
    return Line(name=name, passed=passed, text=text, figures=figures)


def batch_of(vocabulary: int, length: int, device: torch.device) -> PackedBatch[PolicyBatch]:
    """Random sequences as demonstrations, one a micro-batch."""
    ids = torch.randint(3, vocabulary, (MICRO_BATCHES, length), generator=torch.Generator().manual_seed(0)).tolist()
    outputs = [plain_output(i, tuple(x[: length // 8]), tuple(x[length // 8 :])) for i, x in enumerate(ids)]
    packed = to_train(outputs, length)
    return replace(packed, micro_batches=tuple(micro.to(device) for micro in packed.micro_batches))


def to_train(outputs: Sequence[Output], max_tokens: int) -> PackedBatch[PolicyBatch]:
    """Outputs packed as demonstrations, each token with advantage 1."""
    packed = pack(outputs, max_tokens=max_tokens)
    ones, unknown = (columns(packed, outputs, [(x,) * len(o.output_ids) for o in outputs]) for x in (1.0, float("nan")))
    logprobs = dict.fromkeys(("behaviour_logprob_N", "old_logprob_N", "reference_logprob_N"), unknown)
    return packed.to_train(PolicyBatch, advantage_N=ones, **logprobs)


def operations(policy: PolicyModel, packed: PackedBatch) -> float:
    """Useful floating-point operations of an update, as the module's text says."""
    config = policy.causal_lm.config
    positions = sum(micro.input_ids_BT.numel() for micro in packed.micro_batches)
    masks = (visible(replace(micro, shared=True), torch.bfloat16, config) for micro in packed.micro_batches)
    seen = sum((mask == 0).sum().item() for mask in masks)
    return shape_of(config).useful(positions, seen, packed.trained_tokens)


def nominal_peak(card: str) -> float | None:
    """bfloat16 FLOP/s of the data sheet of a card that calls itself so: the kind most of whose name is in the card's."""
    words = set(re.split(r"GB\b|\W+", card))
    kinds = [kind for kind in GPUS.values() if words.issuperset(kind.name.split("-"))]
    return max(kinds, key=lambda kind: len(kind.name)).narrow if kinds else None


def matmul_peak(device: torch.device, size: int = 8192) -> float:
    """FLOP/s of a product of random bfloat16 matrices: the best of three times five."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    timed(lambda: a @ b, 3, device)
    return 2 * size**3 / min(timed(lambda: a @ b, 5, device) for _ in range(3))


def timed(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of a call, the mean of several, with all that they start on the device."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - began) / times
