"""Steps' groups on their way from rollout to learner, and the one place that says which may be sampled, and when.

Step t of a stage trains the groups with ordinals tQ .. tQ + Q - 1, its wave. With max_staleness s, wave t is begun when t - s
steps are done (or none, where that is less), so by the version that those steps made, or a later one. That is the bound: no
trained output was begun by weights more than s steps older than those that it trains. Waves are begun in the order of their
steps and trained in it, and none is discarded for being slow, so the trained distribution is the issued one.

Scheduled: waves are sampled one after the other, and no version is published while one is. So each is sampled by exactly one
version, which its step fixes: the run can be repeated. In flight: versions change while waves are sampled, which begin as soon
as they may; every token knows its own.
"""

from collections.abc import Sequence
from typing import Protocol

from cluster.config.stages import StageConfig
from cluster.fibers import HUB, Fiber
from cluster.run.progress import Progress
from cluster.run.sources import Job, Source
from reward.types import ScoredGroup
from rollout.types import Group


class BoundBroken(RuntimeError):
    """An output was begun by weights that may not be trained any more."""


class Versions(Protocol):
    """Which version serves; `cluster.fleet.versions.Serving` knows."""

    version: int


class Wave:
    """A step's groups."""

    def __init__(self, job: Job, before: "Wave | None", name: str):
        """`before`: whose sampling must have ended before this one's begins."""
        self.sampled: Sequence[Group] | None = None
        self._job, self._before = job, before
        self.fiber: Fiber[list[ScoredGroup]] = HUB.spawn(self._run, name)

    @property
    def over(self) -> bool:
        """Nothing of it is sampled any more."""
        return self.sampled is not None or self.fiber.done

    def _run(self) -> list[ScoredGroup]:
        before, self._before = self._before, None
        if before is not None:
            HUB.until(lambda: before.over, f"the end of sampling of {before.fiber.name}")
        scored = self._job(self._sampled)
        if self.sampled is None:  # what a group is replaced by is known only when it is scored
            self.sampled = [Group(question=g.question, samples=tuple(s.sample for s in g.scored)) for g in scored]
        return scored

    def _sampled(self, groups: Sequence[Group]) -> None:
        self.sampled = groups


class Buffer:
    """The waves of the stage under way."""

    def __init__(self, stage: StageConfig, source: Source, progress: Progress, serving: Versions):
        self._stage, self._source, self._progress, self._serving = stage, source, progress, serving
        self._ahead = stage.max_staleness if stage.follows_policy else 0
        self._base = serving.version - progress.done
        """Of a stage that follows the policy: the version that it begins with."""
        self._waves: dict[int, Wave] = {}
        self._begun = progress.done

    def admit(self, kept: Sequence[Group] = ()) -> None:
        """Begin the waves that may be begun now and were not before. `kept`: groups that an earlier life of the run sampled
        ahead, whole waves."""
        by_wave: dict[int, list[Group]] = {}
        for group in kept:
            by_wave.setdefault(group.question.ordinal // self._stage.questions_per_step, []).append(group)
        for step in range(self._begun, min(self._progress.done + self._ahead + 1, self._stage.steps)):
            groups = by_wave.get(step)
            job = self._source.job(self._ordinals(step)) if groups is None else self._source.again(groups)
            before = None if self._stage.in_flight else self._waves.get(step - 1)
            self._waves[step] = Wave(job, before, f"wave {step + 1} of {self._stage.name}")
            self._begun = step + 1

    def take(self) -> list[ScoredGroup]:
        """The groups of the step under way in the order of their ordinals, when all are scored. Raises what their sampling and
        scoring raise, and BoundBroken."""
        step = self._progress.done
        groups = self._waves[step].fiber.result()
        del self._waves[step]
        if [group.question.ordinal for group in groups] != list(self._ordinals(step)):
            found = [group.question.ordinal for group in groups]
            raise ValueError(f"step {step + 1} of {self._stage.name} awaits {self._ordinals(step)}, and groups {found} came")
        if self._stage.follows_policy:
            self._check(step, groups)
        self._source.trained(groups)
        return groups

    @property
    def waiting(self) -> int:
        """Waves that are scored and not trained yet."""
        return sum(wave.fiber.done for wave in self._waves.values())

    def quiet(self) -> None:
        """Wait until a new version may be published: until nothing is sampled that must not meet it."""
        if not self._stage.in_flight:
            HUB.until(lambda: all(wave.over for wave in self._waves.values()), "the end of all sampling")

    def sampled_ahead(self) -> list[Group]:
        """Groups of the waves that are wholly sampled and not trained."""
        return [group for _, wave in sorted(self._waves.items()) for group in wave.sampled or ()]

    def _check(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        due = self._base + max(0, step - self._ahead)
        for sample in (s.sample for group in groups for s in group.scored):
            first, last = sample.versions[0][0], sample.versions[-1][0]
            if first < due or not self._stage.in_flight and last != due:
                made = f"version {first}" if first == last else f"versions {first} to {last}"
                raise BoundBroken(
                    f"step {step + 1} of {self._stage.name}: {sample.group_id}[{sample.index}] was sampled by {made}; expected "
                    f"{'at least ' * self._stage.in_flight}{due} (max_staleness {self._ahead})"
                )

    def _ordinals(self, step: int) -> range:
        start = step * self._stage.questions_per_step
        return range(start, start + self._stage.questions_per_step)
