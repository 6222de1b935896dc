"""Iterative training, offline stages and reward-model stages, with fakes at the seams as in test_pipeline."""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import count

import pytest

from cluster.config.run_config import RunConfig, load
from cluster.records.metrics import read_jsonl
from cluster.records.samples import evaluation_rows
from cluster.run.checkpoints import Checkpoints
from cluster.run.labelling import HISTORY
from cluster.stopping import RunFailed
from learner.algorithms.table import RewardModelRow
from reward.config import RewardConfig
from reward.judging.judges import gold_check
from rollout.data.datasets import load_data
from tests.cluster.test_pipeline import FakeRoles, drive, sample_files, trained
from tests.reward.builders import flat

pytestmark = pytest.mark.slow

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
        self.events, self.batches, self.judge_weights, self.judge_version, self.spec = [], [], 0, 0, None

    def judged(self, groups, by):
        scored = super().judged(groups, by)
        if by == "rule":
            return scored
        self.events.append(f"judge by {self.judge_version}")
        order = count()

        def by_model(s):
            reward = s.verdict.reward + next(order) % 3
            return replace(s, verdict=replace(s.verdict, reward=reward, reward_version=self.judge_version))

        return [replace(group, scored=tuple(map(by_model, group.scored))) for group in scored]

    def learn(self, method, *args):
        if method in ("begin_stage", "load"):
            self.spec = args[-1]
        if method == "begin_stage":
            self.events.append(f"begin {type(self.spec.row).__name__} at weights {self.weights}")
        if method == "scalars":
            return [((0.5,),) * len(item.targets) for item in flat(args[0])]
        if method == "step" and isinstance(self.spec.row, RewardModelRow):
            kept = self.weights
            answer = super().learn(method, *args)
            seen = repr([(s.sample.group_id, s.targets) for s in flat(args[0])]).encode()
            self.weights, self.judge_weights = kept, (self.judge_weights * 7 + hashlib.sha256(seen).digest()[0]) % 1000
            self.batches.append(flat(args[0]))
            return answer
        answer = super().learn(method, *args)
        if method == "load":
            self.judge_weights = int((args[0] / "judge").read_text())
        return answer

    def store(self, folder):
        files = super().store(folder)
        return files | {"judge": (folder / "judge").write_text(str(self.judge_weights))}

    def send_reward_model(self, version, slots):
        self.events.append(f"send reward model {version}")
        self.judge_version = version
        return f"digest of {self.judge_weights}", {}


@pytest.fixture(scope="module")
def data(tokenizer):
    return load_data(configuration("unused", [GRPO | {"reward": "rule"}]).data, tokenizer, 0, gold_check(RewardConfig()))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, data, tokenizer):
    return drive(configuration(tmp_path_factory.mktemp("runs") / "run", ITERATIVE), data, Dies(tokenizer))


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


class Dies(Judged):
    """Judged, whose driver is killed at the nth call of a seam; `calls_of` counts them all."""

    def __init__(self, tokenizer, seam="", nth=0):
        super().__init__(tokenizer)
        self.seam, self.nth, self.calls_of = seam, nth, Counter()

    def _at(self, seam):
        self.calls_of[seam] += 1
        if (seam, self.calls_of[seam]) == (self.seam, self.nth):
            raise RuntimeError("killed")

    def generate(self, *args):
        self._at("generate")
        return super().generate(*args)

    def score(self, parts, by, name):
        self._at("score")
        return super().score(parts, by, name)

    def publish(self, version, slots):
        self._at("publish")
        return super().publish(version, slots)

    def send_reward_model(self, version, slots):
        self._at("send_reward_model")
        return super().send_reward_model(version, slots)

    def learn(self, method, *args):
        self._at(method)
        return super().learn(method, *args)


SEAMS = ("generate", "score", "publish", "send_reward_model", "begin_stage", "save", "scalars", "export_reward_model")


@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_run_killed_at_any_seam_resumes_to_the_same_end(tmp_path, data, tokenizer, unbroken, seam, place):
    whole, config = unbroken.roles.calls_of[seam], configuration(tmp_path / "run", ITERATIVE)
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, Dies(tokenizer, seam, 1 + round(place * (whole - 1))))
    loop = drive(config, data, Dies(tokenizer))
    assert sample_files(loop.dir) == sample_files(unbroken.dir)
    assert trained(loop.dir) == trained(unbroken.dir)
    assert loop.serving.digests == unbroken.serving.digests
    assert evaluation_rows(loop.dir) == evaluation_rows(unbroken.dir)
    assert read_jsonl(loop.dir / "reward_model.jsonl") == read_jsonl(unbroken.dir / "reward_model.jsonl")
    assert (loop.dir / "reward_model" / HISTORY).read_text() == (unbroken.dir / "reward_model" / HISTORY).read_text()


def test_a_stage_without_any_label_fails_rather_than_serve_an_untrained_model(tmp_path, data, tokenizer):
    class Perfect(Judged):
        def judged(self, groups, by):
            return [replace(group, scored=tuple(map(self._right, group.scored))) for group in super().judged(groups, "rule")]

        def _right(self, s):
            return replace(s, verdict=replace(s.verdict, reward=1.0))

    with pytest.raises(RunFailed, match="no output had a label or made a pair"):
        drive(configuration(tmp_path / "run", [JUDGE]), data, Perfect(tokenizer))


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
