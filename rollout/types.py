"""The vocabulary of the rollout stage. Standard library only: the leaf of the import graph.

A question is asked G times (a group); each answer is an output; an output with everything known of how it was made is a Sample.
Token ids go in and token ids come out: what the learner trains on is what the engine sampled, never re-tokenised text.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

PolicyVersion = int
"""Counts committed weight updates of a run; 0 is the model the run (or its first stage) starts from."""

Messages = tuple[dict[str, str], ...]
"""A prompt in the form of a chat, {role, content} each: system or not, then user and assistant in turn, the user last."""


class FinishReason(StrEnum):
    """Why an output ended. Closed: an aborted wave is an exception, never a Sample."""

    STOP = "stop"
    """A stop token was sampled; it is the last output token."""
    LENGTH = "length"
    """The budget of new tokens ran out."""
    FAILED = "failed"
    """A program of it could not be run, or its environment failed; it is a rejected output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a run, rendered.

    Example: Question(ordinal=17, id="train.jsonl:18", text="3 + 4?", gold="7", prompt_ids=(1, 9, 4, 10, 3))
    """

    ordinal: int
    """Place in the stage's fixed order of questions (epochs continue the count)."""
    id: str
    """Where it comes from: `file:line`, or the built-in task's item."""
    text: str
    """The question as a person reads it, before the prompt template."""
    gold: str
    """The reference answer."""
    prompt_ids: tuple[int, ...]
    """Token ids of the rendered prompt."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The row that it comes from, as JSON: whoever needs a field of the data finds it with its question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """An order to a rollout worker: sample these members of one group."""

    question: Question
    group_id: str
    """Unique in the run, `<stage>/<ordinal>` for training; holds the group together everywhere."""
    indices: tuple[int, ...]
    """Which members of the group to sample."""
    attempt: int
    """0 for the first order, one more for every re-issue after a failure."""
    draw: int = 0
    """Which random numbers to draw: others after an attempt that outlasted its deadline, as the same would again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. No top-p or top-k: they renormalise the log-probabilities a ratio loss needs."""

    temperature: float
    """0 is greedy."""
    max_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """What the engine is asked for: one output."""

    prompt_ids: tuple[int, ...]
    seed: int
    sampling: Sampling
    pauses: tuple[int, ...] = ()
    """Tokens, besides those that end an output, after which the engine hands it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the engine answers: one output, in tokens."""

    output_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each sampled token under the policy that sampled it, at the sampling temperature."""
    versions: tuple[tuple[PolicyVersion, int], ...]
    """(version, first token) spans: which weights made which tokens."""
    finish_reason: FinishReason
    guesses: tuple[int, int] = (0, 0)
    """Tokens that were guessed ahead, and how many of them the policy took."""


class GenerateFn(Protocol):
    """The seam between the turn loop and the engine: a wave of requests in order, completions in the same order."""

    async def __call__(self, requests: Sequence[TokenRequest]) -> list[Completion]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an episode came out in its environment."""

    rewards: Mapping[str, float]
    """The reward's parts, by name."""
    answer: str
    """The policy's last turn, which the rule reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One output and how it was made. A demonstration is a Sample too: version 0 and no log-probabilities.

    Example: Sample(ordinal=17, group_id="grpo/17", index=2, attempt=0, prompt_ids=(1, 9), output_ids=(5, 2),
    sampled_mask=(True, True), logprobs=(-0.1, -0.02), text="7", versions=((4, 0),), finish_reason=FinishReason.STOP)
    """

    ordinal: int
    group_id: str
    index: int
    """Place in the group, 0..G-1."""
    attempt: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    """Includes the stop token when there is one."""
    sampled_mask: tuple[bool, ...]
    """One per output token: False for tokens the policy did not choose (tool output, replies); they carry no gradient."""
    logprobs: tuple[float, ...]
    """Behaviour log-probability per output token; empty for a demonstration and for a rejected output."""
    text: str
    """The output decoded once, without special tokens, for scorers and people."""
    versions: tuple[tuple[PolicyVersion, int], ...]
    finish_reason: FinishReason
    guesses: tuple[int, int] = (0, 0)
    rejected: str = ""
    """Why it may not be trained on (a NaN log-probability, a token outside the vocabulary, a broken sandbox or environment). It
    stays a member of its group, and is not judged."""
    ended: Ended | None = None
    """With an environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The outputs of one question that answer one lease, in the order of its indices."""

    question: Question
    samples: tuple[Sample, ...]


def sample_seed(run_seed: int, group_id: str, index: int, turn: int = 0, draw: int = 0) -> int:
    """Seed of one output, or of a later turn or another draw of it, in [0, 2**63): independent of worker, order and attempt."""
    later = (f"/{turn}" if turn else "") + (f"#{draw}" if draw else "")
    digest = hashlib.blake2b(f"{run_seed}/{group_id}/{index}{later}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
