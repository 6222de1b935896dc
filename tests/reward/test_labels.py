import random

import pytest

from reward.labels.examples import as_labelled, from_completions, outcome_label, pairs, step_labels
from reward.labels.step_rules import rule_labels
from reward.labels.steps import StepFinder
from reward.types import RewardEvent, Target
from rollout.tasks.arithmetic import character_tokenizer
from tests.reward.builders import judged, question, sample, scored_groups


def targets(items):
    return [[(target.position, target.value) for target in item.targets] for item in items]


def test_an_outcome_label_is_the_true_correctness_at_the_last_token():
    scored = [
        judged(index=0, reward=0.3, correct=1.0),
        judged(index=1, reward=1.1, correct=0.0, tokens=5),
        judged(index=2, reward=None),
        judged(index=3, reward=0.9, model=0.9),
        judged(index=4, reward=0.0, correct=1.0, observed=0.0),
    ]
    made = [outcome_label(item) for item in scored]
    assert [item and item.sample.index for item in made] == [0, 1, None, None, 4], "without a true answer there is no label"
    labelled = [item for item in made if item]
    assert targets(labelled) == [[(2, 1.0)], [(4, 0.0)], [(2, 1.0)]]
    everywhere = [outcome_label(scored[i], every_token=True) for i in (0, 1, 4)]
    assert targets(everywhere) == [[(t, 1.0) for t in range(3)], [(t, 0.0) for t in range(5)], [(t, 1.0) for t in range(3)]]


def test_the_rewards_of_a_group_are_its_labels_where_a_file_judged_it():
    (group,) = scored_groups([judged(index=0, reward=1.0), judged(index=1, reward=0.5, tokens=2)])
    assert targets(as_labelled(group).labelled) == [[(2, 1.0)], [(1, 0.5)]]
    assert [item.sample for item in as_labelled(group).labelled] == [item.sample for item in group.scored]


def test_every_pair_has_a_better_and_a_worse_one_and_equal_rewards_make_none():
    scored = [judged("g/0", i, r, tokens=3 + i) for i, r in enumerate([1.0, 0.0, 1.0, 0.5])]
    scored += [judged("g/1", i, 1.0) for i in range(3)] + [judged("g/2", 0, 1.0), judged("g/2", 1, None)]
    groups = scored_groups(scored, question(gold="9"))
    made = pairs(groups, per_group=100, rng=random.Random(0))
    chosen = [pair.scored for pair in made]
    assert len(chosen) == 5, "1 over 0 twice, 1 over 0.5 twice, 0.5 over 0; nothing from g/1 and g/2"
    assert [a.sample.group_id for a, _ in chosen] == [f"g/0/pair-{k}" for k in range(5)]
    assert {pair.question.gold for pair in made} == {"9"}
    for better, worse in chosen:
        assert better.sample.group_id == worse.sample.group_id
        assert (better.sample.index, worse.sample.index) == (0, 1)
        assert better.verdict.reward > worse.verdict.reward
        for item in (better, worse):
            assert item.events == (RewardEvent(position=len(item.sample.output_ids) - 1, value=item.verdict.reward),)
    lengths = {(len(a.sample.output_ids), len(b.sample.output_ids)) for a, b in chosen}
    assert lengths == {(3, 4), (5, 4), (3, 6), (5, 6), (6, 4)}, "all different pairs"


def test_pairs_are_bounded_for_each_group_and_do_not_depend_on_the_order_of_the_samples():
    scored = [judged(f"g/{g}", i, float(i % 3), tokens=2 + i) for g in range(3) for i in range(6)]
    made = pairs(scored_groups(scored), per_group=4, rng=random.Random(7))
    assert len(made) == 3 * 4
    shuffled = random.Random(1).sample(scored, len(scored))
    assert pairs(scored_groups(shuffled), per_group=4, rng=random.Random(7)) == made
    assert pairs(scored_groups(scored), per_group=4, rng=random.Random(8)) != made


def test_step_labels_stand_at_the_ends_of_the_steps_of_the_sampled_ids():
    tokenizer = character_tokenizer()
    finder = StepFinder(tokenizer, "newline")
    found = []
    for text in ("17+8=25\n25-9=16\n#### 16", "17+8=15\n15-9=6\n#### 6"):
        one = sample(text, output_ids=[*tokenizer.encode(text, add_special_tokens=False), 2])
        texts, ends = (find(one.output_ids, one.sampled_mask) for find in (finder.texts, finder.ends))
        found.append(step_labels(one, ends, rule_labels("17 + 8 - 9", "16", texts, "hash")))
    assert targets(found) == [[(7, 1.0), (15, 1.0), (23, 1.0)], [(7, 0.0), (14, 0.0), (21, 0.0)]]


def test_step_labels_are_shares():
    one = sample("")
    with pytest.raises(ValueError, match="group grpo/0, index 0: step label 1.5"):
        step_labels(one, [1, 2], [0.5, 1.5])
    assert step_labels(one, [1, 2], [None, None]) is None
    assert targets([step_labels(one, [0, 1, 2], [None, 0.25, None])]) == [[(1, 0.25)]]
    assert step_labels(one, [1, 2], [0, None]).targets == (Target(position=1, value=0.0),)


def test_completions_judge_a_step_hard_or_soft():
    marks = [[1, 0, 0, 0], [0, 0], [None, 1, 1, 0, None], [None], [], [1]]
    assert from_completions(marks, soft=False) == [1.0, 0.0, 1.0, None, None, 1.0]
    assert from_completions(marks, soft=True) == [0.25, 0.0, 2 / 3, None, None, 1.0]
