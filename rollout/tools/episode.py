"""Episodes of tool-integrated reasoning: an output that alternates between the policy's words and what its programs print.

A program is a fenced block that begins with ```python. When its fence closes, generation pauses, the program runs in the
sandbox, and what it prints is put behind it as a fenced block that begins with ```output, in tokens that the policy did not
sample: they carry no gradient. The limit on new tokens holds for both kinds together.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rollout.config import ToolsConfig
from rollout.patience import Patience
from rollout.tools.sandbox import Sandbox, SandboxError
from rollout.types import Completion, Ended, FinishReason, GenerateFn, TokenRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FENCE = "```"
Seed = Callable[[int, int], int]
"""(position in the wave, turn) -> seed."""
_PROGRAM = re.compile(r"```python[ \t]*\n((?:(?!```).)*)```\s*\Z", re.DOTALL)
_OUTPUT = re.compile(r"```output[ \t]*\n.*?(?:```\n?|\Z)", re.DOTALL)
_APPENDED = re.compile(rf"(\n?{_OUTPUT.pattern})", re.DOTALL)


@dataclass(slots=True)
class Episode:
    """One output in the making."""

    request: TokenRequest
    """The first one: the question's prompt."""
    output_ids: list[int] = field(default_factory=list)
    sampled_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[tuple[int, int]] = field(default_factory=list)
    programs: int = 0
    guesses: tuple[int, int] = (0, 0)
    finish_reason: FinishReason | None = None
    """None while it goes on."""
    failure: str = ""
    """Why the sandbox, or the environment, could not serve it."""
    ended: Ended | None = None
    """How it came out in its environment."""

    def extend(self, completion: Completion) -> None:
        """What the policy said next."""
        start = len(self.output_ids)
        for version, first in completion.versions:
            if not self.versions or self.versions[-1][0] != version:
                self.versions.append((version, start + first))
        self.output_ids += completion.output_ids
        self.logprobs += completion.logprobs
        self.sampled_mask += [True] * len(completion.output_ids)
        (made, taken), (more, took) = self.guesses, completion.guesses
        self.guesses = made + more, taken + took

    @property
    def room(self) -> int:
        """Tokens that are left to it."""
        return self.request.sampling.max_new_tokens - len(self.output_ids)

    def append(self, ids: Sequence[int]) -> None:
        """Tokens that the policy did not sample, as many as there is room for; it ends where they leave none."""
        shown = ids[: self.room]
        self.finish_reason = FinishReason.LENGTH if len(ids) >= self.room else None
        self.output_ids += shown
        self.logprobs += [0.0] * len(shown)
        self.sampled_mask += [False] * len(shown)

    def next_request(self, seed: int, pauses: tuple[int, ...] = ()) -> TokenRequest:
        """For the policy's next words."""
        return TokenRequest(
            prompt_ids=(*self.request.prompt_ids, *self.output_ids),
            seed=seed,
            sampling=replace(self.request.sampling, max_new_tokens=self.room),
            pauses=pauses,
        )

    def completion(self) -> Completion:
        assert self.finish_reason is not None, "it goes on"
        return Completion(
            output_ids=tuple(self.output_ids),
            logprobs=tuple(self.logprobs),
            versions=tuple(self.versions),
            finish_reason=self.finish_reason,
            guesses=self.guesses,
        )


def without_tool_output(text: str) -> str:
    """An output without what its programs printed: what the policy itself states."""
    return _OUTPUT.sub("", text)


def by_speaker(text: str) -> list[tuple[str, bool]]:
    """A demonstrated output in pieces, cut where an episode would be: each with whether the policy is to say it."""
    return [(piece, i % 2 == 0) for i, piece in enumerate(_APPENDED.split(text)) if piece]


class ToolLoop:
    """Runs whole waves of episodes, turn by turn, so that a wave can be repeated token for token."""

    def __init__(self, config: ToolsConfig, tokenizer: "PreTrainedTokenizerBase", stop_token_ids: Sequence[int]):
        self._config, self._tokenizer, self._stops = config, tokenizer, frozenset(stop_token_ids)
        self._sandbox = Sandbox(config)
        # A fence may be spread over tokens, so generation pauses at every token with its character.
        fences = [i for token, i in tokenizer.get_vocab().items() if FENCE[0] in token]
        self._pauses = tuple(sorted(set(fences) - self._stops))
        if not self._pauses:
            raise ValueError(f"no token of the tokenizer has the character {FENCE[0]}, so no program can be written")

    async def check(self) -> None:
        """Raises SandboxError where programs cannot be run with the protections asked for."""
        await self._sandbox.check()

    async def run(self, requests: Sequence[TokenRequest], generate: GenerateFn, seed: Seed) -> list[Episode]:
        """The ended episodes of these requests, in order. `seed(position, turn)` seeds a later turn."""
        episodes = [Episode(request=request) for request in requests]
        patience = Patience(self._config.seconds, len(requests))
        turn = 0
        while going := [i for i, e in enumerate(episodes) if e.finish_reason is None]:
            asked = [self._next(episodes[i], seed(i, turn) if turn else episodes[i].request.seed) for i in going]
            for i, completion in zip(going, await generate(asked), strict=True):
                self._extend(episodes[i], completion)
            await asyncio.gather(*(self._act(episodes[i], patience) for i in going))
            turn += 1
        return episodes

    def _next(self, episode: Episode, seed: int) -> TokenRequest:
        return episode.next_request(seed, self._pauses if episode.programs < self._config.max_programs else ())

    def _extend(self, episode: Episode, completion: Completion) -> None:
        episode.extend(completion)
        paused = completion.finish_reason is FinishReason.STOP and not self._stops.issuperset(completion.output_ids[-1:])
        episode.finish_reason = (
            FinishReason.LENGTH if paused and not episode.room else None if paused else completion.finish_reason
        )

    async def _act(self, episode: Episode, patience: Patience) -> None:
        """Run the program that the output has just ended with, if there is one, and append what it printed."""
        if episode.finish_reason is not None:
            return
        text = str(self._tokenizer.decode(episode.output_ids, skip_special_tokens=True))
        program = _PROGRAM.search(text)
        if program is None:
            return
        episode.programs += 1
        try:
            ran = await self._sandbox.run(program[1], patience)
        except SandboxError as error:
            episode.failure, episode.finish_reason = str(error), FinishReason.FAILED
            return
        # A fence in what is printed would end its block.
        printed = ran.output.replace(FENCE, 3 * "'")
        before, after = ("" if part.endswith("\n") else "\n" for part in (text, printed))
        shown = f"{before}{FENCE}output\n{printed}{after}{FENCE}\n"
        ids = self._tokenizer(shown, add_special_tokens=False, split_special_tokens=True).input_ids
        episode.append(ids)
