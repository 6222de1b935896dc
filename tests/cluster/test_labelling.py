import string
from dataclasses import replace

import pytest

from cluster.config.stages import StageConfig
from cluster.fleet.sampler import Bound, Unscored
from cluster.run.labelling import Labeller, used
from reward.config import RewardConfig
from reward.scorer import RuleScorer
from rollout.tasks.arithmetic import character_tokenizer
from rollout.types import FinishReason, Group, Question, Sample
from tests.reward.builders import HANGS, flat, judge_here

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


class Collector:
    """Completes a prefix rightly (the first thing it says) as often as `chances` says for the text so far."""

    def __init__(self, chances, says=("#### 21", "#### 20")):
        self.chances, self.says, self.orders, self.calls = chances, says, [], 0

    def sample(self, leases, what, *, booked=True):
        self.orders += leases
        self.calls += 1
        return [self._completed(lease) for lease in leases]

    def _completed(self, lease):
        so_far = TOKENIZER.decode(lease.question.prompt_ids[len(QUESTION.prompt_ids) :])
        texts = [self.says[i >= self.chances[so_far]] for i in lease.indices]
        made = (replace(output(text, i, lease.group_id), ordinal=lease.question.ordinal) for i, text in enumerate(texts))
        return Group(question=lease.question, samples=tuple(made))

    def score(self, groups, reward, what, *, whole=True):
        return RuleScorer(RewardConfig(), judge_here).score(groups)


def labeller(collector=None, tokenizer=TOKENIZER, given=None, **reward):
    return Labeller(RewardConfig(**reward), 0, tokenizer, collector or Collector({}), Bound(0.1), given)


def stage(algorithm="process_model", **fields):
    needed = {"steps": 1, "questions_per_step": 1, "samples_per_question": 2, "optimizer": {"learning_rate": 1e-3}}
    return StageConfig.model_validate({"algorithm": algorithm, **needed, **fields})


def labels(groups):
    return [[(target.position, target.value) for target in item.targets] for item in flat(groups)]


def judged(*outputs, question=QUESTION):
    return RuleScorer(RewardConfig(), judge_here).score([Group(question=question, samples=outputs)])


def batch():
    return judged(output(RIGHT, 0), output(SLIP, 1))


@pytest.mark.parametrize(("soft", "expected"), [(False, [1.0, 1.0, 1.0]), (True, [0.75, 1.0, 1.0])])
def test_a_step_is_as_good_as_the_answers_reached_from_its_end(soft, expected):
    collector = Collector(CHANCES)
    cell = {"cell": "monte_carlo", "completions": 4, "soft": soft}
    right, slip = labels(labeller(collector).examples(stage(labels=cell), batch(), 0))
    assert right == list(zip((7, 15, 23), expected, strict=True))
    assert slip == [(7, 0.25 if soft else 1.0), (15, 0.0), (23, 0.0)], "the last step is the answer's own"
    assert [len(lease.indices) for lease in collector.orders] == [4] * 4
    assert len({lease.group_id for lease in collector.orders}) == 4


def test_a_completion_is_judged_with_what_it_completes():
    # The second step already holds the answer, so what follows it need not say it again.
    text = "19+4=23\n#### 21\n0"
    made = labeller(Collector({"19+4=23\n": 0, "19+4=23\n#### 21\n": 2}, says=("0", "1")))
    cell = stage(labels={"cell": "monte_carlo", "completions": 2})
    (item,) = labels(made.examples(cell, judged(output(text, 0)), 0))
    assert [value for _, value in item] == [0.0, 1.0, 1.0]


def test_a_completion_goes_on_behind_what_the_steps_program_printed():
    said, shown, rest = "19+4=", "\n23\n2\n", "#### 21"
    made = output(said + shown + rest)
    mask = (*(not len(said) <= index < len(said + shown) for index in range(len(made.output_ids))),)
    cell = stage(labels={"cell": "monte_carlo", "completions": 2})
    groups = judged(replace(made, sampled_mask=mask))
    (item,) = labels(labeller(Collector({said + shown: 2})).examples(cell, groups, 0))
    assert item == [(len(said) - 1, 1.0), (len(made.output_ids) - 1, 1.0)], "two steps, not one for each line that was printed"


def test_completions_are_asked_for_in_waves_and_each_finds_its_step(monkeypatch):
    whole, waves = Collector(CHANCES), Collector(CHANCES)
    cell = stage(labels={"cell": "monte_carlo", "completions": 4, "soft": True})
    expected = labels(labeller(whole).examples(cell, batch(), 0))
    monkeypatch.setattr("cluster.run.labelling.WAVE", 7)
    assert labels(labeller(waves).examples(cell, batch(), 0)) == expected
    assert (whole.calls, waves.calls) == (1, 4)


def test_a_model_from_another_run_brings_the_history_it_was_trained_on(tmp_path):
    before = labeller()
    before.examples(stage("outcome_model"), batch(), 0)
    before.finish(stage("outcome_model"))
    before.write(tmp_path)
    again = labeller(model={"path": [str(tmp_path)], "replay_share": 0.5})
    fresh, old = again.examples(stage("outcome_model"), batch(), 0)
    assert names([fresh, old]) == ["judge/4/pair-0", "@0"] and len(fresh.labelled) == 2
    was, came = ([(item.targets, item.sample.output_ids) for item in group.labelled] for group in (fresh, old))
    assert was == came


def test_a_step_without_any_output_makes_no_example():
    assert labeller().examples(stage("outcome_model"), [], 0) == []


def test_the_rule_labels_steps_from_the_first_mistake_on_as_wrong():
    right, slip = labels(labeller().examples(stage(), batch(), 0))
    assert [value for _, value in right] == [1.0, 1.0, 1.0] and [value for _, value in slip] == [0.0, 0.0, 0.0]


@pytest.mark.slow
def test_an_output_whose_steps_take_for_ever_to_label_has_none_and_too_many_of_them_end_the_run():
    tokenizer, gold = character_tokenizer(string.printable), HANGS.replace("x", "y")
    asked = Question(ordinal=4, id="q:4", text="How many?", gold=f"<<2+5=7>>\n#### {gold}", prompt_ids=(1,))
    texts = (f"<<2+5=7>>\n#### {gold}", f"<<2+5=7>>\n#### {HANGS}", f"<<2+5=8>>\n#### {gold}")
    group = Group(question=asked, samples=tuple(output(text, i, tokenizer=tokenizer) for i, text in enumerate(texts)))
    scored = RuleScorer(RewardConfig(), lambda rows: judge_here([row | {"output": ""} for row in rows])).score([group])
    made = labeller(tokenizer=tokenizer, judge_seconds=3.0)
    assert labels(made.examples(stage(), scored, 0)) == [[(9, 1.0), (15 + len(gold), 1.0)], [(9, 0.0), (15 + len(gold), 1.0)]]
    alone = [replace(scored[0], scored=scored[0].scored[1:2])]
    with pytest.raises(Unscored, match=r"1 of 1 outputs have no score \(1 killed\).* judge/4\[1\]: killed: no answer"):
        labeller(tokenizer=tokenizer, judge_seconds=1.0).examples(stage(), alone, 0)


def names(groups):
    return [group.labelled[0].sample.group_id for group in groups]


def test_what_a_stage_labelled_is_history_for_the_next_and_survives_a_checkpoint():
    first, again = labeller(), labeller()
    fresh = first.examples(stage("outcome_model"), batch(), 0)
    assert names(fresh) == ["judge/4/pair-0"] and labels(fresh)[0][0][1] == 1.0
    assert used(fresh, [0.0, None], batch()) == [True, False]
    again.restore(first.state())
    assert again.state() == first.state() and not any(replay.groups for replay in again.replay.values())
    first.finish(stage("outcome_model"))
    assert len(first.replay["pairs"].groups) == 1 and first.trained == 0
    again.restore(first.state())
    assert len(again.replay["pairs"].groups) == 1


def test_a_stage_on_single_outputs_leaves_the_pairs_of_another_in_the_history():
    made, single = labeller(model={"replay_share": 0.5}), stage("outcome_model", objective={"cell": "cross_entropy"})
    made.examples(stage("outcome_model"), batch(), 0)
    made.finish(stage("outcome_model"))
    assert [len(item) for item in labels(made.examples(single, batch(), 1))] == [1, 1]
    made.finish(single)
    groups = names(made.examples(stage("outcome_model"), batch(), 2))
    assert groups == ["judge/4/pair-0"] * 2, "the fresh pair, and the one of the history"
