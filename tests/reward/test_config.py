import pytest
from pydantic import ValidationError

from reward.config import RewardConfig, RewardModelConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "members"),
        ({"path": ["a", "b"], "members": 3}, "members: found 3, but the directories of `path` decide"),
        ({"device": "cuda"}, "gpus_per_worker is 0"),
        ({"device": "cpu", "gpus_per_worker": 0.5}, "gpus_per_worker is 0.5, expected 0"),
        ({"step_boundary": ""}, "step_boundary"),
        ({"spread_weight": -1.0}, "spread_weight"),
        ({"combine": "median"}, "combine"),
        ({"combine": "minimum"}, "combine: found minimum for a single model"),
        ({"members": 2, "combine": "minimum", "spread_weight": 2.0}, "spread_weight: given, but combine is minimum"),
        ({"temperature": 1.0}, "temperature"),
    ],
)
def test_what_cannot_hold_is_refused_and_named(options, message):
    with pytest.raises(ValidationError, match=message):
        RewardModelConfig(**options)


def test_flips_are_a_share_below_one():
    for share in (-0.1, 1.0):
        with pytest.raises(ValidationError, match="flip_share"):
            RewardConfig(flip_share=share)


def test_the_rule_needs_no_model():
    assert RewardConfig().model is None and RewardConfig().flip_share == 0.0
    assert (RewardModelConfig(path=["a", "b"]).count, RewardModelConfig(members=3).count) == (2, 3)
