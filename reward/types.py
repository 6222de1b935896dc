"""The vocabulary of the reward stage: a Group comes in, a ScoredGroup goes out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypedDict

from pydantic import Field

from rollout.types import Question, Sample

FAILURES = ("rejected", "unscorable", "killed", "error")
"""Why an output that was to be scored has no score (see `Verdict.status`)."""
Status = Literal["score", "given", "rejected", "unscorable", "killed", "error"]
By = Literal["rule", "model"]
"""Who scores: the rule (or the user's function in its place), or the reward model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardEvent:
    """A reward at a token. Outcome supervision is one event at the last token; process supervision one per step."""

    position: int
    """Index into the output's tokens."""
    value: float


class Judgement(TypedDict):
    """What the rule says of one output."""

    extracted: str | None
    value: str | None
    """The extracted answer in canonical form, for majority votes."""
    correct: bool
    parsed: bool
    """Whether the extracted answer has a value."""
    reference: str
    """The reference answer without what stands around it."""
    problem: str | None
    """Why the reference answer cannot be judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the judge concluded. A failure to judge is never a number.

    Example: Verdict(status="score", reward=1.1, components={"correct": 1.0, "format": 1.0}, extracted="42",
    reason="", reward_version=None)
    """

    status: Status
    """`given`: nobody was asked. What should have a score and has none is `rejected` (it may not be trained on, so it is not
    judged), `unscorable` (its reference answer has no value), `killed` (its judge was, or died), or an `error` of the judge."""
    reward: float | None
    """The weighted sum of the components; None unless the status is `score`."""
    components: dict[str, float]
    """Named parts of the reward, as they are before weighting; some may be for the log only."""
    extracted: str | None
    """The final answer found in the text."""
    reason: str
    """Why it has no score, for an error the traceback; empty for a score."""
    reward_version: int | None
    """Version of the reward model that scored; None where only the rule judged."""
    value: str | None = None
    """The final answer in canonical form: equal answers have equal ones."""
    summands: tuple[float, ...] = ()
    """The weighted components that the reward is the sum of; none where it is no sum."""
    seconds: Annotated[float | None, Field(exclude=True)] = field(default=None, compare=False)
    """What judging took; None where nothing was judged. Not stored: a resumed run's files are those of an unbroken one."""

    @property
    def failed(self) -> bool:
        """A score was asked for, and there is none."""
        return self.status in FAILURES


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSample:
    """A sample with its rewards. Without a score there are no events: it leaves loss and baseline."""

    sample: Sample
    events: tuple[RewardEvent, ...]
    verdict: Verdict

    @property
    def terms(self) -> tuple[float, ...]:
        """The numbers that its rewards are, or are sums of."""
        return *(event.value for event in self.events), *self.verdict.summands


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """The outputs of one question with their rewards, in the order of their indices: what a baseline is taken over."""

    question: Question
    scored: tuple[ScoredSample, ...]


def samples_of(groups: Iterable[ScoredGroup]) -> list[ScoredSample]:
    """The samples of all groups, in order."""
    return [item for group in groups for item in group.scored]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a reward model is to say at a token: a label in [0, 1], or for ranking any number."""

    position: int
    """Index into the output's tokens."""
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """An output as a reward model is trained on it: an outcome label is a target at the last token, step labels one a step."""

    sample: Sample
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledGroup:
    """Examples that belong together: the labelled outputs of one question, or a pair, the better one first."""

    labelled: tuple[Labelled, ...]


def no_score(status: Status, reason: str, reward_version: int | None = None) -> Verdict:
    """Any verdict but a score."""
    return Verdict(status=status, reward=None, components={}, extracted=None, reason=reason, reward_version=reward_version)


def without_score(sample: Sample, status: Status, reason: str) -> ScoredSample:
    """A sample that has none."""
    return ScoredSample(sample=sample, events=(), verdict=no_score(status, reason))


def as_given(sample: Sample) -> ScoredSample:
    """A sample to learn from as it is, or to be read by a model."""
    return without_score(sample, "given", "given, not judged")
