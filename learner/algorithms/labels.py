"""Cells of a reward model's row: where its labels come from, and the loss that they are learned by."""

from typing import ClassVar, Literal

from pydantic import Field

from rollout.config import Strict


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

    compares_pairs: ClassVar[bool] = True
    cell: Literal["ranking"] = "ranking"


class CrossEntropy(Strict):
    """Binary cross-entropy of the score, as a logit, against the label (Math-Shepherd, arXiv 2312.08935)."""

    compares_pairs: ClassVar[bool] = False
    cell: Literal["cross_entropy"] = "cross_entropy"
