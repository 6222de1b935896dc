"""Checkpoints that are written while the run goes on: kills, stops and failures in the meantime."""

import pytest

from cluster.fleet.calls import RoleFailed
from cluster.run.checkpoints import CheckpointFailed, Checkpoints
from cluster.stopping import RunFailed, Stop, Stopped
from tests.cluster.test_pipeline import FakeRoles, configuration, drive, sample_files, trained
from tests.cluster.test_stopping import Signalled


class Behind(FakeRoles):
    """Has written a checkpoint when it is asked for the second time, or when it is waited for; the n-th save may fail then."""

    fails_at, pending, asked, saves = None, None, 0, 0

    def learn(self, method, *args):
        if method == "save":
            assert self.pending is None, "one at a time"
            self.pending, self.asked, self.saves = (args[1], self.store(args[0])), 0, self.saves + 1
        elif method == "writing":
            self.asked += 1
            if self.pending and (args[0] or self.asked > 1):
                (written, files), self.pending = self.pending, None
                if self.saves == self.fails_at:
                    raise RuntimeError("the disk is gone")
                written(files)
            return self.pending is not None
        else:
            return super().learn(method, *args)


class Stops(Signalled, Behind):
    """The same, with a signal on the way."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, data, tokenizer):
    return drive(configuration(tmp_path_factory.mktemp("runs") / "unbroken"), data, FakeRoles(tokenizer))


def checkpoints(config):
    return Checkpoints(config.output, keep=2).steps()


def assert_same(loop, unbroken):
    assert trained(loop.dir) == trained(unbroken.dir) and sample_files(loop.dir) == sample_files(unbroken.dir)
    assert loop.serving.digests == unbroken.serving.digests


def test_a_run_ends_when_its_last_checkpoint_is_written(tmp_path, data, tokenizer, unbroken):
    config = configuration(tmp_path / "run")
    assert_same(drive(config, data, Behind(tokenizer)), unbroken)
    assert checkpoints(config) == [5, 6]


@pytest.mark.parametrize("fail_step", range(2, 7))
def test_a_run_killed_while_a_checkpoint_is_written_resumes_to_the_same_end(tmp_path, data, tokenizer, unbroken, fail_step):
    config = configuration(tmp_path / "run")
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, Behind(tokenizer, fail_step=fail_step))
    assert checkpoints(config)[-1:] == [fail_step - 2][: fail_step > 2], "the newest was not written yet"
    assert_same(drive(config, data, Behind(tokenizer)), unbroken)


@pytest.mark.parametrize(
    ("method", "at", "takes", "kept"), [("generate", 5, 60.0, 4), ("step", 5, 0.0, 5), ("publish", 3, 0.0, 4)]
)
def test_a_stop_waits_for_the_checkpoint_under_way(tmp_path, data, tokenizer, unbroken, method, at, takes, kept):
    config = configuration(tmp_path / "run", checkpoint_every=2)
    with Stop() as stop, pytest.raises(Stopped, match=f"after step {kept};"):
        drive(config, data, Stops(tokenizer, method, at, takes), stop)
    assert checkpoints(config)[-1] == kept and not list((config.output / "checkpoints").glob(".*"))
    assert_same(drive(config, data, Behind(tokenizer)), unbroken)


def test_what_fails_behind_ends_the_run_at_the_next_boundary_and_it_goes_on_from_the_one_before(
    tmp_path, data, tokenizer, unbroken
):
    config, roles = configuration(tmp_path / "run"), Behind(tokenizer)
    roles.fails_at = 3
    with pytest.raises(CheckpointFailed, match=r"checkpoint of step 3: the disk is gone; .* intact \(steps 1, 2\)"):
        drive(config, data, roles)
    assert roles.steps == 4 and checkpoints(config) == [1, 2]
    assert_same(drive(config, data, Behind(tokenizer)), unbroken)


class Lost(Behind):
    """All engines are lost in the wave after the third step, beyond the crash budget."""

    def generate(self, waves, sampling, name, each, failed):
        if "step 4" in name:
            raise RoleFailed("rollout-0 failed and the crash budget of 3 is spent")
        return super().generate(waves, sampling, name, each, failed)


def test_a_run_that_fails_waits_for_the_checkpoint_under_way(tmp_path, data, tokenizer, unbroken):
    config = configuration(tmp_path / "run")
    with pytest.raises(RoleFailed, match="^rollout-0 failed and the crash budget of 3 is spent$"):
        drive(config, data, Lost(tokenizer))
    assert checkpoints(config)[-1] == 3 and not list((config.output / "checkpoints").glob(".*"))
    assert_same(drive(config, data, Behind(tokenizer)), unbroken)


def test_where_that_fails_too_both_errors_are_told(tmp_path, data, tokenizer):
    config, roles = configuration(tmp_path / "run"), Lost(tokenizer)
    roles.fails_at = 3
    with pytest.raises(RunFailed, match="rollout-0 failed and .* is spent; and checkpoint of step 3: the disk is gone"):
        drive(config, data, roles)
    assert checkpoints(config) == [1, 2]
