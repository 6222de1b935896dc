"""How a vLLM engine is set up: every setting that differs from vLLM's default, and why. Imports no vllm."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rollout.config import GPU_MEMORY_UTILIZATION, KV_CACHE_GB, SHARED_GPU_MEMORY_UTILIZATION, RolloutConfig
from rollout.environment import environment

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of an attention head that vLLM's CPU build has kernels for."""

NGRAM = (2, 4)
"""How many of the last tokens must have come before for what followed them to be guessed: the longest such run counts."""


def engine_settings(model_dir: Path, config: RolloutConfig, *, max_model_len: int) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs; `config.transport` is settled."""
    if torch.cuda.is_available():
        share = SHARED_GPU_MEMORY_UTILIZATION if config.transport == "ipc" else GPU_MEMORY_UTILIZATION
        memory = {"gpu_memory_utilization": config.gpu_memory_utilization or share, "enable_sleep_mode": config.sleep}
    else:
        # Otherwise a CPU engine takes nearly all memory, and a second one does not start.
        memory = {"kv_cache_memory_bytes": int((config.kv_cache_gb or KV_CACHE_GB) * 2**30)}
    memory |= _speculation(config)
    return memory | {
        "model": str(model_dir),
        # Token ids in, token ids out.
        "skip_tokenizer_init": True,
        "dtype": config.dtype,
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_concurrent_samples,
        "tensor_parallel_size": config.tensor_parallel_size,
        "distributed_executor_backend": executor(config.tensor_parallel_size),
        "enforce_eager": not config.compile,
        "enable_prefix_caching": True,
        # A prompt is never split over engine steps: after a partial prefill vLLM rewinds the request's own random generator,
        # which a CPU generator cannot do, and the engine dies.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(8192, max_model_len),
        # The model directory's sampling defaults (top-p, top-k, eos ids) must not reach the sampler.
        "generation_config": "vllm",
        # Of the distribution sampled from, after the temperature; the default is before it.
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "weight_transfer_config": {"backend": config.transport},
        "worker_extension_cls": "rollout.weights.receivers.WorkerExtension",
    }


def _speculation(config: RolloutConfig) -> dict[str, Any]:
    if config.speculative is None:
        return {}
    by = {"method": "ngram", "prompt_lookup_min": NGRAM[0], "prompt_lookup_max": NGRAM[1]}
    if path := config.speculative.model:
        by = {"method": "draft_model", "model": str(path), "draft_tensor_parallel_size": config.tensor_parallel_size}
    how = {"num_speculative_tokens": config.speculative.tokens, **by}
    return {"speculative_config": how, "per_request_spec_decode_metrics": "summary"}


def executor(ranks: int) -> str:
    """Several ranks are processes, as inside a Ray placement group vLLM would pick its Ray executor by itself. One is in the
    EngineCore's: a process less to start and to hear. On the CPU vLLM takes that only by its whole name, since the environment
    of OpenMP must be there when the process starts."""
    return "mp" if ranks > 1 else "uni" if torch.cuda.is_available() else "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def bind_cores(cores: Sequence[int] | None, ranks: int) -> None:
    """Divide the cores (None: all allowed ones) among the engine's tensor-parallel ranks, for engines started from now on.

    vLLM's CPU build reads them from the environment, and by itself leaves a core idle.
    """
    cores = sorted(os.sched_getaffinity(0)) if cores is None else list(cores)
    shares = [cores[rank::ranks] or [cores[rank % len(cores)]] for rank in range(ranks)]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, share)) for share in shares)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


@contextmanager
def engine_environment(folder: Path, *, compiled: bool) -> Iterator[None]:
    """For the start of an engine's processes, which inherit it.

    Sockets and temporary files, which vLLM leaves behind, go into the folder, where they can be removed; what torch compiles
    stays in one that all engines find. Where nothing is to be `compiled`, vLLM would still have g++ compile a line of its
    sampler on the CPU, ten seconds in every engine's first wave.
    """
    outside = tempfile.gettempdir()
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(Path(outside) / f"torchinductor_{os.getuid()}"))
    changes = {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": cache}
    if not compiled and not torch.cuda.is_available():
        changes["TORCHDYNAMO_DISABLE"] = "1"
    with environment(changes):
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = outside
