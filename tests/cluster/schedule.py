"""What is done to a simulated run, as a seed says: its stages, its faults, and how each of its lives ends."""

import json
import random
import signal
from dataclasses import dataclass
from functools import partial
from itertools import count

from cluster.fibers import HUB
from cluster.run.request import NAME
from cluster.stopping import Stop
from tests.cluster.elastic import MOST, Violated
from tests.cluster.simulated import Clockwork

LIMIT_S = 1e6
"""A run that is not done by then never is."""
LONG_S = 400
"""Within which a life is disturbed."""
Stage = tuple[int, int, bool, int]
"""Steps, max_staleness, in_flight, max_refills."""


class Killed(BaseException):
    """The driver's end without a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    stages: tuple[Stage, ...]
    every: int
    """Steps between checkpoints."""
    faults: float
    """How likely whatever may fail does."""
    ends: tuple[str, ...]
    """How each life but the last ends: `kill` or `stop`."""
    requests: list[tuple[float, dict[str, int]]]
    """(second, numbers of workers by role): a life takes those that it comes to."""

    @property
    def repeats(self) -> bool:
        return not any(in_flight for _, _, in_flight, _ in self.stages)


def drawn(seed: int) -> Schedule:
    rng = random.Random(f"{seed}/schedule")
    stages = [_stage(rng, steps) for steps in rng.choice([(4,), (3,), (2, 2)])]
    ends = tuple(rng.choice(["kill", "stop"]) for _ in range(rng.randrange(4)))
    return Schedule(
        stages=tuple(stages), every=rng.choice([1, 2]), faults=rng.choice([0.0, 0.1, 0.3]), ends=ends, requests=_requests(rng)
    )


def _stage(rng, steps) -> Stage:
    staleness = rng.choice([0, 1, 1, 2])
    return steps, staleness, staleness > 0 and rng.random() < 0.5, rng.choice([0, 0, 2])


def _requests(rng):
    """In half of the schedules a few; some are refused."""
    times = sorted(rng.uniform(0, 50) for _ in range(rng.choice([0, rng.randrange(1, 5)])))
    kinds = [rng.choice(["rollout", "reward", "rollout reward"]).split() for _ in times]
    return [(at, {role: rng.randint(1, MOST + 1) for role in roles}) for at, roles in zip(times, kinds, strict=True)]


class Faulty(Clockwork):
    """A clockwork that does things at given seconds."""

    def __init__(self):
        super().__init__()
        self._events, self._order = [], count()

    def at(self, second, action):
        """The action, which may raise, at that second."""
        self._events.append((second, next(self._order), action))
        self._events.sort()

    def wait(self, refs, seconds):
        if self._events:
            seconds = min(seconds, max(0.0, self._events[0][0] - self.now()))
        ready = super().wait(refs, seconds)
        while self._events and self._events[0][0] <= self.now():
            self._events.pop(0)[2]()
        if self.now() > LIMIT_S:
            raise Violated("a wait does not end")
        return ready


class Signals(Stop):
    """The signals of a simulated driver."""

    def ask(self, number):
        self._asked_at = HUB.world.now()
        HUB.world.at(self._asked_at + self.grace_s - min(10.0, self.grace_s / 3), partial(self._late, signal.SIGALRM, None))

    def come(self):
        self._handle(signal.SIGTERM, None)

    def check(self, said):
        """How the driver ended: in time, and with nothing lost unless it was broken off."""
        if HUB.world.now() > self._asked_at + self.grace_s:
            raise Violated(f"stopped {HUB.world.now() - self._asked_at:g} s after the signal")
        if "steps lost" in said and not self.over:
            raise Violated(said)


def disturbed(end, rng, plan, roles, place):
    """A clock and the signals of a life that ends so, and is disturbed on its way."""
    clock, stop = Faulty(), Signals()
    if end == "kill":
        clock.at(rng.uniform(0, LONG_S), _kill)
    if end == "stop":
        first = rng.uniform(0, LONG_S)
        clock.at(first, stop.come)
        if rng.random() < 0.2:
            clock.at(first + rng.uniform(0, 20), stop.come)
    if rng.random() < plan.faults:
        clock.at(rng.uniform(0, LONG_S), partial(roles.lose, rng.randrange(2)))
    for request in list(plan.requests):
        clock.at(request[0], partial(_ask, request, plan.requests, place))
    return clock, stop


def _kill():
    raise Killed


def _ask(request, requests, place):
    requests.remove(request)
    (place / NAME).write_text(json.dumps(request[1]))
