"""The table of algorithms.

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

from learner.credit import GroupRelative, Ones
from learner.weighting import Clipped, Need, Plain
from rollout.config import Strict

__all__ = ["TABLE", "Algorithm", "DataSource", "Need", "resolve"]


class DataSource(StrEnum):
    """Where a stage's outputs come from."""

    DEMONSTRATIONS = "demonstrations"
    """Outputs given with the questions."""
    POLICY_SAMPLES = "policy_samples"
    """Outputs sampled from the current policy."""


class Algorithm(Strict):
    """One row: a data source, a reward, a credit and a weighting."""

    data_source: DataSource
    reward: Literal["none", "rule"]
    credit: Annotated[Ones | GroupRelative, Field(discriminator="cell")]
    weighting: Annotated[Plain | Clipped, Field(discriminator="cell")]

    @property
    def needs(self) -> frozenset[Need]:
        """What must exist besides the policy for this row to run."""
        return self.weighting.needs

    @model_validator(mode="after")
    def _cells_fit(self):
        if self.credit.uses_rewards and self.reward == "none":
            raise ValueError(f"credit {self.credit.cell} needs rewards, but reward is none")
        if Need.BEHAVIOUR_LOGPROBS in self.needs and self.data_source is DataSource.DEMONSTRATIONS:
            raise ValueError(f"weighting {self.weighting.cell} divides by the sampling probability, which demonstrations lack")
        return self


DEMONSTRATIONS, POLICY_SAMPLES = DataSource.DEMONSTRATIONS, DataSource.POLICY_SAMPLES

TABLE: Mapping[str, Algorithm] = MappingProxyType(
    {
        "sft": Algorithm(data_source=DEMONSTRATIONS, reward="none", credit=Ones(), weighting=Plain()),
        "grpo": Algorithm(data_source=POLICY_SAMPLES, reward="rule", credit=GroupRelative(), weighting=Clipped()),
    }
)


def resolve(name: str, credit_override: Mapping[str, Any], weighting_override: Mapping[str, Any]) -> Algorithm:
    """The row `name` with cells replaced.

    An override changes fields of the row's own cell, or, when its `cell` names another one, builds that one.
    Raises ValueError (pydantic's for a field, with its name) and suggests the nearest row.
    """
    if name not in TABLE:
        near = get_close_matches(name, TABLE, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"algorithm: found {name!r}, expected one of {', '.join(TABLE)}{hint}")
    row = TABLE[name]
    return Algorithm(
        data_source=row.data_source,
        reward=row.reward,
        credit=_merged(row.credit, credit_override),
        weighting=_merged(row.weighting, weighting_override),
    )


def _merged(cell: Strict, override: Mapping[str, Any]) -> dict[str, Any]:
    default = cell.model_dump()
    return {**default, **override} if override.get("cell", default["cell"]) == default["cell"] else dict(override)
