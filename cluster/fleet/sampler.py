"""Orders for outputs and judgements, carried out whatever workers die on the way, with every sample booked in the ledger."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from cluster.fleet.calls import LATE
from cluster.fleet.roles import Roles
from cluster.records.ledger import Ledger
from cluster.records.samples import attempts
from cluster.stopping import RunFailed
from learner.algorithms.table import RewardSource
from reward.types import ScoredSample, without_score
from rollout.types import Lease, Question, Sample, Sampling

RECENT = 64
"""Outputs that the bound on those without a score looks at, at least: one of a small step says little."""


class Unscored(RunFailed):
    """Too many outputs have no score."""

    def __init__(self, message: str, questions: Sequence[Question], scored: Sequence[ScoredSample]):
        super().__init__(message)
        self.questions, self.scored = questions, scored


class Bound:
    """How many outputs may lack a score, whoever is to blame: rejected, unscorable, their judge killed or failing.

    All are borne alike, up to a share of the newest outputs (`RECENT` or more), as long as not all of an order lack one.
    """

    def __init__(self, most: float):
        """`most`: reward.max_unscored_share."""
        self._most = most
        self._recent: deque[tuple[int, int]] = deque()
        """(outputs without a score, outputs) of the newest orders."""

    def check(self, name: str, questions: Sequence[Question], scored: Sequence[ScoredSample]) -> None:
        """Count one more order. Raises Unscored with the first cause."""
        failed = [s for s in scored if s.verdict.failed]
        self._recent.append((len(failed), len(scored)))
        while sum(n for _, n in self._recent) - self._recent[0][1] >= RECENT:
            self._recent.popleft()
        bad, outputs = map(sum, zip(*self._recent, strict=True))
        if failed and (len(failed) == len(scored) or bad > self._most * max(outputs, RECENT)):
            sample, why = failed[0].sample, failed[0].verdict.reason.strip()
            kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(s.verdict.status for s in failed).items())
            raise Unscored(
                f"{name}: {len(failed)} of {len(scored)} outputs have no score ({kinds}), and {bad} of the last {outputs}; "
                f"reward.max_unscored_share is {self._most:g}. The first, {sample.group_id}[{sample.index}]: {why}",
                questions,
                scored,
            )


class Sampler:
    """The driver's way to the rollout and reward slots."""

    def __init__(self, roles: Roles, ledger: Ledger | None, bring_up: Callable[[int], None], bound: Bound):
        """`bring_up(slot)` gives a fresh engine the serving version."""
        self.roles, self.ledger, self._bring_up, self._bound = roles, ledger, bring_up, bound

    def sample(
        self, leases: Sequence[Lease], sampling: Sampling, name: str, *, version: int, booked: bool = False
    ) -> list[Sample]:
        """All outputs of the leases, rejected ones too. An ordinal always goes to the same slot, so that a wave can be repeated
        token for token.

        A slot that fails is replaced, brought to the serving version, and given its whole wave again under the next attempt.
        `booked`: in the ledger.
        """
        slots = self.roles.slots()
        waves: dict[int, list[Lease]] = {}
        for lease in leases:
            waves.setdefault(slots[lease.question.ordinal % len(slots)], []).append(lease)
        made: dict[tuple[str, int], Sample] = {}
        if booked:
            self.ledger.record("leased", {x.group_id: x.indices for x in leases}, version=version)
        while waves:
            answers, errors = self.roles.generate(waves, sampling, name)
            for samples in answers.values():
                made |= {(s.group_id, s.index): s for s in samples}
                # An answer that is not awaited under its attempt is a bug, and raises.
                for one in attempts(samples) if booked else ():
                    self.ledger.record("generated", **one)
            waves = {
                slot: [replace(x, attempt=x.attempt + 1, draw=x.draw + (LATE in why)) for x in waves[slot]]
                for slot, why in errors.items()
            }
            for slot, why in errors.items():
                self.roles.replace(slot, why)
                self._bring_up(slot)
                if booked:
                    again = {x.group_id: x.indices for x in waves[slot]}
                    attempt = waves[slot][0].attempt
                    self.ledger.record("leased", again, attempt=attempt, version=version, why=why[:200])
        # Whichever slot answered first: what comes of the outputs depends on their order.
        return [made[lease.group_id, i] for lease in leases for i in lease.indices]

    def judge(
        self, questions: Sequence[Question], samples: Sequence[Sample], name: str, reward: RewardSource
    ) -> list[ScoredSample]:
        """Scores in the order of the samples; a rejected one is not judged. Raises Unscored."""
        judged = iter(self.roles.judge(questions, [s for s in samples if not s.rejected], name, reward))
        scored = [without_score(s, "rejected", s.rejected) if s.rejected else next(judged) for s in samples]
        self._bound.check(name, questions, scored)
        return scored
