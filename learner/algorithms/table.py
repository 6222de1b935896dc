"""The table of algorithms, and that of the reward models they may be rewarded by.

SFT, RFT, DPO, PPO and GRPO share one gradient and differ in data source, reward and gradient coefficient (DeepSeekMath, section
5.2). The coefficient splits into credit (once per batch) and weighting (every micro-batch). A row gives defaults; a run may
replace any cell. Importing this file imports no torch: the configuration and `--help` read it.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from learner.algorithms.cells import Cell, Need, Objection, Plan
from learner.algorithms.credit import Accepted, GroupRelative, LeaveOneOut, Ones, RewardSource, Signed
from learner.algorithms.decoupled import DecoupledGroupRelative
from learner.algorithms.denoised import DenoisedGroupRelative
from learner.algorithms.distillation import ReverseKL, TopK
from learner.algorithms.gae import GAE
from learner.algorithms.labels import CrossEntropy, FileLabels, MonteCarloLabels, Ranking, RuleLabels, Supervision
from learner.algorithms.weighting import Cispo, Clipped, Plain, Preference, SequenceClipped
from rollout.strict import Strict, nearest


class DataSource(StrEnum):
    """Where a stage's outputs come from."""

    DEMONSTRATIONS = "demonstrations"
    """Outputs given with the questions."""
    POLICY_SAMPLES = "policy_samples"
    """Outputs sampled from the current policy."""
    INITIAL_SAMPLES = "initial_samples"
    """Outputs of the policy that the stage starts from, sampled once."""
    PAIRS = "pairs"
    """Two outputs of a question, one better than the other: of the policy that the stage starts from, or given."""


DEMONSTRATIONS, POLICY_SAMPLES, INITIAL_SAMPLES, PAIRS = DataSource


def _built(value: Any, named: ValidatorFunctionWrapHandler) -> Any:
    """A row takes a built cell as it is, and builds one that a recipe names."""
    return value if isinstance(value, Cell) else named(value)


AnyCredit = Annotated[
    Ones | Accepted | Signed | GroupRelative | DecoupledGroupRelative | DenoisedGroupRelative | LeaveOneOut | GAE | ReverseKL,
    Field(discriminator="cell"),
    WrapValidator(_built),
]
"""The credits that a recipe may name."""
AnyWeighting = Annotated[
    Plain | Preference | Clipped | SequenceClipped | Cispo | TopK, Field(discriminator="cell"), WrapValidator(_built)
]
"""The weightings that a recipe may name."""


class Algorithm(Strict):
    """One row: a data source, a reward, a credit and a weighting."""

    data_source: DataSource
    reward: RewardSource
    credit: AnyCredit
    weighting: AnyWeighting

    @property
    def needs(self) -> frozenset[Need]:
        """What must exist besides the policy for this row to run."""
        return self.credit.needs | self.weighting.needs

    @property
    def formula(self) -> str:
        """The gradient coefficient GC(q, o, t) and its credit A."""
        return f"{self.weighting.formula}; A = {self.credit.formula}"

    @property
    def supervision(self) -> Supervision | None:
        """What the model behind its reward judges, if there is one."""
        judges: dict[RewardSource, Supervision] = {"outcome_model": "outcome", "process_model": "process"}
        return judges.get(self.reward)

    @property
    def paired(self) -> bool:
        """Whether it trains on pairs of a better and a worse output."""
        return self.data_source is PAIRS

    def contradictions(self, plan: Plan) -> list[Objection]:
        """What of the plan its cells cannot work with."""
        return self.credit.contradictions(plan) + self.weighting.contradictions(plan)

    @model_validator(mode="after")
    def _cells_fit(self):
        if problem := _misfit(self):
            raise ValueError(problem)
        return self


def _misfit(row: Algorithm) -> str | None:
    """Why the cells of a row make no algorithm together."""
    source, credit, weighting = row.data_source, row.credit, row.weighting
    if credit.uses_rewards and row.reward == "none":
        return f"credit {credit.cell} needs rewards, but reward is none"
    if row.reward not in credit.rewards:
        return f"credit {credit.cell} reads reward {' or '.join(sorted(credit.rewards))}, found {row.reward}"
    if credit.uses_rewards and source is DEMONSTRATIONS:
        return f"credit {credit.cell} needs rewards, and demonstrations are not scored"
    if Need.BEHAVIOUR_LOGPROBS in row.needs and source in (DEMONSTRATIONS, PAIRS):
        return f"weighting {weighting.cell} divides by the sampling probability, which {source} lack"
    if Need.CRITIC in row.needs and source is not POLICY_SAMPLES:
        return f"credit {credit.cell} has a critic, which values the current policy; expected policy_samples, found {source}"
    if credit.compares_pairs and not row.paired:
        return f"credit {credit.cell} compares two outputs; expected data source pairs, found {source}"
    if weighting.unit == "pair" and not (row.paired and credit.compares_pairs):
        return f"weighting {weighting.cell} compares two outputs; expected pairs and signed, found {source} and {credit.cell}"
    if Need.REFERENCE in credit.needs & weighting.needs:
        return f"KL is in the reward (credit {credit.cell}) and in the loss (weighting {weighting.cell}); expected kl 0 in one"
    if Need.TEACHER in credit.needs & weighting.needs:
        return f"the teacher is in the credit ({credit.cell}) and in the weighting ({weighting.cell}); expected one of them"
    return None


TABLE: Mapping[str, Algorithm] = MappingProxyType(
    {
        name: Algorithm(data_source=source, reward=reward, credit=credit, weighting=weighting)
        for name, (source, reward, credit, weighting) in {
            # DeepSeekMath, table 10 and appendix A.1.
            "sft": (DEMONSTRATIONS, "none", Ones(), Plain()),
            "rft": (INITIAL_SAMPLES, "rule", Accepted(), Plain()),
            "online_rft": (POLICY_SAMPLES, "rule", Accepted(), Plain()),
            "dpo": (PAIRS, "rule", Signed(), Preference()),
            "ppo": (POLICY_SAMPLES, "outcome_model", GAE(), Clipped(kl=0.0)),
            "grpo": (POLICY_SAMPLES, "outcome_model", GroupRelative(), Clipped()),
            "grpo_process": (POLICY_SAMPLES, "process_model", GroupRelative(), Clipped()),
            # arXiv 2503.20783: no division by the standard deviation, nor by the output's length.
            "dr_grpo": (
                *(POLICY_SAMPLES, "rule", GroupRelative(normalize_std=False)),
                Clipped(kl=0.0, average="constant", constant_length=1024),
            ),
            # arXiv 2503.14476, without its sampling and length penalty: a higher upper bound, and a mean over all tokens.
            "dapo": (POLICY_SAMPLES, "rule", GroupRelative(), Clipped(clip_high=0.28, kl=0.0, average="token")),
            # arXiv 2402.14740: REINFORCE of whole outputs.
            "rloo": (POLICY_SAMPLES, "rule", LeaveOneOut(), Plain(average="sum")),
            # arXiv 2507.18071.
            "gspo": (POLICY_SAMPLES, "rule", GroupRelative(), SequenceClipped()),
            # MiniMax-M1, arXiv 2506.13585.
            "cispo": (POLICY_SAMPLES, "rule", GroupRelative(), Cispo()),
            # Thinking Machines 2025; GKD, arXiv 2306.13649.
            "distill": (POLICY_SAMPLES, "rule", ReverseKL(), Clipped(kl=0.0)),
            "distill_top_k": (POLICY_SAMPLES, "rule", Ones(), TopK()),
        }.items()
    }
)


class RewardModelRow(Strict):
    """How a reward model is trained: on what, labelled how, and with which loss."""

    reward: ClassVar[RewardSource] = "rule"
    """Who judges the outputs that it learns from."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    supervision: Supervision
    """One scalar for an output, at its last token; or one for every step, at the step's last token."""
    data_source: DataSource = POLICY_SAMPLES
    labels: Annotated[RuleLabels | MonteCarloLabels | FileLabels, Field(discriminator="cell")] = RuleLabels()
    objective: Annotated[Ranking | CrossEntropy, Field(discriminator="cell")]

    @property
    def paired(self) -> bool:
        """Whether it trains on pairs of a better and a worse output."""
        return self.data_source is PAIRS or self.objective.compares_pairs

    @model_validator(mode="after")
    def _cells_fit(self):
        given = self.data_source in (DEMONSTRATIONS, PAIRS)
        if self.supervision == "process" and self.objective.compares_pairs:
            raise ValueError("objective ranking compares whole outputs; expected cross_entropy for a process model")
        if problem := self.labels.misfit(self.supervision, self.objective):
            raise ValueError(problem)
        if given != self.labels.from_file:
            found = f"found {self.labels.cell} and {self.data_source}"
            raise ValueError(f"labels file come with demonstrations or pairs from a file, other labels with samples; {found}")
        if self.data_source is PAIRS and not self.objective.compares_pairs:
            raise ValueError(f"a pair only says which is better; expected objective ranking, found {self.objective.cell}")
        return self


REWARD_MODELS: Mapping[str, RewardModelRow] = MappingProxyType(
    {
        "outcome_model": RewardModelRow(supervision="outcome", objective=Ranking()),
        "process_model": RewardModelRow(supervision="process", objective=CrossEntropy()),
    }
)


Override = Mapping[str, Any]
NOTHING: Override = MappingProxyType({})


def resolve(
    name: str,
    credit: Override = NOTHING,
    weighting: Override = NOTHING,
    *,
    reward: RewardSource | None = None,
    data_source: DataSource | None = None,
) -> Algorithm:
    """The row `name` with cells replaced.

    An override changes fields of the row's own cell, or, when its `cell` names another one, builds that one.
    Raises ValueError (pydantic's for a field, with its name) and suggests the nearest row.
    """
    return _replaced(TABLE, name, {"credit": credit, "weighting": weighting}, reward=reward, data_source=data_source)


def resolve_reward_model(
    name: str, labels: Override = NOTHING, objective: Override = NOTHING, *, data_source: DataSource | None = None
) -> RewardModelRow:
    """The row `name` of REWARD_MODELS with cells replaced, as `resolve` does."""
    return _replaced(REWARD_MODELS, name, {"labels": labels, "objective": objective}, data_source=data_source)


def _replaced(table: Mapping[str, Any], name: str, cells: Mapping[str, Override], **others: str | None) -> Any:
    if name not in table:
        raise ValueError(f"algorithm: found {name!r}, expected one of {', '.join(table)}{nearest(name, table)}")
    row = table[name]
    merged = {key: _merged(getattr(row, key), override) for key, override in cells.items()}
    return type(row)(**dict(row) | merged | {key: value for key, value in others.items() if value})


def _merged(cell: Strict, override: Override) -> Any:
    if not override:
        return cell
    default = cell.model_dump()
    return {**default, **override} if override.get("cell", default["cell"]) == default["cell"] else dict(override)
