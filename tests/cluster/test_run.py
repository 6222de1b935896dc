"""The whole loop on real parts: Ray processes, vLLM engines, an FSDP learner; small, and watched from outside."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cluster.ledger import history
from cluster.metrics import read_jsonl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
COHORT = Path(sys.executable).with_name("cohort")
RAY = Path(sys.executable).with_name("ray")
RECIPE = """
name: small
model: {init: small-llama}
data:
  questions: {task: chained-arithmetic, rows: 64}
  demonstrations: {task: chained-arithmetic, imperfect: 0.4, rows: 512}
  prompt: {template: plain}
  max_prompt_tokens: 32
  hold_out: 8
rollout: {max_new_tokens: 32, kv_cache_gb: 0.25}
reward: {format: 1.0}
evaluation: {samples_per_question: 2}
checkpoint_every: 2
stages:
  - {algorithm: sft, steps: 40, questions_per_step: 64, optimizer: {learning_rate: 2.0e-3, warmup_updates: 5}}
  - {algorithm: grpo, reward: rule, steps: 6, questions_per_step: 8, samples_per_question: 8,
     optimizer: {learning_rate: 2.0e-4}}
"""

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


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def raylets(tmp_path, nodes=1, cpus=2):
    """A cluster of this machine's own: a head with dashboard and token authentication, and further raylets."""
    port, dashboard, metrics = free_port(), free_port(), free_port()
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}"]
    commands = [head] + [[f"--address=127.0.0.1:{port}"]] * (nodes - 1)
    started = []
    try:
        for i, arguments in enumerate(commands):
            command = [RAY, "start", *arguments, "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", "--block"]
            with (tmp_path / f"raylet-{i}.log").open("w") as log:
                started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
            until(lambda i=i: alive_nodes(env, dashboard) == i + 1, 90, f"raylet {i}")
        address = {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        yield {**env, **address}, f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics"
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def alive_nodes(env, dashboard):
    try:
        return sum(n["state"] == "ALIVE" for n in listed("nodes", env, f"http://127.0.0.1:{dashboard}"))
    except (subprocess.CalledProcessError, json.JSONDecodeError):  # the dashboard is not up yet
        return 0


def listed(kind, env, dashboard, *options):
    command = [RAY, "list", kind, "--format=json", "--limit=1000", "--detail", f"--address={dashboard}", *options]
    clean = {k: v for k, v in env.items() if k != "RAY_ADDRESS"}
    return json.loads(subprocess.run(command, env=clean, capture_output=True, text=True, check=True, timeout=60).stdout)


def until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.5)
    return value


def cohort(env, *arguments, timeout=600):
    """Run the command to its end; its output is shown when it fails."""
    command = [str(COHORT), *map(str, arguments)]
    done = subprocess.run(command, env=env, cwd=Path(arguments[1]).parent, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def steps(run_dir):
    path = run_dir / "metrics.jsonl"
    return read_jsonl(path) if path.exists() else []


def sample_files(run_dir):
    return {p.name: read_jsonl(p) for p in sorted((run_dir / "samples").iterdir())}


def processes(name):
    """Pids of processes whose title holds `name`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if name in path.read_text():
                found.append(int(path.parent.name))
    return found


def started(env, recipe, run_dir, *overrides):
    """A driver on its own."""
    command = [COHORT, "train", recipe, f"output={run_dir}", *overrides]
    return subprocess.Popen(command, env=env, cwd=recipe.parent, stdout=subprocess.DEVNULL)


def killed_and_resumed(env, recipe, run_dir, *, step):
    """A run whose driver is killed once `step` is done, and resumed to its end."""
    driver = started(env, recipe, run_dir)
    until(lambda: len(steps(run_dir)) >= step or driver.poll() is not None, 300, f"step {step}")
    driver.kill()
    driver.wait(30)
    assert not (run_dir / "summary.json").exists()
    cohort(env, "resume", run_dir)
    return run_dir


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def head(here):
    with raylets(here) as cluster:
        yield cluster


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
