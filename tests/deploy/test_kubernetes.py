"""deploy/kubernetes: fields that KubeRay and Kubernetes have, sizes that fit each other, a token, and time to save."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.config.run_config import load
from cluster.fleet import actors
from cluster.stopping import LAST_S
from tests.deploy.files import DEPLOY, ROOT, cohort, manifest
from tests.deploy.schema import in_bytes, read
from tests.test_locks import pins

FILES = ("rayjob", "raycluster", "storage", "network")
JOB, CLUSTER, STORAGE, NETWORK = (read(manifest(f"kubernetes/{name}.yaml")) for name in FILES)
SPECS = [JOB.spec.rayClusterSpec, CLUSTER.spec]
PODS = [pod for spec in SPECS for pod in (spec.headGroupSpec.template, *(g.template for g in spec.workerGroupSpecs))]
DRAIN = DEPLOY / "kubernetes/drain.sh"


def test_a_misspelt_field_or_a_wrong_type_is_found():
    for change in ({"backofLimit": 3}, {"backoffLimit": "3"}, {"rayClusterSpec": {}}):
        wrong = manifest("kubernetes/rayjob.yaml")
        wrong["spec"] |= change
        with pytest.raises(ValidationError, match=next(iter(change))):
            read(wrong)


@pytest.mark.parametrize("spec", SPECS, ids=["job", "cluster"])
def test_a_cluster_wants_a_token_and_has_the_pinned_ray(spec):
    assert spec.authOptions.mode == "token"
    assert spec.rayVersion == pins("cpu")["ray"] == pins("gpu")["ray"]
    assert spec.headGroupSpec.rayStartParams == {"num-cpus": "0"}
    for group in spec.workerGroupSpecs:
        assert group.minReplicas <= group.replicas <= group.maxReplicas


def test_a_job_is_tried_again_goes_on_and_leaves_no_cluster():
    assert JOB.spec.backoffLimit > 0 and JOB.spec.shutdownAfterJobFinishes
    program, *words = JOB.spec.entrypoint.split()
    given = cohort(words)
    assert program == "cohort" and given["or_resume"]
    config = load(DEPLOY / "recipes/grpo.yaml", given["overrides"])
    claimed = config.learner.ranks + config.rollout.workers * config.rollout.tensor_parallel_size
    groups = JOB.spec.rayClusterSpec.workerGroupSpecs
    gpus = [g.replicas * g.template.spec.containers[0].resources.limits["nvidia.com/gpu"] for g in groups]
    assert claimed == sum(gpus) == 8
    head = JOB.spec.rayClusterSpec.headGroupSpec.template.spec.containers[0]
    mounted = tuple(mount.mountPath for mount in head.volumeMounts)
    assert str(given["recipe"]).startswith("/recipe/") and "/recipe" in mounted
    assert str(config.output).startswith("/runs/") and "/runs" in mounted


def test_a_pod_has_the_time_that_a_run_takes_to_save():
    for spec in SPECS:
        (head,) = spec.headGroupSpec.template.spec.containers
        saves = {variable.name: variable.value for variable in head.env}["RAY_JOB_STOP_WAIT_TIME_S"]
        for pod in (spec.headGroupSpec.template, *(g.template for g in spec.workerGroupSpecs)):
            assert pod.spec.terminationGracePeriodSeconds > float(saves) + LAST_S
            hook = pod.spec.containers[0].lifecycle.preStop.exec.command
            assert hook[0] == "sh" and ROOT / Path(hook[1]).relative_to("/opt/cohort") == DRAIN


@pytest.mark.parametrize("pod", PODS)
def test_volumes_are_there_and_memory_holds_what_is_in_dev_shm(pod):
    volumes = {volume.name: volume for volume in pod.spec.volumes}
    (container,) = pod.spec.containers
    assert sorted(volumes) == sorted(mount.name for mount in container.volumeMounts)
    shared = {mount.mountPath: volumes[mount.name] for mount in container.volumeMounts}
    assert shared["/runs"].persistentVolumeClaim.claimName == STORAGE.metadata.name
    limit = in_bytes(container.resources.limits["memory"])
    assert in_bytes(shared["/dev/shm"].emptyDir.sizeLimit) <= limit / 2
    assert in_bytes(container.resources.requests["memory"]) == limit


def test_every_pod_is_unprivileged_and_shut_off():
    (chosen,) = NETWORK.spec.podSelector.matchLabels.items()
    for pod in (*PODS, JOB.spec.submitterPodTemplate):
        assert chosen in pod.metadata.labels.items()
        assert pod.spec.securityContext.runAsUser == 1000 and pod.spec.containers[0].securityContext.capabilities.drop == [
            "ALL"
        ]
    among, operator, prometheus = NETWORK.spec.ingress
    assert [peer.podSelector.matchLabels for peer in among.from_] == [dict([chosen])]
    assert [port.port for rule in (operator, prometheus) for port in rule.ports] == [8265, 8080]


def test_only_the_autoscalers_pods_know_the_clusters_own_account_and_none_is_restarted():
    assert CLUSTER.spec.enableInTreeAutoscaling and CLUSTER.spec.autoscalerOptions.version == "v2"
    scaled = {group.groupName: (group.minReplicas, group.maxReplicas) for group in CLUSTER.spec.workerGroupSpecs}
    assert scaled == {"learner": (1, 1), "rollout": (1, 8)}
    heads = [spec.headGroupSpec.template for spec in SPECS]
    assert [pod.spec.automountServiceAccountToken for pod in PODS] == [pod is heads[1] for pod in PODS]
    assert {pod.spec.restartPolicy for pod in PODS[2:]} == {"Never"}


needs_pgrep = pytest.mark.skipif(shutil.which("pgrep") is None, reason="no pgrep, which the image has")


def waits_for_its_end(tmp_path, name, *arguments):
    """A process whose command line begins with `python .../name`, told TERM by the hook or not; its exit code and the hook's
    seconds."""
    program = tmp_path / name
    program.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(4)))\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\ntime.sleep(float(sys.argv[-1]))\n"
    )
    process = subprocess.Popen([sys.executable, program, *arguments])
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    mine = f"^[^ ]*python[^ ]* {tmp_path}/"
    begun = time.monotonic()
    subprocess.run(["sh", DRAIN, f"{mine}cohort (train|resume) ", f"{mine}actor "], check=True, timeout=30)
    return process.wait(0.5), time.monotonic() - begun


@needs_pgrep
def test_a_pod_waits_until_its_driver_has_saved(tmp_path):
    code, seconds = waits_for_its_end(tmp_path, "cohort", "train", "recipe.yaml", "60")
    assert code == 4 and 1 <= seconds < 10


@needs_pgrep
def test_a_pod_of_workers_waits_for_its_actors_and_tells_them_nothing(tmp_path):
    code, seconds = waits_for_its_end(tmp_path, "actor", "2")
    assert code == 0 and seconds > 0.5


def test_what_a_pod_waits_for_has_the_names_that_its_processes_have():
    driver, roles = (re.compile(default) for default in re.findall(r"-'(.*)'}$", DRAIN.read_text(), re.MULTILINE))
    venv = "/opt/cohort/.venv/bin"
    assert driver.search(f"{venv}/python3.11 {venv}/cohort train /recipe/recipe.yaml --or-resume")
    assert not driver.search(f"sh -c {venv}/cohort train recipe.yaml") and not driver.search(f"python {venv}/ray start --head")
    names = [name for name in vars(actors) if name.endswith("Actor")]
    assert len(names) == 3 and all(roles.search(f"ray::{name}.step") for name in names)
    assert not roles.search("ray::IDLE")
