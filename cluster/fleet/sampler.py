"""Orders for outputs and judgements, carried out whatever workers die on the way, with every sample booked in the ledger."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from cluster.fibers import HUB, Fiber
from cluster.fleet.calls import LATE, RoleFailed
from cluster.fleet.roles import Roles
from cluster.fleet.versions import OnDisk, Serving
from cluster.records.ledger import Ledger
from cluster.records.samples import attempts
from cluster.stopping import RunFailed
from learner.algorithms.table import RewardSource
from reward.types import By, ScoredGroup, samples_of
from rollout.types import Group, Lease, Question, Sampling

log = logging.getLogger("cohort")

RECENT = 64
"""Outputs that the bound on those without a score looks at, at least: one of a small step says little."""


class Unscored(RunFailed):
    """Too many outputs have no score."""

    def __init__(self, message: str, groups: Sequence[ScoredGroup]):
        super().__init__(message)
        self.groups = groups


class Bound:
    """How many outputs may lack a score, whoever is to blame: rejected, unscorable, their judge killed or failing.

    All are borne alike, up to a share of the newest outputs (`RECENT` or more), as long as not a whole step lacks one.
    """

    def __init__(self, most: float):
        """`most`: reward.max_unscored_share."""
        self._most = most
        self._recent: deque[tuple[int, int]] = deque()
        """(outputs without a score, outputs) of the newest orders."""

    def check(self, name: str, groups: Sequence[ScoredGroup], *, whole: bool = True) -> None:
        """Count one more order, of a whole step or a part of one. Raises Unscored with the first cause."""
        scored = samples_of(groups)
        failed = [s for s in scored if s.verdict.failed]
        self._recent.append((len(failed), len(scored)))
        while sum(n for _, n in self._recent) - self._recent[0][1] >= RECENT:
            self._recent.popleft()
        bad, outputs = map(sum, zip(*self._recent, strict=True))
        if failed and (whole and len(failed) == len(scored) or bad > self._most * max(outputs, RECENT)):
            sample, why = failed[0].sample, failed[0].verdict.reason.strip()
            kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(s.verdict.status for s in failed).items())
            raise Unscored(
                f"{name}: {len(failed)} of {len(scored)} outputs have no score ({kinds}), and {bad} of the last {outputs}; "
                f"reward.max_unscored_share is {self._most:g}. The first, {sample.group_id}[{sample.index}]: {why}",
                groups,
            )


def leases(questions: Sequence[Question], prefix: str, size: int, suffix: str = "") -> list[Lease]:
    """Orders for `size` outputs of each question, in groups `<prefix>/<ordinal><suffix>`."""
    members = tuple(range(size))
    return [Lease(question=q, group_id=f"{prefix}/{q.ordinal}{suffix}", indices=members, attempt=0) for q in questions]


@dataclass(frozen=True, slots=True)
class _Order:
    """Outputs that are asked for, and what has come of them."""

    sampling: Sampling
    name: str
    ledger: Ledger | None
    each: Callable[[Group], None]
    made: dict[str, Group] = field(default_factory=dict)

    def lease(self, waves: Mapping[int, Sequence[Lease]], served: Mapping[str, int], deadline_s: float, why: str) -> None:
        """Book what is left of waves that one attempt asks for, with whatever else decides its outputs; `why`: of an attempt
        after the first. Nothing counts that comes more than `deadline_s` later."""
        left = [lease for wave in waves.values() for lease in self.left(wave)]
        if self.ledger and left:
            fields = {"draw": left[0].draw, "deadline_s": deadline_s} | ({"why": why[:200]} if why else {})
            self.ledger.record("leased", {x.group_id: x.indices for x in left}, attempt=left[0].attempt, **served, **fields)

    def take(self, group: Group) -> None:
        self.made[_id(group)] = group
        if self.ledger:
            for one in attempts(group.samples):
                self.ledger.record("generated", **one)
        self.each(group)

    def left(self, wave: Sequence[Lease]) -> list[Lease]:
        return [lease for lease in wave if lease.group_id not in self.made]


class Sampler:
    """The driver's way to the rollout and reward slots."""

    def __init__(self, roles: Roles, bound: Bound, serving: Serving | OnDisk):
        self._roles, self._bound, self._serving = roles, bound, serving
        self.orders: Counter[tuple[str, int]] = Counter()
        """By role and slot, how many orders are under way there."""
        self._behind: set[int] = set()  # rollout slots with a fresh engine that lacks the serving version

    def sample(
        self,
        leases: Sequence[Lease],
        sampling: Sampling,
        name: str,
        ledger: Ledger | None = None,
        each: Callable[[Group], None] = lambda group: None,
    ) -> list[Group]:
        """All outputs of the leases, rejected ones too, a group a lease, in order. An ordinal always goes to the same slot, so
        that a wave can be repeated token for token.

        A slot that fails is replaced while the others go on, brought to the serving version, and given its whole wave again
        under the next attempt; of what it had answered, the first answer stays. `ledger`: where the outputs are booked, if they
        are. `each` hears of every group when it comes.
        """
        waves, order = self._dealt(leases), _Order(sampling, name, ledger, each)
        with self._busy("rollout", waves):
            self._ask(order, waves)
        # Whichever slot answered first: what comes of the outputs depends on their order.
        return [order.made[lease.group_id] for lease in leases]

    def _ask(self, order: _Order, waves: dict[int, list[Lease]], why: str = "") -> None:
        """What is left of the order in these waves, and what a slot that failed is asked again. `why`: it was asked before."""
        parts = [("rollout", slot) for slot in waves]
        self._serving.changing.free(*parts)
        while behind := self._behind.intersection(waves):
            self._renew(min(behind), -1, "")
            self._serving.changing.free(*parts)
        order.lease(waves, self._serving.served, self._roles.allowed_s(waves), why)
        begun = {slot: self._roles.lives["rollout", slot] for slot in waves}
        slots = {lease.group_id: slot for slot, wave in waves.items() for lease in wave}
        renewals: dict[int, Fiber[None]] = {}

        def arrived(lease: Lease, group: Group) -> None:
            # In the middle of an update nobody knows yet whether this engine holds what it should.
            self._serving.updating.free()
            slot = slots[lease.group_id]
            if lease.group_id not in order.made and self._roles.lives["rollout", slot] == begun[slot]:
                order.take(group)

        def failed(slot: int, why: str) -> None:
            def renew() -> None:
                self._renew(slot, begun[slot], why)
                again = [replace(x, attempt=x.attempt + 1, draw=x.draw + (LATE in why)) for x in waves[slot]]
                if order.left(again):
                    self._ask(order, {slot: again}, why)

            if slot not in renewals:
                renewals[slot] = HUB.spawn(renew, f"renew rollout-{slot}")

        errors = self._roles.generate(waves, order.sampling, order.name, arrived, failed)
        gone = {slot: "its engine was replaced before all outputs were taken" for slot in waves if order.left(waves[slot])}
        for slot, why in (gone | errors).items():
            failed(slot, why)
        for fiber in renewals.values():
            fiber.result()

    @contextmanager
    def _busy(self, role: str, slots: Iterable[int]) -> Iterator[None]:
        """An order to these slots, none of which ends before it."""
        workers = [(role, slot) for slot in slots]
        self.orders.update(workers)
        try:
            yield
        finally:
            self.orders.subtract(workers)

    def _dealt(self, leases: Sequence[Lease]) -> dict[int, list[Lease]]:
        slots, waves = self._roles.slots(), {}
        for lease in leases:
            waves.setdefault(slots[lease.question.ordinal % len(slots)], []).append(lease)
        return waves

    def _renew(self, slot: int, life: int, why: str) -> None:
        """A fresh engine with the serving version in the slot, unless another fiber has seen to it."""
        with self._serving.changing.of(("rollout", slot)):
            if self._roles.lives["rollout", slot] == life:
                self._behind.add(slot)
                self._roles.replace(slot, why)
            if slot in self._behind:  # also where the fiber that replaced it came no further
                self._serving.bring_up(slot)
                self._behind.discard(slot)
                log.warning("rollout-%d serves again, version %d", slot, self._serving.version)

    def score(self, groups: Sequence[Group], name: str, reward: RewardSource, *, whole: bool = True) -> list[ScoredGroup]:
        """The groups scored, in order; rejected outputs are not judged. `whole`: see `Bound.check`. Raises Unscored."""
        return self.score_as_they_come(lambda known: groups[known:], [_id(g) for g in groups], name, reward, whole=whole)

    def score_as_they_come(
        self,
        after: Callable[[int], Sequence[Group]],
        order: Sequence[str],
        name: str,
        reward: RewardSource,
        *,
        whole: bool = True,
    ) -> list[ScoredGroup]:
        """The groups with these ids scored, in this order; `after(n)` gives, and if need be waits for, those that came after
        the first n.
        Groups go to the reward slots in turn. A slot that fails is replaced, and its groups go to the next one.
        """
        by: By = "rule" if reward == "rule" else "model"
        slots, turn = self._roles.reward_slots(), 0
        groups: list[Group] = []
        scored: dict[int, ScoredGroup] = {}
        with self._busy("reward", slots):
            while len(scored) < len(order):
                if len(scored) == len(groups):
                    groups += after(len(groups))
                todo = [i for i in range(len(groups)) if i not in scored]
                if by == "model":
                    self._serving.bring_up_reward_actors(slots)
                deal = {slot: [i for i in todo if slots[(i + turn) % len(slots)] == slot] for slot in slots}
                parts = {slot: [groups[i] for i in part] for slot, part in deal.items() if part}
                begun = {slot: self._roles.lives["reward", slot] for slot in parts}
                answers, errors = self._roles.score(parts, by, name)
                for slot, answer in answers.items():
                    scored |= zip(deal[slot], answer, strict=True)
                HUB.together({f"renew reward-{s}": partial(self._judge_anew, s, begun[s], why) for s, why in errors.items()})
                turn += bool(errors)
        by_id = {_id(group): scored[i] for i, group in enumerate(groups)}
        found = [by_id[group_id] for group_id in order]
        if by == "model":
            self._check_version(name, found)
        self._bound.check(name, found, whole=whole)
        return found

    def _judge_anew(self, slot: int, life: int, why: str) -> None:
        """A fresh reward actor in the slot, unless another fiber has seen to it."""
        with self._serving.changing.of(("reward", slot)):
            if self._roles.lives["reward", slot] == life:
                self._roles.replace_reward_actor(slot, why)

    def _check_version(self, name: str, groups: Sequence[ScoredGroup]) -> None:
        serves = self._serving.reward_version
        versions = {s.verdict.reward_version for g in groups for s in g.scored if s.verdict.status != "rejected"}
        if wrong := versions - {serves}:
            raise RoleFailed(f"{name}: judged by reward model {sorted(wrong, key=str)}, and {serves} serves")


def _id(group: Group) -> str:
    return group.samples[0].group_id
