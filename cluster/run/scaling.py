"""Workers of a live run that are added and removed, as `cohort scale` asks (cluster/run/request.py).

What is asked for is taken up between two steps. A new worker starts beside the run, in a place of its own, which the cluster
may have to grow for; between two later steps it is given the serving version and joins. One that leaves is asked for nothing
from then on, ends what it was asked, and is ended. Whatever fails of an addition is reported and given up, and the run goes on.
"""

import logging
from collections.abc import Callable

from cluster.config.run_config import RunConfig, resolved_yaml
from cluster.fibers import HUB, Fiber
from cluster.fleet.bundles import PlacementError
from cluster.fleet.calls import RoleFailed
from cluster.fleet.learner_group import LearnerFailed
from cluster.fleet.roles import Roles
from cluster.fleet.sampler import Sampler
from cluster.fleet.versions import Serving
from cluster.fleet.weight_update import UpdateFailed
from cluster.records.records import Records
from cluster.records.samples import write_text
from cluster.run.progress import Progress
from cluster.run.request import refusals, scaled, taken

log = logging.getLogger("cohort")


class Scaling:
    """Of one life of a run."""

    def __init__(
        self, config: RunConfig, roles: Roles, sampler: Sampler, serving: Serving, records: Records, progress: Progress
    ):
        self._config, self._roles, self._sampler, self._serving = config, roles, sampler, serving
        self._records, self._progress = records, progress
        self._slots: dict[str, Callable[[], list[int]]] = {"rollout": roles.slots, "reward": roles.reward_slots}
        self._coming: dict[tuple[str, int], Fiber[None]] = {}
        """Those that start, or have started and do not serve yet."""

    def counts(self) -> dict[str, int]:
        """How many workers of each role serve, and how many were replaced (see METRICS)."""
        return {f"{role}_workers": len(slots()) for role, slots in self._slots.items()} | {"deaths": self._roles.deaths}

    def between_steps(self) -> None:
        """Go on with what was asked for. Raises LearnerFailed."""
        for role, count in taken(self._records.dir).items():
            self._take_up(role, count)
        for role, wanted in list(self._roles.wanted.items()):
            coming, serving = sorted(slot for r, slot in self._coming if r == role), self._slots[role]()
            surplus = max(0, len(coming) + len(serving) - wanted)
            for slot in coming[::-1][:surplus]:
                HUB.end(self._coming.pop((role, slot)))
                self._roles.remove(role, slot)
            for slot in serving[::-1][: max(0, surplus - len(coming))]:
                self._retire(role, slot)
            for _ in range(wanted - len(coming) - len(serving)):
                self._begin(role)
        # What is sampled is sampled by the learner's weights, or by those on disk.
        if self._serving.published or not self._serving.version:
            for role, slot in [worker for worker, fiber in self._coming.items() if fiber.done]:
                self._join(role, slot)

    def close(self) -> None:
        """End whoever does not serve; nobody is asked anything any more."""
        self._coming.clear()
        for role, slot in list(self._roles.aside):
            self._roles.remove(role, slot)

    def _take_up(self, role: str, count: int) -> None:
        config, before = scaled(self._config, self._roles.wanted | {role: count}), len(self._slots[role]())
        try:
            why = "; ".join(refusals(self._config, {role: count}))
            if count > before and not why:
                self._roles.check_room(config)
        except PlacementError as error:
            why = str(error)
        if not why:
            self._want(role, count)
        self._note(role, before, count, why)

    def _want(self, role: str, count: int) -> None:
        """The number is the run's from here on, also when it is resumed."""
        self._roles.wanted[role] = count
        path = self._records.dir / "config.yaml"
        with self._records.sinks.dispensable(path):
            write_text(path, resolved_yaml(scaled(self._config, self._roles.wanted)))

    def _begin(self, role: str) -> None:
        """Start a worker in the first free slot."""
        held = {*self._slots[role](), *(slot for r, slot in (*self._roles.aside, *self._coming) if r == role)}
        slot = next(n for n in range(len(held) + 1) if n not in held)
        # Whether the cluster must grow for it, is no matter of others that do not serve yet.
        counts = {name: len(slots()) for name, slots in self._slots.items()} | {role: self._roles.wanted[role]}
        config = scaled(self._config, counts)

        def start() -> None:
            try:
                self._roles.add(role, slot, config)
            except RoleFailed as error:
                self._give_up(role, slot, str(error))

        self._coming[role, slot] = HUB.spawn(start, f"start {role}-{slot}")
        log.info("%s-%d is started beside the run", role, slot)

    def _join(self, role: str, slot: int) -> None:
        """A started worker serves, with the version that the others have."""
        self._coming.pop((role, slot)).result()
        before = len(self._slots[role]())
        try:
            if role == "rollout":
                with self._serving.changing.of((role, slot)):
                    self._serving.bring_up(slot, replaces=False)
            elif self._progress.stage.trains_policy:  # else nobody is judged by what serves
                self._serving.bring_up_reward_actors([slot], replaces=False)
        except LearnerFailed:
            raise
        except (RoleFailed, UpdateFailed) as error:
            return self._give_up(role, slot, str(error))
        self._roles.aside.discard((role, slot))
        self._note(role, before, self._roles.wanted[role])

    def _give_up(self, role: str, slot: int, why: str) -> None:
        """A worker that does not come is not wanted any more."""
        self._coming.pop((role, slot), None)
        self._roles.remove(role, slot)
        wanted = self._roles.wanted[role]
        self._want(role, wanted - 1)
        self._note(role, len(self._slots[role]()), wanted, why)

    def _retire(self, role: str, slot: int) -> None:
        """A worker is asked for nothing from here on, and ended when it has done what it was asked."""
        before = len(self._slots[role]())
        self._roles.aside.add((role, slot))
        self._note(role, before, self._roles.wanted[role])

        def leave() -> None:
            HUB.until(lambda: not self._sampler.orders[role, slot], f"the end of what {role}-{slot} was asked")
            try:
                self._roles.dismiss(role, slot)
            except Exception as error:  # nobody waits for this fiber
                return self._note(
                    role, len(self._slots[role]()), self._roles.wanted[role], f"{role}-{slot} does not end: {error!r}"
                )
            log.info("%s-%d has ended what it was asked for, and is ended", role, slot)

        HUB.spawn(leave, f"leave {role}-{slot}")

    def _note(self, role: str, before: int, wanted: int, why: str = "") -> None:
        """For the ledger, and for whoever asked: how many serve now, of how many that were asked for."""
        now = len(self._slots[role]())
        step, reason = self._progress.step, {"why": why} if why else {}
        self._records.ledger.note("scaled", role=role, **{"from": before}, to=now, wanted=wanted, step=step, **reason)
        if why:
            log.warning("%s workers after step %d: %d, not %d: %s", role, step, now, wanted, why)
        else:
            log.info("%s workers after step %d: %d, %d asked for", role, step, now, wanted)
