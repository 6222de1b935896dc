"""Labels, bootstrap samples, and stages that train a reward model."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from learner.algorithms.table import resolve, resolve_reward_model
from learner.training.reward_model_stage import bootstrap, labelled, outputs, outputs_of, pairs, ranked
from reward.models import scalar_model as scalar_models
from reward.types import LabelledGroup
from tests.learner.builders import adamw, examples, groups, grpo, random_batch, scored, write_model
from tests.learner.slow import batch_of, labelled_batch
from tests.learner.stages import assert_equal, stage, weights
from tests.reward.builders import flat

OUTCOME, PROCESS = resolve_reward_model("outcome_model"), resolve_reward_model("process_model")


def outcome_pairs(count: int = 6):
    """Which output is better shows in its first token."""
    better = [scored(f"p/{i}", 0, [5 + i, 9], [40 + i % 3, 7, 2], reward=1.0) for i in range(count)]
    worse = [scored(f"p/{i}", 1, [5 + i, 9], [30 + i % 3, 7, 7, 2], reward=0.0) for i in range(count)]
    return [item for pair in zip(better, worse, strict=True) for item in pair]


def test_only_labelled_tokens_are_trained():
    batch = [scored("a", 0, [5], [6, 7, 8], events=[(2, 1.0), (0, 0.0)], mask=[True, False, True]), scored("a", 1, [5], [6])]
    assert labelled(examples(batch)) == [True, False]
    assert [made.mask for made in outputs_of(examples(batch), [True, False])] == [(True, False, True), (False,)]


@pytest.mark.parametrize("events", [[(3, 1.0)], [(-1, 1.0)], [(0, 1.0), (0, 0.0)]])
def test_a_label_outside_its_output_or_twice_at_a_token_is_refused(events):
    with pytest.raises(ValueError, match="group a, index 0: labels at tokens"):
        outputs_of(examples([scored("a", 0, [5], [6, 7, 8], events=events)]), [True])


def test_a_label_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="found label 1.5"):
        labelled(examples([scored("a", 0, [5], [6], events=[(0, 1.5)])]))


def test_ranking_refuses_steps_and_leaves_out_ties_and_unlabelled_outputs():
    with pytest.raises(ValueError, match="expected one at the last token"):
        ranked(examples([scored("a", i, [5], [6, 7], events=[(0, 1.0), (1, 1.0)]) for i in range(2)]))
    with pytest.raises(ValueError, match="group a, index 0: found 1 outputs in its group, expected a pair"):
        ranked(examples([scored("a", 0, [5], [6], reward=1.0)]))
    batch = [scored("a", 0, [5], [6], reward=0.3), scored("a", 1, [5], [7], reward=0.3)]
    batch += [scored("b", 0, [5], [6], reward=0.3), scored("b", 1, [5], [7])]
    batch += [scored("c", 0, [5], [6], reward=0.3), scored("c", 1, [5], [7], reward=-2.0)]
    assert ranked(examples(batch)) == [False] * 4 + [True] * 2


def test_bootstrap_counts_are_poisson_and_depend_on_seed_member_and_example_alone():
    whole = list(range(4000))
    first, second = bootstrap(whole, 2, 0)
    share = Counter(first)
    assert [share[k] / 4000 for k in range(4)] == pytest.approx([0.368, 0.368, 0.184, 0.061], abs=0.025)
    assert sum(a == b for a, b in zip(first, second, strict=True)) / 4000 == pytest.approx(0.31, abs=0.03)
    assert bootstrap(whole[::-1], 3, 0)[1] == second[::-1]
    assert bootstrap(whole, 2, 1)[0] != first


def test_a_single_member_sees_everything_once():
    assert bootstrap(["a", "b"], 1, 0) == [[1, 1]]


def test_both_outputs_of_a_pair_are_one_example_in_any_order():
    batch = outcome_pairs(3)
    found = pairs(examples(batch))
    assert found[0::2] == found[1::2] and len(set(found)) == 3
    assert pairs(examples(batch[::-1])) == found[::-1]
    assert len(set(outputs(examples(batch)))) == 6


@pytest.mark.parametrize("members", [1, 3])
def test_an_outcome_model_learns_to_rank(start, model_dir, members):
    worker = start(model_dir)
    worker.begin_stage(stage(OUTCOME, adamw(learning_rate=3e-3), 12, members=members))
    reports = [worker.step(examples(outcome_pairs()), updates=1, temperature=1.0) for _ in range(12)]
    assert reports[-1].metrics["ranking_accuracy"] == 1
    assert reports[-1].metrics["ranking_loss"] < 0.1 < reports[0].metrics["ranking_loss"]
    assert reports[0].advantages == [0.0] * 12 and reports[0].tokens == 12
    found = worker.scalars(examples(outcome_pairs()))
    means = [sum(members) / len(members) for (members,) in found]
    assert all(better > worse for better, worse in zip(means[::2], means[1::2], strict=True))
    assert {len(scalars) for (scalars,) in found} == {members}


def test_a_process_model_learns_labels_and_tells_which_examples_had_none(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(PROCESS, adamw(learning_rate=3e-3), 20))
    batch = labelled_batch()
    hard = [replace(x, targets=tuple(replace(t, value=float(t.value > 0.5)) for t in x.targets)) for x in flat(batch)]
    reports = [worker.step([LabelledGroup(labelled=(x,)) for x in hard], updates=2, temperature=1.0) for _ in range(10)]
    assert reports[-1].metrics["label_accuracy"] > 0.95 > reports[0].metrics["label_accuracy"]
    assert reports[0].advantages == [0.0 if x.targets else None for x in hard]
    assert reports[0].tokens == sum(len(x.targets) for x in hard)
    found = worker.scalars(batch)
    assert [len(row) for row in found] == [len(x.targets) for x in hard]


def test_scalars_are_in_the_order_of_the_events(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(PROCESS, adamw(), 1))
    forwards = scored("a", 0, [5], [6, 7, 8], events=[(0, 1.0), (2, 0.0)])
    backwards = replace(forwards, events=forwards.events[::-1])
    (first,), (second,) = worker.scalars(examples([forwards])), worker.scalars(examples([backwards]))
    assert first == second[::-1] and first[0] != first[1]
    assert worker.scalars(examples([scored("a", 0, [5], [6])])) == [()]


def test_a_batch_without_labels_changes_nothing(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(OUTCOME, adamw(), 3))
    before = weights(worker, "reward_model")
    tie = [scored("a", i, [5], [6 + i], reward=1.0) for i in range(2)]
    report = worker.step(examples(tie), updates=1, temperature=1.0)
    assert report.metrics["no_signal"] == 1 and report.advantages == [None, None]
    assert_equal(weights(worker, "reward_model"), before)


def test_a_reward_model_grows_from_the_current_policy_outlasts_policy_stages_and_is_trained_on(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(), adamw(), 3))
    worker.step(groups(random_batch()), updates=1, temperature=1.0)
    worker.begin_stage(stage(PROCESS, adamw(), 3, seed=4))
    policy, grown = weights(worker), weights(worker, "reward_model")
    for name, tensor in grown.items():
        if ".score." not in name:
            assert torch.equal(tensor, policy[name.removeprefix("members.0.")])
    worker.step(labelled_batch(), updates=1, temperature=1.0)
    trained = weights(worker, "reward_model")
    assert_equal(weights(worker), policy)
    worker.begin_stage(stage(resolve("sft"), adamw(), 3))
    worker.step(groups(random_batch()), updates=1, temperature=1.0)
    worker.begin_stage(stage(PROCESS, adamw(), 3, seed=9))
    assert_equal(weights(worker, "reward_model"), trained)


def test_another_kind_or_number_of_members_than_the_one_held_is_refused(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(PROCESS, adamw(), 3))
    with pytest.raises(ValueError, match="found one for process of 1 members, expected one for outcome of 1"):
        worker.begin_stage(stage(OUTCOME, adamw(), 3))
    with pytest.raises(ValueError, match="expected one for process of 2"):
        worker.begin_stage(stage(PROCESS, adamw(), 3, members=2))


@pytest.mark.slow
def test_a_given_reward_model_is_the_start_and_may_be_of_another_size_than_the_policy(start, model_dir, tmp_path):
    wide = write_model(tmp_path / "wide", hidden_size=40)
    given = scalar_models.build(wide, "outcome", members=1, seed=2, dtype=torch.float32)
    scalar_models.save(given, tmp_path / "given", wide)
    spec = stage(OUTCOME, adamw(), 3, reward_model=(tmp_path / "given",))
    worker = start(model_dir)
    worker.begin_stage(spec)
    assert_equal(weights(worker, "reward_model"), given.state_dict())
    worker.step(examples(outcome_pairs()), updates=1, temperature=1.0)
    worker.save(tmp_path / "checkpoint")
    trained = weights(worker, "reward_model")
    worker.begin_stage(stage(grpo(), adamw(), 3))
    worker.save(tmp_path / "later")
    worker.writing(wait=True)
    for name, of in (("checkpoint", spec), ("later", stage(grpo(), adamw(), 3))):
        resumed = start(model_dir)
        resumed.load(tmp_path / name, of)
        assert_equal(weights(resumed, "reward_model"), trained)


def test_a_given_reward_model_with_another_tokenizer_is_refused(start, model_dir, tmp_path):
    given = scalar_models.build(model_dir, "outcome", members=1, seed=2, dtype=torch.float32)
    scalar_models.save(given, tmp_path, model_dir)
    words = json.loads((tmp_path / "tokenizer.json").read_text())
    words["model"]["vocab"] |= {"7": 8, "8": 7}
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match="must have the same tokenizer"):
        start(model_dir).begin_stage(stage(OUTCOME, adamw(), 3, reward_model=(tmp_path,)))


def test_packed_scalars_are_those_of_each_output_alone(start, model_dir):
    worker = start(model_dir, max_tokens_per_microbatch=4096)
    worker.begin_stage(stage(PROCESS, adamw(), 1, members=2, seed=1))
    batch = batch_of("token", process=True)
    together = worker.scalars(examples(batch))
    for item, scalars in zip(batch, together, strict=True):
        alone = worker.scalars(examples([item]))[0]
        torch.testing.assert_close(torch.tensor(scalars), torch.tensor(alone), rtol=0, atol=1e-5)
