"""deploy/slurm: what the script does on its nodes. `srun` and `scontrol` are replaced, and run what they are given here."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.stopping import GRACE_S, LAST_S
from tests.cluster.clusters import free_port, until
from tests.deploy.files import DEPLOY, ROOT, ray

SCRIPT = DEPLOY / "slurm/cohort.sbatch"
SRUN = """echo "srun $*" >>"$LOG"; while [[ $1 == -* ]]; do shift; done; exec "$@" """
SCONTROL = """if [ "$1" = show ]; then printf '%s\\n' n1 n2; else echo "scontrol $*" >>"$LOG"; fi"""
RAY = """echo "ray $*" >>"$LOG"; trap 'echo "ray ended" >>"$LOG"; kill $!; exit' TERM; sleep 60 & wait"""
COHORT = """
echo "cohort $*" >>"$LOG"
echo "$RAY_AUTH_MODE $RAY_ADDRESS $(stat -c %a "$RAY_AUTH_TOKEN_PATH" "${RAY_AUTH_TOKEN_PATH%/*}" | xargs)" >>"$LOG"
grep -cE '^[0-9a-f]{64}$' "$RAY_AUTH_TOKEN_PATH" >>"$LOG"
trap 'sleep 0.3; echo saved >>"$LOG"; kill $!; exit 4' TERM
[ -z "$ENDS" ] || exit "$ENDS"
touch "$LOG.begun"; sleep 60 & wait
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as the first node of two would, with programs in the place of those that it calls; {name: script}."""
    started = []

    def start(programs, **env):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in ({"srun": SRUN, "scontrol": SCONTROL} | programs).items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (folder / name).chmod(0o755)
        slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_ON_NODE": "2"}
        own = {"COHORT_BIN": str(folder), "COHORT_HEAD_IP": "127.0.0.1", "HOME": str(tmp_path), "LOG": str(tmp_path / "log")}
        command = ["bash", SCRIPT, "recipe.yaml", "output=/runs/mine", "seed=3"]
        with (tmp_path / "said").open("w") as said:
            started.append(subprocess.Popen(command, env=os.environ | slurm | own | env, stdout=said, stderr=said))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()


def log(tmp_path):
    return (tmp_path / "log").read_text().splitlines()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_told_to_end_saves_and_only_after_term_is_queued_again(job, tmp_path, told):
    process = job({"ray": RAY, "cohort": COHORT, "python": "cat >/dev/null"}, ENDS="")
    until(lambda: (tmp_path / "log.begun").exists(), 20, "the run", every=0.05)
    process.send_signal(told)
    assert process.wait(20) == 4
    found = log(tmp_path)
    assert "cohort train recipe.yaml --or-resume output=/runs/mine seed=3" in found
    assert "token 127.0.0.1:20077 600 700" in found and "1" in found
    assert ("scontrol requeue 77" in found) == (told == signal.SIGTERM)
    assert found.index("saved") < found.index("ray ended") and found.count("ray ended") == 2
    assert list(tmp_path.glob(".cohort*")) == []


def test_every_node_gets_ray_and_the_tokens_are_not_in_a_command_line(job, tmp_path):
    process = job({"ray": RAY, "cohort": COHORT, "python": "cat >/dev/null"}, ENDS="0")
    assert process.wait(20) == 0
    found = log(tmp_path)
    nodes = [ray(line.split()[1:]) for line in found if line.startswith("ray start")]
    assert sorted(node["head"] for node in nodes) == [False, True]
    (head,) = (node for node in nodes if node["head"])
    assert (head["node_ip_address"], head["port"], head["dashboard_host"]) == ("127.0.0.1", 20077, "127.0.0.1")
    (other,) = (node for node in nodes if not node["head"])
    assert other["address"] == "127.0.0.1:20077"
    assert {(node["num_cpus"], node["block"]) for node in nodes} == {(2, True)} and head["temp_dir"] != other["temp_dir"]
    (asked,) = (line for line in found if line.startswith("srun"))
    assert "--nodes=1 --ntasks-per-node=1 --nodelist=n2" in asked and not re.search("[0-9a-f]{64}", "".join(found))


def test_a_run_that_fails_fails_the_job(job, tmp_path):
    assert job({"ray": RAY, "cohort": COHORT, "python": "cat >/dev/null"}, ENDS="3").wait(20) == 3
    assert "scontrol requeue 77" not in log(tmp_path)


def test_slurm_tells_the_script_early_enough_and_queues_it_again_after_a_nodes_death():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SCRIPT.read_text(), re.MULTILINE))
    told = re.fullmatch(r"B:TERM@(\d+)", options["signal"])
    assert told and int(told[1]) > GRACE_S + LAST_S
    assert options["requeue"] == "" and options["open-mode"] == "append" and options["ntasks-per-node"] == "1"


DRIVER = f"""#!{sys.executable}
import os, signal, sys, time
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
assert ray.cluster_resources()["CPU"] == 4 and len(ray.nodes()) == 2
signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
open(os.environ["LOG"] + ".begun", "w").close()
time.sleep(60)
"""
OWN = f"""
echo "ray $*" >>"$LOG"
[[ " $* " == *" --head "* ]] && set -- "$@" --include-dashboard=false
exec {Path(sys.executable).with_name("ray")} "$@" --node-ip-address=127.0.0.1
"""
"""Ray itself, for two nodes on one machine."""


@pytest.mark.cluster
def test_two_nodes_of_a_job_are_one_cluster_which_ends_with_it(job, tmp_path):
    driver = tmp_path / "driver"
    driver.write_text(DRIVER)
    here = f'exec {sys.executable} "$@"'
    process = job({"ray": OWN, "python": here, "cohort": f"exec {sys.executable} {driver}"}, SLURM_JOB_ID=str(free_port()))
    until(lambda: (tmp_path / "log.begun").exists() or process.poll() is not None, 90, "the run")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 4, (tmp_path / "said").read_text()
    assert any(line.startswith("scontrol requeue") for line in log(tmp_path))
    sessions = re.findall(r"--temp-dir=(/tmp/cohort-\w+)/r", (tmp_path / "log").read_text())
    assert len(set(sessions)) == 2 and not any(map(os.path.exists, sessions))
    lines = [" ".join(process.cmdline()) for process in psutil.process_iter() if process.status() != psutil.STATUS_ZOMBIE]
    assert [line for line in lines if any(session in line for session in sessions)] == []
