import pytest

from reward.judging.rule import judge
from reward.scorer import formed
from rollout.types import FinishReason
from tests.reward.builders import sample


@pytest.mark.parametrize(
    ("answer", "right"), [("7", True), ("7.0", True), ("14/2", True), ("8", False), ("", False), ("x", False)]
)
def test_an_answer_is_right_by_its_value(answer, right):
    found = judge(f"3 + 4\n#### {answer}", "7", "hash")
    assert found["correct"] is right and found["extracted"] == (answer or None) and found["problem"] is None
    assert found["value"] == ({"7": "7", "7.0": "7", "14/2": "7", "8": "8"}.get(answer) or found["value"])


def test_a_judgement_names_what_is_wrong_with_the_reference():
    assert judge("#### 7", "seven or so", "hash")["problem"].startswith("'seven or so' is not a number")
    assert judge("#### 7", "3 + 4 = 7\n#### 7", "hash")["reference"] == "7"


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
    assert formed(sample(text, finish_reason=finish_reason), judge(text, "7", "hash")["parsed"]) == reward
