"""Cells of a reward model's row: where its labels come from, and the loss that they are learned by."""

from typing import ClassVar, Literal

from pydantic import Field

from rollout.strict import Strict

Supervision = Literal["outcome", "process"]


class Loss(Strict):
    """A loss of labels."""

    compares_pairs: ClassVar[bool] = False


class Labels(Strict):
    """Where labels come from."""

    from_file: ClassVar[bool] = False
    """They come with the outputs."""

    def misfit(self, supervision: Supervision, loss: Loss) -> str | None:
        """Why such a reward model cannot learn from them."""


class RuleLabels(Labels):
    """The rule: of the final answer (outcome), or of every step where the task can tell (process)."""

    cell: Literal["rule"] = "rule"
    every_token: bool = False
    """For an outcome model: the answer's label at every token instead of the last, so that the scalar learns how likely a right
    answer still is (token-level verifiers, Cobbe et al., arXiv 2110.14168). Only the last token's scalar is a reward."""

    def misfit(self, supervision: Supervision, loss: Loss) -> str | None:
        if self.every_token and (supervision == "process" or loss.compares_pairs):
            return "labels every_token: expected an outcome model with objective cross_entropy"


class MonteCarloLabels(Labels):
    """A step is as good as what the policy makes of it, in some completions of the output up to its end (Math-Shepherd)."""

    cell: Literal["monte_carlo"] = "monte_carlo"
    completions: int = Field(default=8, gt=0)
    """Of each step's prefix."""
    soft: bool = False
    """The share of right completions, or 1 where any is right (what Math-Shepherd trained on)."""

    def misfit(self, supervision: Supervision, loss: Loss) -> str | None:
        if supervision == "outcome":
            return "labels monte_carlo complete an output from its steps; expected rule or file for an outcome model"


class FileLabels(Labels):
    """Outputs and labels are read from a file."""

    from_file: ClassVar[bool] = True
    cell: Literal["file"] = "file"


class Ranking(Loss):
    """-log sigmoid(r(o+) - r(o-)) over pairs of one question's outputs."""

    compares_pairs: ClassVar[bool] = True
    cell: Literal["ranking"] = "ranking"


class CrossEntropy(Loss):
    """Binary cross-entropy of the scalar, as a logit, against the label (Math-Shepherd, arXiv 2312.08935)."""

    cell: Literal["cross_entropy"] = "cross_entropy"
