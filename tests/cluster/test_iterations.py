"""Iterative training, offline stages and reward-model stages, with fakes at the seams as in test_pipeline."""

import hashlib
import json
from dataclasses import replace

import pytest

from cluster.config import RunConfig, load
from cluster.metrics import read_jsonl
from cluster.records import evaluation_rows
from cluster.resume import Checkpoints
from cluster.sampling import RunFailed
from learner.algorithms import RewardModelRow
from reward.scorer import gold_problem
from rollout.data import load_data
from rollout.tasks import character_tokenizer
from tests.cluster.test_pipeline import FakeRoles, drive, sample_files, trained

JUDGE = {"algorithm": "outcome_model", "steps": 3, "questions_per_step": 9, "samples_per_question": 4}
GRPO = {"algorithm": "grpo", "steps": 2, "questions_per_step": 2, "samples_per_question": 3}
RATE = {"optimizer": {"learning_rate": 1e-3}}


def configuration(output, stages, **changes):
    task = {"task": "chained-arithmetic", "rows": 60}
    data = {"questions": task, "hold_out": 6, "prompt": {"template": "plain"}}
    fields = {
        "name": "fake", "output": str(output), "model": {"init": "small-llama"}, "data": data, "checkpoint_every": 1,
        "evaluation": {"samples_per_question": 2}, "rollout": {"workers": 2}, "stages": [RATE | stage for stage in stages],
    }  # fmt: skip
    return RunConfig.model_validate(fields | changes)


ITERATIVE = [JUDGE | {"name": "first"}, GRPO | {"name": "grpo-1"}, JUDGE | {"name": "judge-1"}, GRPO | {"name": "grpo-2"}]


class Judged(FakeRoles):
    """FakeRoles with a reward model, which is one number too; every call that matters is noted in order."""

    def __init__(self, tokenizer, **options):
        super().__init__(tokenizer, **options)
        self.events, self.batches, self.judge_weights, self.judge_held, self.spec = [], [], 0, None, None

    def judge(self, questions, samples, name, reward):
        scored = super().judge(questions, samples, name, reward)
        if reward == "rule":
            return scored
        self.events.append(f"judge by {self.reward_version}")
        return [
            replace(s, verdict=replace(s.verdict, reward=s.verdict.reward + i % 3, reward_version=self.reward_version))
            for i, s in enumerate(scored)
        ]

    def learn(self, method, *args, **options):
        if method in ("begin_stage", "load"):
            self.spec = args[-1]
        if method == "begin_stage":
            self.events.append(f"begin {type(self.spec.row).__name__} at weights {self.weights}")
        if method == "scores":
            return [[((0.5,),) * len(item.events) for item in args[0]]]
        if method == "step" and isinstance(self.spec.row, RewardModelRow):
            kept = self.weights
            answer = super().learn(method, *args)
            seen = repr([(s.sample.group_id, s.events) for s in args[0]]).encode()
            self.weights, self.judge_weights = kept, (self.judge_weights * 7 + hashlib.sha256(seen).digest()[0]) % 1000
            self.batches.append(args[0])
            return answer
        answer = super().learn(method, *args, **options)
        if method == "save":
            (args[0] / "judge").write_text(str(self.judge_weights))
        if method == "load":
            self.judge_weights = int((args[0] / "judge").read_text())
        return answer

    def reward_slots(self):
        return [0]

    def send_reward_model(self, version, slots):
        self.events.append(f"send reward model {version}")
        self.judge_held = self.judge_weights
        return f"digest of {self.judge_weights}", {}


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer()


@pytest.fixture(scope="module")
def data(tokenizer):
    return load_data(configuration("unused", [GRPO | {"reward": "rule"}]).data, tokenizer, 0, gold_problem)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, data, tokenizer):
    return drive(configuration(tmp_path_factory.mktemp("runs") / "run", ITERATIVE), data, Judged(tokenizer))


def test_the_reference_comes_at_the_start_of_an_iteration_and_the_reward_model_at_its_end(unbroken):
    events, kinds = unbroken.roles.events, [e.partition(" at ")[0] for e in unbroken.roles.events]
    assert kinds == [
        "begin RewardModelRow", "send reward model 1",
        "begin Algorithm", "judge by 1", "judge by 1",
        "begin RewardModelRow", "send reward model 2",
        "begin Algorithm", "judge by 2", "judge by 2",
    ]  # fmt: skip
    policies = [e.rpartition(" ")[2] for e in events if e.startswith("begin Algorithm")]
    assert policies[0] == "0" and policies[1] != "0", "the second reference is a trained policy"
    versions = {name: {row["reward_version"] for row in rows} for name, rows in sample_files(unbroken.dir).items()}
    assert versions["step_1.jsonl"] == {None} and versions["step_4.jsonl"] == {1} and versions["step_9.jsonl"] == {2}


def test_a_tenth_of_the_later_examples_is_history_and_none_of_the_first(unbroken):
    groups = [[s.sample.group_id for s in batch] for batch in unbroken.roles.batches]
    first, later = sum(groups[:3], []), sum(groups[3:], [])
    assert first and not [g for g in first if not g.startswith("first/")]
    old = [g for g in later if g.startswith("first/")]
    assert all(g.startswith(("first/", "judge-1/")) for g in later)
    assert abs(len(old) - 0.1 * len(later)) <= 1, (len(old), len(later))


def test_the_weights_of_both_models_have_versions_with_digests(unbroken):
    assert list(unbroken.serving.digests) == ["reward model 1", "1", "2", "reward model 2", "3", "4"]
    rows = read_jsonl(unbroken.dir / "reward_model.jsonl")
    assert [(r["step"], r["reward_version"], r["supervision"]) for r in rows] == [(3, 1, "outcome"), (8, 2, "outcome")]
    assert rows[0]["pairs"] > 0 and rows[0]["pair_accuracy"] == 0.5, "equal scores are half right"


@pytest.mark.parametrize("fail_step", range(1, 11))
def test_a_run_killed_in_any_phase_resumes_in_that_phase(tmp_path, data, tokenizer, unbroken, fail_step):
    config = configuration(tmp_path / "run", ITERATIVE)
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, Judged(tokenizer, fail_step=fail_step))
    found = Checkpoints(config.output, keep=2).newest()
    assert (found is None) == (fail_step == 1) and (found is None or found[1]["step"] == fail_step - 1)
    loop = drive(config, data, Judged(tokenizer))
    assert sample_files(loop.dir) == sample_files(unbroken.dir)
    assert trained(loop.dir) == trained(unbroken.dir)
    assert loop.serving.digests == unbroken.serving.digests
    assert read_jsonl(loop.dir / "reward_model.jsonl") == read_jsonl(unbroken.dir / "reward_model.jsonl")


def test_offline_outputs_are_made_once_by_the_policy_that_the_stage_starts_from(tmp_path, data, tokenizer):
    rft = {"algorithm": "rft", "steps": 6, "questions_per_step": 2, "samples_per_question": 3, "offline_questions": 4}
    config = configuration(tmp_path / "run", [rft])
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, FakeRoles(tokenizer, fail_step=4))
    (made,) = (config.output / "offline").iterdir()
    before = made.read_text()
    loop = drive(config, data, FakeRoles(tokenizer))
    assert [path.read_text() for path in (config.output / "offline").iterdir()] == [before]
    assert trained(loop.dir) == [(f"rft/{n}", i) for n in range(12) for i in range(3)]
    rows = [row for n in range(1, 7) for row in sample_files(loop.dir)[f"step_{n}.jsonl"]]
    texts = [[row["text"] for row in rows[i : i + 3]] for i in range(0, len(rows), 3)]
    epochs = [sorted(texts[i : i + 4]) for i in range(0, 12, 4)]
    assert epochs[0] == epochs[1] == epochs[2], "each epoch trains on the same outputs"
    assert list(loop.serving.digests) == ["1"], "the weights go out at the stage's end"


@pytest.mark.parametrize("algorithm", ["rft", "dpo"])
@pytest.mark.parametrize("fail_step", range(1, 7))
def test_an_offline_stage_that_is_evaluated_on_its_way_resumes_with_its_first_outputs(
    tmp_path, data, tokenizer, algorithm, fail_step
):
    stage = {"algorithm": algorithm, "steps": 6, "questions_per_step": 2, "samples_per_question": 4, "offline_questions": 8}
    often = {"evaluation": {"samples_per_question": 2, "every": 2}}
    unbroken = drive(configuration(tmp_path / "unbroken", [stage], **often), data, FakeRoles(tokenizer))
    assert list(unbroken.serving.digests) == ["1", "2", "3"]
    with pytest.raises(RuntimeError, match="killed"):
        drive(configuration(tmp_path / "run", [stage], **often), data, FakeRoles(tokenizer, fail_step=fail_step))
    (made,) = (tmp_path / "run" / "offline").iterdir()
    changed = stage | {"optimizer": {"learning_rate": 2e-3}}
    loop = drive(configuration(tmp_path / "run", [changed], checkpoint_every=2, **often), data, FakeRoles(tokenizer))
    assert sample_files(loop.dir) == sample_files(unbroken.dir)
    assert evaluation_rows(loop.dir) == evaluation_rows(unbroken.dir)
    if fail_step > 1:
        assert list((tmp_path / "run" / "offline").iterdir()) == [made]


def test_offline_outputs_that_were_lost_are_not_made_again_by_another_policy(tmp_path, data, tokenizer):
    rft = {"algorithm": "rft", "steps": 4, "questions_per_step": 2, "samples_per_question": 3}
    config = configuration(tmp_path / "run", [rft])
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, FakeRoles(tokenizer, fail_step=3))
    next((config.output / "offline").iterdir()).unlink()
    with pytest.raises(ValueError, match="is missing; expected the outputs that stage rft made when it began"):
        drive(config, data, FakeRoles(tokenizer))


def test_pairs_are_a_better_and_a_worse_output_of_one_question(tmp_path, data, tokenizer):
    dpo = {"algorithm": "dpo", "steps": 2, "questions_per_step": 3, "samples_per_question": 4, "offline_questions": 12}
    loop = drive(configuration(tmp_path / "run", [dpo]), data, FakeRoles(tokenizer))
    rows = sample_files(loop.dir)["step_1.jsonl"]
    assert [(r["group"], r["index"], r["reward"]) for r in rows] == [
        (f"dpo/{n}", i, reward) for n in range(3) for i, reward in ((0, 1.0), (1, 0.0))
    ]


GIVEN = {
    "dpo": ("preferences", {"chosen": "#### {right}", "rejected": "#### {wrong}"}, [1.0, 0.0]),
    "outcome_model": ("preferences", {"chosen": "#### {right}", "rejected": "#### {wrong}"}, [1.0, 0.0]),
    "process_model": ("labelled_steps", {"steps": "steps", "labels": "labels"}, [0.5]),
}


@pytest.mark.parametrize("algorithm", GIVEN)
def test_a_stage_from_a_file_trains_on_what_the_file_says(tmp_path, tokenizer, algorithm):
    name, columns, rewards = GIVEN[algorithm]
    rows = [{"question": f"1 + {i}", "right": 1 + i, "wrong": i, "steps": ["1", "2"], "labels": [1, 0]} for i in range(4)]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"algorithm": algorithm, "from_file": True, "steps": 2, "questions_per_step": 2}
    source = {name: {"file": str(tmp_path / "given.jsonl"), **columns}}
    questions = {"questions": {"task": "chained-arithmetic", "rows": 20}, "hold_out": 6, "prompt": {"template": "plain"}}
    config = configuration(tmp_path / "run", [stage], model={"path": "models/any"}, data=questions | source)
    roles = Judged(tokenizer)
    loop = drive(config, load_data(config.data, tokenizer, 0, gold_problem), roles)
    assert len(trained(loop.dir)) == 2 * 2 * len(rewards)
    assert [row["reward"] for row in sample_files(loop.dir)["step_1.jsonl"]] == rewards * 2
    if algorithm != "dpo":
        assert all(len(item.events) == len(rewards) % 2 + 1 for batch in roles.batches for item in batch)


def test_a_stage_without_any_label_fails_rather_than_serve_an_untrained_model(tmp_path, data, tokenizer):
    class Perfect(Judged):
        def judge(self, questions, samples, name, reward):
            scored = super().judge(questions, samples, name, "rule")
            return [replace(s, verdict=replace(s.verdict, reward=1.0)) for s in scored]

    with pytest.raises(RunFailed, match="none of its outputs had a label or made a pair"):
        drive(configuration(tmp_path / "run", [JUDGE]), data, Perfect(tokenizer))


def test_a_group_without_spread_is_replaced_at_most_so_often(tmp_path, data, tokenizer):
    dapo = {"algorithm": "dapo", "steps": 2, "questions_per_step": 3, "samples_per_question": 2, "max_refills": 2}
    loop = drive(configuration(tmp_path / "run", [dapo]), data, FakeRoles(tokenizer))
    rows = [row for name in ("step_1.jsonl", "step_2.jsonl") for row in sample_files(loop.dir)[name]]
    groups = {row["group"]: set() for row in rows}
    for row in rows:
        groups[row["group"]].add(row["reward"])
    assert len(groups) == 6
    assert all(len(rewards) == 2 or group.endswith(".2") for group, rewards in groups.items())
    assert any("." in group for group in groups), "some were replaced"


def test_iterations_in_a_recipe_are_stages_written_out(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: x\nmodel: {init: small-llama}\ndata: {questions: {task: chained-arithmetic}, prompt: {template: plain}}\n"
        "stages:\n"
        "  - {algorithm: outcome_model, steps: 1, questions_per_step: 2, samples_per_question: 2,\n"
        "     optimizer: {learning_rate: 1}}\n"
        "  - iterations: 2\n    stages:\n"
        "      - {algorithm: grpo, steps: 3, questions_per_step: 2, samples_per_question: 2, optimizer: {learning_rate: 1}}\n"
        "      - {algorithm: outcome_model, name: judge, steps: 1, questions_per_step: 2, samples_per_question: 2,\n"
        "         optimizer: {learning_rate: 1}}\n"
    )
    config = load(path, ["stages.1.stages.grpo.steps=4"])
    assert [(s.name, s.steps) for s in config.stages] == [
        ("outcome_model", 1), ("grpo-1", 4), ("judge-1", 1), ("grpo-2", 4), ("judge-2", 1),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"recipe.yaml:9: stages.1.stepps"):
        path.write_text(path.read_text().replace("algorithm: grpo, steps", "algorithm: grpo, stepps"))
        load(path)


def test_what_a_selection_learnt_survives_a_kill(tmp_path, data, tokenizer):
    stage = GRPO | {"algorithm": "rloo", "steps": 4, "selection": {"cell": "by_difficulty"}, "samples_per_question": 4}
    unbroken = drive(configuration(tmp_path / "unbroken", [stage]), data, FakeRoles(tokenizer))
    assert len(unbroken.memory) == 8, "two new questions a step"
    config = configuration(tmp_path / "run", [stage])
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, FakeRoles(tokenizer, fail_step=3))
    assert sample_files(drive(config, data, FakeRoles(tokenizer)).dir) == sample_files(unbroken.dir)
