"""The vLLM engine: token ids in, completions with log-probabilities and the version that made each token out.

One AsyncLLM per Engine. Sampling is reproducible by whole waves: the engine is paused, the wave is enqueued in order, and only
then does it run, so that the same wave always meets the same batches. Waves that overlap are correct but not reproducible.
There is no tokenizer and no stop string here, and no top-p or top-k: the log-probabilities are those of softmax(logits / T).
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import vllm
from vllm import AsyncEngineArgs, SamplingParams
from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.engine.async_llm import AsyncLLM

from rollout.config import RolloutConfig
from rollout.engine.requests import completion, logprob_params, sampling_params
from rollout.engine.settings import bind_cores, engine_environment, engine_settings
from rollout.engine_log import EngineLog
from rollout.leftovers import before_shutdown, record_engine, remove_engine, remove_folder, running, temporary_folder
from rollout.types import Completion, TokenRequest
from rollout.weights.updates import DEADLINE_S, EngineError, UpdatableEngine

GONE_S = 10.0
"""For killed processes to be gone."""


class Engine(UpdatableEngine):
    """One vLLM engine. All methods belong to the event loop that ran `start`."""

    def __init__(
        self, llm: Any, *, transport: str, stop_token_ids: tuple[int, ...], prefix: str, keep_kv: bool = False
    ) -> None:
        """Wrap a running AsyncLLM; use `Engine.start`."""
        super().__init__(llm, transport, keep_kv=keep_kv)
        self._stop_token_ids = list(stop_token_ids)
        self._prefix = prefix
        self._requests = 0
        self._pids: list[int] = []
        self._record: Path | None = None
        self._folder: Path | None = None

    @classmethod
    async def start(
        cls,
        model_dir: Path,
        config: RolloutConfig,
        *,
        max_model_len: int,
        stop_token_ids: tuple[int, ...],
        cores: Sequence[int] | None,
        prefix: str,
    ) -> "Engine":
        """Load the model in new processes (half a minute). `cores`: those bound on the CPU, or all. Raises EngineError."""
        bind_cores(cores, config.tensor_parallel_size)
        args = AsyncEngineArgs(**engine_settings(model_dir, config, max_model_len=max_model_len))
        folder, log = temporary_folder("engine"), EngineLog()
        try:
            with engine_environment(folder, compiled=config.compile):
                settings = args.create_engine_config()
                with OMPProcessManager(settings).configure_omp_envs(0, 0):
                    llm = AsyncLLM.from_vllm_config(settings, disable_log_stats=args.disable_log_stats)
        except Exception as error:
            remove_folder(folder)
            raise EngineError(f"vLLM did not start on {model_dir}: {log.explain(error)}") from error
        engine = cls(llm, transport=config.transport, stop_token_ids=stop_token_ids, prefix=prefix, keep_kv=config.keep_kv)
        engine._folder = folder
        async with engine._failures("start"):
            await llm.update_weight_version("0")
            if config.speculative is not None:
                await llm.collective_rpc("set_temperatures")
            processes = [process.pid for process in engine._llm.engine_core.resources.engine_manager.processes]
            engine._pids = list(dict.fromkeys(processes + await llm.collective_rpc("process_id")))
        del llm  # a frame that outlives this call would keep it, and its finaliser, until the interpreter is half gone
        engine._record = record_engine(prefix, engine._pids)
        return engine

    def describe(self) -> dict[str, Any]:
        """What runs, for the run's summary; `pids` are the EngineCore process, then its workers if it has any."""
        config = self._llm.vllm_config
        device, dtype = config.device_config.device_type, str(config.model_config.dtype).removeprefix("torch.")
        return {"vllm": vllm.__version__, "device": device, "dtype": dtype, "transport": self._transport, "pids": self._pids}

    async def generate(
        self,
        requests: Sequence[TokenRequest],
        *,
        deadline_s: float = DEADLINE_S,
        each: Callable[[int, Completion], None] = lambda position, completion: None,
    ) -> list[Completion]:
        """Sample one output per request: a wave. `each` hears of every output and its position as soon as it has ended.

        Raises EngineError; cancelling it aborts the wave.
        """
        jobs = [(request.prompt_ids, sampling_params(request, self._stop_token_ids)) for request in requests]
        completions: dict[int, Completion] = {}

        def ended(position: int, output: RequestOutput) -> None:
            completions[position] = completion(output, self._version)
            each(position, completions[position])

        await self._wave(jobs, deadline_s, ended)
        return [completions[position] for position in range(len(requests))]

    async def logprobs(self, sequences: Sequence[Sequence[int]], *, deadline_s: float = DEADLINE_S) -> list[list[float]]:
        """Log-probability, at temperature 1, of each token after the first. Sequences are shorter than `max_model_len`.

        vLLM computes prompt log-probabilities without reading the prefix cache, so this sees the weights, not the cache.
        """
        outputs = await self._wave([(sequence, logprob_params()) for sequence in sequences], deadline_s)
        logprobs = []
        for sequence, output in zip(sequences, outputs, strict=True):
            rows = zip(sequence[1:], (output.prompt_logprobs or [])[1:], strict=True)
            logprobs.append([(row or {})[token].logprob for token, row in rows])
        return logprobs

    async def shutdown(self, *, deadline_s: float = 2.0) -> None:
        """End the engine's processes. They have nothing to save: what is left after the deadline is killed."""
        self._broken = self._broken or "it was shut down"
        if self._record:
            before_shutdown(self._record)
        processes = self._llm.engine_core.resources.engine_manager.processes
        self._llm.shutdown(timeout=deadline_s)
        await asyncio.sleep(0)  # the tasks that vLLM cancelled end here
        for pid in filter(running, self._pids):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + GONE_S
        while any(map(running, self._pids)) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for process in processes:
            process.join(0)
        self._llm = None
        if self._record and self._record.exists():
            remove_engine(self._record)
        if self._folder:
            remove_folder(self._folder)

    async def _wave(
        self,
        jobs: Sequence[tuple[Sequence[int], SamplingParams]],
        deadline_s: float,
        ended: Callable[[int, RequestOutput], None] = lambda position, output: None,
    ) -> list[RequestOutput]:
        """Enqueue in order on the paused engine, resume, collect in the same order; `ended` hears of each as it ends."""
        waiting = []

        async def collect(position: int) -> RequestOutput:
            output = await waiting[position].get()
            ended(position, output)
            return output

        try:
            async with self._failures(f"a wave of {len(jobs)} requests", deadline_s):
                async with self._gate:
                    self._check()
                    await self._wake("weights", "kv_cache")
                    await self._llm.pause_generation(mode="keep", clear_cache=False)
                    try:
                        idle = self._llm.get_num_unfinished_requests() == 0
                        if idle and not await self._llm.reset_prefix_cache():
                            raise EngineError("vLLM did not drop its prefix cache")
                        for prompt, params in jobs:
                            self._requests += 1
                            request = tokens_input(list(prompt), cache_salt=f"v{self._version}"), params
                            waiting.append(await self._llm.add_request(f"{self._prefix}-{self._requests}", *request))
                    finally:
                        await self._llm.resume_generation()
                collecting = [asyncio.create_task(collect(position)) for position in range(len(waiting))]
                try:
                    return await asyncio.gather(*collecting)
                finally:
                    for task in collecting:
                        task.cancel()
        finally:
            await self._llm.abort([queue.request_id for queue in waiting], internal=True)
