"""Outputs to train on: sampled by the serving version at the run's temperature, judged, and booked in the ledger."""

from collections.abc import Iterable, Sequence

from cluster.fleet.sampler import Sampler
from cluster.fleet.versions import Serving
from cluster.records.clock import Clock
from cluster.records.ledger import Ledger
from cluster.records.samples import attempts
from cluster.run.progress import Progress
from cluster.stopping import RunFailed
from learner.algorithms.table import RewardSource
from reward.types import ScoredGroup
from rollout.types import Group, Lease, Sample, Sampling


class Collector:
    """What the sources of groups and the labeller ask for outputs."""

    def __init__(
        self, sampler: Sampler, sampling: Sampling, serving: Serving, ledger: Ledger, progress: Progress, clock: Clock
    ):
        self._sampler, self._sampling, self._serving, self._ledger = sampler, sampling, serving, ledger
        self._progress, self._clock = progress, clock
        self.tokens = 0
        """Sampled to train on, evaluations left out."""

    def sample(self, leases: Sequence[Lease], what: str, *, booked: bool = True) -> list[Group]:
        """All outputs of the leases, sampled by the serving version, which must be the learner's."""
        version = self._serving.version
        if not self._serving.published:
            raise RunFailed(f"{what}: the engines hold version {version}, and the learner has gone on from it")
        name = f"{what} step {self._progress.step + 1} v{version}"
        with self._clock.timed("generate"):
            groups = self._sampler.sample(leases, self._sampling, name, self._ledger if booked else None)
        self.tokens += sum(sum(s.sampled_mask) for group in groups for s in group.samples)
        return groups

    def judge(self, groups: Sequence[Group], reward: RewardSource, *, whole: bool = True) -> list[ScoredGroup]:
        """The groups scored, in order; `whole`: all that the step asks for."""
        with self._clock.timed("score"):
            return self._sampler.judge(groups, f"score step {self._progress.step + 1}", reward, whole=whole)

    def restore(self, tokens: int) -> None:
        """Go on from those that an earlier life of the run sampled."""
        self.tokens = tokens

    def book(self, event: str, samples: Iterable[Sample], **fields) -> None:
        """Record an event of these samples."""
        for one in attempts(samples):
            self._ledger.record(event, **one, **fields)
