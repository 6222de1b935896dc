"""RolloutWorker: leases in, groups of samples out. A plain class; the cluster makes it an actor.

It owns one engine and the tokenizer, and decides which outputs may be trained on. The engine sees token ids only; text is
decoded once, here, for scorers and people.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import AutoTokenizer

from rollout.config import PromptConfig, RolloutConfig
from rollout.data.prompts import stop_token_ids
from rollout.engine.engine import Engine
from rollout.tools.episode import ToolLoop
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
        if config.tools is not None:
            self._tools = ToolLoop(config.tools, self.tokenizer, self.stop_token_ids)

    @property
    def engine(self) -> Engine:
        """Raises RuntimeError before `start`."""
        if self._engine is None:
            raise RuntimeError("no engine: call start first")
        return self._engine

    async def start(self, cores: Sequence[int] | None, prefix: str) -> None:
        """Start the engine on these cores (None: all allowed ones). `prefix` names its segments in shared memory.

        Raises EngineError, or SandboxError for missing tools.
        """
        if self._tools is not None:
            await self._tools.check()
        self._engine = await Engine.start(
            self.model_dir,
            self.config,
            max_model_len=self.max_model_len,
            stop_token_ids=self.stop_token_ids,
            cores=cores,
            prefix=prefix,
        )

    async def generate(self, leases: Sequence[Lease], sampling: Sampling, deadline_s: float) -> list[Group]:
        """Sample every index of every lease as one wave, a group a lease, in order. What may not be trained on comes as a
        rejected sample.

        Raises EngineError; then nothing was sampled. `deadline_s` is the engine's, for all turns of the
        wave; programs have their own limits.
        """
        members = [(lease, index) for lease in leases for index in lease.indices]
        requests = [
            TokenRequest(
                prompt_ids=lease.question.prompt_ids,
                seed=sample_seed(self.run_seed, lease.group_id, index, draw=lease.draw),
                # A prompt may hold part of an output, which leaves less room for new tokens.
                sampling=replace(
                    sampling, max_new_tokens=min(sampling.max_new_tokens, self.max_model_len - len(lease.question.prompt_ids))
                ),
            )
            for lease, index in members
        ]
        generate = self._generate_fn or self._within(deadline_s)
        if self._tools is None:
            made = [(completion, (True,) * len(completion.output_ids), "") for completion in await generate(requests)]
        else:

            def seed(i: int, turn: int) -> int:
                lease, index = members[i]
                return sample_seed(self.run_seed, lease.group_id, index, turn, lease.draw)

            episodes = await self._tools.run(requests, generate, seed)
            made = [(e.completion(), tuple(e.sampled_mask), e.failure) for e in episodes]
        samples = iter([self._sample(*member, *row) for member, row in zip(members, made, strict=True)])
        return [Group(question=x.question, samples=tuple(next(samples) for _ in x.indices)) for x in leases]

    def _sample(self, lease: Lease, index: int, completion: Completion, sampled_mask: tuple[bool, ...], failure: str) -> Sample:
        rejected = failure or unusable(completion, len(self.tokenizer))
        readable = [token for token in completion.output_ids if 0 <= token < len(self.tokenizer)]
        return Sample(
            ordinal=lease.question.ordinal,
            group_id=lease.group_id,
            index=index,
            attempt=lease.attempt,
            prompt_ids=lease.question.prompt_ids,
            output_ids=completion.output_ids,
            sampled_mask=sampled_mask,
            logprobs=() if rejected else completion.logprobs,
            text=self.tokenizer.decode(readable, skip_special_tokens=True),
            versions=completion.versions,
            finish_reason=completion.finish_reason,
            rejected=rejected,
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
