"""What an engine does besides sampling: it takes new weights, in two phases, and sleeps while others need its GPU."""

import asyncio
import logging
import pickle
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.v1.engine.exceptions import EngineDeadError

from rollout.engine_log import EngineLog
from rollout.weights.held import differing

log = logging.getLogger("cohort")
DEADLINE_S = 600.0
"""For one call into the engine, where the caller gives none."""


class EngineError(RuntimeError):
    """The engine failed, or answered something that may not be used."""


class UpdatableEngine:
    """An AsyncLLM and the version of the weights that it holds. Once an update has failed in it, it is out of service."""

    def __init__(self, llm: Any, transport: str, *, keep_kv: bool = False) -> None:
        """`keep_kv`: see RolloutConfig."""
        self._llm: Any = llm
        self._keep_kv = keep_kv
        self._transport, self._log = transport, EngineLog()
        self._gate = asyncio.Lock()
        self._broken = ""
        self._staged = False
        self._asleep: set[str] = set()
        self._version = 0

    @property
    def version(self) -> int:
        """The policy version that serves."""
        return self._version

    async def init_transfer(self, init_info: dict[str, Any]) -> None:
        """Meet the sender, for the first update and again for every new sender; an update may have begun."""
        async with self._failures("weight transfer initialisation"):
            await self._llm.collective_rpc("forget_sender")
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def start_weight_update(self) -> None:
        """Begin an update. A streaming transport overwrites live weights from here on, so it pauses the engine."""
        self._check()
        if self._transport != "shm":
            await self._gate.acquire()
            self._broken = "a streamed weight update is not finished"
            async with self._failures("pause before a streamed weight update"):
                await self._llm.pause_generation(mode="keep", clear_cache=False)
        async with self._failures("start of a weight update"):
            await self._wake("weights")
            if self._transport == "shm":
                self._staged = False
                await self._llm.collective_rpc("abandon_weight_update")
            await self._llm.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> str:
        """Receive. With shm this is the prepare phase and returns the digest of the bytes as received; live weights stay.

        Raises EngineError naming the tensor or bucket. Then a shm engine serves on, and a streaming one is out of service.
        """
        async with self._failures("weight update"):
            if self._transport == "ipc":
                await self._llm.collective_rpc("update_weights_pickled", args=(pickle.dumps(update_info),))
            else:
                await self._llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))
            if self._transport != "shm":
                return ""
            verdicts = await self._llm.collective_rpc("staged_weights")
        errors = [verdict["error"] for verdict in verdicts if verdict["error"]]
        if errors:
            async with self._failures("withdrawal of a weight update"):
                await self._llm.collective_rpc("abandon_weight_update")
            raise EngineError(f"weight update refused, version {self._version} still serves: {errors[0]}")
        self._staged = True
        return verdicts[0]["digest"]

    async def finish_weight_update(self, version: int, sums: Mapping[str, int]) -> dict[str, float]:
        """Load, compare what is held with the sender's sums of bits, drop the key-value cache, serve the new version; the
        seconds that the first two took.

        Requests in flight keep their tokens and go on under the new weights; with `keep_kv` the cache too, which requests of
        another version do not find. Raises EngineError; the engine, which may hold
        a mixture, is out of service then.
        """
        if self._transport == "shm":
            self._check()
            if not self._staged:
                raise EngineError("no weights are prepared: a commit follows a successful update_weights")
            self._staged = False
            await self._gate.acquire()
        try:
            self._broken = f"the commit of version {version} did not finish"
            async with self._failures(f"commit of version {version}"):
                began = time.monotonic()
                await self._llm.pause_generation(mode="keep", clear_cache=False)
                await self._llm.finish_weight_update(weight_version=str(version))
                loaded = time.monotonic()
                await self._compare(sums)
                seconds = {"load": loaded - began, "verify": time.monotonic() - loaded}
                await self._wake("kv_cache")
                if not self._keep_kv and not await self._llm.reset_prefix_cache(reset_running_requests=True):
                    raise EngineError("vLLM did not drop its prefix cache")
                await self._llm.resume_generation()
            self._version, self._broken = version, ""
            return seconds
        finally:
            self._gate.release()

    async def sleep(self) -> None:
        """Leave the GPU to others: weights go to host memory, the key-value cache is dropped. What is asked next wakes it."""
        async with self._gate, self._failures("sleep"):
            self._check()
            if not self._asleep:
                await self._llm.sleep(level=1)
                self._asleep = {"weights", "kv_cache"}

    async def pulse(self) -> None:
        """Ask what a sound engine answers between two steps; in an update, where it waits for its sender, nothing is asked."""
        if not self._broken:
            await self._llm.is_sleeping()

    def _check(self) -> None:
        if self._broken:
            raise EngineError(f"the engine is out of service: {self._broken}")

    async def _wake(self, *tags: str) -> None:
        """Bring back what is asleep of these; vLLM goes on scheduling when nothing is."""
        if asleep := [tag for tag in tags if tag in self._asleep]:
            await self._llm.wake_up(asleep)
            self._asleep -= set(asleep)

    async def _compare(self, sums: Mapping[str, int]) -> None:
        """Raises EngineError for a weight that is not what was sent, or what the engine merged from an adapter that was; warns
        once of those that cannot be read back."""
        answers = await self._llm.collective_rpc("held")
        _, stacked, merged = answers[0]
        sums = merged or sums
        wrong, unread = differing([held for held, *_ in answers], sums, stacked)
        if wrong:
            raise EngineError(f"{len(wrong)} weights are not what was sent, first {wrong[0]!r}")
        if unread and not self._version:
            log.warning("%d of %d weights cannot be read back from the engine, first %s", len(unread), len(sums), min(unread))

    @asynccontextmanager
    async def _failures(self, what: str, deadline_s: float = DEADLINE_S) -> AsyncIterator[None]:
        """Bound a call into vLLM and name it in the error."""
        try:
            async with asyncio.timeout(deadline_s):
                yield
        except TimeoutError as error:
            raise EngineError(f"{what}: no answer within {deadline_s:g} s") from error
        except EngineError:
            raise
        except EngineDeadError as error:
            raise EngineError(f"{what}: {self._log.explain(error)}") from error
        except Exception as error:
            raise EngineError(f"{what}: {error}") from error
