"""The whole loop on real parts: Ray processes, vLLM engines, an FSDP learner; small, and watched from outside."""

import os
import re
import signal
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.records.catalogue import METRICS
from cluster.records.ledger import history
from cluster.records.metrics import read_jsonl
from tests.cluster.clusters import (
    COHORT,
    STEPS,
    cohort,
    ended,
    listed,
    processes,
    sample_files,
    steps,
    submitted,
    summary,
    until,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def unbroken(here, head):
    """The run that the broken one is compared with."""
    cohort(head[0], "train", here / "recipe.yaml", f"output={here / 'unbroken'}")
    return here / "unbroken"


@pytest.fixture(scope="module")
def broken(here, head):
    """The same run, whose driver is killed; it goes on as a submitted job, of which a reward actor is killed."""
    env, dashboard, metrics = head
    run_dir, seen = here / "broken", SimpleNamespace()
    command = [COHORT, "train", here / "recipe.yaml", f"output={run_dir}"]
    driver = subprocess.Popen(command, env=env, cwd=here, stdout=subprocess.DEVNULL)
    until(lambda: len(steps(run_dir)) >= 32 or driver.poll() is not None, 300, "step 32")
    driver.kill()
    driver.wait(30)
    assert not (run_dir / "summary.json").exists()

    submitted(env, dashboard, "small", COHORT, "resume", run_dir)
    gauge = ThreadPoolExecutor(1).submit(until, lambda: _shown(metrics), 180, "the reward on the metrics port")

    def actors():
        alive = {a["name"]: a for a in listed("actors", env, dashboard) if a["state"] == "ALIVE"}
        named = {name: a for name, a in alive.items() if name.startswith("small-1/")}
        return named if len(named) == 4 else None

    seen.actors = until(actors, 120, "the actors of the job")
    until(lambda: len(steps(run_dir)) >= 36, 300, "a step that a model judges")
    seen.engines = processes("VLLM::EngineCore")
    os.kill(seen.actors["small-1/reward-1"]["pid"], signal.SIGKILL)
    seen.job = until(lambda: ended(env, dashboard, "small"), 300, "the job's end")
    assert seen.job["status"] == "SUCCEEDED", (run_dir / "ledger.jsonl").read_text()[-500:]
    seen.gauge = gauge.result(180)
    seen.tasks = {t["name"] for t in listed("tasks", env, dashboard)}
    return SimpleNamespace(dir=run_dir, **vars(seen))


def _shown(metrics):
    """Whether the reward is on the metrics port, to which Ray hands what it has every few seconds."""
    lines = urllib.request.urlopen(metrics, timeout=20).read().decode().splitlines()
    return any(line.startswith("ray_cohort_reward{") and 'run="small"' in line for line in lines)


def test_the_run_publishes_new_weights_every_step_and_its_samples_carry_their_version(unbroken):
    digests = summary(unbroken)["versions"]
    policies = [name for name in digests if not name.startswith("reward")]
    assert policies == [str(v) for v in range(1, 11)]
    assert [name for name in digests if name not in policies] == [f"reward model {n}" for n in (1, 2, 3)]
    assert len(set(digests.values())) == len(digests)
    rows = [row for rows in sample_files(unbroken).values() for row in rows]
    spans = {(row["group"].split("/")[0], tuple(map(tuple, row["versions"]))) for row in rows}
    expected = {"sft": [0], "ruled": [1, 2, 3], "outcome_model": [4], "grpo-1": [4, 5, 6], "judge-1": [7]}
    expected |= {"grpo-2": [7, 8, 9], "judge-2": [10]}
    assert spans == {(stage, ((version, 0),)) for stage, versions in expected.items() for version in versions}


def test_engine_and_learner_agree_at_every_step(unbroken):
    grpo = [row for row in steps(unbroken) if row["stage"] == "ruled" or row["stage"].startswith("grpo")]
    assert len(grpo) == 9
    assert all(row["mismatch_max"] < 1e-3 and row["canary_mean"] < 1e-4 for row in grpo)
    assert all(sum(row[f"seconds_{p}"] for p in ("generate", "train", "sync")) <= row["seconds_step"] for row in grpo)
    assert all(row["seconds_score"] <= row["seconds_step"] for row in grpo), "it overlaps sampling"


def test_all_that_a_run_emits_is_in_the_catalogue(unbroken):
    emitted = {name for row in steps(unbroken) for name in row} - {"time", "stage"}
    assert {name for name in emitted - set(METRICS) if not re.fullmatch(r"staleness_\d+", name)} == set()
    assert {(row["deaths"], row.get("retried_share", 0.0)) for row in steps(unbroken)} == {(0, 0.0)}


def test_what_a_user_finds_in_the_run_directory(unbroken):
    names = {"config.yaml", "metrics.jsonl", "samples", "ledger.jsonl", "checkpoints", "tensorboard", "summary.json", "run.png"}
    assert names <= {p.name for p in unbroken.iterdir()}
    assert (unbroken / "inputs.json").read_text() == "{}", "a built-in task and its model read no file"
    facts = summary(unbroken)
    for name in ("accuracy", "greedy_accuracy", "maj_at_2", "pass_at_2"):
        assert 0 <= facts[f"{name}_before"] <= 1 and 0 <= facts[f"{name}_after"] <= 1
    assert facts["actors"]["rollout-0"]["vllm"] and facts["actors"]["learner-0"]["actor_id"]
    assert list(unbroken.glob("tensorboard/events*"))


def test_reward_models_reach_the_reward_actors_with_versions_and_export_as_classifiers(unbroken):
    from transformers import AutoModelForSequenceClassification

    versions = {name: {row["reward_version"] for row in rows} for name, rows in sample_files(unbroken).items()}
    assert versions["step_35.jsonl"] == {None} and versions["step_36.jsonl"] == {1} and versions["step_40.jsonl"] == {2}
    assert AutoModelForSequenceClassification.from_pretrained(unbroken / "reward_model").config.num_labels == 1
    for row in steps(unbroken):
        if row["stage"].startswith("grpo"):
            assert row["reward"] == row["model_reward"] != row["accuracy"]


def test_a_run_of_which_driver_and_reward_actor_are_killed_ends_with_the_same_samples_and_the_same_weights(unbroken, broken):
    assert sample_files(broken.dir) == sample_files(unbroken)
    assert summary(broken.dir)["versions"] == summary(unbroken)["versions"]
    assert read_jsonl(broken.dir / "reward_model.jsonl") == read_jsonl(unbroken / "reward_model.jsonl")
    assert summary(broken.dir)["replaced_workers"] == 1 and len(steps(broken.dir)) == STEPS
    lines = list(history(broken.dir / "ledger.jsonl"))
    assert {x["incarnation"] for x in lines} == {0, 1}
    trained = [_trained(x) for x in (lines, history(unbroken / "ledger.jsonl"))]
    assert len(trained[0]) == len(set(trained[0])) and trained[0] == trained[1]


def _trained(lines):
    return sorted((g, i) for x in lines if x["event"] == "trained" for g, ids in x["groups"].items() for i in ids)


def test_a_submitted_job_is_seen_in_the_dashboard(head, broken):
    assert {"small-1/rollout-0", "small-1/reward-0", "small-1/reward-1", "small-1/learner-0"} == set(broken.actors)
    assert broken.engines and broken.gauge
    assert {"generate step 38 v6", "generate step 40 v7", "train step 40 v7", "score step 40"} <= broken.tasks
    metadata = [j["metadata"] or {} for j in listed("jobs", head[0], head[1])]
    assert any(m.get("cohort_run") == "small" for m in metadata), metadata


def test_nothing_is_left_of_finished_runs(head, unbroken, broken):
    env, dashboard, _ = head
    until(lambda: not [a for a in listed("actors", env, dashboard) if a["state"] == "ALIVE"], 60, "the end of all actors")
    pids = summary(unbroken)["actors"]["rollout-0"]["pids"]
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 60, "the end of the engine's processes")
    assert not list(Path("/dev/shm").glob("cohort_small-*"))
