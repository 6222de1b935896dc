"""Every rule with numbers that raise it and numbers that do not, on the driver and in Prometheus."""

import logging

import pytest

from cluster.monitoring.alarms import QUIET, Alarms
from cluster.monitoring.conditions import KEPT, SPAN
from cluster.monitoring.rules import RULES
from cluster.records.metrics import JsonlSink, read_jsonl

STEPS = KEPT + 10


def line(first, last, count=STEPS):
    """From the first number straight to the last."""
    return [first + (last - first) * i / (count - 1) for i in range(count)]


def flat(value, count=STEPS):
    return [value] * count


LIVE = flat(0.001)  # of a stage whose outputs are the policy's
CASES = {
    # The newest ten steps: 0.0621, those of 50 before: 0.0295.
    "mismatch_rising": ({"mismatch_mean": line(0.02, 0.065)}, {"mismatch_mean": line(0.002, 0.0065)}),
    "entropy_collapse": (
        {"entropy": [*flat(0.5, 55), *flat(0.1, 15)], "mismatch_mean": LIVE},
        {"entropy": [*flat(0.5, 55), *flat(0.2, 15)], "mismatch_mean": LIVE},
    ),
    "truncation": ({"truncated_share": flat(0.21)}, {"truncated_share": flat(0.2)}),
    "all_wrong": ({"all_wrong_share": flat(0.51)}, {"all_wrong_share": flat(0.5)}),
    "all_right": ({"all_right_share": flat(0.75)}, {"all_right_share": flat(0.7)}),
    "reward_hacking": (
        {"reward": line(0.4, 0.6), "accuracy": line(0.5, 0.4)},
        {"reward": line(0.4, 0.6), "accuracy": line(0.5, 0.45)},
    ),
    "staleness": (
        {"staleness_mean": flat(3.9), "staleness_bound": flat(4)},
        {"staleness_mean": flat(1.0), "staleness_bound": flat(1)},
    ),
    "judge_failures": (
        {"killed_share": flat(0.015), "error_share": flat(0.01)},
        {"killed_share": flat(0.015), "error_share": flat(0.0)},
    ),
    # Steps for which nothing was left to be sampled do not count.
    "engines_idle": ({"rollout_busy": flat(0.15)}, {"rollout_busy": [*flat(0.3, STEPS - 8), *flat(0.0, 8)]}),
    "not_finite": ({"skipped": [*flat(0.0, STEPS - 1), 1.0]}, {"skipped": flat(0.0)}),
}
"""Rule -> metrics that raise it by the last step, and metrics that do not."""


def rows(series, stage="grpo"):
    return [{"stage": stage, **dict(zip(series, values, strict=True))} for values in zip(*series.values(), strict=True)]


def told(folder, steps, first=1):
    """Steps and alarms that a run of these rows is told of."""
    sink = Alarms(folder)
    for step, row in enumerate(steps, first):
        sink.write(step, row)
    sink.close()
    return [(row["step"], row["alarm"]) for row in read_jsonl(folder / "alarms.jsonl")]


def test_every_rule_has_its_cases():
    assert list(CASES) == list(RULES)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_raised_by_its_numbers_and_by_no_others(name, tmp_path):
    raised, quiet = map(rows, CASES[name])
    assert [alarm for _, alarm in told(tmp_path / "a", raised)] == [name]
    assert told(tmp_path / "b", quiet) == []


def test_what_is_said_has_the_numbers_the_cause_and_a_key_to_change(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="cohort"):
        told(tmp_path, rows({"truncated_share": flat(0.42, SPAN)}))
    (row,) = read_jsonl(tmp_path / "alarms.jsonl")
    assert row["step"] == SPAN and row["what"] == "outputs run out of tokens: truncated_share is 42.0%, above 20.0%"
    assert "rollout.max_new_tokens" in row["advice"]
    assert [record.getMessage() for record in caplog.records] == [f"alarm truncation, step 10: {row['what']}. {row['advice']}"]
    says = RULES["mismatch_rising"].what(0.0523, 0.0235)
    assert says == "engine and learner differ more and more: mismatch_mean is 0.0523 nats, up from 0.0235 nats"
    assert RULES["judge_failures"].what(0.025, 0.02).startswith("judges fail: killed_share + error_share is 2.5%")


def test_an_alarm_is_told_once_while_it_lasts_and_again_when_it_comes_back_after_a_while(tmp_path):
    short = [*flat(0.5, 30), *flat(0.0, 15), *flat(0.5, 30)]
    assert [step for step, _ in told(tmp_path / "a", rows({"truncated_share": short}))] == [SPAN]
    # The mean of ten steps falls to the bound when six of them are 0, and is above it again with five of 0.5.
    long = [*flat(0.5, 30), *flat(0.0, QUIET + 10), *flat(0.5, 30)]
    assert [step for step, _ in told(tmp_path / "b", rows({"truncated_share": long}))] == [SPAN, 30 + QUIET + 10 + 5]


def test_another_stage_begins_anew_and_warm_starts_may_lose_their_entropy(tmp_path):
    learnt = [{"stage": "sft", "entropy": x} for x in line(2.4, 0.03)]
    after = [{"stage": "grpo", "entropy": 0.03, "mismatch_mean": 0.001} for _ in range(2 * SPAN)]
    assert told(tmp_path / "a", learnt + after) == []
    two = [{"stage": stage, "truncated_share": 0.3} for stage in ("one", "two") for _ in range(SPAN)]
    assert told(tmp_path / "b", two) == [(SPAN, "truncation"), (2 * SPAN, "truncation")]


def test_a_young_stage_is_compared_with_its_beginning(tmp_path):
    series = [*flat(0.02, SPAN), *flat(0.05, SPAN)]
    assert told(tmp_path / "a", rows({"mismatch_mean": series[:-1]})) == [], "too few to be compared"
    assert told(tmp_path / "b", rows({"mismatch_mean": series})) == [(2 * SPAN, "mismatch_rising")]


def test_what_is_not_finite_counts_as_not_measured(tmp_path):
    series = {"truncated_share": [*flat(float("nan"), 5), *flat(0.3, 5)]}
    assert told(tmp_path / "a", rows(series)) == [(SPAN, "truncation")]
    assert told(tmp_path / "b", [{"stage": "grpo", "truncated_share": None} for _ in range(SPAN)]) == []


def test_a_resumed_run_is_not_told_of_what_it_was_told_before(tmp_path):
    steps = rows({"truncated_share": flat(0.3, 20)})
    told(tmp_path, steps)
    metrics = JsonlSink(tmp_path / "metrics.jsonl")
    for step, row in enumerate(steps, 1):
        metrics.write(step, row)
    sink = Alarms(tmp_path, resume_step=15)
    for step, row in enumerate(steps[15:], 16):
        sink.write(step, row)
    assert [row["step"] for row in read_jsonl(tmp_path / "alarms.jsonl")] == [SPAN]
    # What came after the checkpoint is forgotten with the steps that are made anew.
    sink = Alarms(tmp_path, resume_step=SPAN - 1)
    assert read_jsonl(tmp_path / "alarms.jsonl") == []
    sink.write(SPAN, steps[SPAN])
    assert [row["step"] for row in read_jsonl(tmp_path / "alarms.jsonl")] == [SPAN]
