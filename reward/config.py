"""Configuration of the reward stage."""

from typing import Literal

from pydantic import Field

from rollout.config import Strict


class RewardConfig(Strict):
    """The rule reward: correctness of the final answer plus well-formedness."""

    workers: int = Field(1, gt=0)
    """Reward actors."""
    answer_format: Literal["auto", "hash", "boxed", "last-number"] = "hash"
    """Where the final answer stands: `#### N`, `\\boxed{N}`, the last number, or the first of these that is found."""
    correct: float = 1.0
    """Weight of the component `correct`."""
    format: float = 0.0
    """Weight of the component `format`: the output ends by itself and states a final answer in the asked form."""
    max_error_share: float = Field(0.1, ge=0.0, le=1.0)
    """Stop the run when a larger share of a batch ends in judge errors."""
