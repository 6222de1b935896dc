import pytest

from reward.config import RewardConfig
from reward.scorer import RuleScorer, gold_problem
from reward.types import RewardEvent
from rollout.types import FinishReason
from tests.reward.builders import question, sample


def score(*samples, questions=None, **config):
    return RuleScorer(RewardConfig(**config)).score(questions or [question()], list(samples))


def test_components_are_kept_apart_and_weighted_into_one_event_at_the_last_token():
    right, wrong = score(sample("#### 7", tokens=4), sample("#### 8", index=1, tokens=2), correct=1.0, format=0.25)
    assert right.verdict.components == {"correct": 1.0, "format": 1.0} and right.verdict.reward == 1.25
    assert right.events == (RewardEvent(position=3, value=1.25),) and right.verdict.extracted == "7"
    assert wrong.verdict.components == {"correct": 0.0, "format": 1.0}
    assert wrong.events == (RewardEvent(position=1, value=0.25),) and wrong.verdict.status == "score"


def test_a_right_answer_in_a_truncated_output_is_right_but_not_well_formed():
    (scored,) = score(sample("#### 7\n", finish_reason=FinishReason.LENGTH), format=0.5)
    assert scored.verdict.components == {"correct": 1.0, "format": 0.0} and scored.verdict.reward == 1.0


@pytest.mark.parametrize("text", ["", "seven", "####", "7"])
def test_an_output_without_an_answer_is_wrong_and_not_unscorable(text):
    (scored,) = score(sample(text))
    assert (scored.verdict.status, scored.verdict.reward, scored.verdict.extracted) == ("score", 0.0, None)
    assert scored.events == (RewardEvent(position=2, value=0.0),)


def test_samples_are_matched_to_questions_by_ordinal_and_keep_their_order():
    questions = [question(5, "50"), question(3, "30")]
    samples = [sample(f"#### {10 * n}", ordinal=n, index=i) for i, n in enumerate((3, 5, 3, 5))]
    scored = score(*samples, questions=questions)
    assert [x.sample for x in scored] == samples and [x.verdict.reward for x in scored] == [1.0] * 4
    with pytest.raises(ValueError, match="sample 0 of group grpo/4: its question 4 is not given"):
        score(sample("", ordinal=4), questions=questions)


def test_a_reference_that_cannot_be_judged_is_unscorable_with_the_reason_and_no_event():
    (scored,) = score(sample("#### 7"), questions=[question(gold="seven or so")])
    assert (scored.verdict.status, scored.verdict.reward, scored.events) == ("unscorable", None, ())
    assert scored.verdict.reason == "'seven or so' is not a number or a formula"


def test_a_worked_reference_is_judged_by_its_final_answer():
    (scored,) = score(sample("#### 7"), questions=[question(gold="3+4 is 7\n#### 7")])
    assert scored.verdict.reward == 1.0


def test_an_output_without_tokens_is_unscorable():
    (scored,) = score(sample("", tokens=0))
    assert scored.verdict.status == "unscorable" and scored.events == ()


def test_an_exception_in_judging_is_an_error_with_its_traceback_and_spares_the_others(monkeypatch):
    def fail_on_eight(extracted, gold):
        return 1.0 / (int(extracted) - 8)

    monkeypatch.setattr("reward.scorer.correct", fail_on_eight)
    good, bad = score(sample("#### 9"), sample("#### 8", index=1))
    assert good.verdict.reward == 1.0
    assert (bad.verdict.status, bad.verdict.reward, bad.events) == ("error", None, ())
    assert "fail_on_eight" in bad.verdict.reason and "ZeroDivisionError" in bad.verdict.reason


@pytest.mark.parametrize(
    ("gold", "judged"), [("7", True), ("#### 1,000", True), (r"\sqrt{2}", True), ("seven", False), ("?", False)]
)
def test_the_check_of_references_accepts_what_the_scorer_can_judge(gold, judged):
    assert (gold_problem(gold) is None) == judged
