"""How far a run is."""

from collections.abc import Sequence

from cluster.config.stages import StageConfig
from cluster.records.state import State

OFFLINE = "offline"
"""Of a run directory: the folder of the outputs that stages make before their first step."""


class Progress:
    """The stage under way, and what is finished of it."""

    def __init__(self, stages: Sequence[StageConfig]):
        self._stages = stages
        self.index, self.done = 0, 0
        """The stage under way, and how many of its steps are finished."""
        self.memory: State = {}
        """What the stage's source of groups keeps from step to step, JSON-able."""

    @property
    def stage(self) -> StageConfig:
        """The stage under way."""
        return self._stages[self.index]

    @property
    def step(self) -> int:
        """Finished steps of the run, over all stages."""
        return sum(stage.steps for stage in self._stages[: self.index]) + self.done

    @property
    def at_last(self) -> bool:
        """Whether the stage under way is the last."""
        return self.index + 1 == len(self._stages)

    def finish_step(self) -> None:
        self.done += 1

    def next_stage(self) -> None:
        self.index, self.done, self.memory = self.index + 1, 0, {}

    def state(self) -> State:
        """For a checkpoint."""
        return {"stage": self.index, "done": self.done, "memory": self.memory}

    def restore(self, state: State) -> None:
        self.index, self.done, self.memory = state["stage"], state["done"], state["memory"]
