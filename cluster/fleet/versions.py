"""Which weights serve: the policy's on the engines, a reward model's on the reward actors; each version with its digest.

A version counts the updates of the history that leads to it. A life of the run that goes on from a checkpoint may count the
same again, with other weights where the run cannot be repeated: (life, version) never stands for two."""

from collections.abc import Sequence
from functools import partial

from cluster.fibers import HUB, Turn
from cluster.fleet.roles import Roles
from cluster.fleet.weight_update import Canary, publish, publish_reward_model
from cluster.records.clock import Clock
from cluster.records.ledger import Ledger
from cluster.records.state import State
from cluster.stopping import RunFailed
from rollout.types import Question

LENGTH = 16
"""Tokens of each of the canary's sequences: a wrong weight shows in every token, and each costs an update time."""


class OnDisk:
    """Nothing is ever published: everyone holds the weights on disk, a fresh engine or reward actor too."""

    version = reward_version = 0
    served = {"version": 0, "life": 0}
    changing, updating = Turn("a change of workers"), Turn("a weight update")

    def bring_up(self, slot: int) -> None: ...

    def bring_up_reward_actors(self, slots: Sequence[int]) -> None: ...


class Serving:
    """The versions of one life of the run. The canary is calibrated in a driver's first, on the weights on disk that everyone
    starts with."""

    def __init__(self, roles: Roles, questions: Sequence[Question], clock: Clock, ledger: Ledger):
        """`questions` give the canary ordinary prompts. Raises RunFailed where the engines do not answer, and CanaryFailed."""
        self._roles, self._clock, self._ledger = roles, clock, ledger
        self.changing = Turn("a change of workers or weights")
        """Of whoever sends weights to all; each worker is a part, of whoever replaces it or brings it up to date."""
        self.updating = Turn("a weight update")
        """Of whoever sends weights to all engines."""
        self.version, self.published = 0, True
        """The version that serves, and whether it is the learner's weights."""
        self.reward_version = 0
        """Of the reward model that serves; 0 is the one from reward.model.path, or none."""
        self.digests: dict[str, str] = {}
        """By version; a reward model's are named `reward model N`."""
        self.lives = {"0": 0}
        """By the same names, the life of the run that made each."""
        self._as_on_disk = roles.canary is None
        """Whether the engines began this life with the weights on disk; else with those of the learner that failed."""
        self._canary = roles.canary = roles.canary or _calibrated(roles, questions)
        self._logprobs: list[list[float]] = []
        """The learner's of the canary's sequences, under the version that serves."""

    @property
    def identity(self) -> str:
        """Identifies the weights that serve, the policy's and the reward model's."""
        held = str(self.version), f"reward model {self.reward_version}"
        return ", ".join(self.digests.get(name, "from disk") for name in held)

    @property
    def served(self) -> dict[str, int]:
        """The version that serves, for records."""
        return {"version": self.version, "life": self.lives[str(self.version)]}

    def trained(self) -> None:
        """The learner's policy has gone on from the version that serves."""
        self.published = False

    def publish(self) -> float:
        """Make the learner's policy the serving version, if it is not; returns the canary's mean difference in nats."""
        return 0.0 if self.published else self._publish(self.version + 1)

    def publish_reward_model(self) -> None:
        """Make the learner's reward model the serving version."""
        self._publish_reward_model(self.reward_version + 1)

    def bring_up(self, slot: int, *, replaces: bool = True) -> None:
        """Give a fresh engine the serving version; the caller has its part of `changing`. Where it fails, it is replaced, or
        UpdateFailed is raised."""
        if self.version:
            with self._clock.timed("sync"):
                publish(self._roles, self.version, self._canary, self._logprobs, [slot], replaces=replaces)

    def bring_up_reward_actors(self, slots: Sequence[int], *, replaces: bool = True) -> None:
        """Give the fresh reward actors among these the serving reward model, which must be the learner's. Where one fails, it
        is replaced, or UpdateFailed is raised."""
        if self._roles.stale.intersection(slots) and self.reward_version:
            with self._clock.timed("sync"), self.changing:
                stale = sorted(self._roles.stale.intersection(slots))  # another fiber may have seen to it
                if stale:
                    publish_reward_model(self._roles, self.reward_version, stale, replaces=replaces)

    def state(self) -> State:
        """For a checkpoint."""
        names = ("version", "published", "reward_version", "digests", "lives")
        return {name: getattr(self, name) for name in names}

    def begin(self) -> None:
        """At the run's beginning version 0 serves, the weights on disk; the learner holds them."""
        if not self._as_on_disk:
            self._publish(0)

    def restore(self, state: State, *, judged: bool) -> None:
        """The learner holds the checkpoint's weights: everyone gets them as the versions that they were, with the same bytes.

        `judged`: the stage's outputs may be judged by the reward model. Raises RunFailed for other bytes.
        """
        self.version, self.published, self.reward_version = state["version"], state["published"], state["reward_version"]
        self.lives = dict(state["lives"])
        if self.published and (self.version or not self._as_on_disk):
            self._publish(self.version)  # where it is not published, nothing is sampled before the next version is out
        if self.reward_version and judged:
            self._publish_reward_model(self.reward_version)
        for name, digest in self.digests.items():
            if digest != state["digests"][name]:
                raise RunFailed(f"version {name} does not have the digest that was published before")
        self.digests = dict(state["digests"])

    def _publish(self, version: int) -> float:
        with self._clock.timed("sync"), self.changing, self.updating:
            self._roles.split.clear()  # of earlier updates, and of those of one engine
            logprobs = self._roles.learner_logprobs(self._canary.sequences)
            digest, difference = publish(self._roles, version, self._canary, logprobs)
            self._logprobs = logprobs
        if version:
            self._went_out(str(version), digest)
        self.version, self.published = version, True
        return difference

    def _publish_reward_model(self, version: int) -> None:
        with self._clock.timed("sync"), self.changing:
            self._went_out(f"reward model {version}", publish_reward_model(self._roles, version))
        self.reward_version = version

    def _went_out(self, name: str, digest: str) -> None:
        self.digests[name] = digest
        if name not in self.lives:
            self.lives[name] = self._ledger.incarnation
            self._ledger.note("published", version=name, digest=digest)


def _calibrated(roles: Roles, questions: Sequence[Question]) -> Canary:
    vocabulary = 1 + max(max(q.prompt_ids) for q in questions)
    spread = [[(7919 * (i + 1) * (j + 1)) % vocabulary for i in range(LENGTH)] for j in range(2)]
    sequences = [list(q.prompt_ids[-LENGTH:]) for q in questions[:2] if len(q.prompt_ids) > 1] + spread
    engines, errors = roles.engine_logprobs(roles.slots(), sequences)
    if errors:  # what fails twice will not be mended
        HUB.together({f"renew rollout-{slot}": partial(roles.replace, slot, why) for slot, why in errors.items()})
        engines, errors = roles.engine_logprobs(roles.slots(), sequences)
    if errors:
        failed = "; ".join(f"rollout-{slot}: {why}" for slot, why in sorted(errors.items()))
        raise RunFailed(f"the engines do not answer: {failed}")
    dtypes = roles.config.rollout.dtype, roles.config.learner.compute_dtype
    dtype = "bfloat16" if "bfloat16" in dtypes else "float32"
    return Canary.calibrate(sequences, engines, roles.learner_logprobs(sequences), dtype)
