"""Orders for outputs and judgements, carried out whatever workers die on the way, with every sample booked in the ledger."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from cluster.ledger import Ledger
from cluster.records import attempts
from cluster.roles import Roles
from learner.algorithms import RewardSource
from reward.types import ScoredSample
from rollout.types import Lease, Question, Rejection, Sample, Sampling


class RunFailed(RuntimeError):
    """The run cannot go on; its newest checkpoint stands."""


class Sampler:
    """The driver's way to the rollout and reward slots."""

    def __init__(self, roles: Roles, ledger: Ledger, bring_up: Callable[[int], None], max_error_share: float):
        """`bring_up(slot)` gives a fresh engine the serving version."""
        self.roles, self.ledger, self._bring_up, self._max_error_share = roles, ledger, bring_up, max_error_share

    def sample(
        self, leases: Sequence[Lease], sampling: Sampling, name: str, *, version: int, booked: bool = False
    ) -> list[Sample]:
        """All outputs of the leases. An ordinal always goes to the same slot, so that a wave can be repeated token for token.

        A slot that fails is replaced, brought to the serving version, and given its whole wave again under the next attempt.
        Outputs that are not `booked` in the ledger may be missing, like judgements, up to the share that the run allows.
        """
        slots = self.roles.slots()
        waves: dict[int, list[Lease]] = {}
        for lease in leases:
            waves.setdefault(slots[lease.question.ordinal % len(slots)], []).append(lease)
        out: list[Sample] = []
        if booked:
            self.ledger.record("leased", {x.group_id: x.indices for x in leases}, version=version)
        while waves:
            answers, errors = self.roles.generate(waves, sampling, name)
            for samples, rejections in answers.values():
                out += samples
                if booked:
                    self._book(samples, rejections)
                elif len(rejections) > self._max_error_share * (len(samples) + len(rejections)):
                    raise RunFailed(f"{name}: {len(rejections)} unusable outputs, the first: {rejections[0].reason}")
            waves = {slot: [replace(x, attempt=x.attempt + 1) for x in waves[slot]] for slot in errors}
            for slot, why in errors.items():
                self.roles.replace(slot, why)
                self._bring_up(slot)
                if booked:
                    again = {x.group_id: x.indices for x in waves[slot]}
                    attempt = waves[slot][0].attempt
                    self.ledger.record("leased", again, attempt=attempt, version=version, why=why[:200])
        # Whichever slot answered first: what comes of the outputs depends on their order.
        order = {(lease.group_id, i): n for n, (lease, i) in enumerate((x, i) for x in leases for i in x.indices)}
        return sorted(out, key=lambda s: order[s.group_id, s.index])

    def judge(
        self, questions: Sequence[Question], samples: Sequence[Sample], name: str, reward: RewardSource
    ) -> list[ScoredSample]:
        """Scores in the order of the samples. Raises RunFailed when too many judgements fail."""
        scored = self.roles.judge(questions, samples, name, reward)
        errors = [s.verdict.reason for s in scored if s.verdict.status == "error"]
        if len(errors) > self._max_error_share * len(scored):
            raise RunFailed(f"{len(errors)} of {len(scored)} judgements failed; the first:\n{errors[0]}")
        return scored

    def _book(self, samples: Sequence[Sample], rejections: Sequence[Rejection]) -> None:
        """What a slot delivered; an answer that is not awaited under its attempt is a bug, and raises."""
        for one in attempts(samples):
            self.ledger.record("generated", **one)
        for r in rejections:
            self.ledger.record("dropped", {r.group_id: [r.index]}, attempt=r.attempt, reason=r.reason)
