import pytest

from reward.rules import correct, well_formed
from rollout.types import FinishReason
from tests.reward.builders import sample


@pytest.mark.parametrize(("extracted", "reward"), [("7", 1.0), ("7.0", 1.0), ("14/2", 1.0), ("8", 0.0), ("", 0.0), (None, 0.0)])
def test_correct_is_equality_by_value(extracted, reward):
    assert correct(extracted, "7") == reward


@pytest.mark.parametrize(
    ("text", "finish_reason", "reward"),
    [
        ("3+4=8\n#### 8", FinishReason.STOP, 1.0),
        ("3+4=7\n#### 7", FinishReason.LENGTH, 0.0),
        ("the answer is 7", FinishReason.STOP, 0.0),
        (r"\boxed{7}", FinishReason.STOP, 0.0),
        ("#### seven or so", FinishReason.STOP, 0.0),
        ("####", FinishReason.STOP, 0.0),
        ("", FinishReason.STOP, 0.0),
    ],
)
def test_well_formed_is_an_ended_output_with_an_answer_in_the_asked_form_right_or_wrong(text, finish_reason, reward):
    assert well_formed(sample(text, finish_reason=finish_reason), "hash") == reward
