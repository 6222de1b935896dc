"""RolloutWorker: leases in, groups of samples out. A plain class; the cluster makes it an actor.

It owns one engine and the tokenizer, and decides which outputs may be trained on. The engine sees token ids only; text is
decoded once, here, for scorers and people.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import AutoTokenizer

from rollout.config import PromptConfig, RolloutConfig
from rollout.data.prompts import stop_token_ids
from rollout.engine.engine import Engine
from rollout.environments.loop import EnvironmentLoop
from rollout.tools.episode import Episode, ToolLoop
from rollout.types import Completion, GenerateFn, Group, Lease, Sample, Sampling, TokenRequest, sample_seed


class RolloutWorker:
    """One slot of the rollout stage. `await start(...)` brings up its engine; tests pass `generate_fn` instead."""

    def __init__(
        self,
        config: RolloutConfig,
        model_dir: Path,
        *,
        prompt: PromptConfig,
        run_seed: int,
        max_model_len: int,
        generate_fn: GenerateFn | None = None,
    ) -> None:
        """`prompt`: how questions are asked, which says what ends an output. `max_model_len`: tokens of prompt and output
        together.
        """
        self.config = config
        self.model_dir = Path(model_dir)
        self.run_seed = run_seed
        self.max_model_len = max_model_len
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self.stop_token_ids = stop_token_ids(self.model_dir, self.tokenizer, prompt)
        self._engine: Engine | None = None
        self._generate_fn = generate_fn
        self._tools: ToolLoop | None = None
        self._waves: set[asyncio.Task[list[Group]]] = set()
        """Those under way."""
        if config.tools is not None:
            self._tools = ToolLoop(config.tools, self.tokenizer, self.stop_token_ids)
        self._environment: EnvironmentLoop | None = None
        if config.environment is not None:
            self._environment = EnvironmentLoop(config.environment, self.tokenizer, prompt)

    @property
    def engine(self) -> Engine:
        """Raises RuntimeError before `start`."""
        if self._engine is None:
            raise RuntimeError("no engine: call start first")
        return self._engine

    async def start(self, cores: Sequence[int] | None, prefix: str) -> None:
        """Start the engine on these cores (None: all allowed ones). `prefix` names its segments in shared memory.

        Raises EngineError, SandboxError for missing tools, or EnvironmentFailed.
        """
        for loop in (self._tools, self._environment):
            if loop is not None:
                await loop.check()
        self._engine = await Engine.start(
            self.model_dir,
            self.config,
            max_model_len=self.max_model_len,
            stop_token_ids=self.stop_token_ids,
            cores=cores,
            prefix=prefix,
        )

    async def stream(self, leases: Sequence[Lease], sampling: Sampling, deadline_s: float) -> AsyncIterator[tuple[int, Group]]:
        """`generate`, each group as soon as it is whole, with its position among the leases; with turns all at the end."""
        made: asyncio.Queue[tuple[int, Group] | None] = asyncio.Queue()
        wave = asyncio.create_task(self.generate(leases, sampling, deadline_s, lambda *group: made.put_nowait(group)))
        wave.add_done_callback(lambda _: made.put_nowait(None))
        self._waves.add(wave)
        wave.add_done_callback(self._waves.discard)
        try:
            while (group := await made.get()) is not None:
                yield group
            await wave
        finally:
            wave.cancel()

    async def abandon(self) -> None:
        """End the waves under way, which nobody waits for any more; whoever streams them gets CancelledError."""
        waves = list(self._waves)
        for wave in waves:
            wave.cancel()
        await asyncio.gather(*waves, return_exceptions=True)

    async def generate(
        self,
        leases: Sequence[Lease],
        sampling: Sampling,
        deadline_s: float,
        each: Callable[[int, Group], None] = lambda position, group: None,
    ) -> list[Group]:
        """Sample every index of every lease as one wave, a group a lease, in order. What may not be trained on comes as a
        rejected sample. `each` hears of every group and its position as soon as it is whole.

        Raises EngineError; then nothing was sampled. `deadline_s` is the engine's, for all turns of the
        wave; programs and environments have their own limits.
        """
        members = [(position, index) for position, lease in enumerate(leases) for index in lease.indices]
        samples: list[dict[int, Sample]] = [{} for _ in leases]
        groups: dict[int, Group] = {}

        def keep(i: int, completion: Completion, episode: Episode | None = None) -> None:
            position, index = members[i]
            samples[position][index] = self._sample(leases[position], index, completion, episode)
            if len(samples[position]) == len(leases[position].indices):
                whole = tuple(samples[position][index] for index in leases[position].indices)
                groups[position] = Group(question=leases[position].question, samples=whole)
                each(position, groups[position])

        requests = [self._request(leases[position], index, sampling) for position, index in members]
        if self._tools is not None or self._environment is not None:

            def seed(i: int, turn: int) -> int:
                position, index = members[i]
                return sample_seed(self.run_seed, leases[position].group_id, index, turn, leases[position].draw)

            generate = self._generate_fn or self._within(deadline_s)
            if self._tools is not None:
                episodes = await self._tools.run(requests, generate, seed)
            else:
                assert self._environment is not None
                asked = [leases[position].question for position, _ in members]
                episodes = await self._environment.run(asked, requests, generate, seed)
            for i, episode in enumerate(episodes):
                keep(i, episode.completion(), episode)
        elif self._generate_fn is not None:
            for i, completion in zip(range(len(requests)), await self._generate_fn(requests), strict=True):
                keep(i, completion)
        else:
            await self.engine.generate(requests, deadline_s=deadline_s, each=keep)
        return [groups[position] for position in range(len(leases))]

    def _request(self, lease: Lease, index: int, sampling: Sampling) -> TokenRequest:
        # A prompt may hold part of an output, which leaves less room for new tokens.
        room = self.max_model_len - len(lease.question.prompt_ids)
        return TokenRequest(
            prompt_ids=lease.question.prompt_ids,
            seed=sample_seed(self.run_seed, lease.group_id, index, draw=lease.draw),
            sampling=replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room)),
        )

    def _sample(self, lease: Lease, index: int, completion: Completion, episode: Episode | None) -> Sample:
        rejected = (episode and episode.failure) or unusable(completion, len(self.tokenizer))
        readable = [token for token in completion.output_ids if 0 <= token < len(self.tokenizer)]
        return Sample(
            ordinal=lease.question.ordinal,
            group_id=lease.group_id,
            index=index,
            attempt=lease.attempt,
            prompt_ids=lease.question.prompt_ids,
            output_ids=completion.output_ids,
            sampled_mask=tuple(episode.sampled_mask) if episode else (True,) * len(completion.output_ids),
            logprobs=() if rejected else completion.logprobs,
            text=self.tokenizer.decode(readable, skip_special_tokens=True),
            versions=completion.versions,
            finish_reason=completion.finish_reason,
            guesses=completion.guesses,
            rejected=rejected,
            ended=episode.ended if episode else None,
        )

    def _within(self, deadline_s: float) -> GenerateFn:
        """The engine, with this much time for all calls together."""
        left = deadline_s

        async def generate(requests: Sequence[TokenRequest]) -> list[Completion]:
            nonlocal left
            began = time.monotonic()
            try:
                return await self.engine.generate(requests, deadline_s=max(0.0, left))
            finally:
                left -= time.monotonic() - began

        return generate


def unusable(completion: Completion, vocabulary: int) -> str:
    """Why an output may not be trained on, or an empty string. `vocabulary`: size of the tokenizer's vocabulary."""
    ids, logprobs = completion.output_ids, completion.logprobs
    if not ids:
        return "the output has no tokens"
    if len(logprobs) != len(ids):
        return f"{len(logprobs)} log-probabilities for {len(ids)} tokens"
    for position, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
        if not 0 <= token < vocabulary:
            return f"token id {token} at {position} is outside the tokenizer's vocabulary of {vocabulary}"
        if logprob is None or not math.isfinite(logprob):
            return f"log-probability {logprob} at token {position}"
    return ""
