"""Bugs to plant in the control logic, which the simulation must find."""

from unittest import mock

from cluster.fleet import versions, weight_update
from cluster.fleet.sampler import Sampler
from cluster.fleet.versions import Serving
from cluster.run.boundary import Boundary
from cluster.run.buffer import Buffer
from cluster.run.scaling import Scaling


def double_accept():
    """The newest checkpoint's step is trained again: a resumed run goes on from the step before it."""

    def mark(self, ahead):
        plain(self, ahead)
        self._here["done"] = max(0, self._here["done"] - 1)

    plain = Boundary.mark
    return mock.patch.object(Boundary, "mark", mark)


def lost_lease():
    """Of a worker that died, what it had not answered is forgotten."""

    def sample(self, leases, sampling, name, ledger=None, each=lambda group: None):
        def generate(waves, sampling, name, each, failed):
            def arrived(lease, group):
                answered.add(lease.group_id)
                each(lease, group)

            answered = set()
            errors = real(waves, sampling, name, arrived, lambda slot, why: None)
            for slot in errors:
                leases[:] = [x for x in leases if x not in waves[slot] or x.group_id in answered]
                waves[slot][:] = [x for x in waves[slot] if x.group_id in answered]
            return {}

        if ledger is None:
            return plain(self, leases, sampling, name, ledger, each)
        leases, real = list(leases), self._roles.generate
        with mock.patch.object(self._roles, "generate", generate):
            return plain(self, leases, sampling, name, ledger, each)

    plain = Sampler.sample
    return mock.patch.object(Sampler, "sample", sample)


def early_admission():
    """The buffer begins waves a step too early."""

    def init(self, *args):
        plain(self, *args)
        self._early = self._ahead

    def admit(self, kept=()):
        self._ahead = self._early + 1
        try:
            plain_admit(self, kept)
        finally:
            self._ahead = self._early

    plain, plain_admit = Buffer.__init__, Buffer.admit
    return mock.patch.multiple(Buffer, __init__=init, admit=admit)


def version_reuse():
    """New weights go out under the number of those before them."""

    def publish(self):
        return 0.0 if self.published else self._publish(max(1, self.version))

    return mock.patch.object(Serving, "publish", publish)


def mixture_served():
    """An engine whose commit failed stays, and so does one that the canary refuses."""

    def publish(fleet, version, canary, learner, slots=None, *, replaces=True):
        digest, failed, mixed = fleet.publish(version, list(fleet.slots() if slots is None else slots))
        for slot in failed:
            fleet.engines[slot].broken = False
        return (
            (digest, 0.0)
            if mixed or not failed
            else weight_update.publish(fleet, version, canary, learner, slots, replaces=replaces)
        )

    return mock.patch.object(versions, "publish", publish)


def early_service():
    """A new engine serves before it has the serving version."""

    def join(self, role, slot):
        with mock.patch.object(self._serving, "bring_up", lambda slot, replaces: None):
            plain(self, role, slot)

    plain = Scaling._join
    return mock.patch.object(Scaling, "_join", join)


def early_end():
    """A worker that leaves is ended with what it was asked."""

    def retire(self, role, slot):
        plain(self, role, slot)
        self._roles.remove(role, slot)

    plain = Scaling._retire
    return mock.patch.object(Scaling, "_retire", retire)


PLANTED = (double_accept, lost_lease, early_admission, version_reuse, mixture_served, early_service, early_end)
