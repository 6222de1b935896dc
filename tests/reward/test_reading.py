"""How outputs are read: reasoning, marks of the end, and the settings of `reward.reading`; and cases from public reports."""

import json
from pathlib import Path

import pytest

from reward.answers.extract import extract
from reward.config import Reading, RewardConfig
from reward.judging.rule import judge
from reward.judging.selftest import Report, try_rule
from reward.judging.stored import StoredRow, judge_stored
from reward.scorer import RuleScorer
from tests.reward.builders import flat, judge_here, question, sample, sampled_groups

CASES = Path(__file__).parents[2].parent / "shared" / "cases" / "judge"


def correct(output, gold, **reading):
    found = judge(output, gold, "auto", reading)
    assert found["problem"] is None, found["problem"]
    return found["correct"]


@pytest.mark.parametrize(
    "name",
    [
        "D01_unit_in_brackets", "J01_times", "J02_zh_words", "J03_thinking", "J04_answer_line", "J05_step_labels", "J06_choice",
        "J07_zh_heading", "J09_units", "J10_modifiers",
    ],
)  # fmt: skip
def test_cases_from_public_reports(name):
    if not CASES.exists():
        pytest.skip("the cases are not beside this checkout")
    rows = [json.loads(line) for line in (CASES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    wrong = [row for row in rows if correct(row["response"], row["gold"]) != row["expected"]]
    assert rows and wrong == []


REASONED = [
    ("<think>2 + 2 = 5</think>The answer is 4.", "4"), ("2 + 2 = 5</think>\n\n\\boxed{4}", "4"), ("<THINK>5</THINK> 4", "4"),
    ("<think>a</think> 5 <think>no, 4</think> It is 4", "4"), ("<think></think>4", "4"),
    ("<think><think>5</think> so 5</think> 4", "4"), ("<thinking>5</thinking>\n#### 4", "4"),
    ("<reasoning>\n5\n</reasoning>\n<answer>\n4\n</answer>", "4"), ("[THINK]5[/THINK]4", "4"), ("◁think▷5◁/think▷ 4", "4"),
    ("<|begin_of_thought|>\n5 <|end_of_thought|>\n<|begin_of_solution|>\nThe answer is 4.\n<|end_of_solution|>", "4"),
    ("<|channel|>analysis<|message|>5<|end|><|start|>assistant<|channel|>final<|message|>The answer is 4<|return|>", "4"),
    ("<think>5</think><reflection>6</reflection>\nAnswer: 4", "4"),
]  # fmt: skip
UNFINISHED = [
    "<think>The answer is 4.", "<think>\\boxed{4}", "<think>#### 4", "<think>4</think>", "<think>4</think> \n", "4</think>",
    "<think>5</think> 4 <think> or is it 4", "<thinking>4", "<reasoning>\\boxed{4}\n<answer>4</answer>", "<Think>\n4",
    "<|begin_of_thought|>the answer is 4", "[THINK] so 4", "<think><reflection>5</reflection> the answer is 4",
    "<|channel|>analysis<|message|>The answer is 4", "<scratchpad>\n#### 4", "<think>4 <think>4</think",
]  # fmt: skip


@pytest.mark.parametrize(("output", "answer"), REASONED)
def test_what_follows_the_last_closing_tag_decides(output, answer):
    assert correct(output, answer) and not correct(output, "5")


@pytest.mark.parametrize("form", ["auto", "hash", "boxed", "answer-is", "last-number"])
@pytest.mark.parametrize("output", UNFINISHED)
def test_unfinished_reasoning_has_no_answer(output, form):
    assert extract(output, form) is None


FOUND_LATER = [
    ("The ratio is 2 to 3.", "2:3", True), ("答案：三亿五千万", "350000000", True), ("Task 3", "3", False),
    ("Row 3 is next", "3", False),
    ("Phase 2", "2", False), ("as noted in [3].", "3", False), ("Hence, the result follows.2", "2", False),
    ("The answer is Paris (B).", "B", True), ("#### 15", "15 (1-foot pieces)", True), ("#### 4 (if n is even)", "4", False),
    ("3.0 × 10^8 m/s", "3e8", True), ("The answer is 7 to the third power.", "343", True),
    ("The answer is minimum 7.", "7", False),
    ("The answer is quarter of 8.", "2", True), ("答案是3的倒数", "3", False), ("The answer is the opposite of 7.", "-7", True),
    ("The answer is fourth root of 16.", "2", True), ("The answer is 7 (squared).", "7", False),
    ("The answer is 7ish", "7", False),
    ("The answer is (C) Bonn, (C) Bonn, (A) Paris.", "C", False), ("Answer: (B) Rome. (A) is wrong.", "B", True),
    ("The answer is two thirds, two thirds, twelve.", "2/3", False), ("It opens on May 2, 2023.", "2023-05-02", True),
]  # fmt: skip


@pytest.mark.parametrize(("output", "gold", "right"), FOUND_LATER)
def test_outputs_of_these_kinds_that_were_tried_later(output, gold, right):
    assert correct(output, gold) is right


ENDED = [
    "<|im_end|>", "</s>", "[EOS]", "<eoa>", "<|endoftext|>", " <eos>\n", "<|eot_id|></s>", "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
]  # fmt: skip


@pytest.mark.parametrize("mark", ENDED)
def test_marks_of_the_end_are_no_part_of_an_answer(mark):
    assert extract(f"so\n#### 4{mark}", "hash") == "4"
    assert extract(f"The answer is 4{mark}", "auto") == extract(f"4{mark}", "auto") == "4"
    assert extract(f"The answer is yes{mark}\nnext question", "answer-is") == "yes"


GOLD = "4 cm"
SETTINGS = {
    "reasoning_tags": ([["<mull>", "</mull>"]], "<mull>#### 4 cm", False),
    "end_marks": (["~~"], "#### 4~~ or so", True),
    "headings": (["verdict"], "Verdict: four", True),
    "compare_units": (True, "#### 4 m", False),
}
"""Each setting: a value, an output, and whether that is right with it for the reference 4; without it it is the opposite."""


def read_by_the_self_test(config):
    """The readings that its judge was given."""
    asked = []
    try_rule([question(gold=GOLD)], config, lambda rows: asked.extend(rows) or judge_here(rows), Report())
    return {json.dumps(row.get("reading", {})) for row in asked}


def test_every_setting_is_tried_here():
    assert set(SETTINGS) == set(Reading.model_fields)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_reaches_the_scorer_its_format_component_the_self_test_and_stored_responses(name):
    value, output, right = SETTINGS[name]
    for reading, expected in (({name: value}, right), ({}, not right)):
        config = RewardConfig(answer_format="auto", format=0.5, reading=reading)
        asked = sampled_groups([sample(output)], [question(gold=GOLD)])
        (scored,) = flat(RuleScorer(config, judge_here).score(asked))
        assert scored.verdict.components["correct"] == float(expected)
        if name != "compare_units":
            assert scored.verdict.components["format"] == float(expected)
        row = StoredRow(where="1", question="q", gold=GOLD, responses=(output,), scores=None)
        ((stored,),) = judge_stored([row], judge_here, config, lambda count: None)
        assert stored.correct is expected
        assert read_by_the_self_test(config) == {json.dumps(config.reading.model_dump(exclude_defaults=True))}
