"""Iterative GRPO on real parts: reward models in actors of their own, killed and resumed."""

import os
import signal

import pytest

from cluster.records.metrics import read_jsonl
from tests.cluster.clusters import RECIPE, cohort, killed_and_resumed, listed, sample_files, started, steps, summary, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
JUDGED = (
    RECIPE.partition("stages:")[0].replace("reward: {format: 1.0}", "reward: {format: 1.0, workers: 2}")
    + """
stages:
  - {algorithm: sft, steps: 40, questions_per_step: 64, optimizer: {learning_rate: 2.0e-3, warmup_updates: 5}}
  - {algorithm: outcome_model, steps: 2, questions_per_step: 8, samples_per_question: 8, optimizer: {learning_rate: 5.0e-4}}
  - iterations: 2
    stages:
      - {algorithm: grpo, steps: 3, questions_per_step: 4, samples_per_question: 4, optimizer: {learning_rate: 2.0e-4}}
      - {algorithm: outcome_model, name: judge, steps: 1, questions_per_step: 8, samples_per_question: 8,
         optimizer: {learning_rate: 2.0e-4}}
"""
)
"""Iterative GRPO; from step 43 on, outputs are judged by a model that the run trained."""


@pytest.fixture(scope="module")
def judged(here, head):
    """An unbroken run of JUDGED."""
    (here / "judged.yaml").write_text(JUDGED)
    cohort(head[0], "train", here / "judged.yaml", f"output={here / 'judged'}")
    return here / "judged"


def test_reward_models_reach_the_reward_actors_with_versions_and_export_as_classifiers(judged):
    from transformers import AutoModelForSequenceClassification

    digests = summary(judged)["versions"]
    assert [name for name in digests if name.startswith("reward")] == [f"reward model {n}" for n in (1, 2, 3)]
    assert len(set(digests.values())) == len(digests)
    versions = {name: {row["reward_version"] for row in rows} for name, rows in sample_files(judged).items()}
    assert versions["step_42.jsonl"] == {None} and versions["step_43.jsonl"] == {1} and versions["step_47.jsonl"] == {2}
    assert AutoModelForSequenceClassification.from_pretrained(judged / "reward_model").config.num_labels == 1
    for row in steps(judged):
        if row["stage"].startswith("grpo"):
            assert row["reward"] == row["model_reward"] != row["accuracy"]


def test_an_iterative_run_whose_driver_is_killed_resumes_to_the_same_samples_and_digests(here, head, judged):
    run_dir = killed_and_resumed(head[0], here / "judged.yaml", here / "judged-killed", step=45)
    assert sample_files(run_dir) == sample_files(judged)
    assert summary(run_dir)["versions"] == summary(judged)["versions"]
    assert read_jsonl(run_dir / "reward_model.jsonl") == read_jsonl(judged / "reward_model.jsonl")


def test_a_reward_actor_with_a_model_is_replaced_and_holds_the_serving_version(here, head, judged):
    env, dashboard, _ = head
    run_dir = here / "judged-outlived"
    driver = started(env, here / "judged.yaml", run_dir, "stages.2.stages.grpo.steps=8", "name=outlived")
    until(lambda: len(steps(run_dir)) >= 43 or driver.poll() is not None, 300, "step 43")
    actors = {a["name"]: a for a in listed("actors", env, dashboard) if a["state"] == "ALIVE"}
    os.kill(actors["outlived-0/reward-1"]["pid"], signal.SIGKILL)
    assert driver.wait(300) == 0
    facts = summary(run_dir)
    assert facts["replaced_workers"] == 1
    rows = [row for name, rows in sample_files(run_dir).items() for row in rows if row["group"].startswith("grpo")]
    assert all(row["verdict"] == "score" and row["reward_version"] in (1, 2) for row in rows)
