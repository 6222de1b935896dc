import random
from dataclasses import replace

import pytest

from reward.labels.examples import from_completions, outcome_labels, pairs, step_labels, with_step_labels
from reward.labels.step_rules import rule_labels
from reward.labels.steps import StepFinder
from reward.types import RewardEvent
from rollout.tasks.arithmetic import character_tokenizer
from tests.reward.builders import judged, sample


def events(items):
    return [[(event.position, event.value) for event in item.events] for item in items]


def test_an_outcome_label_is_the_true_correctness_at_the_last_token():
    scored = [
        judged(index=0, reward=0.3, correct=1.0),
        judged(index=1, reward=1.1, correct=0.0, tokens=5),
        judged(index=2, reward=None),
        judged(index=3, reward=0.9, model=0.9),
        judged(index=4, reward=0.0, correct=1.0, observed=0.0),
    ]
    labelled = outcome_labels(scored)
    assert [item.sample.index for item in labelled] == [0, 1, 4], "without a true answer there is no label"
    assert events(labelled) == [[(2, 1.0)], [(4, 0.0)], [(2, 1.0)]]
    assert labelled[0].verdict == scored[0].verdict
    everywhere = outcome_labels(scored, every_token=True)
    assert events(everywhere) == [[(t, 1.0) for t in range(3)], [(t, 0.0) for t in range(5)], [(t, 1.0) for t in range(3)]]


def test_every_pair_has_a_better_and_a_worse_one_and_equal_rewards_make_none():
    scored = [judged("g/0", i, r, tokens=3 + i) for i, r in enumerate([1.0, 0.0, 1.0, 0.5])]
    scored += [judged("g/1", i, 1.0) for i in range(3)] + [judged("g/2", 0, 1.0), judged("g/2", 1, None)]
    made = pairs(scored, per_group=100, rng=random.Random(0))
    chosen = list(zip(made[::2], made[1::2], strict=True))
    assert len(chosen) == 5, "1 over 0 twice, 1 over 0.5 twice, 0.5 over 0; nothing from g/1 and g/2"
    assert [a.sample.group_id for a, _ in chosen] == [f"g/0/pair-{k}" for k in range(5)]
    for better, worse in chosen:
        assert better.sample.group_id == worse.sample.group_id
        assert (better.sample.index, worse.sample.index) == (0, 1)
        assert better.verdict.reward > worse.verdict.reward
        for item in (better, worse):
            assert events([item]) == [[(len(item.sample.output_ids) - 1, item.verdict.reward)]]
    lengths = {(len(a.sample.output_ids), len(b.sample.output_ids)) for a, b in chosen}
    assert lengths == {(3, 4), (5, 4), (3, 6), (5, 6), (6, 4)}, "all different pairs"


def test_pairs_are_bounded_for_each_group_and_do_not_depend_on_the_order_of_the_samples():
    scored = [judged(f"g/{g}", i, float(i % 3), tokens=2 + i) for g in range(3) for i in range(6)]
    made = pairs(scored, per_group=4, rng=random.Random(7))
    assert len(made) == 3 * 4 * 2
    shuffled = random.Random(1).sample(scored, len(scored))
    assert pairs(shuffled, per_group=4, rng=random.Random(7)) == made
    assert pairs(scored, per_group=4, rng=random.Random(8)) != made


def test_step_labels_stand_at_the_ends_of_the_steps_of_the_sampled_ids():
    tokenizer = character_tokenizer()
    finder = StepFinder(tokenizer, "newline")

    def one(index, text):
        ids = [*tokenizer.encode(text, add_special_tokens=False), 2]
        return replace(judged(index=index), sample=sample(text, index=index, output_ids=ids))

    scored = [one(0, "17+8=25\n25-9=16\n#### 16"), one(1, "17+8=15\n15-9=6\n#### 6")]
    by_rule = [
        rule_labels("17 + 8 - 9", "16", finder.texts(item.sample.output_ids, item.sample.sampled_mask), "hash")
        for item in scored
    ]
    labelled = step_labels(scored, finder, by_rule)
    assert events(labelled) == [[(7, 1.0), (15, 1.0), (23, 1.0)], [(7, 0.0), (14, 0.0), (21, 0.0)]]
    assert step_labels(scored, finder, [[None] * 3, []]) == [], "no label, or not even judged"
    some = step_labels(scored[:1], finder, [[None, 0.25, None]])
    assert events(some) == [[(15, 0.25)]]


def test_step_labels_are_shares():
    with pytest.raises(ValueError, match="group grpo/0, index 0: step label 1.5"):
        with_step_labels(judged(), [1, 2], [0.5, 1.5])
    assert with_step_labels(judged(), [1, 2], [None, None]) is None
    assert with_step_labels(judged(), [1, 2], [0, None]).events == (RewardEvent(position=1, value=0.0),)


def test_completions_judge_a_step_hard_or_soft():
    marks = [[1, 0, 0, 0], [0, 0], [None, 1, 1, 0, None], [None], [], [1]]
    assert from_completions(marks, soft=False) == [1.0, 0.0, 1.0, None, None, 1.0]
    assert from_completions(marks, soft=True) == [0.25, 0.0, 2 / 3, None, None, 1.0]
