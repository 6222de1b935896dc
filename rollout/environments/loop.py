"""Outputs of several turns: the policy speaks until it ends its turn, an environment replies, and so on.

The first prompt is the question's. What the environment says is put behind the policy's turn in tokens that the policy did not
sample: they carry no gradient. What the policy said is never put into tokens again; only a reply is, as the chat template shows
it behind an assistant's turn. The limit on new tokens holds for both kinds together. docs/environments.md is for its user.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rollout.config import EnvironmentConfig, PromptConfig
from rollout.data.prompts import encode_reply
from rollout.environments.process import EnvironmentFailed, Environments, Live
from rollout.patience import Patience
from rollout.tools.episode import Episode, Seed
from rollout.types import Ended, FinishReason, GenerateFn, Question, TokenRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EnvironmentLoop:
    """Runs whole waves of episodes, turn by turn, so that a wave can be repeated token for token where environments can."""

    def __init__(self, config: EnvironmentConfig, tokenizer: "PreTrainedTokenizerBase", prompt: PromptConfig):
        self._config, self._tokenizer, self._prompt = config, tokenizer, prompt
        self._environments = Environments(config.function)
        self._room = asyncio.Semaphore(config.at_once)

    async def check(self) -> None:
        """Raises EnvironmentFailed, with the traceback, where the function cannot be loaded."""
        await self._environments.start()

    def close(self) -> None:
        self._environments.close()

    async def run(
        self, questions: Sequence[Question], requests: Sequence[TokenRequest], generate: GenerateFn, seed: Seed
    ) -> list[Episode]:
        """The ended episodes of these requests, in order. `seed(position, turn)` seeds a later turn."""
        episodes = [Episode(request=request) for request in requests]
        live: list[Live | None] = [None] * len(requests)
        patience, turn = Patience(self._config.seconds, len(requests)), 0
        try:
            await asyncio.gather(*(self._begin(i, questions[i], episodes[i], live, patience) for i in range(len(requests))))
            while going := [i for i, e in enumerate(episodes) if e.finish_reason is None]:
                asked = [episodes[i].next_request(seed(i, turn) if turn else requests[i].seed) for i in going]
                said = await generate(asked)
                for i, completion in zip(going, said, strict=True):
                    episodes[i].extend(completion)
                    episodes[i].finish_reason = completion.finish_reason
                turn += 1
                words = [self._decode(completion.output_ids) for completion in said]
                replies = (self._reply(episodes[i], live[i], w, turn, patience) for i, w in zip(going, words, strict=True))
                await asyncio.gather(*replies)
        finally:
            for one in live:
                if one is not None:
                    one.close()
        return episodes

    async def _begin(self, i: int, question: Question, episode: Episode, live: list[Live | None], patience: Patience) -> None:
        try:
            async with self._room:
                live[i] = await self._environments.begin(question, episode.request.seed, patience)
        except EnvironmentFailed as error:
            _fail(episode, error)

    async def _reply(self, episode: Episode, live: Live | None, words: str, turn: int, patience: Patience) -> None:
        """What the environment says to the policy's turn, or how the episode came out."""
        assert live is not None, "an episode without an environment has failed"
        reply = None
        try:
            async with self._room:
                if episode.finish_reason is FinishReason.STOP:
                    reply = await live.step(words, patience)
                if reply is not None and turn < self._config.max_turns:
                    episode.append(encode_reply(self._tokenizer, reply, self._prompt))
                if episode.finish_reason is not None:
                    episode.ended = Ended(rewards=await live.rewards(patience), answer=words)
        except EnvironmentFailed as error:
            _fail(episode, error)
        except ValueError as error:  # the reply cannot be shown as text
            _fail(episode, error)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _fail(episode: Episode, error: Exception) -> None:
    episode.failure, episode.finish_reason = f"environment: {error}", FinishReason.FAILED
