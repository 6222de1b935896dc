"""The whole loop on real parts: Ray processes, vLLM engines, an FSDP learner; small, and watched from outside."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cluster.records.ledger import history
from tests.cluster.clusters import (
    COHORT,
    RAY,
    RECIPE,
    cohort,
    killed_and_resumed,
    listed,
    processes,
    raylets,
    sample_files,
    steps,
    summary,
    until,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def unbroken(here, head):
    """The run that the others are compared with."""
    cohort(head[0], "train", here / "recipe.yaml", f"output={here / 'unbroken'}")
    return here / "unbroken"


def test_the_run_publishes_new_weights_every_step_and_its_samples_carry_their_version(unbroken):
    digests = summary(unbroken)["versions"]
    assert list(digests) == [str(v) for v in range(1, 8)]
    assert len(set(digests.values())) == 7
    for step, rows in sample_files(unbroken).items():
        version = int(step.removeprefix("step_").removesuffix(".jsonl")) - 40
        assert version < 1 or {tuple(map(tuple, r["versions"])) for r in rows} == {((version, 0),)}


def test_engine_and_learner_agree_at_every_step(unbroken):
    grpo = [row for row in steps(unbroken) if row["stage"] == "grpo"]
    assert len(grpo) == 6
    assert all(row["mismatch_max"] < 1e-3 and row["canary_mean"] < 1e-4 for row in grpo)
    assert all(sum(row[f"seconds_{p}"] for p in ("generate", "score", "train", "sync")) <= row["seconds_step"] for row in grpo)


def test_what_a_user_finds_in_the_run_directory(unbroken):
    names = {"config.yaml", "metrics.jsonl", "samples", "ledger.jsonl", "checkpoints", "tensorboard", "summary.json", "run.png"}
    assert names <= {p.name for p in unbroken.iterdir()}
    facts = summary(unbroken)
    for name in ("accuracy", "greedy_accuracy", "maj_at_2", "pass_at_2"):
        assert 0 <= facts[f"{name}_before"] <= 1 and 0 <= facts[f"{name}_after"] <= 1
    assert facts["actors"]["rollout-0"]["vllm"] and facts["actors"]["learner-0"]["actor_id"]
    assert list(unbroken.glob("tensorboard/events*"))


def test_a_run_whose_driver_is_killed_resumes_to_the_same_samples_and_the_same_weights(here, head, unbroken):
    run_dir = killed_and_resumed(head[0], here / "recipe.yaml", here / "killed", step=43)
    assert sample_files(run_dir) == sample_files(unbroken)
    assert summary(run_dir)["versions"] == summary(unbroken)["versions"]
    assert (run_dir / "inputs.json").read_text() == "{}", "a built-in task and its model read no file"
    lines = history(run_dir / "ledger.jsonl")
    trained = [(g, i) for x in lines if x["event"] == "trained" for g, ids in x["groups"].items() for i in ids]
    assert len(trained) == len(set(trained)) == 40 * 64 + 6 * 64
    assert {x["incarnation"] for x in lines} == {0, 1}


def test_a_submitted_job_is_seen_in_the_dashboard_and_outlives_its_reward_actor(here, head):
    env, dashboard, metrics = head
    run_dir = here / "job"
    submit = [RAY, "job", "submit", f"--address={dashboard}", "--submission-id=small", "--no-wait", "--"]
    entry = [str(COHORT), "train", str(here / "recipe.yaml"), f"output={run_dir}", "stages.grpo.steps=12"]
    clean = {k: v for k, v in env.items() if k != "RAY_ADDRESS"}
    subprocess.run([*submit, *entry], env=clean, check=True, capture_output=True, timeout=120)

    until(lambda: len(steps(run_dir)) >= 41, 300, "the first step of GRPO")
    actors = {
        a["name"]: a for a in listed("actors", env, dashboard) if a["state"] == "ALIVE" and not a["name"].startswith("_ray")
    }
    assert set(actors) == {"small-0/rollout-0", "small-0/reward-0", "small-0/learner-0"}
    assert processes("VLLM::EngineCore")
    os.kill(actors["small-0/reward-0"]["pid"], signal.SIGKILL)

    def gauge():
        lines = urllib.request.urlopen(metrics, timeout=20).read().decode().splitlines()
        return any(line.startswith("ray_cohort_reward{") and 'run="small"' in line for line in lines)

    until(gauge, 60, "the reward gauge")  # Ray hands metrics to the port every few seconds

    def status():
        jobs = {j["submission_id"]: j for j in listed("jobs", env, dashboard)}
        return jobs["small"]["status"] in ("SUCCEEDED", "FAILED") and jobs["small"]

    job = until(status, 300, "the job's end")
    assert job["status"] == "SUCCEEDED", (run_dir / "ledger.jsonl").read_text()[-500:]
    assert summary(run_dir)["replaced_workers"] == 1
    assert len([r for r in steps(run_dir) if r["stage"] == "grpo"]) == 12
    tasks = {t["name"] for t in listed("tasks", env, dashboard)}
    assert {"generate step 41 v1", "generate step 42 v2", "train step 42 v2", "score step 42"} <= tasks


def test_a_run_whose_every_output_is_rejected_ends_with_the_cause_and_3(here, head):
    script = Path(__file__).parents[2] / "benchmarks/claims.py"
    command = [sys.executable, script, "failures", "--causes", "rejected", "--runs", here]
    done = subprocess.run(command, env=head[0], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "failures: PASS" in done.stdout, done.stdout + done.stderr
    assert "2 of 2 outputs have no score (2 rejected)" in done.stdout and "outside the tokenizer's vocabulary" in done.stdout


def test_a_run_names_itself_in_the_metadata_of_its_job(head, unbroken):
    env, dashboard, _ = head
    metadata = [j["metadata"] or {} for j in listed("jobs", env, dashboard)]
    assert any(m.get("cohort_run") == "small" for m in metadata), metadata


def test_nothing_is_left_of_finished_runs(head, unbroken):
    env, dashboard, _ = head
    until(lambda: not [a for a in listed("actors", env, dashboard) if a["state"] == "ALIVE"], 60, "the end of all actors")
    pids = summary(unbroken)["actors"]["rollout-0"]["pids"]
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 60, "the end of the engine's processes")
    assert not list(Path("/dev/shm").glob("cohort_small-*"))


def test_two_workers_and_two_ranks_on_four_nodes_share_the_work(tmp_path):
    """Each actor has a raylet of its own, so every bucket of weights crosses from node to node."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    wide = ["rollout.workers=2", "learner.ranks=2", "stages.grpo.steps=3", "stages.grpo.optimizer.learning_rate=0"]
    with raylets(tmp_path, nodes=5, cpus=1) as (env, _, _):
        cohort(env, "train", tmp_path / "recipe.yaml", f"output={tmp_path / 'run'}", *wide)
    facts = summary(tmp_path / "run")
    assert len({info["node_id"] for info in facts["actors"].values()}) == 5
    assert all("Shard" in p for p in facts["actors"]["learner-1"]["placements"].values())
    # At learning rate 0 the published bytes are the same, whatever way they went.
    assert len(facts["versions"]) == 4 and len(set(facts["versions"].values())) == 1
    assert all(row["canary_mean"] < 1e-4 for row in steps(tmp_path / "run") if row["stage"] == "grpo")
