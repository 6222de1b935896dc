"""The learner's ranks as one machine."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from ray import ObjectRef
from ray.actor import ActorHandle

from cluster.config.run_config import RunConfig
from cluster.fibers import Turn
from cluster.fleet.actors import LearnerActor
from cluster.fleet.calls import RoleFailed, all_answers, ask
from cluster.fleet.placement import position
from cluster.fleet.spawner import Spawner
from rollout.config import RolloutConfig
from rollout.leftovers import remove_folder

R = TypeVar("R")
P = ParamSpec("P")


class LearnerFailed(RoleFailed):
    """A rank failed, so its group cannot go on; everyone else can."""


class Ranks:
    """The processes of the learner group."""

    def __init__(self, config: RunConfig, model_dir: Path, spawner: Spawner, timeout_s: float):
        """`timeout_s`: no collective of the group waits longer."""
        self._config, self._model_dir, self._spawner, self._timeout_s = config, model_dir, spawner, timeout_s
        self.actors: dict[int, ActorHandle[LearnerActor]] = {}
        self.gpus: dict[int, str] = {}
        """By rank, once they are located."""
        self._nodes: dict[int, str] = {}
        self._rendezvous = ""

    def left(self) -> None:
        """The actors have ended: where they met is removed, if it is a file of this node. Others are swept on theirs."""
        if self._rendezvous.startswith("file://"):
            remove_folder(Path(self._rendezvous.removeprefix("file://")).parent)
        self._rendezvous = ""

    def spawn(self) -> None:
        """New actors, in the place of those that there were."""
        self.left()
        for rank in range(self._config.learner.ranks):
            spawn = self._spawner.spawn("learner", rank, LearnerActor)
            self.actors[rank] = spawn(self._config.learner, self._model_dir, rank, self._timeout_s)

    def locate(self) -> dict[int, dict[str, object]]:
        """Find their nodes and GPUs, and where they can meet. Returns what they say of themselves."""
        calls = {rank: ask(actor, LearnerActor.locate)() for rank, actor in self.actors.items()}
        located = all_answers(calls, "learner", self._config.cluster.start_deadline_s, "start")
        self._nodes = {rank: str(info["node_id"]) for rank, (info, _) in located.items()}
        self.gpus = {rank: gpus for rank, (_, gpus) in located.items()}
        together = len(set(self._nodes.values())) == 1
        first = {rank: ask(self.actors[rank], LearnerActor.meeting)(together) for rank in located if rank == 0}
        met = all_answers(first, "learner", self._config.cluster.start_deadline_s, "start")
        self._rendezvous = met.get(0, "")  # an evaluation has no ranks
        return {rank: info for rank, (info, _) in located.items()}

    def start(self, rollout: RolloutConfig, prefix: str) -> dict[int, ObjectRef[dict[str, object]]]:
        """Those that are located meet, with the weights on disk; what they then say of themselves."""
        ahead = any(stage.max_staleness for stage in self._config.stages)
        return {
            rank: ask(actor, LearnerActor.start)(self._rendezvous, *position(rank, self._nodes), rollout, prefix, ahead)
            for rank, actor in self.actors.items()
        }


class LearnerGroup:
    """LearnerActor's methods: a call goes to all ranks and gives the answer of rank 0.

    Raises LearnerFailed when a rank fails, or does not answer within the deadline, which begins when the call before has ended.
    """

    def __init__(
        self,
        ranks: Mapping[int, ActorHandle[LearnerActor]],
        deadline_s: float,
        ill: Callable[[str], str],
        name: str = "",
        turn: Turn | None = None,
    ):
        """`ill`: what is wrong with an actor, by its name. `name`: of the calls in the dashboard; by default the method's.
        `turn`: of whoever calls the ranks."""
        self._ranks, self._deadline_s, self._ill, self._name = ranks, deadline_s, ill, name
        self._turn = turn or Turn("the learner")
        self.begin_stage = self._all(LearnerActor.begin_stage)
        self.step = self._all(LearnerActor.step)
        self.logprobs = self._all(LearnerActor.logprobs)
        self.scalars = self._all(LearnerActor.scalars)
        self.save = self._all(LearnerActor.save)
        self.writing = self._all(LearnerActor.writing)
        self.load = self._all(LearnerActor.load)
        self.export_reward_model = self._all(LearnerActor.export_reward_model)
        self.leave_gpu = self._all(LearnerActor.leave_gpu)
        self.publish = self._all(LearnerActor.publish)

    def named(self, name: str, deadline_s: float | None = None) -> "LearnerGroup":
        """The same ranks, called by another name or with another deadline."""
        return LearnerGroup(self._ranks, deadline_s or self._deadline_s, self._ill, name, self._turn)

    def _all(self, method: Callable[Concatenate[LearnerActor, P], R]) -> Callable[P, R]:
        def together(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._turn:
                pending = {rank: ask(actor, method, self._name)(*args, **kwargs) for rank, actor in self._ranks.items()}
                try:
                    return all_answers(pending, "learner", self._deadline_s, self._name or method.__name__, self._ill)[0]
                except RoleFailed as error:
                    raise LearnerFailed(str(error)) from error

        return together
