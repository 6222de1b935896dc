"""The settings of a run: the leaves of the three stages composed."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from cluster.config.stages import Name, StageConfig
from learner.config import LearnerConfig
from reward.config import RewardConfig
from rollout.config import DataConfig, ModelConfig, RolloutConfig
from rollout.strict import AbsolutePath, Strict

SELECTOR = r"^!?(in\([\w.-]+(, ?[\w.-]+)*\)|[\w.-]+)$"
COUNTED = ("CPU", "GPU", "memory", "object_store_memory")


class EvaluationConfig(Strict):
    """Held-out accuracy, measured before the first and after the last step, and in between."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 is only before and after."""
    samples_per_question: int = Field(default=8, gt=0)
    """Sampled outputs per held-out question, besides the greedy one."""
    temperature: float = Field(default=1.0, ge=0.0)
    """Of the sampled outputs."""
    questions: int | None = Field(default=None, gt=0)
    """Use only the first of the held-out questions."""


class RolePlacement(Strict):
    """Which nodes of a cluster the workers of one role may have."""

    labels: dict[str, Annotated[str, StringConstraints(pattern=SELECTOR)]] = {}
    """What the labels of their nodes must be, as Ray's selectors: {market-type: "!spot"}; also a, in(a, b) and !in(a, b)."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """What each worker takes of resources that the cluster's nodes were started with, beside its cores and GPUs."""

    @field_validator("resources")
    @classmethod
    def _others_are_counted(cls, value: dict[str, float]) -> dict[str, float]:
        if taken := sorted(value.keys() & set(COUNTED)):
            raise ValueError(f"found {taken[0]}, which follows from the role's other settings; expected others")
        return value


class PlacementConfig(Strict):
    """Where each role runs. Without it: the learner's ranks together, the engines apart, wherever there is room."""

    learner: RolePlacement = RolePlacement()
    rollout: RolePlacement = RolePlacement()
    reward: RolePlacement = RolePlacement()


class ClusterConfig(Strict):
    """Deadlines, restarts and observability."""

    generate_deadline_s: float = Field(default=600, gt=0)
    """For a wave of outputs to be sampled; judging has as long, and the limits of its judges."""
    train_deadline_s: float = Field(default=600, gt=0)
    """For a step of the learner."""
    sync_deadline_s: float = Field(default=120, gt=0)
    """For each part of a weight update."""
    start_deadline_s: float = Field(default=300, gt=0)
    """For an actor to be ready, its model loaded."""
    heartbeat_s: float = Field(default=3, gt=0)
    """An actor is ended of which a process is stopped so long; one that only does not answer, after seven times as long."""
    stop_grace_s: float | None = Field(default=None, gt=0)
    """Between SIGTERM and SIGKILL: the run ends in order before. By default 30; in a Ray job RAY_JOB_STOP_WAIT_TIME_S or 3."""
    worker_restarts: int = Field(default=3, ge=0)
    """How many replaced workers a run survives."""
    metrics_port: int | None = Field(default=None, gt=0, lt=65536)
    """Ray's Prometheus port, on loopback, when cohort starts the local cluster."""
    dashboard: bool | None = None
    """Start Ray's dashboard with the local cluster; by default yes."""
    placement: PlacementConfig = PlacementConfig()
    grows: Literal["cpu", "gpu"] | None = None
    """The cluster brings nodes for what is asked of it, with GPUs or of CPUs: what does not fit yet is awaited for
    start_deadline_s, rather than refused."""


class RunSettings(Strict):
    """The settings of a run, each valid by itself."""

    name: Name
    """The run's: a letter, then letters, digits, `-` and `_`. Its actors and its directory are called by it."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of everything that is drawn: orders, outputs, initial weights, held-out questions."""
    output: AbsolutePath = Field(default=None, validate_default=True)
    """The run directory; by default runs/<name>."""
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint_every: int = Field(default=20, gt=0)
    """Steps between checkpoints; the last step of a stage always makes one."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """The newest ones to keep, beside the best by held-out accuracy: at least two, so that a damaged one leaves another."""
    mirror: str | None = None
    """Where checkpoints are copied behind training, as fsspec knows it: s3://bucket/run, say."""
    trackers: tuple[Literal["wandb", "trackio", "mlflow"], ...] = ()
    """Where metrics, evaluations and some outputs go besides the run directory; none of them can stop the run."""
    project: str = Field(default="cohort", min_length=1)
    """The run's project at its trackers (mlflow: its experiment)."""
    stages: tuple[StageConfig, ...]
