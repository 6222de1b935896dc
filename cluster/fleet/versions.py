"""Which weights serve: the policy's on the engines, a reward model's on the reward actors; each version with its digest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.fleet.roles import Roles
from cluster.fleet.sampler import RunFailed
from cluster.fleet.weight_update import Canary, publish, publish_reward_model
from rollout.types import Question


class Serving:
    """The versions of one driver's life. The canary is calibrated on the weights on disk that everyone starts with."""

    def __init__(self, roles: Roles, questions: Sequence[Question]):
        """`questions` give the canary ordinary prompts."""
        self.roles = roles
        self.version, self.published = 0, True
        """The version that serves, and whether it is the learner's weights."""
        self.digests: dict[str, str] = {}
        """By version; a reward model's are named `reward model N`."""
        self._canary = self._calibrated(questions)

    @property
    def identity(self) -> str:
        """Identifies the weights that serve, the policy's and the reward model's."""
        held = str(self.version), f"reward model {self.roles.reward_version}"
        return ", ".join(self.digests.get(name, "from disk") for name in held)

    def publish(self) -> float:
        """Make the learner's policy the serving version, if it is not; returns the canary's mean difference in nats."""
        if self.published:
            return 0.0
        digest, difference = publish(self.roles, self.version + 1, self._canary)
        self.version, self.published = self.version + 1, True
        self.digests[str(self.version)] = digest
        return difference

    def publish_reward_model(self) -> None:
        """Make the learner's reward model the serving version."""
        digest = publish_reward_model(self.roles, self.roles.reward_version + 1)
        self.digests[f"reward model {self.roles.reward_version}"] = digest

    def bring_up(self, slot: int) -> None:
        """Give a fresh engine the serving version."""
        if self.version:
            publish(self.roles, self.version, self._canary, [slot])

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        reward = self.roles.reward_version
        return {"version": self.version, "published": self.published, "reward_version": reward, "digests": self.digests}

    def restore(self, place: Path, state: dict[str, Any], *, judged: bool) -> None:
        """The learner holds the checkpoint's weights: everyone gets them as the versions that they were, with the same bytes.

        `judged`: the stage's outputs may be judged by the reward model. Raises RunFailed for other bytes.
        """
        self.version, self.published = state["version"], state["published"]
        if self.version and self.published:  # otherwise nothing is sampled before the next version is out
            self.version, self.published = self.version - 1, False
            self.publish()
            self._same(place, str(self.version), state)
        self.roles.reward_version = state["reward_version"]
        if self.roles.reward_version and judged:
            self.roles.reward_version -= 1
            self.publish_reward_model()
            self._same(place, f"reward model {self.roles.reward_version}", state)
        self.digests = dict(state["digests"])

    def _same(self, place: Path, name: str, state: dict[str, Any]) -> None:
        if self.digests[name] != state["digests"][name]:
            raise RunFailed(f"{place}: version {name} does not have the digest that was published before")

    def _calibrated(self, questions: Sequence[Question]) -> Canary:
        vocabulary = 1 + max(max(q.prompt_ids) for q in questions)
        spread = [[(7919 * (i + 1) * (j + 1)) % vocabulary for i in range(32)] for j in range(2)]
        sequences = [list(q.prompt_ids[-64:]) for q in questions[:4] if len(q.prompt_ids) > 1] + spread
        engines, errors = self.roles.score(self.roles.slots(), sequences)
        if errors:
            failed = "; ".join(f"rollout-{slot}: {why}" for slot, why in sorted(errors.items()))
            raise RunFailed(f"the engines do not answer: {failed}")
        config = self.roles.config
        dtype = "bfloat16" if "bfloat16" in (config.rollout.dtype, config.learner.compute_dtype) else "float32"
        return Canary.calibrate(sequences, engines, self.roles.learner_logprobs(sequences), dtype)
