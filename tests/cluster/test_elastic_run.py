"""A run that is spread over a cluster of one-core nodes, which grows for it: engines and reward actors come and go."""

import json
import signal
import subprocess
import time
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import psutil
import pytest

from cluster.records.balance import Balance
from cluster.records.ledger import scalings
from tests.cluster.clusters import COHORT, RAY, RECIPE, cohort, one_more, raylets, steps, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
STAGE = "{{algorithm: grpo, name: {}, reward: rule, {}, questions_per_step: 4, samples_per_question: 4, optimizer: {}}}"
STILL = STAGE.format("still", "steps: 3", "{learning_rate: 0}")
MOVING = STAGE.format("moving", "steps: 1000, max_staleness: 1", "{learning_rate: 1.0e-4}")
STAGES = f"stages=[{STILL}, {MOVING}]"
SMALL = ["name=elastic", "learner.ranks=2", "data.demonstrations=null", "checkpoint_every=100", "cluster.grows=cpu"]
OTHERS = "IDLE", "Lookout", "Agent"
"""Of a node's processes: those that belong to no role."""
REWARD = "def odd(output): return float(len(output) % 2)\n"
"""Which a model that has learnt nothing may earn, so that its weights move."""


def test_a_run_has_a_node_for_every_actor_and_workers_come_and_go_while_it_trains(tmp_path, capsys):
    """Every bucket of weights crosses from node to node."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "mine.py").write_text(REWARD)
    run_dir, log = tmp_path / "run", tmp_path / "train.log"
    with raylets(tmp_path, nodes=4, cpus=1, watched=False) as (env, _, _), ExitStack() as more:
        reward = f"reward={{function: {tmp_path}/mine.py:odd, workers: 1}}"
        command = [COHORT, "train", tmp_path / "recipe.yaml", f"output={run_dir}", *SMALL, reward, STAGES]
        with log.open("w") as out:
            driver = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=out, stderr=out)
        until(lambda: len(steps(run_dir)) >= 5 or driver.poll() is not None, 300, "the first steps")
        assert _actors(env) == [1, 1, 1, 1], log.read_text()[-4000:]
        asked = subprocess.Popen([COHORT, "scale", run_dir, "2", "--reward", "2"], env=env, stdout=subprocess.PIPE, text=True)
        # The cluster's cores are taken; the demand for another is what Ray's autoscaler acts on.
        until(lambda: "{'CPU': 1.0}" in _demands(env), 120, "a demand for a core", every=2)
        at = len(steps(run_dir))
        time.sleep(3)
        more.enter_context(one_more(env, tmp_path, 2))
        said, _ = asked.communicate(timeout=400)
        assert asked.returncode == 0 and said.endswith(f"{run_dir}: 2 rollout workers, 2 reward workers\n"), said
        assert _engines() == {0, 1} and sorted(_actors(env)) == [1, 1, 1, 1, 2]
        joined = len(steps(run_dir))
        until(lambda: len(steps(run_dir)) >= joined + 2, 120, "steps with two engines")
        removed = cohort(env, "scale", run_dir, "1")
        until(lambda: "rollout-1 has ended what it was asked for" in log.read_text(), 90, "the end of an engine")
        assert _engines() == {0}, "it was ended in order"
        left = len(steps(run_dir))
        until(lambda: len(steps(run_dir)) >= left + 2, 120, "steps with one engine")
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(120) == 4, log.read_text()[-4000:]
    with capsys.disabled():
        print("\n" + said + removed)
    rows = steps(run_dir)
    counts = [row["rollout_workers"] for row in rows]
    assert [count for count, _ in groupby(counts)] == [1, 2, 1]
    assert rows[-1]["reward_workers"] == 2 and at < joined, "steps went on while it waited for a node"
    assert all(row["canary_mean"] < 1e-4 for row in rows)
    noted = [(x["role"], x["from"], x["to"]) for _, x in scalings(run_dir / "ledger.jsonl") if x["from"] != x["to"]]
    assert sorted(noted) == [("reward", 1, 2), ("rollout", 1, 2), ("rollout", 2, 1)]
    balance, moving = Balance(run_dir / "ledger.jsonl", finished=False), [row for row in rows if row["stage"] == "moving"]
    assert not balance.offenders and balance.facts()["stages"]["moving"]["ordinals_trained"] == [[0, 4 * len(moving) - 1]]
    # At learning rate 0 the published bytes are the same, whatever way they went.
    state = json.loads((run_dir / f"checkpoints/step_{len(rows)}/state.json").read_text())
    digests = [state["serving"]["digests"][str(version)] for version in range(1, 6)]
    assert len(set(digests[:3])) == 1 and len(set(digests)) == 3


def _actors(env):
    """How many of the run's actors each node of the cluster has."""
    found, port = [], env["RAY_ADDRESS"].removeprefix("127.0.0.1")
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if "raylet/raylet" in words[0] and any(x.startswith("--gcs-address=") and x.endswith(port) for x in words):
            titles = [" ".join(child.cmdline()) for child in process.children()]
            found.append(sum(t.startswith("ray::") and not any(x in t for x in OTHERS) for t in titles))
    return found


def _engines():
    """The slots of engines that have not been ended in order; each leaves a record in shared memory while it lives."""
    return {int(path.name.split("_")[1].rpartition("-")[2]) for path in Path("/dev/shm").glob("cohort_elastic-0-*_engine")}


def _demands(env):
    """What `ray status` says is wanted and not there."""
    found = subprocess.run([RAY, "status"], env=env, capture_output=True, text=True, timeout=60)
    return found.stdout.partition("Pending Demands")[2] or found.stdout.partition("Demands")[2]
