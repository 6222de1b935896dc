"""Outputs to train on: sampled by the serving version at the run's temperature, judged, and booked in the ledger."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from cluster.fibers import HUB
from cluster.fleet.sampler import Sampler
from cluster.fleet.versions import Serving
from cluster.records.clock import PHASES, Clock
from cluster.records.ledger import Ledger
from cluster.records.samples import attempts
from cluster.run.progress import Progress
from cluster.stopping import RunFailed
from learner.algorithms.table import RewardSource
from reward.types import ScoredGroup, samples_of
from rollout.types import Group, Lease, Sample, Sampling

BUSY = {"rollout": "generate", "reward": "score", "learner": "train"}
"""Roles by the phase in which they work."""


class Took:
    """What a step spends its time on."""

    def __init__(self, clock: Clock, collector: "Collector"):
        self._clock, self._collector = clock, collector
        self._spent, self._began, self._tokens, self._waited = clock.spent(), clock.at, collector.tokens, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The learner has nothing to do in the block but to wait."""
        began = HUB.world.now()
        yield
        self._waited += HUB.world.now() - began

    def metrics(self) -> dict[str, float]:
        """The step's times and speed (see METRICS)."""
        now, step = self._clock.spent(), self._clock.at - self._began
        took = {phase: now[phase] - self._spent[phase] for phase in (*PHASES, "other")}
        out = {f"seconds_{phase}": seconds for phase, seconds in (took | {"step": step, "waiting": self._waited}).items()}
        out |= {f"{role}_busy": took[phase] / step for role, phase in BUSY.items()}
        if took["generate"] and (tokens := self._collector.tokens - self._tokens):
            out["tokens_per_second"] = tokens / took["generate"]
        return out


class Collector:
    """What the sources of groups and the labeller ask for outputs."""

    def __init__(
        self, sampler: Sampler, sampling: Sampling, serving: Serving, ledger: Ledger, progress: Progress, clock: Clock
    ):
        self._sampler, self._sampling, self._serving, self._ledger = sampler, sampling, serving, ledger
        self._progress, self._clock = progress, clock
        self.tokens = 0
        """Sampled to train on, evaluations left out."""

    def sample(
        self, leases: Sequence[Lease], what: str, *, booked: bool = True, each: Callable[[Group], None] = lambda group: None
    ) -> list[Group]:
        """All outputs of the leases, sampled by the serving version; `each` hears of every group when it comes.

        Raises RunFailed where the learner has gone on from that version, except in a stage that follows the policy: its buffer
        says which version may sample.
        """
        version = self._serving.version
        if not self._serving.published and not self._progress.stage.follows_policy:
            raise RunFailed(f"{what}: the engines hold version {version}, and the learner has gone on from it")
        with self._clock.timed("generate"):
            ledger = self._ledger if booked else None
            groups = self._sampler.sample(leases, self._sampling, f"{what} v{version}", ledger, each)
        self.tokens += sum(sum(s.sampled_mask) for group in groups for s in group.samples)
        return groups

    def score(self, groups: Sequence[Group], reward: RewardSource, what: str, *, whole: bool = True) -> list[ScoredGroup]:
        """The groups scored, in order; `whole`: all that a step asks for."""
        with self._clock.timed("score"):
            return self._sampler.score(groups, what, reward, whole=whole)

    def collect(
        self,
        leases: Sequence[Lease],
        reward: RewardSource,
        what: str,
        *,
        whole: bool = True,
        sampled: Callable[[Sequence[Group]], None] = lambda groups: None,
    ) -> list[ScoredGroup]:
        """Sampled and scored, in order, each group as soon as it is there; `sampled` hears of all when nothing is sampled any
        more."""
        arrived: list[Group] = []

        def after(known: int) -> list[Group]:
            with self._clock.timed(""):
                HUB.until(lambda: len(arrived) > known, f"a group of {what}")
            return arrived[known:]

        def score() -> list[ScoredGroup]:
            with self._clock.timed("score"):
                order = [lease.group_id for lease in leases]
                return self._sampler.score_as_they_come(after, order, f"score {what}", reward, whole=whole)

        scoring = HUB.spawn(score, f"score {what}")
        sampled(self.sample(leases, f"generate {what}", each=arrived.append))
        return self.scored(scoring.result())

    def scored(self, groups: list[ScoredGroup]) -> list[ScoredGroup]:
        """The groups, those of their outputs that have a score being booked as scored."""
        self.book("scored", (s.sample for s in samples_of(groups) if not s.verdict.failed))
        return groups

    def restore(self, tokens: int) -> None:
        """Go on from those that an earlier life of the run sampled."""
        self.tokens = tokens

    def book(self, event: str, samples: Iterable[Sample], **fields) -> None:
        """Record an event of these samples."""
        for one in attempts(samples):
            self._ledger.record(event, **one, **fields)
