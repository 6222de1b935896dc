"""Real Ray clusters for tests, runs on them, and what can be seen of both from outside."""

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

from cluster.records.metrics import read_jsonl

COHORT = Path(sys.executable).with_name("cohort")
RAY = Path(sys.executable).with_name("ray")
RECIPE = """
name: small
model: {init: small-llama}
data:
  questions: {task: chained-arithmetic, operations: 2, rows: 64}
  demonstrations: {task: chained-arithmetic, operations: 2, imperfect: 0.4, rows: 512}
  prompt: {template: plain}
  max_prompt_tokens: 32
  hold_out: 8
rollout: {max_new_tokens: 24, kv_cache_gb: 0.25}
reward: {format: 1.0, workers: 2}
evaluation: {samples_per_question: 2}
checkpoint_every: 2
stages:
  - {algorithm: sft, steps: 30, questions_per_step: 32, optimizer: {learning_rate: 3.0e-3, warmup_updates: 5}}
  - {algorithm: grpo, name: ruled, reward: rule, steps: 3, questions_per_step: 8, samples_per_question: 8,
     optimizer: {learning_rate: 2.0e-4}}
  - {algorithm: outcome_model, steps: 2, questions_per_step: 8, samples_per_question: 8, optimizer: {learning_rate: 5.0e-4}}
  - iterations: 2
    stages:
      - {algorithm: grpo, steps: 3, questions_per_step: 4, samples_per_question: 4, optimizer: {learning_rate: 2.0e-4}}
      - {algorithm: outcome_model, name: judge, steps: 1, questions_per_step: 8, samples_per_question: 8,
         optimizer: {learning_rate: 2.0e-4}}
"""
"""Demonstrations, the rule (steps 31 to 33), then iterative GRPO: from step 36 on a model judges that the run trained."""
STEPS = 43


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def raylets(tmp_path, nodes=1, cpus=2, watched=True):
    """A cluster of this machine's own: a head with token authentication and, where it is watched, a dashboard; more raylets."""
    port, dashboard, metrics = free_port(), free_port(), free_port()
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}"]
    commands = [[*head, f"--include-dashboard={str(watched).lower()}"]] + [[f"--address=127.0.0.1:{port}"]] * (nodes - 1)
    started = []
    try:
        for i, arguments in enumerate(commands):
            started.append(raylet(env, tmp_path / f"raylet-{i}.log", arguments, cpus))
        if watched:
            until(lambda: answers(env, f"http://127.0.0.1:{dashboard}"), 90, "the dashboard")
        address = {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        yield {**env, **address}, f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics"
    finally:
        _end(started)


@contextlib.contextmanager
def one_more(env, tmp_path, cpus):
    """Another node of the cluster, while the block lasts."""
    node = raylet(env, tmp_path / "raylet-more.log", [f"--address={env['RAY_ADDRESS']}"], cpus)
    try:
        yield
    finally:
        _end([node])


def raylet(env, said, arguments, cpus):
    command = [RAY, "start", *arguments, "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", "--block"]
    with said.open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    until(lambda: "Ray runtime started" in said.read_text(), 90, said.stem)
    return process


def _end(started):
    for process in reversed(started):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + 5  # they drain for half a minute
    for process in started:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def answers(env, dashboard):
    with contextlib.suppress(OSError):
        return listed("nodes", env, dashboard)


def listed(kind, env, dashboard):
    """The cluster's actors, jobs, nodes or tasks, as its dashboard tells them."""
    token = {"Authorization": f"Bearer {env['RAY_AUTH_TOKEN']}"}
    asked = urllib.request.Request(f"{dashboard}/api/v0/{kind}?limit=1000&detail=true", headers=token)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)["data"]["result"]["result"]


def until(condition, seconds, what, every=0.5):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(every)
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
    """Rows by file, but for the life that made their versions: a run that goes on makes the same ones in another life."""
    files = {p.name: read_jsonl(p) for p in sorted((run_dir / "samples").iterdir())}
    return {name: [{key: row[key] for key in row if key != "lives"} for row in rows] for name, rows in files.items()}


def processes(name):
    """Pids of processes whose title holds `name`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if name in path.read_text():
                found.append(int(path.parent.name))
    return found


def submitted(env, dashboard, name, *command):
    """Hand a command to the cluster as a job."""
    submit = [RAY, "job", "submit", f"--address={dashboard}", f"--submission-id={name}", "--no-wait", "--"]
    clean = {k: v for k, v in env.items() if k != "RAY_ADDRESS"}
    done = subprocess.run([*submit, *map(str, command)], env=clean, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def ended(env, dashboard, name):
    """What is known of a job once it has ended; None before."""
    job = {j["submission_id"]: j for j in listed("jobs", env, dashboard)}[name]
    return job if job["status"] in ("SUCCEEDED", "FAILED", "STOPPED") else None
