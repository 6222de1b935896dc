import string
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cluster.config.stages import StageConfig
from cluster.fleet.sampler import Bound, Unscored
from cluster.run.labelling import Labeller, used
from reward.config import RewardConfig
from reward.scorer import RuleScorer
from rollout.tasks.arithmetic import character_tokenizer
from rollout.types import FinishReason, Question, Sample
from tests.reward.builders import HANGS, judge_here

TOKENIZER = character_tokenizer()
QUESTION = Question(ordinal=4, id="q:4", text="19 + 4 - 2", gold="21", prompt_ids=(1, 5, 6))
RIGHT, SLIP = "19+4=23\n23-2=21\n#### 21", "19+4=13\n13-2=11\n#### 11"


def output(text, index=0, group="judge/4", tokenizer=TOKENIZER) -> Sample:
    ids = (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)
    return Sample(
        ordinal=4, group_id=group, index=index, attempt=0, prompt_ids=QUESTION.prompt_ids, output_ids=ids, text=text,
        sampled_mask=(True,) * len(ids), logprobs=(-0.5,) * len(ids), versions=((1, 0),), finish_reason=FinishReason.STOP,
    )  # fmt: skip


CHANCES = {"19+4=23\n": 3, RIGHT[:16]: 4, "19+4=13\n": 1, SLIP[:16]: 0}


class Driver:
    """Completes a prefix rightly (the first thing it says) as often as `chances` says for the text so far."""

    def __init__(self, chances, says=("#### 21", "#### 20")):
        self.config, self.bound = SimpleNamespace(seed=0, reward=RewardConfig()), Bound(0.1)
        self.chances, self.says, self.orders, self.calls = chances, says, [], 0

    def ask(self, leases, what, *, booked=True):
        self.orders += leases
        self.calls += 1
        out = []
        for lease in leases:
            so_far = TOKENIZER.decode(lease.question.prompt_ids[len(QUESTION.prompt_ids) :])
            for i in lease.indices:
                text = self.says[i >= self.chances[so_far]]
                made = output(text, i, lease.group_id)
                out.append(Sample(**{f: getattr(made, f) for f in made.__slots__} | {"ordinal": lease.question.ordinal}))
        return out

    def judge(self, questions, samples, reward):
        return RuleScorer(self.config.reward, judge_here).score(questions, samples)


def stage(algorithm="process_model", **fields):
    needed = {"steps": 1, "questions_per_step": 1, "samples_per_question": 2, "optimizer": {"learning_rate": 1e-3}}
    return StageConfig.model_validate({"algorithm": algorithm, **needed, **fields})


def labels(examples):
    return [[(event.position, event.value) for event in item.events] for item in examples]


def batch(driver):
    return driver.judge([QUESTION], [output(RIGHT, 0), output(SLIP, 1)], "rule")


@pytest.mark.parametrize(("soft", "expected"), [(False, [1.0, 1.0, 1.0]), (True, [0.75, 1.0, 1.0])])
def test_a_step_is_as_good_as_the_answers_reached_from_its_end(soft, expected):
    driver = Driver(CHANCES)
    cell = {"cell": "monte_carlo", "completions": 4, "soft": soft}
    labeller = Labeller(driver, TOKENIZER)
    right, slip = labels(labeller.examples(stage(labels=cell), batch(driver), {4: QUESTION}, 0))
    assert right == list(zip((7, 15, 23), expected, strict=True))
    assert slip == [(7, 0.25 if soft else 1.0), (15, 0.0), (23, 0.0)], "the last step is the answer's own"
    assert [len(lease.indices) for lease in driver.orders] == [4] * 4
    assert len({lease.group_id for lease in driver.orders}) == 4


def test_a_completion_is_judged_with_what_it_completes():
    # The second step already holds the answer, so what follows it need not say it again.
    text = "19+4=23\n#### 21\n0"
    driver = Driver({"19+4=23\n": 0, "19+4=23\n#### 21\n": 2}, says=("0", "1"))
    labeller = Labeller(driver, TOKENIZER)
    judged = driver.judge([QUESTION], [output(text, 0)], "rule")
    (item,) = labels(labeller.examples(stage(labels={"cell": "monte_carlo", "completions": 2}), judged, {4: QUESTION}, 0))
    assert [value for _, value in item] == [0.0, 1.0, 1.0]


def test_a_completion_goes_on_behind_what_the_steps_program_printed():
    said, shown, rest = "19+4=", "\n23\n2\n", "#### 21"
    made = output(said + shown + rest)
    mask = (*(not len(said) <= place < len(said + shown) for place in range(len(made.output_ids))),)
    driver = Driver({said + shown: 2})
    judged = driver.judge([QUESTION], [replace(made, sampled_mask=mask)], "rule")
    labeller = Labeller(driver, TOKENIZER)
    (item,) = labels(labeller.examples(stage(labels={"cell": "monte_carlo", "completions": 2}), judged, {4: QUESTION}, 0))
    assert item == [(len(said) - 1, 1.0), (len(made.output_ids) - 1, 1.0)], "two steps, not one for each line that was printed"


def test_completions_are_asked_for_in_waves_and_each_finds_its_step(monkeypatch):
    whole, waves = Driver(CHANCES), Driver(CHANCES)
    cell = stage(labels={"cell": "monte_carlo", "completions": 4, "soft": True})
    expected = labels(Labeller(whole, TOKENIZER).examples(cell, batch(whole), {4: QUESTION}, 0))
    monkeypatch.setattr("cluster.run.labelling.WAVE", 7)
    assert labels(Labeller(waves, TOKENIZER).examples(cell, batch(waves), {4: QUESTION}, 0)) == expected
    assert (whole.calls, waves.calls) == (1, 4)


def test_a_model_from_another_run_brings_the_history_it_was_trained_on(tmp_path):
    driver = Driver({})
    before = Labeller(driver, TOKENIZER)
    before.examples(stage("outcome_model"), batch(driver), {4: QUESTION}, 0)
    before.finish(stage("outcome_model"))
    before.write(tmp_path)
    driver.config.reward = RewardConfig(model={"path": [str(tmp_path)], "replay_share": 0.5})
    again = Labeller(driver, TOKENIZER)
    mixed = again.examples(stage("outcome_model"), batch(driver), {4: QUESTION}, 0)
    assert [item.sample.group_id for item in mixed] == ["judge/4/pair-0"] * 2 + ["@0"] * 2
    assert [(m.events, m.sample.output_ids) for m in mixed[:2]] == [(m.events, m.sample.output_ids) for m in mixed[2:]]


def test_a_step_without_any_output_makes_no_example():
    driver = Driver({})
    assert Labeller(driver, TOKENIZER).examples(stage("outcome_model"), [], {4: QUESTION}, 0) == []


def test_the_rule_labels_steps_from_the_first_mistake_on_as_wrong():
    driver = Driver({})
    right, slip = labels(Labeller(driver, TOKENIZER).examples(stage(), batch(driver), {4: QUESTION}, 0))
    assert [value for _, value in right] == [1.0, 1.0, 1.0] and [value for _, value in slip] == [0.0, 0.0, 0.0]


@pytest.mark.slow
def test_an_output_whose_steps_take_for_ever_to_label_has_none_and_too_many_of_them_end_the_run():
    tokenizer, driver = character_tokenizer(string.printable), Driver({})
    gold = HANGS.replace("x", "y")
    asked = Question(ordinal=4, id="q:4", text="How many?", gold=f"<<2+5=7>>\n#### {gold}", prompt_ids=(1,))
    texts = (f"<<2+5=7>>\n#### {gold}", f"<<2+5=7>>\n#### {HANGS}", f"<<2+5=8>>\n#### {gold}")
    outputs = [output(text, i, tokenizer=tokenizer) for i, text in enumerate(texts)]
    scored = RuleScorer(RewardConfig(), lambda rows: judge_here([row | {"output": ""} for row in rows])).score([asked], outputs)
    driver.config.reward = RewardConfig(judge_seconds=3.0)
    assert labels(Labeller(driver, tokenizer).examples(stage(), scored, {4: asked}, 0)) == [
        [(9, 1.0), (15 + len(gold), 1.0)],
        [(9, 0.0), (15 + len(gold), 1.0)],
    ]
    with pytest.raises(Unscored, match=r"1 of 1 outputs have no score \(1 killed\).* judge/4\[1\]: killed: no answer"):
        Labeller(driver, tokenizer).examples(stage(), scored[1:2], {4: asked}, 0)


def test_what_a_stage_labelled_is_history_for_the_next_and_survives_a_checkpoint():
    driver = Driver({})
    labeller, again = Labeller(driver, TOKENIZER), Labeller(driver, TOKENIZER)
    fresh = labeller.examples(stage("outcome_model"), batch(driver), {4: QUESTION}, 0)
    assert [item.sample.group_id for item in fresh] == ["judge/4/pair-0"] * 2 and fresh[0].events[0].value == 1.0
    assert used(fresh, [0.0, None], batch(driver)) == [True, False]
    again.restore(labeller.state())
    assert again.state() == labeller.state() and not any(replay.groups for replay in again.replay.values())
    labeller.finish(stage("outcome_model"))
    assert len(labeller.replay["pairs"].groups) == 1 and labeller.trained == 0
    again.restore(labeller.state())
    assert len(again.replay["pairs"].groups) == 1


def test_a_stage_on_single_outputs_leaves_the_pairs_of_another_in_the_history():
    driver = Driver({})
    driver.config.reward = RewardConfig(model={"replay_share": 0.5})
    labeller, single = Labeller(driver, TOKENIZER), stage("outcome_model", objective={"cell": "cross_entropy"})
    labeller.examples(stage("outcome_model"), batch(driver), {4: QUESTION}, 0)
    labeller.finish(stage("outcome_model"))
    assert [len(item.events) for item in labeller.examples(single, batch(driver), {4: QUESTION}, 1)] == [1, 1]
    labeller.finish(single)
    groups = [item.sample.group_id for item in labeller.examples(stage("outcome_model"), batch(driver), {4: QUESTION}, 2)]
    assert groups == ["judge/4/pair-0"] * 4, "the fresh pair, and the one of the history"
