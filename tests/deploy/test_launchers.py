"""deploy/ray-up.yaml as Ray reads it, deploy/skypilot.yaml by the fields that SkyPilot has, and all scripts in deploy/."""

import os
import subprocess

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.stopping import LAST_S
from tests.deploy.files import DEPLOY, ROOT, cohort, commands, manifest, ray, shellcheck

RAY_UP, SKY = manifest("ray-up.yaml"), manifest("skypilot.yaml")
STARTED = RAY_UP["head_start_ray_commands"] + RAY_UP["worker_start_ray_commands"]
SCRIPTS = {path.name: path.read_text() for path in (*DEPLOY.rglob("*.sh"), *DEPLOY.rglob("*.sbatch"))}
SCRIPTS |= {f"skypilot {name}": SKY[name] for name in ("setup", "run")} | {"ray up": "\n".join(STARTED)}
SKYPILOT = {"name": str, "workdir": str, "resources": dict, "envs": dict, "setup": str, "run": str}
RENTED = {"accelerators": str, "disk_size": int, "use_spot": bool, "job_recovery": dict}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_no_fault_that_shellcheck_knows(name):
    script = SCRIPTS[name]
    assert shellcheck(script, "sh" if script.startswith("#!/bin/sh") else "bash") == ""


def test_shellcheck_is_asked():
    assert "SC2086" in shellcheck("rm $1")


def test_ray_takes_the_cluster_and_would_refuse_a_misspelt_key():
    config = prepare_config(RAY_UP)
    validate_config(config)
    assert config["max_workers"] == len(RAY_UP["provider"]["worker_ips"]) == 2
    with pytest.raises(Exception, match="setup_comands"):
        validate_config(config | {"setup_comands": []})


def test_machines_of_ones_own_want_a_token_and_tell_jobs_their_time():
    starts = [line for line in STARTED if " start " in line]
    assert len(starts) == 2 and all(" RAY_AUTH_MODE=token " in line for line in starts)
    assert "~/.ray/auth_token" in RAY_UP["file_mounts"] and RAY_UP["setup_commands"] == ["chmod 600 ~/.ray/auth_token"]
    assert "RAY_JOB_STOP_WAIT_TIME_S=60 " in starts[0] and LAST_S < 60
    head, worker = (ray(words) for line in starts for words in commands(line, "ray"))
    assert (head["head"], head["port"], head["dashboard_host"]) == (True, 6379, "127.0.0.1")
    assert worker["address"] == "$RAY_HEAD_IP:6379"


def test_skypilot_has_every_field():
    assert {name: type(value) for name, value in SKY.items()} == SKYPILOT
    assert {name: type(value) for name, value in SKY["resources"].items()} == RENTED
    assert SKY["resources"]["job_recovery"] == {"max_restarts_on_errors": 3}
    assert (ROOT / SKY["envs"]["RECIPE"]).exists()


@pytest.mark.parametrize(("mirror", "given"), [("", []), ("s3://bucket/run", ["mirror=s3://bucket/run"])])
def test_a_rented_machine_begins_a_run_or_goes_on_with_the_mirrors(tmp_path, mirror, given):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    program = tmp_path / ".venv/bin/cohort"
    program.write_text('#!/bin/sh\n[ -z "$RAY_ADDRESS" ] && printf "%s\\n" "$@"\n')
    program.chmod(0o755)
    env = os.environ | {"RECIPE": SKY["envs"]["RECIPE"], "MIRROR": mirror, "HOME": str(tmp_path), "RAY_ADDRESS": "another:1"}
    done = subprocess.run(["bash", "-c", SKY["run"]], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    read = cohort(done.stdout.split("\n")[:-1])
    assert read["or_resume"] and read["overrides"] == [f"output={tmp_path}/run", *given]
