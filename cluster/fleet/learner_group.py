"""The learner's ranks as one machine."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from ray import ObjectRef
from ray.actor import ActorHandle

from cluster.config.run_config import RunConfig
from cluster.fibers import HUB, Turn
from cluster.fleet.actors import LearnerActor
from cluster.fleet.calls import RoleFailed, all_answers, ask
from cluster.fleet.pace import Pace
from cluster.fleet.placement import position
from cluster.fleet.spawner import Spawner
from reward.types import LabelledGroup, ScoredGroup
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


def _tokens(batch: Sequence[ScoredGroup] | Sequence[LabelledGroup], *others: object) -> int:
    """Of all outputs and their prompts."""
    items = (item for group in batch for item in (group.scored if isinstance(group, ScoredGroup) else group.labelled))
    return sum(len(item.sample.prompt_ids) + len(item.sample.output_ids) for item in items)


class LearnerGroup:
    """LearnerActor's methods: a call goes to all ranks and gives the answer of rank 0.

    Raises LearnerFailed when a rank fails, or does not answer within the deadline, which begins when the call before has ended.
    Of calls that go over tokens it follows from how long those of the same stage took for theirs (`Pace`), so that a rank that
    computes for ever, or waits for ever, is found soon.
    """

    def __init__(
        self,
        ranks: Mapping[int, ActorHandle[LearnerActor]],
        deadline_s: float,
        ill: Callable[[str], str],
        name: str = "",
        like: "LearnerGroup | None" = None,
    ):
        """`ill`: what is wrong with an actor, by its name. `name`: of the calls in the dashboard; by default the method's.
        `like`: the group that these ranks are called as otherwise."""
        self._ranks, self._deadline_s, self._ill, self._name = ranks, deadline_s, ill, name
        self._turn: Turn = like._turn if like else Turn("the learner")
        self._paces: dict[str, Pace] = like._paces if like else {}
        """By method, in the stage under way."""
        self.begin_stage = self._all(LearnerActor.begin_stage)
        self.step = self._all(LearnerActor.step, _tokens)
        self.logprobs = self._all(LearnerActor.logprobs, lambda sequences: sum(map(len, sequences)))
        self.scalars = self._all(LearnerActor.scalars, _tokens)
        self.save = self._all(LearnerActor.save)
        self.writing = self._all(LearnerActor.writing)
        self.load = self._all(LearnerActor.load)
        self.export_reward_model = self._all(LearnerActor.export_reward_model)
        self.leave_gpu = self._all(LearnerActor.leave_gpu)
        self.publish = self._all(LearnerActor.publish)

    def named(self, name: str, deadline_s: float | None = None) -> "LearnerGroup":
        """The same ranks, called by another name or with another deadline."""
        return LearnerGroup(self._ranks, deadline_s or self._deadline_s, self._ill, name, self)

    def _all(
        self, method: Callable[Concatenate[LearnerActor, P], R], work: Callable[..., float] | None = None
    ) -> Callable[P, R]:
        """`work`: how much a call's arguments ask for, where that says how long it takes."""
        called = method.__name__

        def together(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._turn:
                if called in ("begin_stage", "load"):
                    self._paces.clear()
                pace, amount = self._paces.setdefault(called, Pace()), work(*args) if work else 0.0
                deadline_s = pace.deadline_s(self._deadline_s, amount) if work else self._deadline_s
                began = HUB.world.now()
                pending = {rank: ask(actor, method, self._name)(*args, **kwargs) for rank, actor in self._ranks.items()}
                try:
                    answers = all_answers(pending, "learner", deadline_s, self._name or called, self._ill)
                except RoleFailed as error:
                    raise LearnerFailed(str(error)) from error
                pace.took(HUB.world.now() - began, amount)
                return answers[0]

        return together
