import math
from itertools import product

import pytest

from cluster.evaluation.measures import evaluate
from reward.config import RewardConfig
from reward.scorer import RuleScorer
from rollout.types import FinishReason, Group, Question, Sample, Sampling
from tests.reward.builders import flat, judge_here

SAMPLING = Sampling(temperature=1.0, max_new_tokens=8)
QUESTIONS = [Question(ordinal=i, id=f"q:{i}", text=f"{i} + 1?", gold=str(i + 1), prompt_ids=(1, 2)) for i in range(2)]


def generator(answers):
    """Outputs by (kind, ordinal): a list of texts; None is an output that was rejected."""

    def generate(leases, sampling):
        kind = "greedy" if sampling.temperature == 0 else "sampled"
        return [group(lease, answers[kind, lease.question.ordinal]) for lease in leases]

    return generate


def group(lease, texts):
    made = [sample(lease, i, texts[i] or "", rejected="" if texts[i] is not None else "NaN") for i in lease.indices]
    return Group(question=lease.question, samples=tuple(made))


def sample(lease, index, text, rejected=""):
    ids = tuple(range(len(text)))
    return Sample(
        ordinal=lease.question.ordinal, group_id=lease.group_id, index=index, attempt=0, prompt_ids=(1, 2), output_ids=ids,
        sampled_mask=(True,) * len(ids), logprobs=(-0.5,) * len(ids), text=text, versions=((0, 0),),
        finish_reason=FinishReason.LENGTH if text.startswith("~") else FinishReason.STOP, rejected=rejected,
    )  # fmt: skip


score = RuleScorer(RewardConfig(format=0.1), judge_here).score


def run(answers, samples=4, questions=QUESTIONS):
    return evaluate(questions, samples=samples, sampling=SAMPLING, generate=generator(answers), score=score, label="held-out")


def test_each_share_has_the_value_of_its_definition():
    answers = {
        ("greedy", 0): ["#### 1"], ("greedy", 1): ["#### 3"],
        ("sampled", 0): ["#### 1", "#### 1", "#### 1", "#### 9"],
        ("sampled", 1): ["#### 2", "#### 7", "no answer", "~\n#### 7"],
    }  # fmt: skip
    result, *_ = run(answers)
    assert (result.n, result.samples, result.unjudged) == (2, 4, 0)
    assert result.greedy.share == 0.5
    assert result.sampled.share == pytest.approx((3 / 4 + 1 / 4) / 2)
    spread = math.sqrt(2 * 0.25**2 / 1 / 2)
    assert result.sampled.standard_error == pytest.approx(spread)
    assert result.sampled.interval == pytest.approx((0.5 - 1.96 * spread, 0.5 + 1.96 * spread))
    assert result.pass_at == pytest.approx({1: 0.5, 2: (1.0 + 0.5) / 2, 4: 1.0})
    assert result.maj_at[4] == 0.5, "7 has two votes against one for 2"
    assert result.well_formed == pytest.approx(6 / 8)
    assert result.truncated == pytest.approx(1 / 8)
    assert result.response_length == pytest.approx((6 * 6 + 9 + 8) / 8)


def test_an_output_without_a_verdict_is_counted_and_wrong():
    answers = {
        ("greedy", 0): [None], ("greedy", 1): ["#### 2"],
        ("sampled", 0): ["#### 1", "#### 1", None, "#### 5"],
        ("sampled", 1): ["#### 2", "#### 2", "#### 2", "#### 2"],
    }  # fmt: skip
    result, records, _ = run(answers)
    assert result.unjudged == 2 and result.greedy.share == 0.5
    assert result.sampled.share == pytest.approx((2 / 4 + 1.0) / 2) and result.well_formed == pytest.approx(7 / 8)
    assert result.pass_at == pytest.approx({1: 0.75, 2: (5 / 6 + 1) / 2, 4: 1.0})
    assert result.maj_at[4] == 0.5, "two votes for 1 are no majority over 5 and a vote that nobody knows"
    assert [output["correct"] for output in records[0]["sampled"]] == [True, True, None, False]
    assert (records[0]["greedy"][0]["status"], records[0]["greedy"][0]["reason"]) == ("rejected", "NaN")
    assert "2 of 10 outputs have no verdict and count as wrong" in result.line() and result.summary()["unjudged"] == 2


def test_no_figure_gets_better_by_losing_outputs():
    figures = ("accuracy", "greedy_accuracy", "well_formed")
    whole = {("greedy", 0): ["#### 1"], ("sampled", 0): ["#### 1", "#### 9", "#### 9", "#### 8"]}
    best, *_ = run(whole, questions=QUESTIONS[:1])
    for lost in product((False, True), repeat=5):
        kept = {
            ("greedy", 0): [None if lost[4] else "#### 1"],
            ("sampled", 0): [None if gone else text for gone, text in zip(lost, whole["sampled", 0], strict=False)],
        }
        result, *_ = run(kept, questions=QUESTIONS[:1])
        assert all((result.summary()[name] or 0) <= best.summary()[name] for name in figures)
        assert all(result.pass_at.get(k, 0) <= best.pass_at[k] and result.maj_at.get(k, 0) <= best.maj_at[k] for k in (1, 2, 4))


def test_nothing_judged_is_none_and_not_zero():
    answers = {(kind, i): [None] * 2 for kind in ("greedy", "sampled") for i in (0, 1)}
    result, *_ = run(answers, samples=2)
    assert (result.sampled, result.greedy, result.pass_at, result.unjudged) == (None, None, {}, 6)
    assert "sampled -" in result.line()


def test_an_accuracy_without_spread_is_shown_with_the_interval_that_few_questions_allow():
    answers = {(kind, i): [f"#### {i + 1}"] * 2 for kind in ("greedy", "sampled") for i in (0, 1)}
    result, *_ = run(answers, samples=2)
    assert result.summary()["accuracy_standard_error"] == 0 and "sampled 1.000 [0.342, 1.000], greedy 1.000" in result.line()
    half = run(answers | {("sampled", 0): ["#### 1", "#### 5"]}, samples=2)[0]
    assert "sampled 0.750 ± 0.490" in half.line()


def test_records_hold_every_output_with_its_verdict():
    answers = {("greedy", 0): ["#### 1"], ("sampled", 0): ["#### 1", "#### 4"]}
    _, (record,), sampled = run(answers, samples=2, questions=QUESTIONS[:1])
    assert {key: record[key] for key in ("id", "ordinal", "question", "gold")} == {
        "id": "q:0", "ordinal": 0, "question": "0 + 1?", "gold": "1",
    }  # fmt: skip
    wrong = {
        "index": 1, "text": "#### 4", "tokens": 6, "finish_reason": "stop", "extracted": "4", "value": "4", "status": "score",
        "correct": False, "reason": "",
    }  # fmt: skip
    assert record["sampled"][1] == wrong
    assert record["greedy"][0]["correct"] is True
    assert [s.sample.text for s in flat(sampled)] == ["#### 1", "#### 4"]


def test_the_summary_is_flat_and_has_every_power_of_two():
    answers = {("greedy", 0): ["#### 1"], ("sampled", 0): ["#### 1"] * 8}
    row = run(answers, samples=8, questions=QUESTIONS[:1])[0].summary()
    assert {f"{name}_at_{k}": 1.0 for name in ("pass", "maj") for k in (1, 2, 4, 8)}.items() <= row.items()
    assert row["accuracy"] == 1.0 and row["label"] == "held-out"


def test_a_second_evaluation_asks_for_the_same_groups_so_that_seeds_are_shared():
    asked = []

    def generate(leases, sampling):
        asked.append([(lease.group_id, lease.indices, sampling.temperature) for lease in leases])
        return [group(lease, ["#### 1"] * 2) for lease in leases]

    for _ in range(2):
        evaluate(QUESTIONS[:1], samples=2, sampling=SAMPLING, generate=generate, score=score, label="held-out")
    assert asked[:2] == [[("held-out/greedy/0", (0,), 0.0)], [("held-out/sampled/0", (0, 1), 1.0)]]
    assert asked[:2] == asked[2:]
