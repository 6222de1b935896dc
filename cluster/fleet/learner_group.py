"""The learner's ranks as one machine."""

from collections.abc import Callable, Mapping
from typing import Concatenate, ParamSpec, TypeVar

from ray.actor import ActorHandle

from cluster.fleet.actors import LearnerActor
from cluster.fleet.calls import all_answers, ask

R = TypeVar("R")
P = ParamSpec("P")


class LearnerGroup:
    """LearnerActor's methods: a call goes to all ranks and gives the answer of rank 0.

    Raises RoleFailed when a rank fails, or does not answer within the deadline.
    """

    def __init__(self, ranks: Mapping[int, ActorHandle[LearnerActor]], deadline_s: float, name: str = ""):
        """`name`: of the calls in the dashboard; the method's, if none is given."""
        self._ranks, self._deadline_s, self._name = ranks, deadline_s, name
        self.begin_stage = self._all(LearnerActor.begin_stage)
        self.step = self._all(LearnerActor.step)
        self.logprobs = self._all(LearnerActor.logprobs)
        self.scores = self._all(LearnerActor.scores)
        self.save = self._all(LearnerActor.save)
        self.writing = self._all(LearnerActor.writing)
        self.load = self._all(LearnerActor.load)
        self.export_reward_model = self._all(LearnerActor.export_reward_model)
        self.leave_gpu = self._all(LearnerActor.leave_gpu)
        self.publish = self._all(LearnerActor.publish)

    def named(self, name: str, deadline_s: float | None = None) -> "LearnerGroup":
        """The same ranks, called by another name or with another deadline."""
        return LearnerGroup(self._ranks, deadline_s or self._deadline_s, name)

    def _all(self, method: Callable[Concatenate[LearnerActor, P], R]) -> Callable[P, R]:
        def together(*args: P.args, **kwargs: P.kwargs) -> R:
            pending = {rank: ask(actor, method, self._name)(*args, **kwargs) for rank, actor in self._ranks.items()}
            return all_answers(pending, "learner", self._deadline_s, self._name or method.__name__)[0]

        return together
