"""Signals in every phase of a run: what is felt at once, what is saved, and that the run goes on as if there had been none."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

import cluster.run.launch
import cluster.run.preflight
from cluster.fibers import HUB
from cluster.fleet.bundles import PlacementError
from cluster.records.samples import evaluation_rows
from cluster.run.checkpoints import Checkpoints
from cluster.stopping import Stop, Stopped, grace_s
from tests.cluster.test_cli import invoke
from tests.cluster.test_pipeline import FakeRoles, configuration, drive, sample_files, trained
from tests.cluster.test_preflight import QUICKSTART, SMALL

FOREVER_S = 60
pytestmark = pytest.mark.timeout(2 * FOREVER_S)


def kill():
    os.kill(os.getpid(), signal.SIGTERM)


class Signalled(FakeRoles):
    """Gets a signal in the n-th call of a method, which then takes its time."""

    def __init__(self, tokenizer, method, at, takes=0.0):
        super().__init__(tokenizer)
        self.method, self.at, self.takes = method, at, takes

    def _count(self, method):
        self.at -= method == self.method
        if method == self.method and self.at == 0:
            kill()
            HUB.wait((), HUB.world.now() + self.takes)

    def generate(self, *args):
        self._count("generate")
        return super().generate(*args)

    def score(self, *args):
        self._count("score")
        return super().score(*args)

    def publish(self, *args):
        self._count("publish")
        return super().publish(*args)

    def learn(self, method, *args):
        self._count(method)
        return super().learn(method, *args)


def settings(path):
    return configuration(path, checkpoint_every=100, evaluation={"samples_per_question": 2, "every": 2})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data, tokenizer):
    return drive(settings(tmp_path_factory.mktemp("runs") / "undisturbed"), data, FakeRoles(tokenizer))


@pytest.mark.parametrize(
    ("method", "at", "takes", "kept"),
    [
        ("generate", 4, FOREVER_S, 3),  # the second step of GRPO is being sampled; two calls an evaluation
        ("score", 4, FOREVER_S, 3),
        ("generate", 5, FOREVER_S, 4),  # the evaluation after step 4
        ("step", 4, 0.0, 4),
        ("publish", 3, 0.0, 4),
        ("save", 1, 0.0, 2),
        ("begin_stage", 2, 0.0, 2),
    ],
)
def test_a_stop_is_felt_at_once_or_after_the_update_and_the_run_goes_on_as_undisturbed(
    tmp_path, data, tokenizer, undisturbed, method, at, takes, kept
):
    config, began = settings(tmp_path / "run"), time.monotonic()
    with Stop() as stop, pytest.raises(Stopped, match=f"after step {kept};"):
        drive(config, data, Signalled(tokenizer, method, at, takes), stop)
    assert time.monotonic() - began < FOREVER_S / 2
    assert Checkpoints(config.output, keep=2).newest()[1]["step"] == kept
    loop = drive(config, data, FakeRoles(tokenizer))
    assert sample_files(loop.dir) == sample_files(undisturbed.dir)
    assert trained(loop.dir) == trained(undisturbed.dir)
    assert loop.serving.digests == undisturbed.serving.digests
    assert evaluation_rows(loop.dir) == evaluation_rows(undisturbed.dir)


@pytest.mark.parametrize("method", ["step", "save"])
def test_what_outlasts_the_grace_period_is_abandoned_and_the_last_checkpoint_stands(
    tmp_path, data, tokenizer, undisturbed, method
):
    config, began = settings(tmp_path / "run"), time.monotonic()
    stuck = Signalled(tokenizer, method, 4 if method == "step" else 1, FOREVER_S)
    with Stop() as stop:
        stop.grace_s = 1.0
        with pytest.raises(
            Stopped, match=rf"after step {2 if method == 'step' else 0} \(finished steps lost: {1 if method == 'step' else 2};"
        ):
            drive(config, data, stuck, stop)
        assert stop.left_s() > 0, "there is time to end the actors in order"
    assert time.monotonic() - began < FOREVER_S / 2
    assert not list((config.output / "checkpoints").glob(".*"))
    assert sample_files(drive(config, data, FakeRoles(tokenizer)).dir) == sample_files(undisturbed.dir)


STUCK = """
import ctypes, os, signal, cluster.stopping as stopping
with stopping.Stop() as stop:
    stop.grace_s = stopping.LAST_S = 0.5
    stop.hold()
    os.kill(os.getpid(), signal.SIGTERM)
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex), libc.pthread_mutex_lock(mutex)
"""


def test_what_feels_no_signal_is_left_behind():
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4 and "the newest checkpoint stands" in done.stderr


def test_a_second_signal_breaks_off_anything(tmp_path, data, tokenizer):
    class Twice(Signalled):
        def _count(self, method):
            if method == "step" and self.steps == 3:
                kill()
            super()._count(method)

    with Stop() as stop, pytest.raises(Stopped, match="after step 2"):
        drive(settings(tmp_path / "run"), data, Twice(tokenizer, "step", 4, FOREVER_S), stop)


def test_the_grace_period_is_that_of_whoever_stops_the_run(monkeypatch):
    for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_JOB_STOP_WAIT_TIME_S"):
        monkeypatch.delenv(name, raising=False)
    assert (grace_s(None), grace_s(7.5)) == (30, 7.5)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert (grace_s(None), grace_s(7.5)) == (3, 7.5)
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "120")
    assert grace_s(None) == 120


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`cohort train` on the quickstart, its check left out."""
    from reward.judging.selftest import Report

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster.run.preflight, "check", lambda *_: Report())
    return lambda *overrides: invoke("train", QUICKSTART, *SMALL, "output=runs/here", *overrides)


def one_line(done, tmp_path):
    """What it says; nothing is left of a run that never began."""
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in done.output
    return done.stderr.splitlines()[-1]


@contextmanager
def connected(*_):
    yield


def stuck(*_, **options):
    kill()
    time.sleep(FOREVER_S)


@pytest.mark.parametrize(
    "place",
    ["cluster.run.preflight.check", "cluster.run.launch.connected", "cluster.run.launch.Roles", "cluster.run.launch.load_data"],
)
def test_a_signal_before_the_first_step_is_felt_at_once_and_leaves_nothing(start, tmp_path, monkeypatch, place):
    class Started:
        def __init__(self, *_, **options):
            self.start, self.stop = (lambda: None), (lambda deadline_s: None)

    monkeypatch.setattr("cluster.run.launch.connected", connected)
    monkeypatch.setattr("cluster.run.launch.Roles", Started)
    monkeypatch.setattr(place, stuck)
    began = time.monotonic()
    done = start()
    assert done.exit_code == 4 and time.monotonic() - began < FOREVER_S / 2
    assert one_line(done, tmp_path) == "stopped by a signal; nothing was begun"


def test_a_wrong_placement_exits_with_2_and_leaves_nothing(start, tmp_path, monkeypatch):
    def refuse(*_, **options):
        raise PlacementError("rollout-0 fits on no node.")

    monkeypatch.setattr("cluster.run.launch.connected", connected)
    monkeypatch.setattr("cluster.run.launch.Roles", refuse)
    done = start()
    assert (done.exit_code, one_line(done, tmp_path)) == (2, "error: rollout-0 fits on no node.")


def test_a_folder_of_temporary_files_too_deep_for_sockets_is_refused(start, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + "x" * 149)
    done = start()
    assert done.exit_code == 2
    assert one_line(done, tmp_path).startswith("error: TMPDIR: found a path of 150 bytes; expected at most 35")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("127.0.0.1:1", "found 127.0.0.1:1, where no Ray cluster answers within 2 s"),
        ("auto", r"found [\d.]+:1, where no Ray cluster answers within 2 s"),
        ("ray://127.0.0.1:1", "found ray://127.0.0.1:1; expected host:port"),
    ],
)
def test_a_dead_cluster_is_given_up_in_time(start, tmp_path, monkeypatch, address, found):
    monkeypatch.setenv("RAY_ADDRESS", address)
    # What `ray start` left of a cluster whose machine was switched off.
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", functools.cache(set))
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda *_, **__: "127.0.0.1:1")
    began = time.monotonic()
    done = start("cluster.start_deadline_s=2")
    assert done.exit_code == 2 and time.monotonic() - began < 30, done.output
    assert re.match(f"error: RAY_ADDRESS: {found}", one_line(done, tmp_path))
