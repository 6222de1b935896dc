"""What a learner needs to know of a stage. Imports no torch: the configuration builds it."""

from pathlib import Path

from pydantic import Field, model_validator

from learner.algorithms.cells import Need
from learner.algorithms.table import Algorithm, RewardModelRow
from learner.config import OptimizerConfig
from rollout.strict import Strict


class StageSpec(Strict):
    """One stage of training: a row of one of the two tables, and how its models are stepped."""

    row: Algorithm | RewardModelRow
    optimizer: OptimizerConfig
    """Of the policy, or of the reward model in a stage that trains one."""
    total_updates: int = Field(ge=0)
    """Optimizer steps of the whole stage, which the schedules run over."""
    critic_optimizer: OptimizerConfig | None = None
    """Of the critic; where the row needs one, and only there."""
    teacher: Path | None = None
    """Directory of the teacher; where the row needs one, and only there. A stage that is read and not trained may lack it."""
    value_clip: float = Field(default=0.2, gt=0.0)
    """How far from the old value the critic's loss follows it, in units of the return."""
    members: int = Field(default=1, gt=0)
    """Of the reward model: models that are trained side by side, each on its own bootstrap sample."""
    reward_model: tuple[Path, ...] = ()
    """Directories that the reward model starts from; without them it starts from the policy's backbone. Read only by the run's
    first stage of a reward model, since the later ones train that one on."""
    seed: int = 0
    """Of the reward model's new heads and its bootstrap samples."""

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Of the models that a stage of a policy trains, by name."""
        found = {"policy": self.optimizer, "critic": self.critic_optimizer}
        return {name: optimizer for name, optimizer in found.items() if optimizer is not None}

    @model_validator(mode="after")
    def _row_has_what_it_needs(self):
        for need, name in ((Need.CRITIC, "critic_optimizer"), (Need.TEACHER, "teacher")):
            needed, given = need in self.row.needs, getattr(self, name) is not None
            if needed != given:
                found, expected = ("one" if here else "none" for here in (given, needed))
                raise ValueError(f"{name}: found {found}, expected {expected}: the row decides")
        return self
