"""The table of algorithms, and that of the reward models they may be rewarded by.

SFT, RFT, DPO, PPO and GRPO share one gradient and differ in data source, reward and gradient coefficient (DeepSeekMath, section
5.2). The coefficient splits into credit (once per batch) and weighting (every micro-batch). A row gives defaults; a run may
replace any cell. Importing this file imports no torch: the configuration and `--help` read it.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from learner.algorithms.credit import Accepted, GroupRelative, LeaveOneOut, Ones, RewardSource, Signed
from learner.algorithms.decoupled import DecoupledGroupRelative
from learner.algorithms.denoised import DenoisedGroupRelative
from learner.algorithms.gae import GAE
from learner.algorithms.weighting import Cispo, Clipped, Need, Plain, Preference, SequenceClipped
from rollout.config import Strict


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

AnyCredit = Annotated[
    Ones | Accepted | Signed | GroupRelative | DecoupledGroupRelative | DenoisedGroupRelative | LeaveOneOut | GAE,
    Field(discriminator="cell"),
]
AnyWeighting = Annotated[Plain | Preference | Clipped | SequenceClipped | Cispo, Field(discriminator="cell")]


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

    @model_validator(mode="after")
    def _cells_fit(self):
        if problem := _misfit(self):
            raise ValueError(problem)
        return self


def _misfit(row: Algorithm) -> str | None:
    """Why the cells of a row make no algorithm together."""
    source, credit, weighting = row.data_source, row.credit, row.weighting
    paired = source is PAIRS
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
    if isinstance(credit, Signed) and not paired:
        return f"credit {credit.cell} compares two outputs; expected data source pairs, found {source}"
    if weighting.unit == "pair" and not (paired and isinstance(credit, Signed)):
        return f"weighting {weighting.cell} compares two outputs; expected pairs and signed, found {source} and {credit.cell}"
    if Need.REFERENCE in credit.needs & weighting.needs:
        return f"KL is in the reward (credit {credit.cell}) and in the loss (weighting {weighting.cell}); expected kl 0 in one"
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
        }.items()
    }
)


class RuleLabels(Strict):
    """The rule: of the final answer (outcome), or of every step where the task can tell (process)."""

    cell: Literal["rule"] = "rule"
    every_token: bool = False
    """For an outcome model: the answer's label at every token instead of the last, so that the score learns how likely a right
    answer still is (token-level verifiers, Cobbe et al., arXiv 2110.14168). Only the last token's score is a reward."""


class MonteCarloLabels(Strict):
    """A step is as good as what the policy makes of it, in some completions of the output up to its end (Math-Shepherd)."""

    cell: Literal["monte_carlo"] = "monte_carlo"
    completions: int = Field(8, gt=0)
    soft: bool = False
    """The share of right completions, or 1 where any is right (what Math-Shepherd trained on)."""


class FileLabels(Strict):
    """Outputs and labels are read from a file."""

    cell: Literal["file"] = "file"


class Ranking(Strict):
    """-log sigmoid(r(o+) - r(o-)) over pairs of one question's outputs."""

    cell: Literal["ranking"] = "ranking"


class CrossEntropy(Strict):
    """Binary cross-entropy of the score, as a logit, against the label (Math-Shepherd, arXiv 2312.08935)."""

    cell: Literal["cross_entropy"] = "cross_entropy"


class RewardModelRow(Strict):
    """How a reward model is trained: on what, labelled how, and with which loss."""

    supervision: Literal["outcome", "process"]
    """One score for an output, at its last token; or one for every step, at the step's last token."""
    data_source: DataSource
    labels: Annotated[RuleLabels | MonteCarloLabels | FileLabels, Field(discriminator="cell")]
    objective: Annotated[Ranking | CrossEntropy, Field(discriminator="cell")]

    @model_validator(mode="after")
    def _cells_fit(self):
        given = self.data_source in (DEMONSTRATIONS, PAIRS)
        if self.supervision == "process" and isinstance(self.objective, Ranking):
            raise ValueError("objective ranking compares whole outputs; expected cross_entropy for a process model")
        if self.supervision == "outcome" and isinstance(self.labels, MonteCarloLabels):
            raise ValueError("labels monte_carlo complete an output from its steps; expected rule or file for an outcome model")
        everywhere = isinstance(self.labels, RuleLabels) and self.labels.every_token
        if everywhere and (self.supervision == "process" or isinstance(self.objective, Ranking)):
            raise ValueError("labels every_token: expected an outcome model with objective cross_entropy")
        if given != isinstance(self.labels, FileLabels):
            raise ValueError(
                f"labels file come with outputs from a file (data source demonstrations or pairs), other labels with sampled "
                f"ones; found {self.labels.cell} and {self.data_source}"
            )
        if self.data_source is PAIRS and not isinstance(self.objective, Ranking):
            raise ValueError(f"a pair only says which is better; expected objective ranking, found {self.objective.cell}")
        return self


REWARD_MODELS: Mapping[str, RewardModelRow] = MappingProxyType(
    {
        name: RewardModelRow(supervision=supervision, data_source=source, labels=labels, objective=objective)
        for name, (supervision, source, labels, objective) in {
            "outcome_model": ("outcome", POLICY_SAMPLES, RuleLabels(), Ranking()),
            "process_model": ("process", POLICY_SAMPLES, RuleLabels(), CrossEntropy()),
        }.items()
    }
)


def resolve(
    name: str,
    credit: Mapping[str, Any] = MappingProxyType({}),
    weighting: Mapping[str, Any] = MappingProxyType({}),
    *,
    reward: RewardSource | None = None,
    data_source: DataSource | None = None,
) -> Algorithm:
    """The row `name` with cells replaced.

    An override changes fields of the row's own cell, or, when its `cell` names another one, builds that one.
    Raises ValueError (pydantic's for a field, with its name) and suggests the nearest row.
    """
    row = _row(TABLE, name)
    return Algorithm(
        data_source=data_source or row.data_source,
        reward=reward or row.reward,
        credit=_merged(row.credit, credit),
        weighting=_merged(row.weighting, weighting),
    )


def resolve_reward_model(
    name: str,
    labels: Mapping[str, Any] = MappingProxyType({}),
    objective: Mapping[str, Any] = MappingProxyType({}),
    *,
    data_source: DataSource | None = None,
) -> RewardModelRow:
    """The row `name` of REWARD_MODELS with cells replaced, as `resolve` does."""
    row = _row(REWARD_MODELS, name)
    return RewardModelRow(
        supervision=row.supervision,
        data_source=data_source or row.data_source,
        labels=_merged(row.labels, labels),
        objective=_merged(row.objective, objective),
    )


def _row(table: Mapping[str, Any], name: str) -> Any:
    if name not in table:
        near = get_close_matches(name, table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"algorithm: found {name!r}, expected one of {', '.join(table)}{hint}")
    return table[name]


def _merged(cell: Strict, override: Mapping[str, Any]) -> dict[str, Any]:
    default = cell.model_dump()
    return {**default, **override} if override.get("cell", default["cell"]) == default["cell"] else dict(override)
