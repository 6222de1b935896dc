"""vLLM engines one after another in one process, which imports vLLM once: so a start takes two seconds instead of ten.

What is loaded, computed and updated is the engine's; its event loop, which no model changes, is left out.
"""

import gc
import multiprocessing
import os
from pathlib import Path
from typing import Any

from rollout.config import RolloutConfig


class EnginesInTurn:
    """Also the sender's client (`rollout.weights.senders.Client`) of the engine that runs."""

    def __init__(self, folder: Path) -> None:
        """`folder`: for what vLLM leaves behind."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, folder), daemon=True)
        self._process.start()
        self.failed, self.processes = {}, 1

    def ask(self, what: str, *args: Any) -> Any:
        """`start`, `logprobs`, or a method of vLLM's worker, whose answer is that of the first rank. Raises RuntimeError."""
        self._pipe.send((what, *args))
        if not self._pipe.poll(120):
            raise RuntimeError(f"{what}: no answer within 120 s")
        answer, error = self._pipe.recv()
        if error:
            raise RuntimeError(f"{what}: {error}")
        return answer

    def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        self.ask("init_weight_transfer_engine", info)

    def update_weights(self, info: dict[str, Any]) -> None:
        self.ask("update_weights", info)
        if error := self.ask("staged_weights")["error"]:
            raise RuntimeError(error)

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(pipe: Any, folder: Path) -> None:
    from rollout.engine.settings import bind_cores, engine_environment

    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    bind_cores(sorted(os.sched_getaffinity(0))[:1], 1)
    with engine_environment(folder, compiled=False):
        from vllm.model_executor.models import registry

        registry._run_in_subprocess = lambda find: find()  # what an architecture can do: in a new process it takes ten seconds
        # vLLM collects garbage eight times a start: among all modules each time, if they were thawed.
        gc.freeze()
        gc.unfreeze = lambda: None
        llm = None
        while True:
            what, *args = pipe.recv()
            try:
                if what == "start":
                    llm = _started(llm, *args)
                    answer = None
                else:
                    answer = _logprobs(llm, *args) if what == "logprobs" else llm.collective_rpc(what, args=tuple(args))[0]
                pipe.send((answer, ""))
            except Exception as error:
                pipe.send((None, f"{type(error).__name__}: {error}"))


def _started(before: Any, directory: Path, dtype: str) -> Any:
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    from rollout.engine.settings import engine_settings

    if before is not None:
        before.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()
    config = RolloutConfig(dtype=dtype, kv_cache_gb=0.03, max_concurrent_samples=8, transport="shm")
    return LLM(**engine_settings(directory, config, max_model_len=256))


def _logprobs(llm: Any, sequences: list[tuple[int, ...]]) -> list[list[float]]:
    """As `rollout.engine.engine.Engine.logprobs`."""
    from vllm.inputs import tokens_input

    from rollout.engine.requests import logprob_params

    outputs = llm.generate([tokens_input(list(ids)) for ids in sequences], logprob_params(), use_tqdm=False)
    rows = (zip(ids[1:], out.prompt_logprobs[1:], strict=True) for ids, out in zip(sequences, outputs, strict=True))
    return [[found[token].logprob for token, found in row] for row in rows]
