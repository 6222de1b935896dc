from dataclasses import replace

import pytest
import torch

from reward.config import RewardConfig, RewardModelConfig
from reward.judging.judges import gold_check
from reward.judging.pool import KILLED, Outcome
from reward.scorer import ModelScorer, RuleScorer, probability
from reward.types import RewardEvent
from rollout.types import FinishReason
from tests.reward.builders import flat, judge_here, question, sample, sampled_groups


def score(*samples, questions=None, **config):
    return flat(RuleScorer(RewardConfig(**config), judge_here).score(sampled_groups(samples, questions)))


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


def test_a_group_is_judged_by_its_own_question_and_keeps_its_order_and_its_rejected_outputs():
    questions = [question(5, "50"), question(3, "30")]
    samples = [sample(f"#### {10 * n}", ordinal=n, index=i) for n in (3, 5) for i in range(3)]
    samples[4] = replace(samples[4], rejected="NaN")
    asked = []
    scorer = RuleScorer(RewardConfig(), lambda rows: asked.extend(rows) or judge_here(rows))
    scored = scorer.score(sampled_groups(samples, questions))
    assert [group.question for group in scored] == questions[::-1] and [x.sample for x in flat(scored)] == samples
    assert [x.verdict.reward for x in flat(scored)] == [1.0] * 4 + [None, 1.0] and len(asked) == 5
    assert (flat(scored)[4].verdict.status, flat(scored)[4].verdict.reason) == ("rejected", "NaN")


def test_a_reference_that_cannot_be_judged_is_unscorable_with_the_reason_and_no_event():
    (scored,) = score(sample("#### 7"), questions=[question(gold="seven or so")])
    assert (scored.verdict.status, scored.verdict.reward, scored.events) == ("unscorable", None, ())
    assert scored.verdict.reason.startswith("'seven or so' is not a number, a formula or words")


def test_a_worked_reference_is_judged_by_its_final_answer():
    (scored,) = score(sample("#### 7"), questions=[question(gold="3+4 is 7\n#### 7")])
    assert scored.verdict.reward == 1.0


def test_an_output_without_tokens_is_unscorable():
    (scored,) = score(sample("", tokens=0))
    assert scored.verdict.status == "unscorable" and scored.events == ()


def test_an_exception_in_judging_is_an_error_with_its_traceback_and_spares_the_others(monkeypatch):
    def fail_on_eight(gold, extracted):
        return bool(1.0 / (int(extracted) - 8))

    monkeypatch.setattr("reward.judging.rule.same", fail_on_eight)
    good, bad = score(sample("#### 9"), sample("#### 8", index=1))
    assert good.verdict.reward == 1.0
    assert (bad.verdict.status, bad.verdict.reward, bad.events) == ("error", None, ())
    assert "fail_on_eight" in bad.verdict.reason and "ZeroDivisionError" in bad.verdict.reason


def test_an_output_whose_judge_was_killed_has_no_score_and_never_zero():
    def judge(rows):
        good = judge_here(rows)
        killed = Outcome(status="killed", value=None, reason=f"{KILLED}no answer within 1 s", seconds=1.0)
        return [good[0], killed]

    good, bad = flat(RuleScorer(RewardConfig(), judge).score(sampled_groups([sample("#### 7"), sample("#### 7", index=1)])))
    assert good.verdict.reward == 1.0 and good.verdict.value == "7" and good.verdict.seconds >= 0
    assert (bad.verdict.status, bad.verdict.reward, bad.events, bad.verdict.seconds) == ("killed", None, (), 1.0)


@pytest.mark.parametrize(
    ("gold", "judged"),
    [("7", True), ("#### 1,000", True), (r"\sqrt{2}", True), ("seven", True), ("seven or so", False), ("?", False)],
)
def test_the_check_of_references_accepts_what_the_scorer_can_judge(gold, judged):
    assert (gold_check(RewardConfig(), judge_here)([gold]) == [None]) == judged


def test_flipped_rewards_are_seeded_by_member_and_leave_the_truth_beside_them():
    samples = [sample(f"#### {7 + i % 2}", ordinal=n, index=i) for n in range(50) for i in range(8)]
    questions = [question(n) for n in range(50)]
    flips = {}
    for share in (0.0, 0.1, 0.3):
        scored = score(*samples, questions=questions, flip_share=share, correct=2.0, format=0.25)
        assert [x.verdict.components["correct"] for x in scored] == [1.0, 0.0] * 200, "the truth stays"
        observed = [x.verdict.components.get("observed", x.verdict.components["correct"]) for x in scored]
        assert [x.verdict.reward for x in scored] == [2 * value + 0.25 for value in observed]
        assert [x.events[0].value for x in scored] == [x.verdict.reward for x in scored]
        flips[share] = {k for k, value in enumerate(observed) if value != 1 - k % 2}
        again = score(*samples[::-1], questions=questions, flip_share=share, correct=2.0, format=0.25)[::-1]
        assert again == scored
    assert flips[0.0] == set() and flips[0.1] < flips[0.3], "a larger share flips more of the same ones"
    assert abs(len(flips[0.1]) - 40) < 4 * 6 and abs(len(flips[0.3]) - 120) < 4 * 9.2


def test_the_component_observed_exists_only_where_rewards_are_flipped():
    (plain,), (flipped,) = score(sample("#### 7")), score(sample("#### 7"), flip_share=0.5)
    assert set(plain.verdict.components) == {"correct", "format"}
    assert set(flipped.verdict.components) == {"correct", "format", "observed"}
    assert plain.verdict.reward_version is None


class Steps:
    """A step ends at every token 9, and at the last token."""

    def ends(self, ids, mask):
        return tuple(k for k, token in enumerate(ids) if token == 9 or k == len(ids) - 1)


class Scalars(torch.nn.Module):
    """Member k gives a token (its id + 10 k) / 4 - 1, so that a score tells where it was read."""

    def __init__(self, kind, members=1):
        super().__init__()
        self.kind, self.members = kind, members
        self.heads = [torch.nn.Linear(1, 1)]

    def forward(self, input_ids_BT, attention_mask, position_ids_BT, at_N):
        ids_N = input_ids_BT.flatten()[at_N].float()
        return torch.stack([(ids_N + 10 * k) / 4 - 1 for k in range(self.members)])


def by_model(*samples, kind="outcome", members=1, questions=None, model=None, **scoring):
    config = RewardConfig(model=RewardModelConfig(members=members, **scoring))
    scorer = ModelScorer(config, model or Scalars(kind, members), Steps(), version=3, judge=judge_here)
    return flat(scorer.score(sampled_groups(samples, questions)))


def test_an_outcome_model_scores_the_last_token_and_the_truth_is_kept_beside_it():
    right, wrong = by_model(sample("#### 7", output_ids=[4, 9, 6, 2]), sample("#### 8", index=1, output_ids=[8]))
    assert right.events == (RewardEvent(position=3, value=-0.5),) and right.verdict.reward == -0.5
    assert right.verdict.components == {"correct": 1.0, "format": 1.0, "model": -0.5}
    assert wrong.events == (RewardEvent(position=0, value=1.0),)
    assert wrong.verdict.components == {"correct": 0.0, "format": 1.0, "model": 1.0}
    assert (right.verdict.extracted, right.verdict.status, right.verdict.reward_version) == ("7", "score", 3)


def test_a_process_model_scores_the_end_of_every_step_and_the_reward_is_their_mean():
    one = sample("#### 7", output_ids=[4, 9, 6, 9, 2])
    (logits,) = by_model(one, kind="process", process_reward="logit")
    assert [(e.position, e.value) for e in logits.events] == [(1, 1.25), (3, 1.25), (4, -0.5)]
    assert logits.verdict.reward == logits.verdict.components["model"] == pytest.approx(2 / 3)
    (shares,) = by_model(one, kind="process")
    expected = [torch.sigmoid(torch.tensor(x, dtype=torch.float64)).item() for x in (1.25, 1.25, -0.5)]
    assert [e.value for e in shares.events] == pytest.approx(expected)
    assert shares.verdict.reward == pytest.approx(sum(expected) / 3)


@pytest.mark.parametrize(
    ("how", "value"),
    [
        ({"combine": "mean"}, 2.0),
        ({"combine": "minimum"}, -0.5),
        ({"combine": "mean_minus_spread", "spread_weight": 0.5}, 2.0 - 0.5 * (2 * 2.5**2 / 3) ** 0.5),
    ],
)
def test_an_ensemble_combines_its_members_and_logs_their_spread(how, value):
    (scored,) = by_model(sample("#### 7", output_ids=[2]), members=3, **how)
    assert scored.verdict.reward == pytest.approx(value) == scored.events[0].value, "members say -0.5, 2 and 4.5"
    assert scored.verdict.components["spread"] == pytest.approx((2 * 2.5**2 / 3) ** 0.5)


def test_the_spread_of_a_process_ensemble_is_that_of_its_rewards_averaged_over_steps():
    (scored,) = by_model(sample("#### 7", output_ids=[9, 2]), members=2, kind="process")
    steps = [[torch.sigmoid(torch.tensor((i + 10 * k) / 4 - 1)).item() for k in range(2)] for i in (9, 2)]
    assert [e.value for e in scored.events] == pytest.approx([sum(step) / 2 for step in steps])
    assert scored.verdict.components["spread"] == pytest.approx(sum(abs(a - b) / 2 for a, b in steps) / 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_an_error_of_that_sample_alone(bad):
    class Broken(Scalars):
        def forward(self, input_ids_BT, *rest):
            return super().forward(input_ids_BT, *rest).masked_fill_(torch.tensor([input_ids_BT.max().item() == 60]), bad)

    good, broken = by_model(
        sample("#### 7"), sample("#### 7", index=1, output_ids=[60]), model=Broken("outcome"), max_tokens_per_batch=1
    )
    assert (good.verdict.status, broken.verdict.status) == ("score", "error")
    assert (broken.verdict.reward, broken.events, broken.verdict.components) == (None, (), {})
    assert "expected finite numbers" in broken.verdict.reason and broken.verdict.reward_version == 3


def test_a_model_that_fails_is_an_error_with_its_traceback():
    class Failing(Scalars):
        def forward(self, *tensors):
            raise MemoryError("no room")

    scored = by_model(sample("#### 7"), sample("#### 8", index=1), model=Failing("outcome"))
    assert [(x.verdict.status, x.verdict.reward, x.events) for x in scored] == [("error", None, ())] * 2
    assert all("MemoryError: no room" in x.verdict.reason for x in scored)


def test_a_reference_that_cannot_be_judged_leaves_the_models_score_without_correct():
    (scored,) = by_model(sample("#### 7"), questions=[question(gold="seven or so")])
    assert scored.verdict.status == "score" and scored.verdict.reward == 0.25
    assert set(scored.verdict.components) == {"format", "model"}


def test_a_model_does_not_score_an_output_without_tokens():
    empty, other = by_model(sample("", tokens=0), sample("#### 7", index=1), kind="process")
    assert (empty.verdict.status, empty.events, other.verdict.status) == ("unscorable", (), "score")


def test_a_model_without_settings_scores_by_the_defaults():
    scorer = ModelScorer(RewardConfig(), Scalars("outcome", 2), Steps(), 0, judge_here)
    (scored,) = flat(scorer.score(sampled_groups([sample("#### 7")])))
    assert scored.verdict.reward == 1.5 and scored.verdict.reward_version == 0, "the mean of 0.25 and 2.75"


def test_probabilities_do_not_overflow():
    assert [probability(x) for x in (0.0, 1000.0, -1000.0)] == [0.5, 1.0, 0.0]
    assert probability(-3.0) == pytest.approx(1 - probability(3.0))
