"""A run on a cluster that grows for it: engines and reward actors come and go while it trains."""

import signal
import subprocess
import time
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import pytest

from cluster.records.balance import Balance
from cluster.records.ledger import scalings
from tests.cluster.clusters import COHORT, RAY, RECIPE, cohort, one_more, raylets, steps, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
STAGE = (
    "{algorithm: grpo, reward: rule, steps: 1000, questions_per_step: 4, samples_per_question: 4, max_staleness: 1, "
    "optimizer: {learning_rate: 1.0e-4}}"
)
SMALL = ["name=elastic", "reward.workers=1", "data.demonstrations=null", f"stages=[{STAGE}]", "checkpoint_every=100"]


def test_workers_come_and_go_while_a_run_trains(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run_dir, log = tmp_path / "run", tmp_path / "train.log"
    with raylets(tmp_path, cpus=1, watched=False) as (env, _, _), ExitStack() as more:
        command = [COHORT, "train", tmp_path / "recipe.yaml", f"output={run_dir}", *SMALL]
        with log.open("w") as out:
            driver = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=out, stderr=out)
        until(lambda: len(steps(run_dir)) >= 2 or driver.poll() is not None, 300, "the first steps")
        asked = subprocess.Popen([COHORT, "scale", run_dir, "2", "--reward", "2"], env=env, stdout=subprocess.PIPE, text=True)
        # The cluster's one core is shared out; the demand for another is what Ray's autoscaler acts on.
        until(lambda: "{'CPU': 1.0}" in _demands(env), 120, "a demand for a core", every=2)
        at = len(steps(run_dir))
        time.sleep(3)
        more.enter_context(one_more(env, tmp_path, 1))
        said, _ = asked.communicate(timeout=400)
        assert asked.returncode == 0 and said.endswith(f"{run_dir}: 2 rollout workers, 2 reward workers\n"), said
        assert _engines() == {0, 1}
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
    balance = Balance(run_dir / "ledger.jsonl", finished=False)
    assert not balance.offenders and balance.facts()["stages"]["grpo"]["ordinals_trained"] == [[0, 4 * len(rows) - 1]]


def _engines():
    """The slots of engines that have not been ended in order; each leaves a record in shared memory while it lives."""
    return {int(path.name.split("_")[1].rpartition("-")[2]) for path in Path("/dev/shm").glob("cohort_elastic-0-*_engine")}


def _demands(env):
    """What `ray status` says is wanted and not there."""
    found = subprocess.run([RAY, "status"], env=env, capture_output=True, text=True, timeout=60)
    return found.stdout.partition("Pending Demands")[2] or found.stdout.partition("Demands")[2]
