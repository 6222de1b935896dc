"""Workers that come and go as those of `cluster.fleet.workers.Workers` do, for fakes of Roles."""

from collections import Counter
from contextlib import contextmanager

from cluster.fleet.bundles import PlacementError

MOST = 4
"""Engines for which there is room."""


class Violated(AssertionError):
    """An invariant that did not hold."""


class Elastic:
    """Which slots there are of each role; whoever is asked without being there, or ended while it is asked, is an error."""

    def begin(self, rollout, reward):
        """So many of each role, at first."""
        self.there = {"rollout": set(range(rollout)), "reward": set(range(reward))}
        self.aside, self.wanted, self.busy = set(), {}, Counter()

    def slots(self):
        return self._serving("rollout")

    def reward_slots(self):
        return self._serving("reward")

    def _serving(self, role):
        return sorted(slot for slot in self.there[role] if (role, slot) not in self.aside)

    def check_room(self, config):
        if config.rollout.workers > MOST:
            raise PlacementError(f"room for {MOST} engines")

    def add(self, role, slot, config):
        if slot in self.there[role] or getattr(config, role).workers <= len(self._serving(role)):
            raise Violated(f"{role}-{slot} is added to {self.there}")
        self.aside.add((role, slot))
        self.there[role].add(slot)
        self.starts(role, slot)

    def starts(self, role, slot):
        """A worker begins with the weights on disk. Raises RoleFailed where it does not start."""

    def dismiss(self, role, slot):
        self.remove(role, slot)

    def remove(self, role, slot):
        if self.busy[role, slot]:
            raise Violated(f"{role}-{slot} is ended, and has not ended what it was asked")
        self.there[role].discard(slot)
        self.aside.discard((role, slot))

    @contextmanager
    def asked(self, role, slots):
        if gone := set(slots) - self.there[role]:
            raise Violated(f"{role}-{min(gone)} is asked, and is not there")
        self.busy.update((role, slot) for slot in slots)
        try:
            yield
        finally:
            self.busy.subtract((role, slot) for slot in slots)
